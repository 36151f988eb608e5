/* `hvla-train check`: what a model computes from one batch, for comparing with another implementation.
 *
 * in:  images U8 [B, V, S, S, 3], prompt_ids I32 [B, T], state F32 [B, state_dim], actions F32 [B, H, A],
 *      action_mask U8 [B, H] (optional), noise F32 [B, K, H, A], timesteps I32 [B, K]
 * out: loss, loss_diffusion, loss_ce [1], noise_pred [B, K, H, A], vision_features and image_tokens [B, V, P, ·],
 *      grad.<parameter> before clipping; with steps also losses [steps] and param.<parameter> after them; all F32
 *
 * What the objective does not read or compute is left out. */
#ifndef HV_TRAIN_CHECK_H
#define HV_TRAIN_CHECK_H

#include "core/tensor/device.h"

typedef struct hv_check_options {
  const char *model, *batch, *out; /* paths: model directory, safetensors in and out */
  int32_t objective;               /* hv_objective; −1: the model's */
  hv_dtype dtype;
  int64_t steps; /* AdamW steps on the batch after the first pass */
  double learning_rate;
} hv_check_options;

/* HV_ERR_INPUT names what is wrong with the batch: a missing tensor, a dtype, a shape, a range, all shapes together.
 * After an error nothing has been written. */
HV_NODISCARD hv_status hv_check(const hv_check_options *options, hv_device *device);

#endif
