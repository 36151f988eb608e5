/* linear and linear_swiglu for few rows, as in the steps of a prediction. */
#ifndef HV_CUDA_LINEAR_H
#define HV_CUDA_LINEAR_H

#include "core/tensor/ops.h"

/* Whether the functions below take the operands: bf16, at most 16 rows, rows of x and weight that can be read 16 bytes
 * at a time. */
bool hv_linear_is_few(hv_tensor x, hv_tensor weight);
void hv_linear_few(hv_stream *stream, const hv_linear_args *args);
void hv_linear_swiglu_few(hv_stream *stream, const hv_linear_swiglu_args *args); /* leaves gate_up unwritten */

#endif
