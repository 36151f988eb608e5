/* Attention over a segment table: for each (segment, block of queries, head), a pass over blocks of keys with a running
 * maximum and sum, so that no row of scores is ever stored whole. */
#include "core/cpu/attention.h"
#include "core/cpu/vector_math.h"

/* One block of queries of one head, and its scratch. */
typedef struct query_block {
  const hv_attention_args *args;
  const hv_segment *segment;
  int64_t first, rows; /* queries, counted from the segment's start */
  int64_t head, kv_head;
  hv_tensor q;
  real *scores, *sum_v, *maximum, *sum, *product_scratch;
} query_block;

static int64_t scratch_elements(int64_t head_dim) {
  int64_t width = max_i64(head_dim, HV_KEY_BLOCK);
  return HV_QUERY_BLOCK * (HV_KEY_BLOCK + head_dim + 2) + product_scratch(HV_QUERY_BLOCK, width);
}

/* Turns one row's scores into weights relative to the new maximum; returns the factor for what was summed before. */
static real soften(real *scores, int64_t visible, int64_t keys, real *maximum, real *sum) {
  real top = *maximum;
#pragma omp simd reduction(max : top)
  for (int64_t j = 0; j < visible; j++) top = scores[j] > top ? scores[j] : top;
  real total = 0;
#pragma omp simd reduction(+ : total)
  for (int64_t j = 0; j < visible; j++) {
    real weight = real_exp(scores[j] - top);
    scores[j] = weight;
    total += weight;
  }
  for (int64_t j = visible; j < keys; j++) scores[j] = 0;
  real factor = real_exp(*maximum - top);
  *sum = *sum * factor + total;
  *maximum = top;
  return factor;
}

/* Adds keys [row, row + keys) of k and v; `own_first`: their place among the segment's own rows, −1 for prefix rows. */
static void attend_block(const query_block *b, int64_t row, int64_t keys, int64_t own_first) {
  const hv_attention_args *a = b->args;
  int64_t head_dim = a->head_dim;
  multiply((real)a->scale, b->q, false, head_rows(a->k, row, keys, b->kv_head, head_dim), true, 0, b->scores, keys,
           b->product_scratch);
  for (int64_t i = 0; i < b->rows; i++) {
    int64_t visible = own_first < 0 ? keys : visible_own(b->segment, a->causal, b->first + i, own_first, keys);
    real factor = soften(b->scores + i * keys, visible, keys, &b->maximum[i], &b->sum[i]);
    real *sum_v = b->sum_v + i * head_dim;
    if (factor != 1) {
#pragma omp simd
      for (int64_t j = 0; j < head_dim; j++) sum_v[j] *= factor;
    }
  }
  hv_tensor weights = hv_tensor_make(b->scores, HV_REAL_DTYPE, b->rows, keys);
  multiply(1, weights, false, head_rows(a->v, row, keys, b->kv_head, head_dim), false, 1, b->sum_v, head_dim,
           b->product_scratch);
}

static void finish_block(const query_block *b) {
  const hv_attention_args *a = b->args;
  for (int64_t i = 0; i < b->rows; i++) {
    int64_t row = b->segment->q_start + b->first + i;
    real *sum_v = b->sum_v + i * a->head_dim, factor = 1 / b->sum[i];
#pragma omp simd
    for (int64_t j = 0; j < a->head_dim; j++) sum_v[j] *= factor;
    store(&a->out, row, b->head * a->head_dim, a->head_dim, sum_v);
    if (hv_present(a->lse)) store_one(&a->lse, row, b->head, b->maximum[i] + real_log(b->sum[i]));
  }
}

static void attend(const query_block *b) {
  const hv_segment *s = b->segment;
  for (int64_t i = 0; i < b->rows; i++) {
    b->maximum[i] = -(real)INFINITY;
    b->sum[i] = 0;
  }
  memset(b->sum_v, 0, (size_t)(b->rows * b->args->head_dim) * sizeof(real));
  for (int64_t first = 0; first < s->prefix_rows; first += HV_KEY_BLOCK) {
    attend_block(b, s->prefix_start + first, min_i64(HV_KEY_BLOCK, s->prefix_rows - first), -1);
  }
  int64_t seen = visible_own(s, b->args->causal, b->first + b->rows - 1, 0, s->own_rows);
  for (int64_t first = 0; first < seen; first += HV_KEY_BLOCK) {
    attend_block(b, s->own_start + first, min_i64(HV_KEY_BLOCK, seen - first), first);
  }
  finish_block(b);
}

/* An item is (segment, block of queries, head); the head varies fastest. */
static void attention_items(const void *context, int64_t first, int64_t last, void *scratch) {
  const hv_attention_args *a = context;
  int64_t blocks = (a->max_q_rows + HV_QUERY_BLOCK - 1) / HV_QUERY_BLOCK;
  query_block b = {.args = a, .scores = scratch};
  b.sum_v = b.scores + HV_QUERY_BLOCK * HV_KEY_BLOCK;
  b.maximum = b.sum_v + HV_QUERY_BLOCK * a->head_dim;
  b.sum = b.maximum + HV_QUERY_BLOCK;
  b.product_scratch = b.sum + HV_QUERY_BLOCK;
  for (int64_t i = first; i < last; i++) {
    b.head = i % a->num_heads;
    b.kv_head = b.head / (a->num_heads / a->num_kv_heads);
    b.segment = segment_at(&a->segments, i / a->num_heads / blocks);
    b.first = i / a->num_heads % blocks * HV_QUERY_BLOCK;
    b.rows = min_i64(HV_QUERY_BLOCK, b.segment->q_rows - b.first);
    if (b.rows <= 0) continue;
    b.q = head_rows(a->q, b.segment->q_start + b.first, b.rows, b.head, a->head_dim);
    attend(&b);
  }
}

void HV_KERNEL(attention)(hv_cpu_pool *pool, const hv_attention_args *args) {
  if (!hv_cpu_reserve(pool, (size_t)scratch_elements(args->head_dim) * sizeof(real))) return;
  int64_t blocks = (args->max_q_rows + HV_QUERY_BLOCK - 1) / HV_QUERY_BLOCK;
  int64_t rows = min_i64(args->max_q_rows, HV_QUERY_BLOCK);
  hv_cpu_for(pool, args->segments.rows * blocks * args->num_heads, hv_cpu_grain(rows * args->max_key_rows * 8),
             attention_items, args);
}
