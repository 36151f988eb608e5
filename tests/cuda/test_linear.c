/* Linear layers and their gradients at the shapes for which there are different kernels (few rows and many, columns
 * that fit wide vectors or not, results in place), against the CPU device in double: test_linear [DEVICE], by default
 * emu. */
#include <math.h>

#include "tests/cuda/under_test.h"

typedef struct shape {
  int64_t rows, in, out;
} shape;

/* Up to 16 rows and more; `in` a multiple of 8 or not; many columns of y and few. */
static const shape shapes[] = {
    {1, 8, 1},      {1, 264, 8193}, {1, 4096, 40}, {2, 40, 17},   {7, 24, 8200}, {12, 520, 33},  {13, 257, 64},
    {16, 1024, 96}, {16, 88, 8192}, {17, 88, 96},  {33, 129, 65}, {200, 64, 64}, {3001, 40, 24},
};
enum { SHAPES = sizeof shapes / sizeof shapes[0] };

static const hv_activation activations[] = {HV_ACT_NONE, HV_ACT_GELU, HV_ACT_GELU_TANH, HV_ACT_QUICK_GELU, HV_ACT_SILU};

/* Which optional operands there are, and whether results are in place. */
typedef struct variant {
  hv_activation activation;
  bool bias, residual, in_place, pre, f32_result;
} variant;

static variant variant_of(op_env *env, int number) {
  variant v = {.activation = activations[number % 5], .bias = op_coin(env), .residual = op_coin(env)};
  v.in_place = v.residual && op_coin(env);
  v.pre = op_coin(env);
  v.f32_result = !v.in_place && op_coin(env);
  return v;
}

/* Half of the matrices have no gaps between rows, so that kernels move 16 bytes at a time if the columns allow it. */
static op_operand matrix(op_env *env, int64_t rows, int64_t cols, double scale) {
  if (op_coin(env)) return op_random(env, OP_T, rows, cols, scale, 0);
  op_operand m = op_random(env, OP_T, 1, rows * cols, scale, 0);
  for (int side = 0; side < OP_SIDES; side++) m.at[side] = hv_tensor_reshape(m.at[side], rows, cols);
  return m;
}

static op_operand maybe(op_env *env, bool present, int64_t rows, int64_t cols) {
  return present ? matrix(env, rows, cols, 1) : op_absent();
}

static double spread(int64_t terms) {
  return 1 / sqrt((double)terms);
}

static void run_linear(op_env *env, shape s, variant v) {
  op_operand x = matrix(env, s.rows, s.in, 1), weight = matrix(env, s.out, s.in, spread(s.in));
  op_operand bias = maybe(env, v.bias, 1, s.out), residual = maybe(env, v.residual, s.rows, s.out);
  op_operand pre = v.pre ? op_result(env, OP_T, s.rows, s.out) : op_absent();
  op_operand y = v.in_place ? residual : op_result(env, v.f32_result ? OP_F32 : OP_T, s.rows, s.out);
  OP_RUN(env, linear, .x = x.at[side], .weight = weight.at[side], .bias = bias.at[side], .residual = residual.at[side],
         .activation = v.activation, .pre = pre.at[side], .y = y.at[side]);
  op_compare_sides(env, "y", &y);
  if (v.pre) op_compare_sides(env, "pre", &pre);
}

/* y has `out` columns. With up to 16 rows one launch computes y directly, unless the values before the activation are
 * kept. */
static void run_linear_swiglu(op_env *env, shape s, variant v) {
  op_operand x = matrix(env, s.rows, s.in, 1), weight = matrix(env, 2 * s.out, s.in, spread(s.in));
  op_operand gate_up = op_result(env, OP_T, s.rows, 2 * s.out), y = op_result(env, OP_T, s.rows, s.out);
  OP_RUN(env, linear_swiglu, .x = x.at[side], .weight = weight.at[side], .gate_up = gate_up.at[side], .keep = v.pre,
         .y = y.at[side]);
  op_compare_sides(env, "y", &y);
  if (v.pre) op_compare_sides(env, "gate_up", &gate_up);
}

static void run_backward_input(op_env *env, shape s, variant v) {
  op_operand dy = matrix(env, s.rows, s.out, 1);
  op_operand weight = matrix(env, s.out, s.in, spread(s.out));
  op_operand pre = maybe(env, v.activation != HV_ACT_NONE, s.rows, s.in), add = maybe(env, v.residual, s.rows, s.in);
  op_operand dx = v.in_place ? add : op_result(env, OP_T, s.rows, s.in);
  OP_RUN(env, linear_backward_input, .dy = dy.at[side], .weight = weight.at[side], .activation = v.activation,
         .pre = pre.at[side], .add = add.at[side], .dx = dx.at[side]);
  op_compare_sides(env, "dx", &dx);
}

static void run_backward_weight(op_env *env, shape s, variant v) {
  op_kind kind = v.f32_result ? OP_F32 : OP_T;
  op_operand dy = matrix(env, s.rows, s.out, 1), x = matrix(env, s.rows, s.in, 1);
  bool set = op_coin(env);
  op_operand dweight = set ? op_result(env, kind, s.out, s.in) : op_random(env, kind, s.out, s.in, 1, 0);
  op_operand dbias = v.bias ? op_random(env, kind, 1, s.out, 1, 0) : op_absent();
  OP_RUN(env, linear_backward_weight, .dy = dy.at[side], .x = x.at[side], .dweight = dweight.at[side],
         .set_dweight = set, .dbias = dbias.at[side]);
  op_compare_sides(env, "dweight", &dweight);
  if (v.bias) op_compare_sides(env, "dbias", &dbias);
}

typedef void (*run_one)(op_env *env, shape s, variant v);

/* Runs every shape with the first `activations_tried` of five activations; other choices are random. */
static void run_with(const char *name, hv_dtype dtype, run_one run, int activations_tried) {
  op_env env;
  open_both(&env, dtype, "1");
  env.name = name;
  for (int i = 0; i < SHAPES * 5; i++) {
    if (i % 5 >= activations_tried) continue;
    env.seed = (uint64_t)i + 1;
    env.draws = 0;
    run(&env, shapes[i / 5], variant_of(&env, i));
    op_env_clear(&env);
  }
  close_both(&env);
}

static void run_all(const char *name, hv_dtype dtype, run_one run) {
  run_with(name, dtype, run, 5);
}

static void linear_fp32(void **state) {
  (void)state;
  run_all("linear", HV_F32, run_linear);
}
static void linear_bf16(void **state) {
  (void)state;
  run_all("linear", HV_BF16, run_linear);
}
static void linear_swiglu_fp32(void **state) {
  (void)state;
  run_with("linear_swiglu", HV_F32, run_linear_swiglu, 2);
}
static void linear_swiglu_bf16(void **state) {
  (void)state;
  run_with("linear_swiglu", HV_BF16, run_linear_swiglu, 2);
}
static void backward_input_fp32(void **state) {
  (void)state;
  run_all("linear_backward_input", HV_F32, run_backward_input);
}
static void backward_input_bf16(void **state) {
  (void)state;
  run_all("linear_backward_input", HV_BF16, run_backward_input);
}
static void backward_weight_fp32(void **state) {
  (void)state;
  run_all("linear_backward_weight", HV_F32, run_backward_weight);
}
static void backward_weight_bf16(void **state) {
  (void)state;
  run_all("linear_backward_weight", HV_BF16, run_backward_weight);
}

/* Rows of x begin at odd addresses, which a library may refuse. Then a bias, tanh GELU or residual, which it would have
 * handled as well, must be computed all the same. There are too many rows for the kernels of few rows. */
static void odd_rows(void **state) {
  (void)state;
  enum { ROWS = 24, IN = 31, OUT = 64 };
  op_env env;
  open_both(&env, HV_BF16, "1");
  env.name = "odd rows";
  for (int i = 0; i < 3; i++) {
    env.seed = (uint64_t)i + 1;
    op_operand x = op_random(&env, OP_T, 1, ROWS * IN, 1, 0), y = op_result(&env, OP_T, 1, ROWS * OUT);
    op_operand weight = op_random(&env, OP_T, 1, OUT * IN, spread(IN), 0), bias = op_random(&env, OP_T, 1, OUT, 1, 0);
    op_operand residual = i == 2 ? op_random(&env, OP_T, 1, ROWS * OUT, 1, 0) : op_absent();
    for (int side = 0; side < OP_SIDES; side++) {
      x.at[side] = hv_tensor_reshape(x.at[side], ROWS, IN);
      weight.at[side] = hv_tensor_reshape(weight.at[side], OUT, IN);
      y.at[side] = hv_tensor_reshape(y.at[side], ROWS, OUT);
      if (i == 2) residual.at[side] = hv_tensor_reshape(residual.at[side], ROWS, OUT);
    }
    OP_RUN(&env, linear, .x = x.at[side], .weight = weight.at[side], .bias = bias.at[side],
           .residual = residual.at[side], .activation = i == 1 ? HV_ACT_GELU_TANH : HV_ACT_NONE, .y = y.at[side]);
    op_compare_sides(&env, "y", &y);
    op_env_clear(&env);
  }
  close_both(&env);
}

/* Between their two passes, kernels hold a limited number of rows in float: 4,096 of 1,024 columns, or at least 128.
 * Here there are more rows; and more than are summed over in 128 chunks of 32 rows. */
static void many_rows(void **state) {
  (void)state;
  variant all = {.activation = HV_ACT_GELU, .bias = true, .residual = true, .in_place = true, .pre = true};
  op_env env;
  open_both(&env, HV_BF16, "1");
  env.name = "many rows";
  env.seed = 1;
  run_linear(&env, (shape){4100, 8, 1024}, all);
  op_env_clear(&env);
  run_backward_input(&env, (shape){130, 32776, 8}, all);
  op_env_clear(&env);
  run_backward_weight(&env, (shape){4100, 8, 24}, all);
  close_both(&env);
}

/* A bf16 residual with an fp32 result, which a library refuses or would read as fp32; with and without a bias, and with
 * few rows and many. */
static void residual_of_another_dtype(void **state) {
  (void)state;
  op_env env;
  open_both(&env, HV_BF16, "1");
  env.name = "a residual of another dtype";
  for (int i = 0; i < 4; i++) {
    env.seed = (uint64_t)i + 1;
    run_linear(&env, (shape){i % 2 ? 40 : 5, 32, 48}, (variant){.residual = true, .f32_result = true, .bias = i >= 2});
    op_env_clear(&env);
  }
  close_both(&env);
}

/* Views that begin in the second column: only for their address they cannot be moved 16 bytes at a time. */
static op_operand from_the_second_column(op_operand whole, int64_t rows) {
  for (int side = 0; side < OP_SIDES; side++) {
    hv_tensor t = hv_tensor_rows(whole.at[side], 0, rows);
    whole.at[side] = hv_tensor_cols(t, 1, t.cols - 8);
  }
  return whole;
}

static void odd_addresses(void **state) {
  (void)state;
  enum { IN = 32, OUT = 48 };
  static const int64_t row_counts[] = {5, 20};
  op_env env;
  open_both(&env, HV_BF16, "1");
  env.name = "odd addresses";
  env.wide = true;
  for (int i = 0; i < 2; i++) {
    int64_t rows = row_counts[i], all = rows + 1; /* one more row, so that all of the memory is valid */
    op_operand x = from_the_second_column(op_random(&env, OP_T, all, IN + 8, 1, 0), rows);
    op_operand weight = from_the_second_column(op_random(&env, OP_T, OUT, IN + 8, spread(IN), 0), OUT);
    op_operand bias = from_the_second_column(op_random(&env, OP_T, 1, OUT + 8, 1, 0), 1);
    op_operand residual = from_the_second_column(op_random(&env, OP_T, all, OUT + 8, 1, 0), rows);
    op_operand pre = from_the_second_column(op_result(&env, OP_T, all, OUT + 8), rows);
    op_operand y = from_the_second_column(op_result(&env, OP_T, all, OUT + 8), rows);
    OP_RUN(&env, linear, .x = x.at[side], .weight = weight.at[side], .bias = bias.at[side],
           .residual = residual.at[side], .activation = HV_ACT_SILU, .pre = pre.at[side], .y = y.at[side]);
    op_compare_sides(&env, "pre", &pre);
    op_compare_sides(&env, "y", &y);
    op_env_clear(&env);
  }
  close_both(&env);
}

/* A product with no rows is no error. */
static void no_rows(void **state) {
  (void)state;
  op_env env;
  open_both(&env, HV_BF16, "1");
  env.name = "no rows";
  op_operand weight = op_random(&env, OP_T, 24, 16, 1, 0), y = op_result(&env, OP_T, 1, 24);
  op_operand x = op_random(&env, OP_T, 1, 16, 1, 0);
  hv_linear(env.stream[0], &(hv_linear_args){.x = hv_tensor_rows(x.at[0], 0, 0),
                                             .weight = weight.at[0],
                                             .y = hv_tensor_rows(y.at[0], 0, 0)});
  op_synchronize(&env, 0, "linear");
  close_both(&env);
}

int main(int argc, char **argv) {
  choose_device(argc, argv);
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(linear_fp32),
      cmocka_unit_test(linear_bf16),
      cmocka_unit_test(linear_swiglu_fp32),
      cmocka_unit_test(linear_swiglu_bf16),
      cmocka_unit_test(backward_input_fp32),
      cmocka_unit_test(backward_input_bf16),
      cmocka_unit_test(backward_weight_fp32),
      cmocka_unit_test(backward_weight_bf16),
      cmocka_unit_test(odd_rows),
      cmocka_unit_test(residual_of_another_dtype),
      cmocka_unit_test(odd_addresses),
      cmocka_unit_test(many_rows),
      cmocka_unit_test(no_rows),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
