/* A vision transformer as timm builds it: patch embedding, class and register tokens, position embedding, blocks with
 * or without LayerScale. Its features are the patch tokens that leave the second-to-last block; the last block and the
 * final norm are neither run nor declared. One parameter group for the tokens, and one for each block that runs. */
#ifndef HV_NN_VIT_H
#define HV_NN_VIT_H

#include "core/nn/params.h"
#include "core/tensor/arena.h"
#include "core/tensor/ops.h"

enum { HV_PREFIX_SIZE = 128 /* bytes of a tower's parameter prefix, with its NUL */ };

typedef struct hv_vision_config {
  char prefix[HV_PREFIX_SIZE]; /* of the parameter names, without the last dot */
  int32_t width, depth, num_heads, mlp_width, patch_size, image_size;
  double layer_norm_eps;
  bool class_token, layer_scale, pre_norm;
  int32_t register_tokens;
  hv_activation activation; /* HV_ACT_GELU, HV_ACT_GELU_TANH or HV_ACT_QUICK_GELU */
  double image_mean[3], image_std[3];
  /* Not in config.json, told by the tensors in the file: is there a patch bias, and a position row for the class token?
   */
  bool patch_bias, class_position;
} hv_vision_config;

typedef struct hv_vit_block {
  hv_group_id group;
  hv_param_id norm1_weight, norm1_bias, qkv_weight, qkv_bias, proj_weight, proj_bias, ls1;
  hv_param_id norm2_weight, norm2_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias, ls2;
} hv_vit_block;

typedef struct hv_vit {
  hv_vision_config config;
  hv_group_id group; /* of patch embedding, tokens and positions */
  hv_param_id patch_weight, patch_bias, cls_token, reg_token, pos_embed, norm_pre_weight, norm_pre_bias;
  int32_t num_blocks; /* that run: depth − 1 */
  hv_vit_block *blocks;
} hv_vit;

/* Activations of one block, [tokens, ·]; without a backward pass through the towers, all blocks share one set as
 * scratch. */
typedef struct hv_vit_block_saved {
  hv_tensor x, norm1, stats1, qkv, attention, lse, proj, sum, norm2, stats2, pre, hidden, fc2;
} hv_vit_block_saved;

typedef struct hv_vit_saved {
  hv_tensor patches;          /* [images P, 3 patch²] */
  hv_tensor embedded;         /* tokens before norm_pre */
  hv_tensor pre_stats;        /* of norm_pre */
  hv_vit_block_saved *blocks; /* [num_blocks], owned */
} hv_vit_saved;

/* Whether `name` is a tensor of published checkpoints on which no feature depends: of the tower's last block, its final
 * norm or its pooling. */
bool hv_vision_is_unused(const hv_vision_config *config, const char *name);

/* Declares the tower's parameters. HV_ERR_MEMORY. */
HV_NODISCARD hv_status hv_vit_open(const hv_vision_config *config, hv_params *params, hv_vit *out);
void hv_vit_close(hv_vit *vit);

HV_NODISCARD hv_status hv_vit_saved_open(const hv_vit *vit, hv_vit_saved *out);
void hv_vit_saved_close(hv_vit_saved *saved);

static inline int64_t hv_vit_patches(const hv_vit *vit) {
  int64_t side = vit->config.image_size / vit->config.patch_size;
  return side * side;
}
static inline int64_t hv_vit_tokens(const hv_vit *vit) {
  return hv_vit_patches(vit) + (vit->config.class_token ? 1 : 0) + vit->config.register_tokens;
}

/* Fills the attention tables of `images` images on the host: segments [images] and key groups [images]. */
void hv_vit_segments(const hv_vit *vit, int64_t images, hv_segment *segments, hv_key_group *groups);

/* The same on the device, and the token rows of the patches. */
typedef struct hv_vit_tables {
  hv_tensor segments;   /* I32 [images, 6] */
  hv_tensor key_groups; /* I32 [images, 4]; absent in a forward pass alone */
  hv_tensor patch_rows; /* I32 [1, images P]: token rows of the patches, in order */
} hv_vit_tables;

/* features [images P, width] (a column slice is fine) from images U8 [images, S S 3]. With `saved`, activations stay in
 * the arena for the backward pass; without, everything taken is released. */
void hv_vit_forward(const hv_vit *vit, hv_params *params, hv_tensor images, const hv_vit_tables *tables,
                    hv_tensor features, hv_vit_saved *saved, hv_arena *arena, hv_stream *stream);

/* Adds the gradients of the tower's trainable parameters, from dfeatures [images P, width]. */
void hv_vit_backward(const hv_vit *vit, hv_params *params, int64_t images, const hv_vit_tables *tables,
                     hv_tensor dfeatures, const hv_vit_saved *saved, hv_arena *arena, hv_stream *stream);

#endif
