/* The parameter gradients of a linear layer, as far as its parameters are trainable. */
#ifndef HV_NN_LINEAR_H
#define HV_NN_LINEAR_H

#include "core/nn/params.h"
#include "core/tensor/ops.h"

/* Adds dyᵀ x to the gradient of `stacked` weights that begin at `weight`, and the column sums of dy to that of `bias`
 * (negative: none). Frozen parameters are left out. The first product of a step sets the weight's gradient instead of
 * adding to it, which saves writing and reading zeros. */
static inline void hv_param_linear_gradients(hv_params *params, hv_param_id weight, int stacked, hv_param_id bias,
                                             hv_tensor dy, hv_tensor x, hv_stream *stream) {
  hv_tensor dweight = hv_param_stacked_gradient(params, weight, stacked);
  hv_tensor dbias = hv_param_gradient(params, bias);
  if (dy.rows == 0 || (!hv_present(dweight) && !hv_present(dbias))) return;
  bool first = hv_present(dweight) && hv_param_gradient_begin(params, weight, stacked, stream);
  hv_linear_backward_weight(stream, &(hv_linear_backward_weight_args){
                                        .dy = dy, .x = x, .dweight = dweight, .set_dweight = first, .dbias = dbias});
}

#endif
