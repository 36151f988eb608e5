/* The communicator over NCCL: collectives on a stream of their own, between the cards of all ranks.
 *
 * A thread watches it: a rank that has ended (the side channel tells), an asynchronous error of NCCL, or a collective
 * that makes no way for longer than the time-out ends the communicator on every rank; streams that wait for it go on,
 * and hv_comm_status tells which rank and which operation it was.
 */
#ifndef HV_CUDA_COMM_NCCL_H
#define HV_CUDA_COMM_NCCL_H

#include "core/tensor/comm.h"
#include "cuda/runtime.h"

/* For hv_device_methods.comm_open. */
HV_NODISCARD hv_status hv_comm_nccl_open(hv_device *device, hv_runtime *runtime, const hv_comm_options *options,
                                         hv_comm **out);

#endif
