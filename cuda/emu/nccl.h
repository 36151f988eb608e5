/* The emulated device's stand-in for NCCL: the types and functions that cuda/comm_nccl.cu uses, between processes of
 * one machine through shared memory (nccl.cc).
 *
 * As with NCCL's non-blocking communicators, a call is in its queue only once ncclCommGetAsyncError no longer returns
 * ncclInProgress. Collectives run in the queue like any other work, so as late as events allow. Sums are taken in the
 * order of ranks, and BF16 is rounded after every addition. If a rank dies, the others get ncclRemoteError; if calls
 * differ between ranks, ncclInvalidUsage. */
#ifndef HV_CUDA_EMU_NCCL_H
#define HV_CUDA_EMU_NCCL_H

#include <stddef.h>

#include "cuda/runtime.h"

typedef hv_queue *cudaStream_t;

typedef enum ncclResult_t {
  ncclSuccess,
  ncclSystemError = 2,
  ncclInvalidUsage = 5,
  ncclRemoteError = 6,
  ncclInProgress = 7,
} ncclResult_t;

typedef enum ncclDataType_t {
  ncclInt8,
  ncclInt64 = 4,
  ncclFloat32 = 7,
  ncclFloat64 = 8,
  ncclBfloat16 = 9
} ncclDataType_t;

typedef enum ncclRedOp_t { ncclSum } ncclRedOp_t;

typedef struct ncclUniqueId {
  char internal[128];
} ncclUniqueId;

typedef struct ncclConfig_t {
  int blocking;
} ncclConfig_t;
#define NCCL_CONFIG_INITIALIZER                                                                                        \
  { 1 }

typedef struct ncclComm *ncclComm_t;

ncclResult_t ncclGetVersion(int *version);
const char *ncclGetErrorString(ncclResult_t result);
ncclResult_t ncclGetUniqueId(ncclUniqueId *id);
ncclResult_t ncclCommInitRankConfig(ncclComm_t *comm, int size, ncclUniqueId id, int rank, ncclConfig_t *config);
ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *out);
ncclResult_t ncclCommAbort(ncclComm_t comm);
ncclResult_t ncclCommDestroy(ncclComm_t comm);

ncclResult_t ncclAllReduce(const void *from, void *to, size_t count, ncclDataType_t type, ncclRedOp_t op,
                           ncclComm_t comm, cudaStream_t stream);
ncclResult_t ncclReduceScatter(const void *from, void *to, size_t count, ncclDataType_t type, ncclRedOp_t op,
                               ncclComm_t comm, cudaStream_t stream);
ncclResult_t ncclAllGather(const void *from, void *to, size_t count, ncclDataType_t type, ncclComm_t comm,
                           cudaStream_t stream);
ncclResult_t ncclBroadcast(const void *from, void *to, size_t count, ncclDataType_t type, int root, ncclComm_t comm,
                           cudaStream_t stream);

#endif
