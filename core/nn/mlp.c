#include "core/nn/mlp.h"

#include <stdio.h>

#include "core/nn/linear.h"

void hv_mlp_declare(hv_mlp *mlp, hv_params *params, const char *prefix, const char *const names[],
                    const hv_init weight_init[]) {
  for (int32_t i = 0; i < mlp->layers; i++) {
    char name[256];
    snprintf(name, sizeof name, "%s.%s.weight", prefix, names[i]);
    mlp->weight[i] = hv_params_declare(params, &(hv_param_spec){.name = name,
                                                                .shape = {mlp->widths[i + 1], mlp->widths[i]},
                                                                .init = weight_init[i],
                                                                .decay = true,
                                                                .linear = true});
    snprintf(name, sizeof name, "%s.%s.bias", prefix, names[i]);
    mlp->bias[i] = hv_params_declare_vector(params, NULL, name, mlp->widths[i + 1], HV_INIT_ZERO);
  }
}

void hv_mlp_take_saved(const hv_mlp *mlp, hv_arena *arena, hv_dtype dtype, int64_t n, bool training,
                       hv_mlp_saved *saved) {
  *saved = (hv_mlp_saved){0};
  for (int32_t i = 0; i + 1 < mlp->layers; i++) {
    if (training) saved->pre[i] = hv_arena_take(arena, dtype, n, mlp->widths[i + 1]);
    saved->hidden[i] = hv_arena_take(arena, dtype, n, mlp->widths[i + 1]);
  }
}

void hv_mlp_forward(const hv_mlp *mlp, const hv_params *params, hv_tensor x, hv_mlp_saved *saved, hv_tensor y,
                    hv_stream *stream) {
  for (int32_t i = 0; i < mlp->layers; i++) {
    bool last = i + 1 == mlp->layers;
    hv_linear(stream, &(hv_linear_args){.x = i == 0 ? x : saved->hidden[i - 1],
                                        .weight = hv_param_value(params, mlp->weight[i]),
                                        .bias = hv_param_value(params, mlp->bias[i]),
                                        .activation = last ? HV_ACT_NONE : mlp->activation,
                                        .pre = last ? (hv_tensor){0} : saved->pre[i],
                                        .y = last ? y : saved->hidden[i]});
  }
}

void hv_mlp_backward(const hv_mlp *mlp, hv_params *params, hv_tensor x, const hv_mlp_saved *saved, hv_tensor dy,
                     hv_tensor dx, hv_arena *arena, hv_stream *stream) {
  size_t mark = hv_arena_mark(arena);
  for (int32_t i = mlp->layers - 1; i >= 0; i--) {
    hv_param_linear_gradients(params, mlp->weight[i], 1, mlp->bias[i], dy, i == 0 ? x : saved->hidden[i - 1], stream);
    if (i == 0 && !hv_present(dx)) break;
    hv_tensor below = i == 0 ? dx : hv_arena_take(arena, x.dtype, x.rows, mlp->widths[i]);
    hv_linear_backward_input(stream,
                             &(hv_linear_backward_input_args){.dy = dy,
                                                              .weight = hv_param_value(params, mlp->weight[i]),
                                                              .activation = i == 0 ? HV_ACT_NONE : mlp->activation,
                                                              .pre = i == 0 ? (hv_tensor){0} : saved->pre[i - 1],
                                                              .dx = below});
    dy = below;
  }
  hv_arena_release(arena, mark);
}
