#include "core/nn/vit.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/nn/linear.h"

/* Declares tokens or position embeddings, [1, rows, width]. */
static hv_param_id declare_rows(hv_params *params, const char *prefix, const char *name, int64_t rows, int64_t width) {
  return hv_params_declare(params,
                           &(hv_param_spec){.prefix = prefix, .name = name, .shape = {1, rows, width}, .decay = true});
}

static void declare_tokens(const hv_vision_config *config, hv_params *params, hv_vit *vit) {
  const char *prefix = config->prefix;
  int64_t width = config->width, patch = config->patch_size;
  int64_t positions = hv_vit_patches(vit) + (config->class_position ? 1 : 0);
  vit->group = hv_params_begin_group(params, prefix);
  vit->cls_token = vit->reg_token = vit->patch_bias = vit->norm_pre_weight = vit->norm_pre_bias = -1;
  if (config->class_token) vit->cls_token = declare_rows(params, prefix, "cls_token", 1, width);
  if (config->register_tokens > 0) {
    vit->reg_token = declare_rows(params, prefix, "reg_token", config->register_tokens, width);
  }
  vit->pos_embed = declare_rows(params, prefix, "pos_embed", positions, width);
  vit->patch_weight = hv_params_declare(params, &(hv_param_spec){.prefix = prefix,
                                                                 .name = "patch_embed.proj.weight",
                                                                 .shape = {width, 3, patch, patch},
                                                                 .decay = true,
                                                                 .linear = true});
  if (config->patch_bias) {
    vit->patch_bias = hv_params_declare_vector(params, prefix, "patch_embed.proj.bias", width, HV_INIT_ZERO);
  }
  if (config->pre_norm) {
    vit->norm_pre_weight = hv_params_declare_vector(params, prefix, "norm_pre.weight", width, HV_INIT_ONE);
    vit->norm_pre_bias = hv_params_declare_vector(params, prefix, "norm_pre.bias", width, HV_INIT_ZERO);
  }
}

static void declare_block(const hv_vision_config *config, hv_params *params, int32_t index, hv_vit_block *block) {
  char prefix[HV_PREFIX_SIZE + 32];
  snprintf(prefix, sizeof prefix, "%s.blocks.%d", config->prefix, index);
  int64_t width = config->width, mlp = config->mlp_width;
  block->group = hv_params_begin_group(params, prefix);
  block->norm1_weight = hv_params_declare_vector(params, prefix, "norm1.weight", width, HV_INIT_ONE);
  block->norm1_bias = hv_params_declare_vector(params, prefix, "norm1.bias", width, HV_INIT_ZERO);
  block->qkv_weight = hv_params_declare_matrix(params, prefix, "attn.qkv.weight", 3 * width, width);
  block->qkv_bias = hv_params_declare_vector(params, prefix, "attn.qkv.bias", 3 * width, HV_INIT_ZERO);
  block->proj_weight = hv_params_declare_matrix(params, prefix, "attn.proj.weight", width, width);
  block->proj_bias = hv_params_declare_vector(params, prefix, "attn.proj.bias", width, HV_INIT_ZERO);
  block->norm2_weight = hv_params_declare_vector(params, prefix, "norm2.weight", width, HV_INIT_ONE);
  block->norm2_bias = hv_params_declare_vector(params, prefix, "norm2.bias", width, HV_INIT_ZERO);
  block->fc1_weight = hv_params_declare_matrix(params, prefix, "mlp.fc1.weight", mlp, width);
  block->fc1_bias = hv_params_declare_vector(params, prefix, "mlp.fc1.bias", mlp, HV_INIT_ZERO);
  block->fc2_weight = hv_params_declare_matrix(params, prefix, "mlp.fc2.weight", width, mlp);
  block->fc2_bias = hv_params_declare_vector(params, prefix, "mlp.fc2.bias", width, HV_INIT_ZERO);
  block->ls1 = block->ls2 = -1;
  if (config->layer_scale) {
    block->ls1 = hv_params_declare_vector(params, prefix, "ls1.gamma", width, HV_INIT_ONE);
    block->ls2 = hv_params_declare_vector(params, prefix, "ls2.gamma", width, HV_INIT_ONE);
  }
}

hv_status hv_vit_open(const hv_vision_config *config, hv_params *params, hv_vit *out) {
  *out = (hv_vit){.config = *config, .num_blocks = config->depth - 1};
  out->blocks = calloc((size_t)config->depth, sizeof *out->blocks);
  if (!out->blocks) return hv_error_memory("the blocks of a vision tower");
  declare_tokens(config, params, out);
  for (int32_t i = 0; i < out->num_blocks; i++) declare_block(config, params, i, &out->blocks[i]);
  return HV_OK;
}

bool hv_vision_is_unused(const hv_vision_config *config, const char *name) {
  char last_block[32];
  size_t prefix = strlen(config->prefix);
  snprintf(last_block, sizeof last_block, "blocks.%d.", config->depth - 1);
  const char *const unused[] = {last_block, "norm.", "attn_pool."};
  if (strncmp(name, config->prefix, prefix) != 0 || name[prefix] != '.') return false;
  for (size_t i = 0; i < sizeof unused / sizeof *unused; i++) {
    if (strncmp(name + prefix + 1, unused[i], strlen(unused[i])) == 0) return true;
  }
  return false;
}

void hv_vit_close(hv_vit *vit) {
  free(vit->blocks);
  *vit = (hv_vit){0};
}

hv_status hv_vit_saved_open(const hv_vit *vit, hv_vit_saved *out) {
  *out = (hv_vit_saved){0};
  out->blocks = calloc((size_t)vit->config.depth, sizeof *out->blocks);
  return out->blocks ? HV_OK : hv_error_memory("the activations of a vision tower");
}

void hv_vit_saved_close(hv_vit_saved *saved) {
  free(saved->blocks);
  *saved = (hv_vit_saved){0};
}

void hv_vit_segments(const hv_vit *vit, int64_t images, hv_segment *segments, hv_key_group *groups) {
  int32_t tokens = (int32_t)hv_vit_tokens(vit);
  for (int32_t i = 0; i < (int32_t)images; i++) {
    segments[i] = (hv_segment){.q_start = i * tokens, .q_rows = tokens, .own_start = i * tokens, .own_rows = tokens};
    groups[i] = (hv_key_group){.key_start = i * tokens, .key_rows = tokens, .first_segment = i, .segment_count = 1};
  }
}

static hv_dtype statistics_dtype(hv_dtype dtype) {
  return dtype == HV_F64 ? HV_F64 : HV_F32;
}

static void take_block_saved(const hv_vision_config *config, hv_arena *arena, hv_dtype dtype, int64_t n, bool training,
                             hv_vit_block_saved *out) {
  int64_t width = config->width;
  hv_dtype real = statistics_dtype(dtype);
  *out = (hv_vit_block_saved){
      .norm1 = hv_arena_take(arena, dtype, n, width),
      .qkv = hv_arena_take(arena, dtype, n, 3 * width),
      .attention = hv_arena_take(arena, dtype, n, width),
      .proj = hv_arena_take(arena, dtype, n, width),
      .sum = hv_arena_take(arena, dtype, n, width),
      .norm2 = hv_arena_take(arena, dtype, n, width),
      .hidden = hv_arena_take(arena, dtype, n, config->mlp_width),
      .fc2 = hv_arena_take(arena, dtype, n, width),
  };
  if (!training) return;
  out->stats1 = hv_arena_take(arena, real, n, 2);
  out->lse = hv_arena_take(arena, real, n, config->num_heads);
  out->stats2 = hv_arena_take(arena, real, n, 2);
  out->pre = hv_arena_take(arena, dtype, n, config->mlp_width);
}

/* The attention of one block on the [q | k | v] buffer. */
static hv_attention_args attention_args(const hv_vit *vit, const hv_vit_tables *tables,
                                        const hv_vit_block_saved *saved) {
  int64_t width = vit->config.width;
  int32_t head_dim = vit->config.width / vit->config.num_heads;
  return (hv_attention_args){
      .q = hv_tensor_cols(saved->qkv, 0, width),
      .k = hv_tensor_cols(saved->qkv, width, width),
      .v = hv_tensor_cols(saved->qkv, 2 * width, width),
      .segments = tables->segments,
      .num_heads = vit->config.num_heads,
      .num_kv_heads = vit->config.num_heads,
      .head_dim = head_dim,
      .max_q_rows = (int32_t)hv_vit_tokens(vit),
      .max_key_rows = (int32_t)hv_vit_tokens(vit),
      .uniform = true,
      .scale = 1.0 / sqrt((double)head_dim),
      .out = saved->attention,
      .lse = saved->lse,
  };
}

/* y [tokens, width] from saved->x; y may be saved->x where nothing is kept for a backward pass. */
static void block_forward(const hv_vit *vit, const hv_vit_block *block, hv_params *params, const hv_vit_tables *tables,
                          const hv_vit_block_saved *saved, hv_tensor y, hv_stream *stream) {
  hv_params_use(params, block->group, stream);
  double eps = vit->config.layer_norm_eps;
  hv_norm(stream, &(hv_norm_args){.kind = HV_NORM_LAYER,
                                  .eps = eps,
                                  .x = saved->x,
                                  .weight = hv_param_value(params, block->norm1_weight),
                                  .bias = hv_param_value(params, block->norm1_bias),
                                  .y = saved->norm1,
                                  .stats = saved->stats1});
  hv_linear(stream, &(hv_linear_args){.x = saved->norm1,
                                      .weight = hv_param_value(params, block->qkv_weight),
                                      .bias = hv_param_value(params, block->qkv_bias),
                                      .y = saved->qkv});
  hv_attention_args attention = attention_args(vit, tables, saved);
  hv_attention(stream, &attention);
  hv_linear(stream, &(hv_linear_args){.x = saved->attention,
                                      .weight = hv_param_value(params, block->proj_weight),
                                      .bias = hv_param_value(params, block->proj_bias),
                                      .y = saved->proj});
  hv_norm(stream, &(hv_norm_args){.kind = HV_NORM_LAYER,
                                  .eps = eps,
                                  .x = saved->x,
                                  .delta = saved->proj,
                                  .delta_scale = hv_param_value(params, block->ls1),
                                  .sum = saved->sum,
                                  .weight = hv_param_value(params, block->norm2_weight),
                                  .bias = hv_param_value(params, block->norm2_bias),
                                  .y = saved->norm2,
                                  .stats = saved->stats2});
  hv_linear(stream, &(hv_linear_args){.x = saved->norm2,
                                      .weight = hv_param_value(params, block->fc1_weight),
                                      .bias = hv_param_value(params, block->fc1_bias),
                                      .activation = vit->config.activation,
                                      .pre = saved->pre,
                                      .y = saved->hidden});
  hv_linear(stream, &(hv_linear_args){.x = saved->hidden,
                                      .weight = hv_param_value(params, block->fc2_weight),
                                      .bias = hv_param_value(params, block->fc2_bias),
                                      .y = saved->fc2});
  hv_residual_add(stream,
                  &(hv_residual_add_args){
                      .x = saved->sum, .delta = saved->fc2, .scale = hv_param_value(params, block->ls2), .y = y});
  hv_params_done(params, block->group, stream);
}

/* Tokens of all images in front of the first block. */
static void embed(const hv_vit *vit, hv_params *params, hv_tensor images, hv_tensor patches, hv_tensor projected,
                  hv_tensor embedded, hv_tensor normed, hv_tensor stats, hv_stream *stream) {
  const hv_vision_config *config = &vit->config;
  hv_params_use(params, vit->group, stream);
  hv_patchify_args patchify = {
      .images = images, .image_size = config->image_size, .patch_size = config->patch_size, .y = patches};
  for (int c = 0; c < 3; c++) {
    patchify.mean[c] = config->image_mean[c];
    patchify.std[c] = config->image_std[c];
  }
  hv_patchify(stream, &patchify);
  hv_linear(stream, &(hv_linear_args){.x = patches,
                                      .weight = hv_param_value(params, vit->patch_weight),
                                      .bias = hv_param_value(params, vit->patch_bias),
                                      .y = projected});
  hv_vit_embed(stream, &(hv_vit_embed_args){.patches = projected,
                                            .cls_token = hv_param_value(params, vit->cls_token),
                                            .reg_token = hv_param_value(params, vit->reg_token),
                                            .pos_embed = hv_param_value(params, vit->pos_embed),
                                            .images = images.rows,
                                            .y = embedded});
  if (config->pre_norm) {
    hv_norm(stream, &(hv_norm_args){.kind = HV_NORM_LAYER,
                                    .eps = config->layer_norm_eps,
                                    .x = embedded,
                                    .weight = hv_param_value(params, vit->norm_pre_weight),
                                    .bias = hv_param_value(params, vit->norm_pre_bias),
                                    .y = normed,
                                    .stats = stats});
  }
  hv_params_done(params, vit->group, stream);
}

void hv_vit_forward(const hv_vit *vit, hv_params *params, hv_tensor images, const hv_vit_tables *tables,
                    hv_tensor features, hv_vit_saved *saved, hv_arena *arena, hv_stream *stream) {
  const hv_vision_config *config = &vit->config;
  hv_dtype dtype = features.dtype;
  int64_t patches = images.rows * hv_vit_patches(vit), tokens = images.rows * hv_vit_tokens(vit);
  bool training = saved != NULL;
  size_t mark = hv_arena_mark(arena);

  hv_tensor pixels = hv_arena_take(arena, dtype, patches, 3 * (int64_t)config->patch_size * config->patch_size);
  hv_tensor embedded = hv_arena_take(arena, dtype, tokens, config->width);
  hv_tensor x = config->pre_norm ? hv_arena_take(arena, dtype, tokens, config->width) : embedded;
  hv_tensor stats = {0};
  if (training && config->pre_norm) stats = hv_arena_take(arena, statistics_dtype(dtype), tokens, 2);
  if (training) {
    saved->patches = pixels;
    saved->embedded = embedded;
    saved->pre_stats = stats;
  }
  size_t projected_mark = hv_arena_mark(arena);
  hv_tensor projected = hv_arena_take(arena, dtype, patches, config->width);
  embed(vit, params, images, pixels, projected, embedded, x, stats, stream);
  hv_arena_release(arena, projected_mark);

  hv_vit_block_saved scratch;
  if (!training) take_block_saved(config, arena, dtype, tokens, false, &scratch);
  for (int32_t i = 0; i < vit->num_blocks; i++) {
    if (training) take_block_saved(config, arena, dtype, tokens, true, &saved->blocks[i]);
    hv_vit_block_saved *block = training ? &saved->blocks[i] : &scratch;
    block->x = x;
    if (training) x = hv_arena_take(arena, dtype, tokens, config->width);
    block_forward(vit, &vit->blocks[i], params, tables, block, x, stream);
  }
  hv_gather_rows(stream,
                 &(hv_gather_rows_args){.src = x, .src_rows = tables->patch_rows, .dst = features, .count = patches});
  if (!training) hv_arena_release(arena, mark);
}

/* Backward pass of the block's MLP half, from dy: dsum [tokens, width], the gradient of the sum between the halves, may
 * be dy; dproj, the gradient of attention's projection, is dsum itself without LayerScale. */
static void mlp_backward(const hv_vit *vit, const hv_vit_block *block, hv_params *params,
                         const hv_vit_block_saved *saved, hv_tensor dy, hv_tensor dsum, hv_tensor dproj,
                         hv_arena *arena, hv_stream *stream) {
  size_t mark = hv_arena_mark(arena);
  hv_tensor ls1 = hv_param_value(params, block->ls1), ls2 = hv_param_value(params, block->ls2);
  hv_tensor dls1 = hv_param_gradient(params, block->ls1), dls2 = hv_param_gradient(params, block->ls2);

  hv_tensor dfc2 = dy;
  if (hv_present(ls2)) {
    dfc2 = hv_arena_take(arena, dy.dtype, dy.rows, dy.cols);
    hv_residual_scale_backward(
        stream, &(hv_residual_scale_backward_args){.dy = dy,
                                                   .delta = hv_present(dls2) ? saved->fc2 : (hv_tensor){0},
                                                   .scale = ls2,
                                                   .ddelta = dfc2,
                                                   .dscale = dls2});
  }
  hv_param_linear_gradients(params, block->fc2_weight, 1, block->fc2_bias, dfc2, saved->hidden, stream);
  hv_tensor dpre = hv_arena_take(arena, dy.dtype, dy.rows, vit->config.mlp_width);
  hv_linear_backward_input(stream, &(hv_linear_backward_input_args){.dy = dfc2,
                                                                    .weight = hv_param_value(params, block->fc2_weight),
                                                                    .activation = vit->config.activation,
                                                                    .pre = saved->pre,
                                                                    .dx = dpre});
  hv_param_linear_gradients(params, block->fc1_weight, 1, block->fc1_bias, dpre, saved->norm2, stream);
  hv_tensor dnorm = hv_arena_take(arena, dy.dtype, dy.rows, dy.cols);
  hv_linear_backward_input(stream, &(hv_linear_backward_input_args){
                                       .dy = dpre, .weight = hv_param_value(params, block->fc1_weight), .dx = dnorm});
  hv_norm_backward(stream, &(hv_norm_backward_args){.kind = HV_NORM_LAYER,
                                                    .dy = dnorm,
                                                    .x = saved->sum,
                                                    .weight = hv_param_value(params, block->norm2_weight),
                                                    .stats = saved->stats2,
                                                    .dresidual = dy,
                                                    .dx = dsum,
                                                    .dweight = hv_param_gradient(params, block->norm2_weight),
                                                    .dbias = hv_param_gradient(params, block->norm2_bias),
                                                    .delta = hv_present(dls1) ? saved->proj : (hv_tensor){0},
                                                    .delta_scale = ls1,
                                                    .ddelta = hv_present(ls1) ? dproj : (hv_tensor){0},
                                                    .ddelta_scale = dls1});
  hv_arena_release(arena, mark);
}

/* The gradient of [q | k | v], [tokens, 3 * width], from that of attention's output. */
static void attention_half_backward(const hv_vit *vit, const hv_vit_tables *tables, const hv_vit_block_saved *saved,
                                    hv_tensor dattention, hv_tensor dqkv, hv_arena *arena, hv_stream *stream) {
  hv_attention_args forward = attention_args(vit, tables, saved);
  int64_t width = vit->config.width;
  hv_attention_backward(stream, &(hv_attention_backward_args){
                                    .q = forward.q,
                                    .k = forward.k,
                                    .v = forward.v,
                                    .out = forward.out,
                                    .lse = forward.lse,
                                    .dout = dattention,
                                    .segments = forward.segments,
                                    .key_groups = tables->key_groups,
                                    .num_heads = forward.num_heads,
                                    .num_kv_heads = forward.num_kv_heads,
                                    .head_dim = forward.head_dim,
                                    .max_q_rows = forward.max_q_rows,
                                    .max_key_rows = forward.max_key_rows,
                                    .max_group_rows = forward.max_key_rows,
                                    .causal = false,
                                    .scale = forward.scale,
                                    .row_dot = hv_arena_take(arena, saved->lse.dtype, saved->lse.rows, saved->lse.cols),
                                    .dq = hv_tensor_cols(dqkv, 0, width),
                                    .dk = hv_tensor_cols(dqkv, width, width),
                                    .dv = hv_tensor_cols(dqkv, 2 * width, width)});
}

/* dx [tokens, width] from dy, which it may be. */
static void block_backward(const hv_vit *vit, const hv_vit_block *block, hv_params *params, const hv_vit_tables *tables,
                           const hv_vit_block_saved *saved, hv_tensor dy, hv_tensor dx, hv_arena *arena,
                           hv_stream *stream) {
  hv_params_use(params, block->group, stream);
  size_t mark = hv_arena_mark(arena);
  int64_t n = dy.rows, width = dy.cols;
  bool scaled = hv_present(hv_param_value(params, block->ls1));

  hv_tensor dproj = scaled ? hv_arena_take(arena, dy.dtype, n, width) : dx;
  mlp_backward(vit, block, params, saved, dy, dx, dproj, arena, stream);

  hv_param_linear_gradients(params, block->proj_weight, 1, block->proj_bias, dproj, saved->attention, stream);
  hv_tensor dattention = hv_arena_take(arena, dy.dtype, n, width);
  hv_linear_backward_input(stream,
                           &(hv_linear_backward_input_args){
                               .dy = dproj, .weight = hv_param_value(params, block->proj_weight), .dx = dattention});
  hv_tensor dqkv = hv_arena_take(arena, dy.dtype, n, 3 * width);
  attention_half_backward(vit, tables, saved, dattention, dqkv, arena, stream);
  hv_param_linear_gradients(params, block->qkv_weight, 1, block->qkv_bias, dqkv, saved->norm1, stream);
  hv_tensor dnorm = hv_arena_take(arena, dy.dtype, n, width);
  hv_linear_backward_input(stream, &(hv_linear_backward_input_args){
                                       .dy = dqkv, .weight = hv_param_value(params, block->qkv_weight), .dx = dnorm});
  hv_norm_backward(stream, &(hv_norm_backward_args){.kind = HV_NORM_LAYER,
                                                    .dy = dnorm,
                                                    .x = saved->x,
                                                    .weight = hv_param_value(params, block->norm1_weight),
                                                    .stats = saved->stats1,
                                                    .dresidual = dx,
                                                    .dx = dx,
                                                    .dweight = hv_param_gradient(params, block->norm1_weight),
                                                    .dbias = hv_param_gradient(params, block->norm1_bias)});
  hv_arena_release(arena, mark);
  hv_params_gradients_ready(params, block->group, stream);
  hv_params_done(params, block->group, stream);
}

/* The gradients of patch embedding, tokens and positions from dx, that of the first block's input. */
static void embed_backward(const hv_vit *vit, hv_params *params, int64_t images, const hv_vit_saved *saved,
                           hv_tensor dx, hv_arena *arena, hv_stream *stream) {
  const hv_vision_config *config = &vit->config;
  hv_params_use(params, vit->group, stream);
  size_t mark = hv_arena_mark(arena);
  hv_tensor dtokens = dx;
  if (config->pre_norm) {
    dtokens = hv_arena_take(arena, dx.dtype, dx.rows, dx.cols);
    hv_norm_backward(stream, &(hv_norm_backward_args){.kind = HV_NORM_LAYER,
                                                      .dy = dx,
                                                      .x = saved->embedded,
                                                      .weight = hv_param_value(params, vit->norm_pre_weight),
                                                      .stats = saved->pre_stats,
                                                      .dx = dtokens,
                                                      .dweight = hv_param_gradient(params, vit->norm_pre_weight),
                                                      .dbias = hv_param_gradient(params, vit->norm_pre_bias)});
  }
  hv_tensor dpatches = hv_arena_take(arena, dx.dtype, images * hv_vit_patches(vit), config->width);
  hv_vit_embed_backward(stream, &(hv_vit_embed_backward_args){.dy = dtokens,
                                                              .dpatches = dpatches,
                                                              .dcls_token = hv_param_gradient(params, vit->cls_token),
                                                              .dreg_token = hv_param_gradient(params, vit->reg_token),
                                                              .dpos_embed = hv_param_gradient(params, vit->pos_embed),
                                                              .images = images,
                                                              .prefix_tokens = hv_vit_tokens(vit) - hv_vit_patches(vit),
                                                              .has_cls_token = config->class_token,
                                                              .cls_has_position = config->class_position});
  hv_param_linear_gradients(params, vit->patch_weight, 1, vit->patch_bias, dpatches, saved->patches, stream);
  hv_arena_release(arena, mark);
  hv_params_gradients_ready(params, vit->group, stream);
  hv_params_done(params, vit->group, stream);
}

/* The first block that the backward pass must reach: num_blocks if none, -1 if it must reach the embeddings in front of
 * the blocks too. */
static int32_t first_trained_block(const hv_vit *vit, const hv_params *params) {
  if (hv_params_group(params, vit->group)->trainable) return -1;
  int32_t i = 0;
  while (i < vit->num_blocks && !hv_params_group(params, vit->blocks[i].group)->trainable) i++;
  return i;
}

void hv_vit_backward(const hv_vit *vit, hv_params *params, int64_t images, const hv_vit_tables *tables,
                     hv_tensor dfeatures, const hv_vit_saved *saved, hv_arena *arena, hv_stream *stream) {
  int32_t first = first_trained_block(vit, params);
  if (first >= vit->num_blocks && first >= 0) return;
  size_t mark = hv_arena_mark(arena);
  int64_t tokens = images * hv_vit_tokens(vit);
  hv_tensor dx = hv_arena_take(arena, dfeatures.dtype, tokens, vit->config.width);
  hv_fill(stream, &(hv_fill_args){.dst = dx});
  hv_gather_rows(stream, &(hv_gather_rows_args){
                             .src = dfeatures, .dst = dx, .dst_rows = tables->patch_rows, .count = dfeatures.rows});
  for (int32_t i = vit->num_blocks - 1; i >= 0 && i >= first; i--) {
    block_backward(vit, &vit->blocks[i], params, tables, &saved->blocks[i], dx, dx, arena, stream);
  }
  if (first < 0) embed_backward(vit, params, images, saved, dx, arena, stream);
  hv_arena_release(arena, mark);
}
