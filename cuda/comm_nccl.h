/* The communicator over NCCL: collectives between the cards of all ranks, on a stream of their own.
 *
 * A watcher thread ends the communicator on every rank if a rank has ended (the side channel, hv_peers, says so), NCCL
 * has met an asynchronous error, or pending collectives make no progress for longer than the time-out. Streams that
 * wait for them then go on, and hv_comm_status says which rank and which operation failed. */
#ifndef HV_CUDA_COMM_NCCL_H
#define HV_CUDA_COMM_NCCL_H

#include "core/tensor/comm.h"
#include "cuda/runtime.h"

/* For hv_device_methods.comm_open. */
HV_NODISCARD hv_status hv_comm_nccl_open(hv_device *device, hv_runtime *runtime, const hv_comm_options *options,
                                         hv_comm **out);

#endif
