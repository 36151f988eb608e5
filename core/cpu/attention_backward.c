/* The gradient of attention. Segments that share keys, directly or through others, form an island (a sample: its prefix
 * and its branches); an item is one island and one key head. It walks the island's keys block by block, adds to the
 * gradients of the block's keys and values, and to those of all the island's queries, which stay in scratch: five
 * matrix products for each pair of blocks, and every gradient is rounded once. */
#include "core/cpu/attention.h"
#include "core/cpu/vector_math.h"

typedef struct island {
  int32_t first_segment, end_segment;
} island;

typedef struct backward_context {
  const hv_attention_backward_args *args;
  const island *islands;
  int64_t max_rows; /* queries of any island */
} backward_context;

/* One island's work for one key head, and its scratch. */
typedef struct island_work {
  const hv_attention_backward_args *args;
  const island *segments;
  int64_t kv_head, heads; /* query heads of the key head */
  int64_t rows;           /* queries of the island */
  real *weights, *slopes; /* query block by key block */
  real *dk, *dv;          /* key block by head_dim */
  real *dq;               /* [heads][rows][head_dim], the segments' queries one after the other */
  real *product_scratch;
} island_work;

/* A block of keys: rows [row, row + keys) of k and v; `own_first` rows of the group come before it. */
typedef struct key_block {
  const hv_key_group *group;
  int64_t row, keys, own_first;
} key_block;

static int64_t scratch_elements(const hv_attention_backward_args *a, int64_t max_rows) {
  int64_t heads = a->num_heads / a->num_kv_heads;
  return 2 * HV_QUERY_BLOCK * HV_KEY_BLOCK + (2 * HV_KEY_BLOCK + heads * max_rows) * a->head_dim +
         product_scratch(max_i64(HV_KEY_BLOCK, a->head_dim), max_i64(HV_KEY_BLOCK, a->head_dim));
}

static const hv_key_group *group_at(const hv_attention_backward_args *a, int64_t index) {
  return (const hv_key_group *)element(&a->key_groups, index, 0);
}

/* Turns scores into softmax weights, and `slopes` (dout · v) into the gradient of the scores before scaling. */
static void score_gradient(const island_work *w, const hv_segment *s, const key_block *k, bool own, int64_t head,
                           int64_t first, int64_t rows) {
  const hv_attention_backward_args *a = w->args;
  real scale = (real)a->scale;
  for (int64_t i = 0; i < rows; i++) {
    int64_t row = s->q_start + first + i;
    int64_t visible = own ? visible_own(s, a->causal, first + i, k->own_first, k->keys) : k->keys;
    real lse = load_one(&a->lse, row, head), dot = load_one(&a->row_dot, row, head);
    real *weights = w->weights + i * k->keys, *slopes = w->slopes + i * k->keys;
#pragma omp simd
    for (int64_t j = 0; j < visible; j++) {
      real weight = real_exp(weights[j] - lse);
      weights[j] = weight;
      slopes[j] = weight * (slopes[j] - dot) * scale;
    }
    for (int64_t j = visible; j < k->keys; j++) weights[j] = slopes[j] = 0;
  }
}

static void query_block_gradient(const island_work *w, const hv_segment *s, const key_block *k, bool own, int64_t head,
                                 int64_t first, int64_t rows, real *dq) {
  const hv_attention_backward_args *a = w->args;
  int64_t d = a->head_dim;
  hv_tensor q = head_rows(a->q, s->q_start + first, rows, head, d);
  hv_tensor dout = head_rows(a->dout, s->q_start + first, rows, head, d);
  hv_tensor keys = head_rows(a->k, k->row, k->keys, w->kv_head, d);
  hv_tensor values = head_rows(a->v, k->row, k->keys, w->kv_head, d);
  multiply((real)a->scale, q, false, keys, true, 0, w->weights, k->keys, w->product_scratch);
  multiply(1, dout, false, values, true, 0, w->slopes, k->keys, w->product_scratch);
  score_gradient(w, s, k, own, head, first, rows);
  hv_tensor weights = hv_tensor_make(w->weights, HV_REAL_DTYPE, rows, k->keys);
  hv_tensor slopes = hv_tensor_make(w->slopes, HV_REAL_DTYPE, rows, k->keys);
  multiply(1, weights, true, dout, false, 1, w->dv, d, w->product_scratch);
  multiply(1, slopes, true, q, false, 1, w->dk, d, w->product_scratch);
  multiply(1, slopes, false, keys, false, 1, dq, d, w->product_scratch);
}

/* Turns the gradient of one head's rotated row into that of the row before its rotation. */
static void rotate_back(const hv_attention_backward_args *a, const hv_tensor *positions, int64_t row, real *gradient) {
  if (!hv_present(a->cos_sin)) return;
  rotate(gradient, element(&a->cos_sin, int_list(positions)[row], 0), a->head_dim / 2, -1, gradient);
}

static void key_block_gradient(const island_work *w, const key_block *k) {
  const hv_attention_backward_args *a = w->args;
  int64_t d = a->head_dim;
  memset(w->dk, 0, (size_t)(k->keys * d) * sizeof(real));
  memset(w->dv, 0, (size_t)(k->keys * d) * sizeof(real));
  int64_t offset = 0; /* of the segment's queries in dq */
  for (int64_t i = w->segments->first_segment; i < w->segments->end_segment; i++) {
    const hv_segment *s = segment_at(&a->segments, i);
    bool sees = i >= k->group->first_segment && i < (int64_t)k->group->first_segment + k->group->segment_count;
    bool own = s->own_start == k->group->key_start && s->own_rows == k->group->key_rows;
    for (int64_t first = 0; sees && first < s->q_rows; first += HV_QUERY_BLOCK) {
      int64_t rows = min_i64(HV_QUERY_BLOCK, s->q_rows - first);
      if (own && visible_own(s, a->causal, first + rows - 1, k->own_first, k->keys) == 0) continue;
      for (int64_t h = 0; h < w->heads; h++) {
        real *dq = w->dq + (h * w->rows + offset + first) * d;
        query_block_gradient(w, s, k, own, w->kv_head * w->heads + h, first, rows, dq);
      }
    }
    offset += s->q_rows;
  }
  for (int64_t i = 0; i < k->keys; i++) {
    rotate_back(a, &a->k_positions, k->row + i, w->dk + i * d);
    store(&a->dk, k->row + i, w->kv_head * d, d, w->dk + i * d);
    store(&a->dv, k->row + i, w->kv_head * d, d, w->dv + i * d);
  }
}

static void store_query_gradients(const island_work *w) {
  const hv_attention_backward_args *a = w->args;
  for (int64_t h = 0; h < w->heads; h++) {
    real *dq = w->dq + h * w->rows * a->head_dim;
    for (int64_t i = w->segments->first_segment; i < w->segments->end_segment; i++) {
      const hv_segment *s = segment_at(&a->segments, i);
      for (int64_t row = 0; row < s->q_rows; row++, dq += a->head_dim) {
        rotate_back(a, &a->q_positions, s->q_start + row, dq);
        store(&a->dq, s->q_start + row, (w->kv_head * w->heads + h) * a->head_dim, a->head_dim, dq);
      }
    }
  }
}

static int64_t query_rows(const hv_attention_backward_args *a, const island *segments) {
  int64_t rows = 0;
  for (int64_t i = segments->first_segment; i < segments->end_segment; i++) rows += segment_at(&a->segments, i)->q_rows;
  return rows;
}

static void island_gradient(island_work *w) {
  const hv_attention_backward_args *a = w->args;
  w->rows = query_rows(a, w->segments);
  memset(w->dq, 0, (size_t)(w->heads * w->rows * a->head_dim) * sizeof(real));
  for (int64_t g = 0; g < a->key_groups.rows; g++) {
    const hv_key_group *group = group_at(a, g);
    if (group->segment_count == 0) continue;
    if (group->first_segment < w->segments->first_segment || group->first_segment >= w->segments->end_segment) continue;
    for (int64_t first = 0; first < group->key_rows; first += HV_KEY_BLOCK) {
      key_block k = {.group = group, .row = group->key_start + first, .own_first = first};
      k.keys = min_i64(HV_KEY_BLOCK, group->key_rows - first);
      key_block_gradient(w, &k);
    }
  }
  store_query_gradients(w);
}

static void backward_items(const void *context, int64_t first, int64_t last, void *scratch) {
  const backward_context *c = context;
  const hv_attention_backward_args *a = c->args;
  island_work w = {.args = a, .heads = a->num_heads / a->num_kv_heads, .weights = scratch};
  w.slopes = w.weights + HV_QUERY_BLOCK * HV_KEY_BLOCK;
  w.dk = w.slopes + HV_QUERY_BLOCK * HV_KEY_BLOCK;
  w.dv = w.dk + HV_KEY_BLOCK * a->head_dim;
  w.dq = w.dv + HV_KEY_BLOCK * a->head_dim;
  w.product_scratch = w.dq + w.heads * c->max_rows * a->head_dim;
  for (int64_t i = first; i < last; i++) {
    w.segments = &c->islands[i / a->num_kv_heads];
    w.kv_head = i % a->num_kv_heads;
    island_gradient(&w);
  }
}

/* Puts segments s and s + 1 into one island if a key group spans both. Returns the number of islands. */
static int64_t find_islands(const hv_attention_backward_args *a, island *islands, unsigned char *joined) {
  int64_t segments = a->segments.rows, count = 0;
  memset(joined, 0, (size_t)segments);
  for (int64_t g = 0; g < a->key_groups.rows; g++) {
    const hv_key_group *group = group_at(a, g);
    for (int64_t i = 1; i < group->segment_count; i++) joined[group->first_segment + i] = 1;
  }
  for (int64_t i = 0; i < segments; i++) {
    if (!joined[i]) islands[count++].first_segment = (int32_t)i;
    islands[count - 1].end_segment = (int32_t)(i + 1);
  }
  return count;
}

/* Sets the gradients of keys that no query sees to 0. */
static void clear_unseen(const hv_attention_backward_args *a) {
  size_t bytes = (size_t)a->dk.cols * hv_dtype_size(a->dk.dtype);
  for (int64_t g = 0; g < a->key_groups.rows; g++) {
    const hv_key_group *group = group_at(a, g);
    for (int64_t i = 0; group->segment_count == 0 && i < group->key_rows; i++) {
      memset(element(&a->dk, group->key_start + i, 0), 0, bytes);
      memset(element(&a->dv, group->key_start + i, 0), 0, bytes);
    }
  }
}

static void row_dots(const void *context, int64_t first, int64_t last, void *scratch) {
  (void)scratch;
  const hv_attention_backward_args *a = context;
  real out_buffer[HV_CHUNK], dout_buffer[HV_CHUNK];
  for (int64_t row = first; row < last; row++) {
    for (int64_t head = 0; head < a->num_heads; head++) {
      const real *out = load(&a->out, row, head * a->head_dim, a->head_dim, out_buffer);
      const real *dout = load(&a->dout, row, head * a->head_dim, a->head_dim, dout_buffer);
      real dot = 0;
#pragma omp simd reduction(+ : dot)
      for (int64_t j = 0; j < a->head_dim; j++) dot += out[j] * dout[j];
      store_one(&a->row_dot, row, head, dot);
    }
  }
}

void HV_KERNEL(attention_backward)(hv_cpu_pool *pool, const hv_attention_backward_args *args) {
  int64_t segments = args->segments.rows;
  if (!hv_cpu_reserve_list(pool, (size_t)(segments + 1) * (sizeof(island) + 1))) return;
  island *islands = pool->list;
  int64_t count = find_islands(args, islands, (unsigned char *)(islands + segments + 1));
  backward_context c = {.args = args, .islands = islands};
  for (int64_t i = 0; i < count; i++) c.max_rows = max_i64(c.max_rows, query_rows(args, &islands[i]));
  if (!hv_cpu_reserve(pool, (size_t)scratch_elements(args, c.max_rows) * sizeof(real))) return;
  clear_unseen(args);
  hv_cpu_for(pool, args->q.rows, hv_cpu_grain(args->q.cols), row_dots, args);
  int64_t work = c.max_rows * args->max_key_rows * 16;
  hv_cpu_for(pool, count * args->num_kv_heads, hv_cpu_grain(work), backward_items, &c);
}
