/* The decoder of a Llama model: RMSNorm, rotary attention with grouped-query heads, SwiGLU, on packed rows.
 *
 * One forward function serves training and inference: a row may see rows of the same call (training) or of a key-value
 * cache that the call writes first (inference), as the segment table says. The caller provides all memory: it keeps
 * hv_decoder_saved for the backward pass, reuses it as scratch (inference), or has the same call fill it again
 * (recomputation).
 */
#ifndef HV_NN_DECODER_H
#define HV_NN_DECODER_H

#include "core/nn/params.h"
#include "core/tensor/arena.h"
#include "core/tensor/ops.h"

/* The keys of a Hugging Face Llama configuration. */
typedef struct hv_llm_config {
  int32_t hidden_size, intermediate_size, num_hidden_layers, num_attention_heads, num_key_value_heads, vocab_size;
  double rms_norm_eps, rope_theta;
} hv_llm_config;

static inline int32_t hv_llm_head_dim(const hv_llm_config *llm) {
  return llm->hidden_size / llm->num_attention_heads;
}

typedef struct hv_decoder_layer {
  hv_group_id group;
  hv_param_id input_norm, qkv, o, post_norm, gate_up, down; /* qkv and gate_up: the first of stacked ones */
} hv_decoder_layer;

/* Positions and attention tables of one call: which row sees which. */
typedef struct hv_decoder_rows {
  hv_tensor positions;  /* I32 [1, n] */
  hv_tensor cos_sin;    /* the rotary table, hv_decoder_fill_rotary */
  hv_tensor query_rows; /* I32 [1, m], ascending, optional: only these rows are computed to the end and leave the layer;
                           all n rows give keys and values */
  hv_tensor query_positions; /* I32 [1, m], with query_rows */
  hv_tensor identity;        /* I32 [1, m + 1]: 0, 1, 2, …; with query_rows, for the backward pass */
  hv_tensor segments;        /* q rows index the m rows that leave; k, v rows index the n rows, or the cache */
  hv_tensor key_groups;      /* for the backward pass */
  int32_t max_q_rows, max_key_rows, max_group_rows;
  hv_tensor cache_rows; /* I32 [1, n], with a cache: the cache row of row i's key and value */
} hv_decoder_rows;

/* Keys and values of one layer, [capacity, num_key_value_heads head_dim] each. */
typedef struct hv_kv_cache_layer {
  hv_tensor k, v;
} hv_kv_cache_layer;

/* Activations of one layer; n rows enter, m leave: m == n exactly without query_rows. */
typedef struct hv_decoder_saved {
  hv_tensor norm1, stats1;       /* [n, D], [n, 2] */
  hv_tensor query_norm, query_x; /* [m, D]: norm1 and x at query_rows; absent without query_rows */
  hv_tensor qkv;                 /* [n, (heads + 2 kv_heads) head_dim], rotated; with query_rows only [k | v] */
  hv_tensor q;                   /* [m, heads head_dim], rotated: a view into qkv without query_rows */
  hv_tensor attention, lse;      /* [m, heads head_dim], [m, heads] */
  hv_tensor sum;                 /* [m, D]: x + attention branch */
  hv_tensor norm2, stats2;       /* [m, D], [m, 2] */
  hv_tensor gate_up, hidden;     /* [m, 2 F], [m, F] */
} hv_decoder_saved;

/* Declares one layer, in a group of its own, under "llm_backbone.llm.model.layers.<index>". */
void hv_decoder_layer_declare(const hv_llm_config *llm, hv_params *params, int32_t index, hv_decoder_layer *out);

/* What the backward pass recomputes instead of having it saved (activation checkpointing). */
typedef enum hv_recompute {
  HV_RECOMPUTE_NONE,
  HV_RECOMPUTE_CHEAP, /* norms and SwiGLU outputs: no matrix product runs twice */
  HV_RECOMPUTE_BLOCK, /* the whole layer except its last product */
} hv_recompute;

/* For a whole decoder. Its last layer, whose backward pass follows at once, is never recomputed. */
typedef struct hv_recomputation {
  hv_recompute level;
  int32_t layers; /* how many, from the first; 0: all */
} hv_recomputation;

/* Takes all of hv_decoder_saved from the arena; without `training`, what only the backward pass reads is absent. */
void hv_decoder_take_saved(const hv_llm_config *llm, hv_arena *arena, hv_dtype dtype, int64_t n, int64_t m,
                           bool training, hv_decoder_saved *out);

/* The same in two parts, for training: `kept` stays until the backward pass; `rest` is scratch, taken for the forward
 * pass and again for the backward pass, and released after each. */
void hv_decoder_take_kept(const hv_llm_config *llm, hv_arena *arena, hv_dtype dtype, int64_t n, int64_t m,
                          hv_recompute recompute, hv_decoder_saved *out);
void hv_decoder_take_rest(const hv_llm_config *llm, hv_arena *arena, hv_dtype dtype, int64_t n, int64_t m,
                          hv_recompute recompute, hv_decoder_saved *out);

/* y [m, D] from x [n, D]; an absent y leaves out SwiGLU and the last product. `cache` is NULL if keys are those of the
 * same call. */
void hv_decoder_layer_forward(const hv_llm_config *llm, const hv_decoder_layer *layer, hv_params *params,
                              const hv_decoder_rows *rows, const hv_kv_cache_layer *cache, hv_tensor x,
                              const hv_decoder_saved *saved, hv_tensor y, hv_stream *stream);

/* dx [n, D] from dy [m, D] (dx may be dy where m == n); parameter gradients are added. What was not kept (`recompute`)
 * is recomputed from x into the tensors of hv_decoder_take_rest. */
void hv_decoder_layer_backward(const hv_llm_config *llm, const hv_decoder_layer *layer, hv_params *params,
                               const hv_decoder_rows *rows, hv_tensor x, hv_recompute recompute,
                               const hv_decoder_saved *saved, hv_tensor dy, hv_tensor dx, hv_arena *arena,
                               hv_stream *stream);

/* Host values of the rotary table [positions, head_dim]: cosines then sines of position · theta^(−2j / head_dim),
 * computed in F32 as Hugging Face does for F32, in F64 otherwise. */
void hv_decoder_fill_rotary(const hv_llm_config *llm, int64_t positions, hv_dtype dtype, void *out);

#endif
