/* The architecture of one model: what config.json holds, with defaults filled in; configs/7b.yaml shows its keys under
 * `model`. A plain value without pointers; reading and writing it is core/io/model_config.h. */
#ifndef HV_HYBRIDVLA_CONFIG_H
#define HV_HYBRIDVLA_CONFIG_H

#include <stdbool.h>
#include <stdint.h>

#include "core/nn/decoder.h"
#include "core/nn/vit.h"

enum {
  HV_MAX_CAMERAS = 8,
  HV_MAX_TOWERS = 2,
  HV_NAME_SIZE = 64, /* bytes of a camera's or a key's name, with its NUL */
  HV_MAX_DIFFUSION_STEPS = 1000,
};

typedef enum hv_objective { HV_HYBRID, HV_DIFFUSION, HV_AUTOREGRESSIVE } hv_objective;
typedef enum hv_projector_kind {
  HV_PROJECTOR_FUSED_GELU_MLP,
  HV_PROJECTOR_GELU_MLP,
  HV_PROJECTOR_LINEAR
} hv_projector_kind;
typedef enum hv_image_resize { HV_RESIZE_NAIVE, HV_RESIZE_LETTERBOX } hv_image_resize;

typedef struct hv_config {
  int32_t action_dim, action_chunk;
  int32_t state_dim; /* 0: no state token */
  int32_t num_cameras;
  char cameras[HV_MAX_CAMERAS][HV_NAME_SIZE];
  hv_objective objective;
  hv_norm_kind final_norm; /* HV_NORM_VARIANCE or HV_NORM_RMS */
  hv_projector_kind projector;
  hv_image_resize image_resize;
  int32_t num_towers;
  hv_vision_config vision[HV_MAX_TOWERS];
  hv_llm_config llm;
  int32_t diffusion_steps; /* T; the schedule is squaredcos_cap_v2 */
  int32_t action_base, action_bins;
  int32_t token_bos, token_eos, token_pad, token_bod, token_eod;
  int32_t token_empty; /* between <EOD> and the action tokens; -1: none */
} hv_config;

static inline int32_t hv_config_patches(const hv_config *config) {
  int32_t side = config->vision[0].image_size / config->vision[0].patch_size;
  return side * side;
}

/* Width of the concatenated vision features. */
static inline int32_t hv_config_vision_width(const hv_config *config) {
  int32_t width = 0;
  for (int32_t i = 0; i < config->num_towers; i++) width += config->vision[i].width;
  return width;
}

static inline bool hv_config_has_diffusion(const hv_config *config) {
  return config->objective != HV_AUTOREGRESSIVE;
}
static inline bool hv_config_has_autoregression(const hv_config *config) {
  return config->objective != HV_DIFFUSION;
}

#endif
