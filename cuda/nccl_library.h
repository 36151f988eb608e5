/* The functions of NCCL that are used: from the library, opened at run time (nccl_library.cu), or from the emulator's
 * stand-in (emu/nccl.cc). */
#ifndef HV_CUDA_NCCL_LIBRARY_H
#define HV_CUDA_NCCL_LIBRARY_H

#include "core/base/status.h"

#ifdef __CUDACC__
#include <nccl.h>
#else
#include "cuda/emu/nccl.h"
#endif

#define HV_NCCL_FUNCTIONS(X)                                                                                           \
  X(GetVersion)                                                                                                        \
  X(GetErrorString)                                                                                                    \
  X(GetUniqueId)                                                                                                       \
  X(CommInitRankConfig)                                                                                                \
  X(CommGetAsyncError)                                                                                                 \
  X(CommAbort)                                                                                                         \
  X(CommDestroy)                                                                                                       \
  X(AllReduce)                                                                                                         \
  X(ReduceScatter)                                                                                                     \
  X(AllGather)                                                                                                         \
  X(Broadcast)

typedef struct hv_nccl_library {
  void *file; /* NULL: nothing was opened */
#define HV_NCCL_MEMBER(name) decltype(&nccl##name) name;
  HV_NCCL_FUNCTIONS(HV_NCCL_MEMBER)
#undef HV_NCCL_MEMBER
} hv_nccl_library;

/* On failure one line says what is missing or too old; NCCL 2.18 or newer is needed. */
HV_NODISCARD hv_status hv_nccl_library_open(hv_nccl_library *out);
void hv_nccl_library_close(hv_nccl_library *library);

#endif
