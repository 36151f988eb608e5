/* Attention by cuDNN, for the vision towers: forward passes in BF16 over uniform segments (ops.h) that keep nothing for
 * a backward pass. cuDNN is opened at run time (attention_cudnn.cu); if it is missing, too old or has no engine for a
 * shape, the built-in kernel (attention.cu) runs. The emulator has no cuDNN (attention_no_library.cu). Not thread-safe.
 */
#ifndef HV_CUDA_ATTENTION_LIBRARY_H
#define HV_CUDA_ATTENTION_LIBRARY_H

#include "core/tensor/ops.h"
#include "cuda/runtime.h"

typedef struct hv_attention_library hv_attention_library;

/* Without cuDNN, or with HVLA_CUDNN=0 in the environment, *out is a library that takes no operation, and the log says
 * why. */
HV_NODISCARD hv_status hv_attention_library_open(hv_attention_library **out);
void hv_attention_library_close(hv_attention_library *library); /* NULL is allowed */

/* For tests on machines without a card: makes plans for a card with these properties (in cuDNN's JSON form), none of
 * which can be launched. *out must be closed after an error, too. cuDNN needs a libcuda.so.1 that accepts its kernels.
 */
HV_NODISCARD hv_status hv_attention_library_open_for(const char *properties, hv_attention_library **out);

/* Whether the library has an engine for the operation. Queues nothing. */
bool hv_attention_library_takes(hv_attention_library *library, const hv_attention_args *args);

/* Queues the operation if the library takes it; otherwise returns false and queues nothing. The engine for a shape is
 * chosen once. Launch errors are the stream's. */
bool hv_attention_library_run(hv_attention_library *library, hv_stream *stream, const hv_attention_args *args);

/* The library of a stream's device. */
hv_attention_library *hv_stream_attention_library(hv_stream *stream);

#endif
