/* The kernels of attention, forward and backward, at shapes that fit their tiles and at those that do not, against the
 * CPU device in double: test_attention [DEVICE], by default emu. */
#include <math.h>

#include "tests/cpu/layout.h"
#include "tests/cuda/under_test.h"

/* A number of packed samples with the same layout. */
typedef struct shape {
  const char *name;
  int samples, prefix, branches, branch_rows; /* branch i has branch_rows + i rows */
  int num_heads, num_kv_heads, head_dim;
  bool causal;
  bool prefix_queries;    /* the prefix has queries too */
  int cached;             /* rows of its own that each segment has before its queries */
  int query_gap, key_gap; /* unused rows before each branch */
} shape;

static const shape shapes[] = {
    {"one row", 1, 1, 0, 0, 1, 1, 64, true, true, 0, 0, 0},
    {"images", 2, 257, 0, 0, 1, 1, 64, false, true, 0, 0, 0},
    {"images, heads of 72", 2, 200, 0, 0, 1, 1, 72, false, true, 0, 0, 0},
    {"small images share tiles", 7, 9, 0, 0, 1, 1, 16, false, true, 0, 0, 0},
    {"training", 2, 277, 4, 12, 1, 1, 128, true, true, 0, 0, 0},
    {"eight branches", 1, 131, 8, 12, 4, 2, 80, true, true, 0, 0, 0},
    {"heads of 10", 2, 70, 3, 5, 6, 2, 10, true, true, 0, 0, 0},
    {"heads of 96", 1, 65, 2, 31, 2, 1, 96, true, true, 0, 0, 0},
    {"long branches", 2, 63, 3, 90, 2, 2, 64, true, true, 0, 0, 0},
    {"a prefix of one tile", 2, 64, 5, 13, 2, 2, 64, true, true, 0, 0, 0},
    {"queries of branches apart", 1, 50, 4, 11, 2, 2, 64, true, true, 0, 5, 0},
    {"keys of branches apart", 1, 50, 4, 11, 2, 2, 64, true, true, 0, 0, 5},
    {"branches alone", 24, 45, 4, 12, 1, 1, 64, true, false, 0, 0, 0},
    {"thousands of rows", 1, 2050, 0, 0, 1, 1, 16, true, true, 0, 0, 0},
    {"decode", 1, 1, 0, 0, 4, 4, 128, true, true, 700, 0, 0},
    {"decode, heads that share keys", 1, 0, 1, 13, 6, 2, 64, true, true, 300, 0, 0},
    {"lockstep", 1, 333, 2, 8, 4, 4, 128, true, false, 0, 0, 0},
    {"lockstep over cached branches", 1, 300, 2, 3, 2, 2, 72, true, false, 40, 0, 0},
};

enum { UNUSED = 3 /* rows */ };

/* Makes the tables of a shape. At the end there are unused query and key rows, a key group without keys and one without
 * segments, except if there is only a single query. */
static void make_tables(const shape *s, layout *t) {
  *t = (layout){.causal = s->causal};
  for (int sample = 0; sample < s->samples; sample++) {
    int32_t first = t->segments, old = s->branches ? 0 : s->cached, start = 0;
    if (s->prefix > 0) {
      start = layout_add_group(t, s->prefix + old, first, 1 + s->branches);
      layout_add_segment(t, s->prefix_queries ? s->prefix : 0, 0, 0, start, s->prefix + old);
    }
    for (int branch = 0; branch < s->branches; branch++) {
      if (s->key_gap > 0) layout_add_group(t, s->key_gap, 0, 0);
      t->query_rows += s->query_gap;
      int32_t rows = s->branch_rows + branch, own = layout_add_group(t, s->cached + rows, t->segments, 1);
      layout_add_segment(t, rows, start, s->prefix, own, s->cached + rows);
    }
  }
  if (t->query_rows == 1) return;
  layout_add_group(t, 0, 0, 0);
  layout_add_group(t, UNUSED, 0, 0);
  t->query_rows += UNUSED;
}

/* The operands of both directions. */
typedef struct operands {
  const shape *shape;
  layout tables;
  op_operand q, k, v, out, lse, dout, segments, groups, row_dot, dq, dk, dv;
} operands;

/* DENSE: rows without gaps, which kernels move 16 bytes at a time if the columns allow it. APART: rows with gaps, by
 * chance. */
typedef enum spacing { DENSE, APART } spacing;

static op_operand spaced(op_operand one_row, int64_t rows, int64_t cols) {
  for (int side = 0; side < OP_SIDES; side++) one_row.at[side] = hv_tensor_reshape(one_row.at[side], rows, cols);
  return one_row;
}

static op_operand matrix(op_env *env, spacing how, int64_t rows, int64_t cols) {
  if (how == APART) return op_random(env, OP_T, rows, cols, 1, 0);
  return spaced(op_random(env, OP_T, 1, rows * cols, 1, 0), rows, cols);
}
static op_operand zeros(op_env *env, spacing how, int64_t rows, int64_t cols) {
  const double *values = op_array(env, rows * cols);
  if (how == APART) return op_values(env, OP_T, rows, cols, values);
  return spaced(op_values(env, OP_T, 1, rows * cols, values), rows, cols);
}
static op_operand poison(op_env *env, spacing how, int64_t rows, int64_t cols) {
  if (how == APART) return op_result(env, OP_T, rows, cols);
  return spaced(op_result(env, OP_T, 1, rows * cols), rows, cols);
}

/* Keys or values. Rows that no segment sees are NaN, which must not reach any result. */
static op_operand keys(op_env *env, const layout *t, spacing how, int64_t cols) {
  int64_t rows = t->key_rows;
  double *values = op_array(env, rows * cols);
  for (int64_t i = 0; i < rows * cols; i++) values[i] = op_normal(env);
  for (int32_t g = 0; g < t->groups; g++) {
    const hv_key_group *group = &t->group[g];
    for (int64_t i = 0; group->segment_count == 0 && i < group->key_rows * cols; i++) {
      values[group->key_start * cols + i] = NAN;
    }
  }
  if (how == APART) return op_values(env, OP_T, rows, cols, values);
  return spaced(op_values(env, OP_T, 1, rows * cols, values), rows, cols);
}

static void make_operands(op_env *env, const shape *s, spacing how, operands *o) {
  o->shape = s;
  make_tables(s, &o->tables);
  int64_t nq = o->tables.query_rows, nk = o->tables.key_rows;
  int64_t q_cols = (int64_t)s->num_heads * s->head_dim, kv_cols = (int64_t)s->num_kv_heads * s->head_dim;
  o->q = matrix(env, how, nq, q_cols);
  o->k = keys(env, &o->tables, how, kv_cols);
  o->v = keys(env, &o->tables, how, kv_cols);
  o->dout = matrix(env, how, nq, q_cols);
  /* Rows in no segment must keep their values: zeros on both sides. */
  o->out = zeros(env, how, nq, q_cols);
  o->lse = op_values(env, OP_S, nq, s->num_heads, op_array(env, nq * s->num_heads));
  o->dq = zeros(env, how, nq, q_cols);
  o->dk = poison(env, how, nk, kv_cols);
  o->dv = poison(env, how, nk, kv_cols);
  o->row_dot = op_result(env, OP_S, nq, s->num_heads);
  o->segments = op_ints(env, o->tables.segments, 6, (const int32_t *)o->tables.segment);
  o->groups = op_ints(env, o->tables.groups, 4, (const int32_t *)o->tables.group);
}

static void run_forward(op_env *env, operands *o) {
  const shape *s = o->shape;
  OP_RUN(env, attention, .q = o->q.at[side], .k = o->k.at[side], .v = o->v.at[side], .segments = o->segments.at[side],
         .num_heads = s->num_heads, .num_kv_heads = s->num_kv_heads, .head_dim = s->head_dim,
         .max_q_rows = o->tables.max_q_rows, .max_key_rows = o->tables.max_key_rows, .causal = s->causal,
         .scale = 1 / sqrt(s->head_dim), .out = o->out.at[side], .lse = o->lse.at[side]);
}

static void run_backward(op_env *env, operands *o) {
  const shape *s = o->shape;
  OP_RUN(env, attention_backward, .q = o->q.at[side], .k = o->k.at[side], .v = o->v.at[side], .out = o->out.at[side],
         .lse = o->lse.at[side], .dout = o->dout.at[side], .segments = o->segments.at[side],
         .key_groups = o->groups.at[side], .num_heads = s->num_heads, .num_kv_heads = s->num_kv_heads,
         .head_dim = s->head_dim, .max_q_rows = o->tables.max_q_rows, .max_key_rows = o->tables.max_key_rows,
         .max_group_rows = o->tables.max_group_rows, .causal = s->causal, .scale = 1 / sqrt(s->head_dim),
         .row_dot = o->row_dot.at[side], .dq = o->dq.at[side], .dk = o->dk.at[side], .dv = o->dv.at[side]);
}

/* With `compare`, results are compared with the CPU's. In any case they go into env->digest. */
static void run_shape(op_env *env, const shape *s, spacing how, bool compare) {
  static const char *const names[] = {"out", "lse", "dq", "dk", "dv"};
  operands o;
  env->name = s->name;
  env->draws = 0;
  make_operands(env, s, how, &o);
  run_forward(env, &o);
  run_backward(env, &o);
  const op_operand *results[] = {&o.out, &o.lse, &o.dq, &o.dk, &o.dv};
  for (int i = 0; i < 5; i++) {
    if (compare) {
      op_compare_sides(env, names[i], results[i]);
    } else {
      (void)op_read(env, 0, results[i]);
    }
  }
  op_env_clear(env);
}

/* Few enough rows to be run more than once. */
static bool is_small(const shape *s) {
  return s->prefix < 70;
}

static void run_shapes(hv_dtype dtype) {
  op_env env;
  open_both(&env, dtype, "1");
  for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
    env.seed = 1 + i;
    run_shape(&env, &shapes[i], DENSE, true);
    if (is_small(&shapes[i])) run_shape(&env, &shapes[i], APART, true);
  }
  close_both(&env);
}

static void shapes_fp32(void **state) {
  (void)state;
  run_shapes(HV_F32);
}
static void shapes_bf16(void **state) {
  (void)state;
  run_shapes(HV_BF16);
}

/* Few queries over many keys: the keys are split into parts, whose results are merged in scratch memory. Here it is the
 * very first operation, so that the scratch memory is allocated for it. */
static void decoding_comes_first(void **state) {
  (void)state;
  static const shape decode = {"decoding comes first", 1, 333, 2, 8, 4, 4, 32, true, false, 0, 0, 0};
  op_env env;
  operands o;
  open_both(&env, HV_BF16, "1");
  env.name = decode.name;
  make_operands(&env, &decode, DENSE, &o);
  run_forward(&env, &o); /* the emulator reports writes outside of allocations */
  op_compare_sides(&env, "out", &o.out);
  close_both(&env);
}

static uint64_t digest_of(hv_dtype dtype, const char *order) {
  op_env env;
  open_both(&env, dtype, order);
  for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
    if (is_small(&shapes[i])) run_shape(&env, &shapes[i], DENSE, false);
  }
  uint64_t digest = env.digest;
  close_both(&env);
  return digest;
}

/* Results do not depend on the order in which blocks and threads run. */
static void same_bytes_in_any_order(void **state) {
  (void)state;
  assert_true(digest_of(HV_BF16, "1") == digest_of(HV_BF16, "2"));
  assert_true(digest_of(HV_F32, "3") == digest_of(HV_F32, "4"));
}

int main(int argc, char **argv) {
  choose_device(argc, argv);
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(shapes_fp32),
      cmocka_unit_test(shapes_bf16),
      cmocka_unit_test(decoding_comes_first),
      cmocka_unit_test(same_bytes_in_any_order),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
