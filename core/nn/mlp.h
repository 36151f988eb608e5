/* One to three linear layers with one activation between them: the embedders (state, action, timestep), the final
 * layer's MLP, the projector. core/hybridvla/parts.c declares them with their widths and activations. */
#ifndef HV_NN_MLP_H
#define HV_NN_MLP_H

#include "core/nn/params.h"
#include "core/tensor/arena.h"
#include "core/tensor/ops.h"

enum { HV_MLP_MAX_LAYERS = 3 };

typedef struct hv_mlp {
  int32_t layers;
  int32_t widths[HV_MLP_MAX_LAYERS + 1]; /* of the input, between, of the output */
  hv_activation activation;
  hv_param_id weight[HV_MLP_MAX_LAYERS], bias[HV_MLP_MAX_LAYERS];
} hv_mlp;

/* Hidden activations of one forward call; the caller keeps the input itself. */
typedef struct hv_mlp_saved {
  hv_tensor pre[HV_MLP_MAX_LAYERS - 1];    /* [n, widths[i + 1]] before the activation */
  hv_tensor hidden[HV_MLP_MAX_LAYERS - 1]; /* [n, widths[i + 1]] after it */
} hv_mlp_saved;

/* Declares "<prefix>.<names[i]>.weight" and ".bias" of each layer in the store's current group; `layers` and `widths`
 * of *mlp are set before. */
void hv_mlp_declare(hv_mlp *mlp, hv_params *params, const char *prefix, const char *const names[],
                    const hv_init weight_init[]);

/* Takes the tensors of *saved from the arena; `pre` only with `training`. */
void hv_mlp_take_saved(const hv_mlp *mlp, hv_arena *arena, hv_dtype dtype, int64_t n, bool training,
                       hv_mlp_saved *saved);

/* y [n, widths[layers]] from x [n, widths[0]]; y may be F32. */
void hv_mlp_forward(const hv_mlp *mlp, const hv_params *params, hv_tensor x, hv_mlp_saved *saved, hv_tensor y,
                    hv_stream *stream);

/* Adds parameter gradients; dx [n, widths[0]] is optional. Scratch is taken from the arena and released. */
void hv_mlp_backward(const hv_mlp *mlp, hv_params *params, hv_tensor x, const hv_mlp_saved *saved, hv_tensor dy,
                     hv_tensor dx, hv_arena *arena, hv_stream *stream);

#endif
