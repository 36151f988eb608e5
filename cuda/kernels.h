/* The function that launches each operation, one for each entry of HV_OPS; their contracts are in core/tensor/ops.h. */
#ifndef HV_CUDA_KERNELS_H
#define HV_CUDA_KERNELS_H

#include "core/tensor/ops.h"

#define HV_CUDA_PROTOTYPE(name) void hv_cuda_##name(hv_stream *stream, const hv_##name##_args *args);
HV_OPS(HV_CUDA_PROTOTYPE)
#undef HV_CUDA_PROTOTYPE

#endif
