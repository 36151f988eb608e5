#include "core/nn/decoder.h"

#include <math.h>
#include <stdio.h>

#include "core/nn/linear.h"

static int64_t query_width(const hv_llm_config *llm) {
  return (int64_t)llm->num_attention_heads * hv_llm_head_dim(llm);
}

static int64_t key_width(const hv_llm_config *llm) {
  return (int64_t)llm->num_key_value_heads * hv_llm_head_dim(llm);
}

void hv_decoder_layer_declare(const hv_llm_config *llm, hv_params *params, int32_t index, hv_decoder_layer *out) {
  enum { INPUT_NORM, Q, K, V, O, POST_NORM, GATE, UP, DOWN, PARAMETERS };
  static const char *const names[PARAMETERS] = {
      "input_layernorm.weight",  "self_attn.q_proj.weight", "self_attn.k_proj.weight",
      "self_attn.v_proj.weight", "self_attn.o_proj.weight", "post_attention_layernorm.weight",
      "mlp.gate_proj.weight",    "mlp.up_proj.weight",      "mlp.down_proj.weight"};
  int64_t hidden = llm->hidden_size, inner = llm->intermediate_size;
  const int64_t rows[PARAMETERS] = {
      [INPUT_NORM] = hidden, [Q] = query_width(llm), [K] = key_width(llm), [V] = key_width(llm), [O] = hidden,
      [POST_NORM] = hidden,  [GATE] = inner,         [UP] = inner,         [DOWN] = hidden};
  const int64_t cols[PARAMETERS] = {
      [Q] = hidden, [K] = hidden, [V] = hidden, [O] = query_width(llm), [GATE] = hidden, [UP] = hidden, [DOWN] = inner};
  char prefix[64];
  hv_param_spec specs[PARAMETERS];
  snprintf(prefix, sizeof prefix, "llm_backbone.llm.model.layers.%d", index);
  for (int i = 0; i < PARAMETERS; i++) {
    bool matrix = cols[i] > 0;
    specs[i] = (hv_param_spec){.prefix = prefix,
                               .name = names[i],
                               .shape = {rows[i], cols[i]},
                               .init = matrix ? HV_INIT_NORMAL : HV_INIT_ONE,
                               .decay = matrix,
                               .linear = matrix};
  }
  out->group = hv_params_begin_group(params, prefix);
  out->input_norm = hv_params_declare(params, &specs[INPUT_NORM]);
  out->qkv = hv_params_declare_stacked(params, &specs[Q], 3);
  out->o = hv_params_declare(params, &specs[O]);
  out->post_norm = hv_params_declare(params, &specs[POST_NORM]);
  out->gate_up = hv_params_declare_stacked(params, &specs[GATE], 2);
  out->down = hv_params_declare(params, &specs[DOWN]);
}

/* Norms and SwiGLU outputs: cheap to recompute. */
static void take_cheap(const hv_llm_config *llm, hv_arena *arena, hv_dtype dtype, int64_t n, int64_t m,
                       hv_decoder_saved *out) {
  int64_t hidden = llm->hidden_size;
  out->norm1 = hv_arena_take(arena, dtype, n, hidden);
  if (m != n) {
    out->query_norm = hv_arena_take(arena, dtype, m, hidden);
    out->query_x = hv_arena_take(arena, dtype, m, hidden);
  }
  out->norm2 = hv_arena_take(arena, dtype, m, hidden);
  out->hidden = hv_arena_take(arena, dtype, m, llm->intermediate_size);
}

/* Results of matrix products and attention, and row statistics. */
static void take_costly(const hv_llm_config *llm, hv_arena *arena, hv_dtype dtype, int64_t n, int64_t m, bool training,
                        hv_decoder_saved *out) {
  hv_dtype real = dtype == HV_F64 ? HV_F64 : HV_F32;
  if (m == n) {
    out->qkv = hv_arena_take(arena, dtype, n, query_width(llm) + 2 * key_width(llm));
    out->q = hv_tensor_cols(out->qkv, 0, query_width(llm));
  } else {
    out->qkv = hv_arena_take(arena, dtype, n, 2 * key_width(llm));
    out->q = hv_arena_take(arena, dtype, m, query_width(llm));
  }
  out->attention = hv_arena_take(arena, dtype, m, query_width(llm));
  out->sum = hv_arena_take(arena, dtype, m, llm->hidden_size);
  out->gate_up = hv_arena_take(arena, dtype, m, 2 * (int64_t)llm->intermediate_size);
  if (!training) return;
  out->stats1 = hv_arena_take(arena, real, n, 2);
  out->lse = hv_arena_take(arena, real, m, llm->num_attention_heads);
  out->stats2 = hv_arena_take(arena, real, m, 2);
}

void hv_decoder_take_saved(const hv_llm_config *llm, hv_arena *arena, hv_dtype dtype, int64_t n, int64_t m,
                           bool training, hv_decoder_saved *out) {
  *out = (hv_decoder_saved){0};
  take_cheap(llm, arena, dtype, n, m, out);
  take_costly(llm, arena, dtype, n, m, training, out);
}

void hv_decoder_take_kept(const hv_llm_config *llm, hv_arena *arena, hv_dtype dtype, int64_t n, int64_t m,
                          hv_recompute recompute, hv_decoder_saved *out) {
  *out = (hv_decoder_saved){0};
  if (recompute == HV_RECOMPUTE_NONE) take_cheap(llm, arena, dtype, n, m, out);
  if (recompute != HV_RECOMPUTE_BLOCK) take_costly(llm, arena, dtype, n, m, true, out);
}

void hv_decoder_take_rest(const hv_llm_config *llm, hv_arena *arena, hv_dtype dtype, int64_t n, int64_t m,
                          hv_recompute recompute, hv_decoder_saved *out) {
  if (recompute != HV_RECOMPUTE_NONE) take_cheap(llm, arena, dtype, n, m, out);
  if (recompute == HV_RECOMPUTE_BLOCK) take_costly(llm, arena, dtype, n, m, true, out);
}

/* Keys and values of the rows of this call: the last columns of qkv. */
static hv_tensor own_keys(const hv_llm_config *llm, hv_tensor qkv) {
  return hv_tensor_cols(qkv, qkv.cols - 2 * key_width(llm), key_width(llm));
}
static hv_tensor own_values(const hv_llm_config *llm, hv_tensor qkv) {
  return hv_tensor_cols(qkv, qkv.cols - key_width(llm), key_width(llm));
}

static bool has_query_rows(const hv_decoder_rows *rows) {
  return hv_present(rows->query_rows);
}

static void gather(hv_tensor src, hv_tensor rows, hv_tensor dst, hv_stream *stream) {
  hv_gather_rows(stream, &(hv_gather_rows_args){.src = src, .src_rows = rows, .dst = dst, .count = dst.rows});
}

/* Copies norm1 and x of the rows that leave the layer. */
static void gather_queries(const hv_decoder_rows *rows, hv_tensor x, const hv_decoder_saved *saved, hv_stream *stream) {
  gather(saved->norm1, rows->query_rows, saved->query_norm, stream);
  gather(x, rows->query_rows, saved->query_x, stream);
}

static void norm(const hv_llm_config *llm, const hv_params *params, hv_param_id weight, hv_tensor x, hv_tensor y,
                 hv_tensor stats, hv_stream *stream) {
  hv_norm(stream, &(hv_norm_args){.kind = HV_NORM_RMS,
                                  .eps = llm->rms_norm_eps,
                                  .x = x,
                                  .weight = hv_param_value(params, weight),
                                  .y = y,
                                  .stats = stats});
}

/* Computes q, k and v and rotates q and k; with a cache, writes k and v into it. */
static void project_qkv(const hv_llm_config *llm, const hv_decoder_layer *layer, hv_params *params,
                        const hv_decoder_rows *rows, const hv_kv_cache_layer *cache, hv_tensor x,
                        const hv_decoder_saved *saved, hv_stream *stream) {
  hv_tensor weight = hv_param_stacked_value(params, layer->qkv, 3);
  hv_tensor keys = own_keys(llm, saved->qkv), values = own_values(llm, saved->qkv);
  hv_rotary_args rotary = {
      .q = saved->q,
      .k = keys,
      .positions = rows->positions,
      .cos_sin = rows->cos_sin,
      .head_dim = hv_llm_head_dim(llm),
      .q_out = saved->q,
      .k_out = keys,
  };
  if (cache) {
    rotary.v = values;
    rotary.kv_rows = rows->cache_rows;
    rotary.k_out = cache->k;
    rotary.v_out = cache->v;
  }
  if (!has_query_rows(rows)) {
    hv_linear(stream, &(hv_linear_args){.x = saved->norm1, .weight = weight, .y = saved->qkv});
    hv_rotary(stream, &rotary);
    return;
  }
  gather_queries(rows, x, saved, stream);
  hv_linear(stream, &(hv_linear_args){
                        .x = saved->query_norm, .weight = hv_tensor_rows(weight, 0, query_width(llm)), .y = saved->q});
  hv_linear(stream, &(hv_linear_args){.x = saved->norm1,
                                      .weight = hv_tensor_rows(weight, query_width(llm), 2 * key_width(llm)),
                                      .y = saved->qkv});
  rotary.q = rotary.q_out = (hv_tensor){0};
  hv_rotary(stream, &rotary);
  hv_rotary(stream, &(hv_rotary_args){.q = saved->q,
                                      .positions = rows->query_positions,
                                      .cos_sin = rows->cos_sin,
                                      .head_dim = hv_llm_head_dim(llm),
                                      .q_out = saved->q});
}

static hv_attention_args attention_args(const hv_llm_config *llm, const hv_decoder_rows *rows,
                                        const hv_kv_cache_layer *cache, const hv_decoder_saved *saved) {
  return (hv_attention_args){
      .q = saved->q,
      .k = cache ? cache->k : own_keys(llm, saved->qkv),
      .v = cache ? cache->v : own_values(llm, saved->qkv),
      .segments = rows->segments,
      .num_heads = llm->num_attention_heads,
      .num_kv_heads = llm->num_key_value_heads,
      .head_dim = hv_llm_head_dim(llm),
      .max_q_rows = rows->max_q_rows,
      .max_key_rows = rows->max_key_rows,
      .causal = true,
      .scale = 1.0 / sqrt((double)hv_llm_head_dim(llm)),
      .out = saved->attention,
      .lse = saved->lse,
  };
}

void hv_decoder_layer_forward(const hv_llm_config *llm, const hv_decoder_layer *layer, hv_params *params,
                              const hv_decoder_rows *rows, const hv_kv_cache_layer *cache, hv_tensor x,
                              const hv_decoder_saved *saved, hv_tensor y, hv_stream *stream) {
  hv_params_use(params, layer->group, stream);
  norm(llm, params, layer->input_norm, x, saved->norm1, saved->stats1, stream);
  project_qkv(llm, layer, params, rows, cache, x, saved, stream);
  hv_attention_args attention = attention_args(llm, rows, cache, saved);
  hv_attention(stream, &attention);
  hv_linear(stream, &(hv_linear_args){.x = saved->attention,
                                      .weight = hv_param_value(params, layer->o),
                                      .residual = has_query_rows(rows) ? saved->query_x : x,
                                      .y = saved->sum});
  norm(llm, params, layer->post_norm, saved->sum, saved->norm2, saved->stats2, stream);
  hv_tensor gate_up_weight = hv_param_stacked_value(params, layer->gate_up, 2);
  if (!hv_present(y)) {
    hv_linear(stream, &(hv_linear_args){.x = saved->norm2, .weight = gate_up_weight, .y = saved->gate_up});
  } else {
    hv_linear_swiglu(stream, &(hv_linear_swiglu_args){.x = saved->norm2,
                                                      .weight = gate_up_weight,
                                                      .gate_up = saved->gate_up,
                                                      .keep = hv_present(saved->stats2),
                                                      .y = saved->hidden});
    hv_linear(stream,
              &(hv_linear_args){
                  .x = saved->hidden, .weight = hv_param_value(params, layer->down), .residual = saved->sum, .y = y});
  }
  hv_params_done(params, layer->group, stream);
}

/* Recomputes the tensors of hv_decoder_take_rest from x and the kept ones, except `hidden`, SwiGLU's output:
 * hv_swiglu_backward recomputes that. */
static void make_again(const hv_llm_config *llm, const hv_decoder_layer *layer, hv_params *params,
                       const hv_decoder_rows *rows, hv_tensor x, hv_recompute recompute, const hv_decoder_saved *saved,
                       hv_stream *stream) {
  if (recompute == HV_RECOMPUTE_NONE) return;
  if (recompute == HV_RECOMPUTE_BLOCK) {
    hv_decoder_layer_forward(llm, layer, params, rows, NULL, x, saved, (hv_tensor){0}, stream);
    return;
  }
  hv_params_use(params, layer->group, stream);
  norm(llm, params, layer->input_norm, x, saved->norm1, saved->stats1, stream);
  if (has_query_rows(rows)) gather_queries(rows, x, saved, stream);
  norm(llm, params, layer->post_norm, saved->sum, saved->norm2, saved->stats2, stream);
  hv_params_done(params, layer->group, stream);
}

/* The SwiGLU half of the layer: dsum [m, D] from dy. If `hidden` was not kept, its memory first holds its gradient,
 * which hv_swiglu_backward then replaces by the recomputed `hidden`. */
static void mlp_backward(const hv_decoder_layer *layer, hv_params *params, hv_recompute recompute,
                         const hv_decoder_saved *saved, hv_tensor dy, hv_tensor dsum, hv_arena *arena,
                         hv_stream *stream) {
  size_t mark = hv_arena_mark(arena);
  bool kept = recompute == HV_RECOMPUTE_NONE;
  hv_tensor hidden = saved->hidden;
  hv_tensor dhidden = kept ? hv_arena_take(arena, dy.dtype, hidden.rows, hidden.cols) : hidden;
  hv_tensor dgate_up = hv_arena_take(arena, dy.dtype, saved->gate_up.rows, saved->gate_up.cols);
  hv_tensor dnorm = hv_arena_take(arena, dy.dtype, saved->norm2.rows, saved->norm2.cols);
  hv_linear_backward_input(
      stream, &(hv_linear_backward_input_args){.dy = dy, .weight = hv_param_value(params, layer->down), .dx = dhidden});
  hv_swiglu_backward(
      stream, &(hv_swiglu_backward_args){
                  .gate_up = saved->gate_up, .dy = dhidden, .dgate_up = dgate_up, .y = kept ? (hv_tensor){0} : hidden});
  hv_param_linear_gradients(params, layer->down, 1, -1, dy, hidden, stream);
  hv_param_linear_gradients(params, layer->gate_up, 2, -1, dgate_up, saved->norm2, stream);
  hv_linear_backward_input(
      stream, &(hv_linear_backward_input_args){
                  .dy = dgate_up, .weight = hv_param_stacked_value(params, layer->gate_up, 2), .dx = dnorm});
  hv_norm_backward(stream, &(hv_norm_backward_args){.kind = HV_NORM_RMS,
                                                    .dy = dnorm,
                                                    .x = saved->sum,
                                                    .weight = hv_param_value(params, layer->post_norm),
                                                    .stats = saved->stats2,
                                                    .dresidual = dy,
                                                    .dx = dsum,
                                                    .dweight = hv_param_gradient(params, layer->post_norm)});
  hv_arena_release(arena, mark);
}

/* The gradients of q (before rotation; into dq) and of [k | v] (into the last columns of dqkv). */
static void attention_half_backward(const hv_llm_config *llm, const hv_decoder_rows *rows,
                                    const hv_decoder_saved *saved, hv_tensor dattention, hv_tensor dq, hv_tensor dqkv,
                                    hv_arena *arena, hv_stream *stream) {
  hv_attention_args forward = attention_args(llm, rows, NULL, saved);
  hv_attention_backward(stream, &(hv_attention_backward_args){
                                    .q = forward.q,
                                    .k = forward.k,
                                    .v = forward.v,
                                    .out = forward.out,
                                    .lse = forward.lse,
                                    .dout = dattention,
                                    .segments = rows->segments,
                                    .key_groups = rows->key_groups,
                                    .num_heads = forward.num_heads,
                                    .num_kv_heads = forward.num_kv_heads,
                                    .head_dim = forward.head_dim,
                                    .max_q_rows = rows->max_q_rows,
                                    .max_key_rows = rows->max_key_rows,
                                    .max_group_rows = rows->max_group_rows,
                                    .causal = true,
                                    .scale = forward.scale,
                                    .cos_sin = rows->cos_sin,
                                    .q_positions = has_query_rows(rows) ? rows->query_positions : rows->positions,
                                    .k_positions = rows->positions,
                                    .row_dot = hv_arena_take(arena, saved->lse.dtype, saved->lse.rows, saved->lse.cols),
                                    .dq = dq,
                                    .dk = own_keys(llm, dqkv),
                                    .dv = own_values(llm, dqkv)});
}

/* dst[query_rows[i]] += src[i] */
static void add_to_query_rows(const hv_decoder_rows *rows, hv_tensor src, hv_tensor dst, hv_stream *stream) {
  hv_scatter_add_rows(stream, &(hv_scatter_add_rows_args){.src = src,
                                                          .src_rows = hv_tensor_cols(rows->identity, 0, src.rows),
                                                          .offsets = hv_tensor_cols(rows->identity, 0, src.rows + 1),
                                                          .dst_rows = rows->query_rows,
                                                          .dst = dst});
}

void hv_decoder_layer_backward(const hv_llm_config *llm, const hv_decoder_layer *layer, hv_params *params,
                               const hv_decoder_rows *rows, hv_tensor x, hv_recompute recompute,
                               const hv_decoder_saved *saved, hv_tensor dy, hv_tensor dx, hv_arena *arena,
                               hv_stream *stream) {
  make_again(llm, layer, params, rows, x, recompute, saved, stream);
  hv_params_use(params, layer->group, stream);
  size_t mark = hv_arena_mark(arena);
  hv_dtype dtype = dy.dtype;
  int64_t n = x.rows, m = dy.rows, hidden = llm->hidden_size;
  bool subset = has_query_rows(rows);

  hv_tensor dsum = hv_arena_take(arena, dtype, m, hidden);
  mlp_backward(layer, params, recompute, saved, dy, dsum, arena, stream);

  hv_param_linear_gradients(params, layer->o, 1, -1, dsum, saved->attention, stream);
  hv_tensor dattention = hv_arena_take(arena, dtype, m, query_width(llm));
  hv_linear_backward_input(stream, &(hv_linear_backward_input_args){
                                       .dy = dsum, .weight = hv_param_value(params, layer->o), .dx = dattention});
  hv_tensor dqkv = hv_arena_take(arena, dtype, n, saved->qkv.cols);
  hv_tensor dq = subset ? hv_arena_take(arena, dtype, m, query_width(llm)) : hv_tensor_cols(dqkv, 0, query_width(llm));
  attention_half_backward(llm, rows, saved, dattention, dq, dqkv, arena, stream);

  hv_tensor weight = hv_param_stacked_value(params, layer->qkv, 3);
  hv_tensor dnorm = hv_arena_take(arena, dtype, n, hidden);
  if (subset) {
    hv_tensor key_weight = hv_tensor_rows(weight, query_width(llm), 2 * key_width(llm));
    hv_param_linear_gradients(params, layer->qkv, 1, -1, dq, saved->query_norm, stream);
    hv_param_linear_gradients(params, layer->qkv + 1, 2, -1, dqkv, saved->norm1, stream);
    hv_tensor dquery = hv_arena_take(arena, dtype, m, hidden);
    hv_linear_backward_input(stream,
                             &(hv_linear_backward_input_args){
                                 .dy = dq, .weight = hv_tensor_rows(weight, 0, query_width(llm)), .dx = dquery});
    hv_linear_backward_input(stream, &(hv_linear_backward_input_args){.dy = dqkv, .weight = key_weight, .dx = dnorm});
    add_to_query_rows(rows, dquery, dnorm, stream);
  } else {
    hv_param_linear_gradients(params, layer->qkv, 3, -1, dqkv, saved->norm1, stream);
    hv_linear_backward_input(stream, &(hv_linear_backward_input_args){.dy = dqkv, .weight = weight, .dx = dnorm});
  }
  hv_norm_backward(stream, &(hv_norm_backward_args){.kind = HV_NORM_RMS,
                                                    .dy = dnorm,
                                                    .x = x,
                                                    .weight = hv_param_value(params, layer->input_norm),
                                                    .stats = saved->stats1,
                                                    .dresidual = subset ? (hv_tensor){0} : dsum,
                                                    .dx = dx,
                                                    .dweight = hv_param_gradient(params, layer->input_norm)});
  if (subset) add_to_query_rows(rows, dsum, dx, stream);
  hv_arena_release(arena, mark);
  hv_params_gradients_ready(params, layer->group, stream);
  hv_params_done(params, layer->group, stream);
}

void hv_decoder_fill_rotary(const hv_llm_config *llm, int64_t positions, hv_dtype dtype, void *out) {
  int32_t head_dim = hv_llm_head_dim(llm), half = head_dim / 2;
  for (int64_t p = 0; p < positions; p++) {
    for (int32_t j = 0; j < half; j++) {
      double exponent = (double)(2 * j) / head_dim;
      if (dtype == HV_F64) {
        double angle = (double)p * pow(llm->rope_theta, -exponent);
        ((double *)out)[p * head_dim + j] = cos(angle);
        ((double *)out)[p * head_dim + half + j] = sin(angle);
      } else {
        float frequency = 1.0f / powf((float)llm->rope_theta, (float)exponent);
        float angle = (float)p * frequency;
        ((float *)out)[p * head_dim + j] = cosf(angle);
        ((float *)out)[p * head_dim + half + j] = sinf(angle);
      }
    }
  }
}
