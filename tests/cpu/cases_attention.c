/* Cases of attention and its gradient (op_cases.h): the forward pass against the definition in plain loops, the
 * backward pass against the CPU device, which test_gradients.c checks by differences. */
#include "tests/cpu/layout.h"

#include <math.h>

#include "tests/check.h"
#include "tests/cpu/op_cases.h"

typedef struct heads {
  int32_t num_heads, num_kv_heads, head_dim;
} heads;

static heads random_heads(op_env *env) {
  static const int32_t dims[] = {2, 6, 8, 16, 20, 32, 64, 72, 80, 128};
  heads h = {.num_kv_heads = (int32_t)(1 + op_below(env, 3))};
  h.num_heads = h.num_kv_heads * (int32_t)(1 + op_below(env, 3));
  h.head_dim = dims[op_below(env, env->max_size >= 128 ? 10 : 8)];
  return h;
}

/* Attention by its definition, one query at a time: the output, and lse, the logarithm of the sum of exponentials. */
static void plain_attention(op_env *env, const layout *l, heads h, double scale, const op_operand *q,
                            const op_operand *k, const op_operand *v, double *out, double *lse) {
  int64_t d = h.head_dim, q_cols = h.num_heads * d, kv_cols = h.num_kv_heads * d;
  double *weights = op_array(env, l->key_rows + 1);
  for (int s = 0; s < l->segments; s++) {
    const hv_segment *segment = &l->segment[s];
    for (int64_t i = 0; i < segment->q_rows; i++) {
      int64_t row = segment->q_start + i;
      int64_t own = l->causal ? segment->own_rows - segment->q_rows + i + 1 : segment->own_rows;
      int64_t keys = segment->prefix_rows + own;
      for (int64_t head = 0; head < h.num_heads; head++) {
        const double *query = q->host + row * q_cols + head * d;
        int64_t kv_head = head / (h.num_heads / h.num_kv_heads);
        double sum = 0;
        for (int64_t j = 0; j < keys; j++) {
          int64_t key_row =
              j < segment->prefix_rows ? segment->prefix_start + j : segment->own_start + j - segment->prefix_rows;
          const double *key = k->host + key_row * kv_cols + kv_head * d;
          double score = 0;
          for (int64_t c = 0; c < d; c++) score += query[c] * key[c];
          weights[j] = exp(scale * score);
          sum += weights[j];
        }
        for (int64_t c = 0; c < d; c++) {
          double value = 0;
          for (int64_t j = 0; j < keys; j++) {
            int64_t key_row =
                j < segment->prefix_rows ? segment->prefix_start + j : segment->own_start + j - segment->prefix_rows;
            value += weights[j] * v->host[key_row * kv_cols + kv_head * d + c];
          }
          out[row * q_cols + head * d + c] = value / sum;
        }
        lse[row * h.num_heads + head] = log(sum);
      }
    }
  }
}

static void attention_of(op_env *env, layout_kind kind) {
  layout l;
  make_layout(env, kind, &l);
  heads h = random_heads(env);
  int64_t q_cols = h.num_heads * h.head_dim, kv_cols = h.num_kv_heads * h.head_dim;
  double scale = 1 / sqrt((double)h.head_dim);
  op_operand q = op_random(env, OP_T, l.query_rows, q_cols, 1, 0), k = op_random(env, OP_T, l.key_rows, kv_cols, 1, 0);
  op_operand v = op_random(env, OP_T, l.key_rows, kv_cols, 1, 0);
  /* Rows in no segment must keep their values: zeros here, and zeros in the plain computation. */
  op_operand out = op_values(env, OP_T, l.query_rows, q_cols, op_array(env, l.query_rows * q_cols));
  op_operand lse = op_coin(env)
                       ? op_values(env, OP_S, l.query_rows, h.num_heads, op_array(env, l.query_rows * h.num_heads))
                       : op_absent();
  op_operand segments = op_ints(env, l.segments, 6, (const int32_t *)l.segment);
  double *expected = op_array(env, l.query_rows * q_cols), *expected_lse = op_array(env, l.query_rows * h.num_heads);
  plain_attention(env, &l, h, scale, &q, &k, &v, expected, expected_lse);
  OP_RUN(env, attention, .q = q.at[side], .k = k.at[side], .v = v.at[side], .segments = segments.at[side],
         .num_heads = h.num_heads, .num_kv_heads = h.num_kv_heads, .head_dim = h.head_dim, .max_q_rows = l.max_q_rows,
         .max_key_rows = l.max_key_rows, .causal = l.causal, .uniform = l.uniform, .scale = scale, .out = out.at[side],
         .lse = lse.at[side]);
  op_compare(env, "out", &out, expected);
  if (lse.host) op_compare(env, "lse", &lse, expected_lse);
}

static void attention_images(op_env *env) {
  attention_of(env, LAYOUT_IMAGES);
}
static void attention_uniform(op_env *env) {
  attention_of(env, LAYOUT_UNIFORM);
}
static void attention_packed(op_env *env) {
  attention_of(env, LAYOUT_PACKED);
}
static void attention_branches_only(op_env *env) {
  attention_of(env, LAYOUT_BRANCHES_ONLY);
}
static void attention_cached(op_env *env) {
  attention_of(env, LAYOUT_CACHED);
}

/* Random angles for every position and pair of columns, and the position of each row. */
typedef struct rotations {
  op_operand cos_sin, q_positions, k_positions;
} rotations;

static op_operand random_positions(op_env *env, int64_t rows, int32_t positions) {
  int32_t *list = (int32_t *)op_array(env, rows);
  for (int64_t i = 0; i < rows; i++) list[i] = (int32_t)op_below(env, positions);
  return op_ints(env, 1, rows, list);
}

static rotations maybe_rotations(op_env *env, const layout *l, int32_t head_dim) {
  enum { POSITIONS = 30 };
  if (op_coin(env)) return (rotations){op_absent(), op_absent(), op_absent()};
  return (rotations){op_rotary_table(env, POSITIONS, head_dim), random_positions(env, l->query_rows, POSITIONS),
                     random_positions(env, l->key_rows, POSITIONS)};
}

static void attention_backward_of(op_env *env, layout_kind kind) {
  layout l;
  make_layout(env, kind, &l);
  heads h = random_heads(env);
  int64_t q_cols = h.num_heads * h.head_dim, kv_cols = h.num_kv_heads * h.head_dim;
  int64_t q_count = l.query_rows * q_cols, lse_count = l.query_rows * h.num_heads;
  double scale = 1 / sqrt((double)h.head_dim);
  op_operand q = op_random(env, OP_T, l.query_rows, q_cols, 1, 0), k = op_random(env, OP_T, l.key_rows, kv_cols, 1, 0);
  op_operand v = op_random(env, OP_T, l.key_rows, kv_cols, 1, 0),
             dout = op_random(env, OP_T, l.query_rows, q_cols, 1, 0);
  double *out_values = op_array(env, q_count), *lse_values = op_array(env, lse_count);
  plain_attention(env, &l, h, scale, &q, &k, &v, out_values, lse_values);
  op_operand out = op_values(env, OP_T, l.query_rows, q_cols, out_values);
  op_operand lse = op_values(env, OP_S, l.query_rows, h.num_heads, lse_values);
  op_operand row_dot = op_result(env, OP_S, l.query_rows, h.num_heads);
  op_operand dq = op_values(env, OP_T, l.query_rows, q_cols, op_array(env, q_count));
  op_operand dk = op_result(env, OP_T, l.key_rows, kv_cols), dv = op_result(env, OP_T, l.key_rows, kv_cols);
  op_operand segments = op_ints(env, l.segments, 6, (const int32_t *)l.segment);
  op_operand groups = op_ints(env, l.groups, 4, (const int32_t *)l.group);
  rotations r = maybe_rotations(env, &l, h.head_dim);
  OP_RUN(env, attention_backward, .q = q.at[side], .k = k.at[side], .v = v.at[side], .out = out.at[side],
         .lse = lse.at[side], .dout = dout.at[side], .segments = segments.at[side], .key_groups = groups.at[side],
         .num_heads = h.num_heads, .num_kv_heads = h.num_kv_heads, .head_dim = h.head_dim, .max_q_rows = l.max_q_rows,
         .max_key_rows = l.max_key_rows, .max_group_rows = l.max_group_rows, .causal = l.causal, .scale = scale,
         .cos_sin = r.cos_sin.at[side], .q_positions = r.q_positions.at[side], .k_positions = r.k_positions.at[side],
         .row_dot = row_dot.at[side], .dq = dq.at[side], .dk = dk.at[side], .dv = dv.at[side]);
  op_compare_sides(env, "dq", &dq);
  op_compare_sides(env, "dk", &dk);
  op_compare_sides(env, "dv", &dv);
}

static void attention_backward_images(op_env *env) {
  attention_backward_of(env, LAYOUT_IMAGES);
}
static void attention_backward_packed(op_env *env) {
  attention_backward_of(env, LAYOUT_PACKED);
}
static void attention_backward_branches_only(op_env *env) {
  attention_backward_of(env, LAYOUT_BRANCHES_ONLY);
}

const op_case op_attention_cases[] = {
    {"attention (images)", attention_images},
    {"attention (images of one size)", attention_uniform},
    {"attention (packed samples)", attention_packed},
    {"attention (branches only)", attention_branches_only},
    {"attention (cached keys)", attention_cached},
    {"attention_backward (images)", attention_backward_images},
    {"attention_backward (packed samples)", attention_backward_packed},
    {"attention_backward (branches only)", attention_backward_branches_only},
    {NULL, NULL},
};
