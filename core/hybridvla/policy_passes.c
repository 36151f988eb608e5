#include "core/hybridvla/policy_passes.h"

#include "core/tensor/ops.h"

enum { TABLE_ALIGNMENT = 16 /* I32 values: 64 bytes */, SEGMENT_INTS = sizeof(hv_segment) / sizeof(int32_t) };

int32_t hv_passes_count(int32_t stages, int32_t tokens, bool after) {
  if (after) return stages + tokens;
  return stages > tokens ? stages : tokens;
}

void hv_pass_count(const hv_branch_shape *shape, int32_t prefix_rows, hv_pass *pass) {
  int32_t denoise_rows = pass->stage >= 0 ? 1 + shape->horizon : 0;
  int32_t first_rows = hv_branch_first_rows(shape);
  int32_t decode_end = pass->token < 0 ? 0 : first_rows + pass->token;
  pass->prefix_rows = prefix_rows;
  pass->decode_rows = pass->token < 0 ? 0 : pass->token == 0 ? first_rows : 1;
  pass->rows = (pass->prefill ? prefix_rows : 0) + denoise_rows + pass->decode_rows;
  pass->out_rows = (pass->stage >= 0 ? shape->horizon : 0) + (pass->token >= 0 ? 1 : 0);
  pass->out_segments = (pass->stage >= 0) + (pass->token >= 0);
  pass->segments = pass->out_segments + (pass->prefill ? 1 : 0);
  pass->max_q_rows = pass->prefill ? prefix_rows : 0;
  if (pass->max_q_rows < denoise_rows) pass->max_q_rows = denoise_rows;
  if (pass->max_q_rows < pass->decode_rows) pass->max_q_rows = pass->decode_rows;
  pass->max_key_rows = prefix_rows + (denoise_rows > decode_end ? denoise_rows : decode_end);
}

static int32_t take(int32_t *used, int32_t values) {
  int32_t start = *used;
  *used += (values + TABLE_ALIGNMENT - 1) / TABLE_ALIGNMENT * TABLE_ALIGNMENT;
  return start;
}

int32_t hv_passes_make(const hv_branch_shape *shape, int32_t stages, int32_t tokens, bool after, hv_pass *passes) {
  int32_t used = 0, count = hv_passes_count(stages, tokens, after), first_token = after ? stages : 0;
  for (int32_t i = 0; i < count; i++) {
    hv_pass *pass = &passes[i];
    *pass = (hv_pass){.prefill = i == 0,
                      .stage = i < stages ? i : -1,
                      .token = i >= first_token && i - first_token < tokens ? i - first_token : -1};
    hv_pass_count(shape, shape->prefix_capacity, pass);
    pass->positions = take(&used, pass->rows);
    pass->cache_rows = take(&used, pass->rows);
    pass->query_rows = take(&used, pass->out_rows);
    pass->query_positions = take(&used, pass->out_rows);
    pass->segment_table = take(&used, pass->segments * SEGMENT_INTS);
    pass->out_segment_table = take(&used, pass->out_segments * SEGMENT_INTS);
  }
  return used;
}

/* Write positions in the tables of the pass that is being filled. */
typedef struct cursor {
  int32_t *positions, *cache_rows, *query_rows, *query_positions;
  hv_segment *segments, *out_segments;
  int32_t row, out_row;
} cursor;

/* Adds `count` rows with consecutive positions and cache rows. */
static void put_rows(cursor *at, int32_t count, int32_t position, int32_t cache_row) {
  for (int32_t i = 0; i < count; i++) {
    at->positions[at->row + i] = position + i;
    at->cache_rows[at->row + i] = cache_row + i;
  }
  at->row += count;
}

/* Adds the last `count` rows of a branch that then has `own_rows` cache rows; the last `out` of them leave the pass. */
static void put_branch(cursor *at, int32_t prefix_rows, int32_t cache_start, int32_t own_rows, int32_t count,
                       int32_t out) {
  int32_t first = own_rows - count;
  hv_segment segment = {.q_start = at->row,
                        .q_rows = count,
                        .prefix_start = 0,
                        .prefix_rows = prefix_rows,
                        .own_start = cache_start,
                        .own_rows = own_rows};
  *at->segments++ = segment;
  put_rows(at, count, prefix_rows + first, cache_start + first);
  segment.q_start = at->out_row;
  segment.q_rows = out;
  *at->out_segments++ = segment;
  for (int32_t i = 0; i < out; i++) {
    at->query_rows[at->out_row + i] = at->row - out + i;
    at->query_positions[at->out_row + i] = prefix_rows + own_rows - out + i;
  }
  at->out_row += out;
}

void hv_pass_fill(const hv_branch_shape *shape, const hv_pass *pass, int32_t *tables) {
  cursor at = {0};
  at.positions = tables + pass->positions;
  at.cache_rows = tables + pass->cache_rows;
  at.query_rows = tables + pass->query_rows;
  at.query_positions = tables + pass->query_positions;
  at.segments = (hv_segment *)(tables + pass->segment_table);
  at.out_segments = (hv_segment *)(tables + pass->out_segment_table);
  int32_t prefix_rows = pass->prefix_rows;
  if (pass->prefill) {
    *at.segments++ = (hv_segment){.q_rows = prefix_rows, .own_rows = prefix_rows};
    put_rows(&at, prefix_rows, 0, 0);
  }
  if (pass->stage >= 0)
    put_branch(&at, prefix_rows, hv_branch_denoise_start(shape), 1 + shape->horizon, 1 + shape->horizon,
               shape->horizon);
  if (pass->token >= 0)
    put_branch(&at, prefix_rows, hv_branch_decode_start(shape), hv_branch_first_rows(shape) + pass->token,
               pass->decode_rows, 1);
}
