/* HybridVLA on one device: vision towers → projector → token sequence → decoder → noise head and vocabulary head → the
 * two losses, forward and backward. A model is its configuration and its parameters; what a step computes lies in the
 * caller's arena. */
#ifndef HV_HYBRIDVLA_MODEL_H
#define HV_HYBRIDVLA_MODEL_H

#include "core/hybridvla/config.h"
#include "core/hybridvla/sequence.h"
#include "core/nn/mlp.h"
#include "core/nn/params.h"
#include "core/tensor/arena.h"
#include "core/tensor/plan.h"

typedef struct hv_model hv_model;

/* Declares every parameter and allocates nothing yet: then freeze (hv_params_freeze), hv_params_allocate, and load or
 * initialise. The config is copied. */
HV_NODISCARD hv_status hv_model_open(const hv_config *config, hv_device *device, hv_dtype dtype, hv_model **out);
void hv_model_close(hv_model *model);

const hv_config *hv_model_get_config(const hv_model *model);
hv_params *hv_model_params(hv_model *model);
hv_device *hv_model_device(const hv_model *model);

/* Uploads the model's constants (rotary table for `max_positions`, alpha_bar, vision segments for `max_images`), or
 * larger ones if they do not suffice; an error leaves those that there are. After allocation, while nothing runs on the
 * model; waits for the stream. */
HV_NODISCARD hv_status hv_model_prepare(hv_model *model, int64_t max_positions, int64_t max_images, hv_stream *stream);

/* What the backward pass recomputes of decoder layers; HV_RECOMPUTE_NONE at the start. Results are the same to the bit.
 */
void hv_model_set_recompute(hv_model *model, hv_recomputation recompute);

typedef struct hv_loss_weights {
  double diffusion, ce; /* the paper adds the two: 1 and 1 */
} hv_loss_weights;

/* What one forward pass leaves in the arena. A caller may read all fields but `saved`, which is for the backward pass.
 */
typedef struct hv_model_activations {
  hv_tensor vision_features; /* T [B V P, vision width] */
  hv_tensor image_tokens;    /* T [B V P, D] */
  hv_tensor noise_pred;      /* S [B K H, A]; absent without diffusion */
  hv_tensor logits; /* S [label rows, vocabulary]; with `training` in F32 or F64 overwritten by their gradient */
  hv_tensor loss_diffusion;     /* S [1, 1] */
  hv_tensor loss_ce;            /* S [1, 1] */
  struct hv_model_saved *saved; /* owned by the model; valid until its next forward pass */
} hv_model_activations;

/* Runs a built and uploaded batch. With `training`, the arena keeps activations and the losses' gradients for
 * hv_model_backward; else layers share their scratch and it holds little more than the results. */
void hv_model_forward(hv_model *model, const hv_sequence *sequence, const hv_loss_weights *weights, bool training,
                      hv_arena *arena, hv_stream *stream, hv_model_activations *out);

/* Adds the gradients of all trainable parameters of the batch that hv_model_forward ran last, on the same arena. */
void hv_model_backward(hv_model *model, const hv_sequence *sequence, const hv_model_activations *activations,
                       hv_arena *arena, hv_stream *stream);

/* A step to plan, with the largest batch within the limits. */
typedef struct hv_model_step {
  const hv_config *config;
  hv_dtype dtype;
  hv_dtype gradients; /* of parameters: F32, or `dtype` */
  hv_sequence_limits limits;
  const char *const *frozen; /* the patterns given to hv_params_freeze */
  int frozen_count;
  hv_recomputation recompute;
  bool training; /* with a backward pass */
} hv_model_step;

/* Arena bytes for one step, found by running it on the plan device; `counts` (optional) receives its work. */
HV_NODISCARD hv_status hv_model_plan_step(const hv_model_step *step, size_t *arena_bytes, hv_plan_counts *counts);

#endif
