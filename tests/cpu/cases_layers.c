/* Cases of linear layers, norms, residuals, SwiGLU and rotary (op_cases.h), against plain loops in double; some
 * gradients against the CPU device, which test_gradients.c checks by differences. */
#include <math.h>

#include "tests/check.h"
#include "tests/cpu/op_cases.h"

/* Activations by their definitions, in double. */
static double activate(hv_activation activation, double x) {
  double u = sqrt(2 / M_PI) * (x + 0.044715 * x * x * x);
  switch (activation) {
  case HV_ACT_GELU: return x * 0.5 * erfc(-x / sqrt(2));
  case HV_ACT_GELU_TANH: return 0.5 * x * (1 + tanh(u));
  case HV_ACT_QUICK_GELU: return x / (1 + exp(-1.702 * x));
  case HV_ACT_SILU: return x / (1 + exp(-x));
  default: return x;
  }
}

static double or_zero(const op_operand *operand, int64_t index) {
  return operand->host ? operand->host[index] : 0;
}

static op_operand maybe(op_env *env, op_kind kind, int64_t rows, int64_t cols, double scale) {
  return op_coin(env) ? op_random(env, kind, rows, cols, scale, 0) : op_absent();
}

static void linear(op_env *env) {
  int64_t n = op_size(env), in = op_depth(env), out = op_size(env);
  hv_activation activation = op_activation(env, true);
  op_operand x = op_random(env, OP_T, n, in, 1, 0), weight = op_random(env, OP_T, out, in, 1 / sqrt((double)in), 0);
  op_operand bias = maybe(env, OP_T, 1, out, 1), residual = maybe(env, OP_T, n, out, 1);
  op_operand pre = op_coin(env) ? op_result(env, OP_T, n, out) : op_absent();
  bool in_place = residual.host && op_coin(env);
  op_operand y = in_place ? residual : op_result(env, OP_T_OR_F32, n, out);
  double *before = op_array(env, n * out), *after = op_array(env, n * out);
  for (int64_t i = 0; i < n; i++) {
    for (int64_t j = 0; j < out; j++) {
      double sum = or_zero(&bias, j);
      for (int64_t k = 0; k < in; k++) sum += x.host[i * in + k] * weight.host[j * in + k];
      before[i * out + j] = sum;
      after[i * out + j] = activate(activation, sum) + or_zero(&residual, i * out + j);
    }
  }
  OP_RUN(env, linear, .x = x.at[side], .weight = weight.at[side], .bias = bias.at[side], .residual = residual.at[side],
         .activation = activation, .pre = pre.at[side], .y = y.at[side]);
  if (hv_present(pre.at[0])) op_compare(env, "pre", &pre, before);
  op_compare(env, "y", &y, after);
}

static void linear_backward_input(op_env *env) {
  int64_t n = op_size(env), in = op_size(env), out = op_depth(env);
  hv_activation activation = op_activation(env, true);
  op_operand dy = op_random(env, OP_T, n, out, 1, 0), weight = op_random(env, OP_T, out, in, 1 / sqrt((double)out), 0);
  op_operand pre = activation == HV_ACT_NONE ? op_absent() : op_random(env, OP_T, n, in, 2, 0);
  op_operand add = maybe(env, OP_T, n, in, 1);
  op_operand dx = add.host && op_coin(env) ? add : op_result(env, OP_T, n, in);
  double *expected = op_array(env, n * in);
  for (int64_t i = 0; i < n; i++) {
    for (int64_t j = 0; j < in; j++) {
      double sum = 0, step = 1e-5, slope = 1;
      for (int64_t k = 0; k < out; k++) sum += dy.host[i * out + k] * weight.host[k * in + j];
      if (pre.host) {
        double at = pre.host[i * in + j];
        slope = (activate(activation, at + step) - activate(activation, at - step)) / (2 * step);
      }
      expected[i * in + j] = sum * slope + or_zero(&add, i * in + j);
    }
  }
  OP_RUN(env, linear_backward_input, .dy = dy.at[side], .weight = weight.at[side], .activation = activation,
         .pre = pre.at[side], .add = add.at[side], .dx = dx.at[side]);
  /* The derivative above is a difference quotient, accurate to about 1e-10. */
  if (env->dtype == HV_F64) {
    op_compare_within(env, "dx", &dx, expected, 1e-9);
  } else {
    op_compare(env, "dx", &dx, expected);
  }
}

static void linear_backward_weight(op_env *env) {
  int64_t n = op_depth(env), in = op_size(env), out = op_size(env);
  op_operand dy = op_random(env, OP_T, n, out, 1, 0), x = op_random(env, OP_T, n, in, 1, 0);
  op_operand dbias = maybe(env, OP_T_OR_F32, 1, out, 1);
  bool set = n > 0 && op_coin(env);
  op_operand dweight = set                          ? op_result(env, OP_T_OR_F32, out, in)
                       : dbias.host && op_coin(env) ? op_absent()
                                                    : op_random(env, OP_T_OR_F32, out, in, 1, 0);
  double *weight_sum = op_array(env, out * in), *bias_sum = op_array(env, out);
  for (int64_t j = 0; j < out; j++) {
    for (int64_t k = 0; k < in; k++) {
      double sum = or_zero(&dweight, j * in + k);
      for (int64_t i = 0; i < n; i++) sum += dy.host[i * out + j] * x.host[i * in + k];
      weight_sum[j * in + k] = sum;
    }
    bias_sum[j] = or_zero(&dbias, j);
    for (int64_t i = 0; i < n; i++) bias_sum[j] += dy.host[i * out + j];
  }
  OP_RUN(env, linear_backward_weight, .dy = dy.at[side], .x = x.at[side], .dweight = dweight.at[side],
         .set_dweight = set, .dbias = dbias.at[side]);
  if (set || dweight.host) op_compare(env, "dweight", &dweight, weight_sum);
  if (dbias.host) op_compare(env, "dbias", &dbias, bias_sum);
}

static void activation_backward(op_env *env) {
  int64_t n = op_size(env), d = op_width(env, n);
  hv_activation activation = op_activation(env, true);
  op_operand pre = op_random(env, OP_T, n, d, 2, 0), dy = op_random(env, OP_T, n, d, 1, 0);
  op_operand dpre = op_coin(env) ? dy : op_result(env, OP_T, n, d);
  OP_RUN(env, activation_backward, .activation = activation, .pre = pre.at[side], .dy = dy.at[side],
         .dpre = dpre.at[side]);
  op_compare_sides(env, "dpre", &dpre);
}

static void norm_row(hv_norm_kind kind, double eps, const double *x, int64_t d, double *mean, double *rstd) {
  double sum = 0, squares = 0;
  for (int64_t j = 0; j < d; j++) sum += x[j];
  *mean = kind == HV_NORM_RMS ? 0 : sum / (double)d;
  for (int64_t j = 0; j < d; j++) squares += (x[j] - *mean) * (x[j] - *mean);
  *rstd = 1 / sqrt(squares / (double)(kind == HV_NORM_VARIANCE ? d - 1 : d) + eps);
}

static hv_norm_kind random_norm(op_env *env) {
  return (hv_norm_kind)(env->seed % 3); /* each kind equally often */
}

static int64_t width_from(op_env *env, int64_t least, int64_t rows) {
  int64_t width = op_width(env, rows);
  return width < least ? least : width;
}

/* The backward pass reads the stored sum, so the norm must have been computed from the sum as it is stored, rounding
 * included: y must equal the norm of the stored sum to the bit. */
static void expect_norm_of_stored(op_env *env, hv_norm_kind kind, double eps, const op_operand *sum,
                                  const op_operand *weight, const op_operand *bias, const op_operand *y) {
  int64_t n = y->at[0].rows, d = y->at[0].cols;
  op_operand again = op_result(env, OP_T, n, d);
  OP_RUN(env, norm, .kind = kind, .eps = eps, .x = sum->at[side], .weight = weight->at[side], .bias = bias->at[side],
         .y = again.at[side]);
  const double *found = op_read(env, 0, y), *expected = op_read(env, 0, &again);
  if (memcmp(found, expected, (size_t)(n * d) * sizeof *found) != 0) {
    fail_msg("%s: y is not the norm of the sum that was stored (seed %llu)", env->name, (unsigned long long)env->seed);
  }
}

static void norm(op_env *env) {
  hv_norm_kind kind = random_norm(env);
  int64_t n = op_size(env), d = width_from(env, kind == HV_NORM_VARIANCE ? 2 : 1, n);
  double eps = 1e-5;
  op_operand x = op_random(env, OP_T, n, d, 1, 0.5), delta = maybe(env, OP_T, n, d, 1);
  op_operand delta_scale = delta.host ? maybe(env, OP_T, 1, d, 1) : op_absent();
  op_operand sum = !delta.host ? op_absent() : op_coin(env) ? x : op_result(env, OP_T, n, d);
  op_operand weight = op_random(env, OP_T, 1, d, 0.3, 1);
  op_operand bias = kind == HV_NORM_LAYER ? maybe(env, OP_T, 1, d, 1) : op_absent();
  op_operand y = op_result(env, OP_T, n, d);
  op_operand stats = op_coin(env) ? op_result(env, OP_S, n, 2) : op_absent();
  double *sums = op_array(env, n * d), *ys = op_array(env, n * d), *expected_stats = op_array(env, n * 2);
  for (int64_t i = 0; i < n; i++) {
    double mean, rstd;
    for (int64_t j = 0; j < d; j++) {
      double scale = delta_scale.host ? delta_scale.host[j] : 1;
      sums[i * d + j] = x.host[i * d + j] + scale * or_zero(&delta, i * d + j);
    }
    norm_row(kind, eps, sums + i * d, d, &mean, &rstd);
    double centre = kind == HV_NORM_LAYER ? mean : 0;
    for (int64_t j = 0; j < d; j++) {
      ys[i * d + j] = (sums[i * d + j] - centre) * rstd * weight.host[j] + or_zero(&bias, j);
    }
    expected_stats[2 * i] = mean;
    expected_stats[2 * i + 1] = rstd;
  }
  OP_RUN(env, norm, .kind = kind, .eps = eps, .x = x.at[side], .delta = delta.at[side],
         .delta_scale = delta_scale.at[side], .sum = sum.at[side], .weight = weight.at[side], .bias = bias.at[side],
         .y = y.at[side], .stats = stats.at[side]);
  if (delta.host) op_compare(env, "sum", &sum, sums);
  op_compare(env, "y", &y, ys);
  if (delta.host) expect_norm_of_stored(env, kind, eps, &sum, &weight, &bias, &y);
  if (hv_present(stats.at[0])) op_compare(env, "stats", &stats, expected_stats);
}

/* Mean and 1/deviation of rows, for the backward pass, from the values as the device under test stores them. */
static op_operand stats_of(op_env *env, hv_norm_kind kind, const op_operand *x) {
  int64_t n = x->at[0].rows, d = x->at[0].cols;
  double *stats = op_array(env, n * 2);
  for (int64_t i = 0; i < n; i++) norm_row(kind, 1e-5, x->host + i * d, d, &stats[2 * i], &stats[2 * i + 1]);
  return op_values(env, OP_S, n, 2, stats);
}

static void norm_backward(op_env *env) {
  hv_norm_kind kind = random_norm(env);
  int64_t n = op_size(env), d = width_from(env, 3, n); /* a layer norm of two columns has no gradient */
  op_operand dy = op_random(env, OP_T, n, d, 1, 0), x = op_random(env, OP_T, n, d, 1, 0.3);
  op_operand weight = op_random(env, OP_T, 1, d, 0.3, 1), stats = stats_of(env, kind, &x);
  op_operand dresidual = maybe(env, OP_T, n, d, 1);
  op_operand dx = dresidual.host && op_coin(env) ? dresidual : op_result(env, OP_T, n, d);
  op_operand dweight = maybe(env, OP_T_OR_F32, 1, d, 1), dbias = maybe(env, OP_T_OR_F32, 1, d, 1);
  bool scaled = op_coin(env);
  op_operand delta_scale = scaled ? op_random(env, OP_T, 1, d, 1, 0) : op_absent();
  op_operand ddelta = scaled ? op_result(env, OP_T, n, d) : op_absent();
  op_operand ddelta_scale = scaled ? maybe(env, OP_T_OR_F32, 1, d, 1) : op_absent();
  op_operand delta = ddelta_scale.host ? op_random(env, OP_T, n, d, 1, 0) : op_absent();
  OP_RUN(env, norm_backward, .kind = kind, .dy = dy.at[side], .x = x.at[side], .weight = weight.at[side],
         .stats = stats.at[side], .dresidual = dresidual.at[side], .dx = dx.at[side], .dweight = dweight.at[side],
         .dbias = dbias.at[side], .delta = delta.at[side], .delta_scale = delta_scale.at[side],
         .ddelta = ddelta.at[side], .ddelta_scale = ddelta_scale.at[side]);
  op_compare_sides(env, "dx", &dx);
  if (dweight.host) op_compare_sides(env, "dweight", &dweight);
  if (dbias.host) op_compare_sides(env, "dbias", &dbias);
  if (scaled) op_compare_sides(env, "ddelta", &ddelta);
  if (ddelta_scale.host) op_compare_sides(env, "ddelta_scale", &ddelta_scale);
}

static void residual_add(op_env *env) {
  int64_t n = op_size(env), d = op_width(env, n);
  op_operand x = op_random(env, OP_T, n, d, 1, 0), delta = op_random(env, OP_T, n, d, 1, 0);
  op_operand scale = maybe(env, OP_T, 1, d, 1);
  int64_t where = op_below(env, 3);
  op_operand y = where == 0 ? x : where == 1 ? delta : op_result(env, OP_T, n, d);
  double *expected = op_array(env, n * d);
  for (int64_t i = 0; i < n * d; i++) expected[i] = x.host[i] + (scale.host ? scale.host[i % d] : 1) * delta.host[i];
  OP_RUN(env, residual_add, .x = x.at[side], .delta = delta.at[side], .scale = scale.at[side], .y = y.at[side]);
  op_compare(env, "y", &y, expected);
}

static void residual_scale_backward(op_env *env) {
  int64_t n = op_size(env), d = op_width(env, n);
  op_operand dy = op_random(env, OP_T, n, d, 1, 0), scale = op_random(env, OP_T, 1, d, 1, 0);
  op_operand dscale = maybe(env, OP_T_OR_F32, 1, d, 1);
  op_operand delta = dscale.host ? op_random(env, OP_T, n, d, 1, 0) : op_absent();
  op_operand ddelta = op_result(env, OP_T, n, d);
  double *expected = op_array(env, n * d), *sums = op_array(env, d);
  for (int64_t i = 0; i < n * d; i++) {
    expected[i] = scale.host[i % d] * dy.host[i];
    sums[i % d] += (i < d ? or_zero(&dscale, i) : 0) + dy.host[i] * or_zero(&delta, i);
  }
  OP_RUN(env, residual_scale_backward, .dy = dy.at[side], .delta = delta.at[side], .scale = scale.at[side],
         .ddelta = ddelta.at[side], .dscale = dscale.at[side]);
  op_compare(env, "ddelta", &ddelta, expected);
  if (dscale.host) op_compare(env, "dscale", &dscale, sums);
}

static void swiglu(op_env *env) {
  int64_t n = op_size(env), f = op_width(env, n);
  op_operand gate_up = op_random(env, OP_T, n, 2 * f, 2, 0), y = op_result(env, OP_T, n, f);
  double *expected = op_array(env, n * f);
  for (int64_t i = 0; i < n; i++) {
    for (int64_t j = 0; j < f; j++) {
      const double *row = gate_up.host + i * 2 * f;
      expected[i * f + j] = activate(HV_ACT_SILU, row[j]) * row[f + j];
    }
  }
  OP_RUN(env, swiglu, .gate_up = gate_up.at[side], .y = y.at[side]);
  op_compare(env, "y", &y, expected);
}

static void linear_swiglu(op_env *env) {
  int64_t n = op_size(env), in = op_depth(env), f = op_size(env);
  bool keep = op_coin(env);
  op_operand x = op_random(env, OP_T, n, in, 1, 0), weight = op_random(env, OP_T, 2 * f, in, 1.5 / sqrt((double)in), 0);
  op_operand gate_up = op_result(env, OP_T, n, 2 * f), y = op_result(env, OP_T, n, f);
  double *product = op_array(env, n * 2 * f), *expected = op_array(env, n * f);
  for (int64_t i = 0; i < n; i++) {
    double *row = product + i * 2 * f;
    for (int64_t j = 0; j < 2 * f; j++) {
      for (int64_t k = 0; k < in; k++) row[j] += x.host[i * in + k] * weight.host[j * in + k];
    }
    for (int64_t j = 0; j < f; j++) expected[i * f + j] = activate(HV_ACT_SILU, row[j]) * row[f + j];
  }
  OP_RUN(env, linear_swiglu, .x = x.at[side], .weight = weight.at[side], .gate_up = gate_up.at[side], .keep = keep,
         .y = y.at[side]);
  if (keep) op_compare(env, "gate_up", &gate_up, product);
  op_compare(env, "y", &y, expected);
}

static void swiglu_backward(op_env *env) {
  int64_t n = op_size(env), f = op_width(env, n);
  op_operand gate_up = op_random(env, OP_T, n, 2 * f, 2, 0), dy = op_random(env, OP_T, n, f, 1, 0);
  op_operand dgate_up = op_coin(env) ? gate_up : op_result(env, OP_T, n, 2 * f);
  op_operand y = op_coin(env) ? op_absent() : op_coin(env) ? dy : op_result(env, OP_T, n, f);
  double *expected = op_array(env, n * 2 * f), *made_again = op_array(env, n * f);
  for (int64_t i = 0; i < n; i++) {
    for (int64_t j = 0; j < f; j++) {
      double gate = gate_up.host[i * 2 * f + j], up = gate_up.host[i * 2 * f + f + j], d = dy.host[i * f + j];
      double s = 1 / (1 + exp(-gate));
      expected[i * 2 * f + j] = d * up * (s + gate * s * (1 - s));
      expected[i * 2 * f + f + j] = d * gate * s;
      made_again[i * f + j] = activate(HV_ACT_SILU, gate) * up;
    }
  }
  OP_RUN(env, swiglu_backward, .gate_up = gate_up.at[side], .dy = dy.at[side], .dgate_up = dgate_up.at[side],
         .y = y.at[side]);
  op_compare(env, "dgate_up", &dgate_up, expected);
  if (hv_present(y.at[0])) op_compare(env, "y", &y, made_again);
}

/* The matrix of heads, rotated; its rows are placed as `rows` says (NULL: in order) into a larger matrix of zeros. */
static double *rotated(op_env *env, const op_operand *x, int64_t head_dim, const int32_t *positions,
                       const op_operand *table, bool inverse, const int32_t *rows, int64_t out_rows) {
  int64_t n = x->at[0].rows, width = x->at[0].cols, rotary = table->at[0].cols, half = rotary / 2;
  double *out = op_array(env, out_rows * width);
  for (int64_t i = 0; i < n; i++) {
    const double *cosine = table->host + positions[i] * rotary, *sine = cosine + half, *from = x->host + i * width;
    double *to = out + (rows ? rows[i] : i) * width;
    for (int64_t j = 0; j < width; j++) {
      int64_t in_head = j % head_dim, pair = in_head % (half > 0 ? half : 1);
      double s = inverse ? -sine[pair] : sine[pair];
      to[j] = in_head < half     ? from[j] * cosine[pair] - from[j + half] * s
              : in_head < rotary ? from[j] * cosine[pair] + from[j - half] * s
                                 : from[j];
    }
  }
  return out;
}

/* A result that starts as zeros, because some rows are never written. */
static op_operand zeros(op_env *env, int64_t rows, int64_t cols) {
  return op_values(env, OP_T, rows, cols, op_array(env, rows * cols));
}

static void rotary(op_env *env) {
  enum { POSITIONS = 40 };
  int64_t n = op_size(env), unit = env->wide ? 16 : 2; /* dimensions are multiples of it: they have two halves */
  int64_t head_dim = unit * (1 + op_below(env, 80 / unit)), rotary_dim = unit * (1 + op_below(env, head_dim / unit));
  int64_t kv_heads = 1 + op_below(env, 3), heads = kv_heads * (1 + op_below(env, 3)), kv_rows = n + op_below(env, 5);
  bool inverse = op_coin(env), placed = op_coin(env), in_place = !placed && op_coin(env);
  int32_t positions[512], places[512];
  int64_t shift = kv_rows - n;
  op_operand table = op_rotary_table(env, POSITIONS, rotary_dim);
  for (int64_t i = 0; i < n; i++) {
    positions[i] = (int32_t)op_below(env, POSITIONS);
    places[i] = (int32_t)(n - 1 - i + shift);
  }
  op_operand position_list = op_ints(env, 1, n, positions),
             place_list = placed ? op_ints(env, 1, n, places) : op_absent();
  op_operand q = maybe(env, OP_T, n, heads * head_dim, 1), v = maybe(env, OP_T, n, kv_heads * head_dim, 1);
  op_operand k =
      q.host ? maybe(env, OP_T, n, kv_heads * head_dim, 1) : op_random(env, OP_T, n, kv_heads * head_dim, 1, 0);
  int64_t out_rows = placed ? kv_rows : n;
  op_operand q_out = !q.host ? op_absent() : in_place ? q : op_result(env, OP_T, n, heads * head_dim);
  op_operand k_out = !k.host ? op_absent() : in_place ? k : zeros(env, out_rows, kv_heads * head_dim);
  op_operand v_out = !v.host ? op_absent() : in_place ? v : zeros(env, out_rows, kv_heads * head_dim);
  OP_RUN(env, rotary, .q = q.at[side], .k = k.at[side], .v = v.at[side], .positions = position_list.at[side],
         .cos_sin = table.at[side], .kv_rows = place_list.at[side], .head_dim = (int32_t)head_dim, .inverse = inverse,
         .q_out = q_out.at[side], .k_out = k_out.at[side], .v_out = v_out.at[side]);
  const int32_t *rows = placed ? places : NULL;
  if (q.host) op_compare(env, "q", &q_out, rotated(env, &q, head_dim, positions, &table, inverse, NULL, n));
  if (k.host) op_compare(env, "k", &k_out, rotated(env, &k, head_dim, positions, &table, inverse, rows, out_rows));
  if (!v.host) return;
  double *moved = op_array(env, out_rows * kv_heads * head_dim);
  for (int64_t i = 0; i < n; i++) {
    int64_t width = kv_heads * head_dim, to = rows ? rows[i] : i;
    memcpy(moved + to * width, v.host + i * width, (size_t)width * sizeof *moved);
  }
  op_compare(env, "v", &v_out, moved);
}

const op_case op_layer_cases[] = {
    {"linear", linear},
    {"linear_backward_input", linear_backward_input},
    {"linear_backward_weight", linear_backward_weight},
    {"activation_backward", activation_backward},
    {"norm", norm},
    {"norm_backward", norm_backward},
    {"residual_add", residual_add},
    {"residual_scale_backward", residual_scale_backward},
    {"swiglu", swiglu},
    {"linear_swiglu", linear_swiglu},
    {"swiglu_backward", swiglu_backward},
    {"rotary", rotary},
    {NULL, NULL},
};
