/* Attention by cuDNN, for the vision towers: the forward pass of uniform segments (ops.h) that nothing is kept of for a
 * backward pass, in BF16. cuDNN is opened at run time (attention_cudnn.cu); where it is absent, too old or has no
 * engine for a shape, the device's own kernel runs. The emulator has none (attention_no_library.cu). Not thread-safe.
 */
#ifndef HV_CUDA_ATTENTION_LIBRARY_H
#define HV_CUDA_ATTENTION_LIBRARY_H

#include "core/tensor/ops.h"
#include "cuda/runtime.h"

typedef struct hv_attention_library hv_attention_library;

/* Without cuDNN, or with HVLA_CUDNN=0 in the environment, *out takes nothing, and the log says why. */
HV_NODISCARD hv_status hv_attention_library_open(hv_attention_library **out);
void hv_attention_library_close(hv_attention_library *library); /* NULL is allowed */

/* For tests on machines without a card: plans are made as for one of these properties (cuDNN's own JSON of them), and
 * none can be launched. *out is to be closed after an error, too. cuDNN wants a libcuda.so.1 that takes its kernels. */
HV_NODISCARD hv_status hv_attention_library_open_for(const char *properties, hv_attention_library **out);

/* Whether the library has an engine for the operation; nothing is queued. */
bool hv_attention_library_takes(hv_attention_library *library, const hv_attention_args *args);

/* Queues the operation if the library takes it; false: it does not, and nothing was queued. The engine for a shape is
 * looked for once. Errors of the launch are the stream's. */
bool hv_attention_library_run(hv_attention_library *library, hv_stream *stream, const hv_attention_args *args);

/* The state of a stream's device. */
hv_attention_library *hv_stream_attention_library(hv_stream *stream);

#endif
