/* Matrix products by cuBLASLt (matmul.cu), which is opened at run time, and by plain loops in the emulator
 * (emu/matmul.cc). Sums are float; f32 operands are never rounded to TF32. The library's algorithm for a shape is
 * chosen once, by its heuristics or by measuring, and kept: a shape gives the same bytes as long as the device is open,
 * and in another process that reads the choices which this one wrote. */
#ifndef HV_CUDA_MATMUL_H
#define HV_CUDA_MATMUL_H

#include "core/base/status.h"
#include "core/base/text.h"
#include "core/tensor/device.h"
#include "cuda/runtime.h"

typedef struct hv_matmul hv_matmul; /* the library's state of one device */

/* On failure one line says what is missing. */
HV_NODISCARD hv_status hv_matmul_open(hv_runtime *runtime, hv_matmul **out);
void hv_matmul_close(hv_matmul *matmul);

/* Bytes of workspace in device memory that a product may use. */
size_t hv_matmul_workspace(const hv_matmul *matmul);

/* One of these; c, bias and the activation are optional, op transposes if asked to:
 *   d = gelu_tanh(op(a) op(b) + bias),  or  d = op(a) op(b) + c + bias */
typedef struct hv_matmul_args {
  hv_tensor a; /* T [m, k]; [k, m] with transpose_a */
  hv_tensor b; /* T [k, n]; [n, k] with transpose_b */
  bool transpose_a, transpose_b;
  hv_tensor c;    /* dtype and shape of d, optional; may be d */
  hv_tensor bias; /* T [1, n], optional; only if d is T */
  bool gelu_tanh; /* only without c, and if d is T */
  hv_tensor d;    /* T or F32 [m, n] */
} hv_matmul_args;

/* Whether the library has an algorithm for the operands. */
bool hv_matmul_takes(hv_matmul *matmul, const hv_matmul_args *args);

/* Queues a product that the library takes and whose sizes are not 0. `workspace` has hv_matmul_workspace bytes and must
 * stay unused by others until the product has ended. While choices are measured, the product of a new shape runs many
 * times, and the call waits for it. */
HV_NODISCARD hv_status hv_matmul_run(hv_matmul *matmul, hv_queue *queue, const hv_matmul_args *args, void *workspace);

/* Queues any product, by a slow built-in kernel (matmul_plain.cu). */
void hv_matmul_plain(hv_stream *stream, const hv_matmul_args *args);

/* The state of a stream's device. */
hv_matmul *hv_stream_matmul(hv_stream *stream);

/* As hv_device_write_choices, hv_device_read_choices and hv_device_measure_choices (core/tensor/device.h). */
void hv_matmul_write_choices(const hv_matmul *matmul, hv_text *out);
HV_NODISCARD hv_status hv_matmul_read_choices(hv_matmul *matmul, const char *text, bool *fits);
bool hv_matmul_measure_choices(hv_matmul *matmul, bool on);

/* Number of shapes that have been asked for so far; it stays constant once work repeats. */
int64_t hv_matmul_shapes(const hv_matmul *matmul);

#endif
