/* A pass runs rows through all decoder layers once; a prediction is a prefill pass and then denoising and decoding
 * passes. Here are the passes and their tables: which rows run, where their keys and values go and what they see. Host
 * arithmetic alone; the policy uploads the tables and runs the passes.
 *
 * Rows of a pass, each part optional:    prefix | t x_1 … x_H | rows of the autoregressive branch
 * Rows that leave it (the two heads'):            x_1 … x_H   | the last row of the autoregressive branch
 * Rows of the key-value cache:           prefix (capacity) | denoising branch | autoregressive branch
 *
 * A denoising step writes over the keys of the step before; a decoding step appends to its branch. Both see the prefix
 * and their own branch, so that a pass may hold either or both.
 */
#ifndef HV_HYBRIDVLA_POLICY_PASSES_H
#define HV_HYBRIDVLA_POLICY_PASSES_H

#include "core/hybridvla/config.h"

typedef struct hv_branch_shape {
  int32_t prefix_capacity; /* rows of the longest prefix */
  int32_t horizon;         /* H */
  int32_t tokens;          /* H A */
  int32_t condition_rows;  /* t | x_1 … x_H before the action tokens, or 0 */
  int32_t marker_rows;     /* <EOD> and, where the model has it, the empty token */
} hv_branch_shape;

static inline int32_t hv_branch_first_rows(const hv_branch_shape *shape) {
  return shape->condition_rows + shape->marker_rows;
}
/* Cache rows at which the two branches begin, and the number of cache rows. No row sees the last token, so it has no
 * cache row. */
static inline int32_t hv_branch_denoise_start(const hv_branch_shape *shape) {
  return shape->prefix_capacity;
}
static inline int32_t hv_branch_decode_start(const hv_branch_shape *shape) {
  return shape->prefix_capacity + 1 + shape->horizon;
}
static inline int32_t hv_branch_cache_rows(const hv_branch_shape *shape) {
  return hv_branch_decode_start(shape) + hv_branch_first_rows(shape) + shape->tokens - 1;
}

typedef struct hv_pass {
  bool prefill;  /* begins with the prefix; the first pass */
  int32_t stage; /* the sampler's step that it runs, an index into its hv_sampler_stage list; -1: none */
  int32_t token; /* the action token that it decodes; -1: none. Its rows: for 0 the branch's first rows, else the token
                    before */
  /* Filled for each prediction. */
  int32_t prefix_rows, decode_rows, rows, out_rows, segments, out_segments, max_q_rows, max_key_rows;
  /* Where the tables begin, counted in I32 from the start of the tables of all passes. */
  int32_t positions, cache_rows;            /* [rows] */
  int32_t query_rows, query_positions;      /* [out_rows] */
  int32_t segment_table, out_segment_table; /* [segments], [out_segments] hv_segment */
} hv_pass;

/* The number of passes for `stages` denoising steps and `tokens` action tokens (0: none). A pass does one step of each,
 * or, with `after`, tokens begin after the last denoising step. */
int32_t hv_passes_count(int32_t stages, int32_t tokens, bool after);

/* Fills passes[hv_passes_count(…)], except the fields that each prediction fills; returns how many I32 values all
 * tables take. */
int32_t hv_passes_make(const hv_branch_shape *shape, int32_t stages, int32_t tokens, bool after, hv_pass *passes);

/* For each prediction: hv_pass_count sets a pass's counts for a prefix of `prefix_rows` <= prefix_capacity rows, then
 * hv_pass_fill writes its tables. */
void hv_pass_count(const hv_branch_shape *shape, int32_t prefix_rows, hv_pass *pass);
void hv_pass_fill(const hv_branch_shape *shape, const hv_pass *pass, int32_t *tables);

/* The row of a pass where its denoising rows, or its autoregressive rows, begin. */
static inline int32_t hv_pass_denoise_row(const hv_pass *pass) {
  return pass->prefill ? pass->prefix_rows : 0;
}
static inline int32_t hv_pass_decode_row(const hv_pass *pass) {
  return pass->rows - pass->decode_rows;
}

#endif
