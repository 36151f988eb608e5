/* Cases of diffusion, losses, decoding, random draws and the optimizer (op_cases.h), against plain loops in double. */
#include <math.h>

#include "core/base/random.h"
#include "core/tensor/moments.h"
#include "tests/check.h"
#include "tests/cpu/op_cases.h"

static int32_t *random_ints(op_env *env, int64_t count, int64_t limit) {
  int32_t *values = (int32_t *)op_array(env, count);
  for (int64_t i = 0; i < count; i++) values[i] = (int32_t)op_below(env, limit);
  return values;
}

static op_operand scalar(op_env *env, op_kind kind, double value) {
  return op_values(env, kind, 1, 1, &value);
}

static void q_sample(op_env *env) {
  enum { STEPS = 100 };
  int64_t samples = 1 + op_below(env, 9), branches = 1 + op_below(env, 5), m = op_width(env, samples),
          rows = samples * branches;
  op_operand actions = op_random(env, OP_S, samples, m, 1, 0), noise = op_random(env, OP_S, rows, m, 1, 0);
  double *table = op_array(env, STEPS);
  for (int i = 0; i < STEPS; i++) table[i] = op_uniform(env, 0, 1);
  op_operand alpha_bar = op_values(env, OP_S, 1, STEPS, table), y = op_result(env, OP_T, rows, m);
  int32_t *timesteps = random_ints(env, rows, STEPS);
  op_operand list = op_ints(env, 1, rows, timesteps);
  double *expected = op_array(env, rows * m);
  for (int64_t i = 0; i < rows * m; i++) {
    int64_t row = i / m;
    double ab = alpha_bar.host[timesteps[row]];
    expected[i] = sqrt(ab) * actions.host[row / branches * m + i % m] + sqrt(1 - ab) * noise.host[i];
  }
  OP_RUN(env, q_sample, .actions = actions.at[side], .noise = noise.at[side], .timesteps = list.at[side],
         .alpha_bar = alpha_bar.at[side], .branches = (int32_t)branches, .y = y.at[side]);
  op_compare(env, "y", &y, expected);
}

static void sampler_step(op_env *env) {
  int64_t n = op_size(env), m = op_width(env, n);
  op_operand eps = op_random(env, OP_T_OR_F32, n, m, 1, 0), x = op_random(env, OP_F32, n, m, 1, 0);
  op_operand noise = op_coin(env) ? op_random(env, OP_F32, n, m, 1, 0) : op_absent();
  op_operand coefficients = op_random(env, OP_F32, 1, 3, 1, 0);
  op_operand cast = op_coin(env) ? op_result(env, OP_T, n, m) : op_absent();
  double *expected = op_array(env, n * m);
  for (int64_t i = 0; i < n * m; i++) {
    expected[i] = coefficients.host[0] * x.host[i] + coefficients.host[1] * eps.host[i];
    if (noise.host) expected[i] += coefficients.host[2] * noise.host[i];
  }
  OP_RUN(env, sampler_step, .eps = eps.at[side], .noise = noise.at[side], .coefficients = coefficients.at[side],
         .x = x.at[side], .x_cast = cast.at[side]);
  op_compare_within(env, "x", &x, expected, 1e-6); /* F32 whatever T is */
  if (hv_present(cast.at[0])) op_compare_within(env, "x_cast", &cast, expected, env->dtype == HV_BF16 ? 1e-2 : 1e-6);
}

static void diffusion_loss(op_env *env) {
  int64_t n = op_size(env), a = op_width(env, n);
  double weight = op_uniform(env, 0.2, 2), divisor_value = op_uniform(env, 1, 50);
  bool masked = op_coin(env);
  double *mask_values = op_array(env, n), *pred_values = op_array(env, n * a);
  for (int64_t i = 0; i < n; i++) mask_values[i] = i == 0 || op_coin(env) ? 1 : 0;
  /* Masked predictions may hold anything, so they are NaN. */
  for (int64_t i = 0; i < n * a; i++) pred_values[i] = masked && mask_values[i / a] == 0 ? NAN : op_normal(env);
  op_operand pred = op_values(env, OP_T_OR_F32, n, a, pred_values), noise = op_random(env, OP_S, n, a, 1, 0);
  op_operand mask = masked ? op_values(env, OP_F32, 1, n, mask_values) : op_absent();
  op_operand divisor = scalar(env, OP_F32, divisor_value), loss = scalar(env, OP_S, 0.25);
  bool in_place = pred.at[0].dtype == env->dtype && op_coin(env);
  op_operand dpred = in_place ? pred : op_coin(env) ? op_result(env, OP_T, n, a) : op_absent();
  double *expected = op_array(env, n * a), total = 0;
  for (int64_t i = 0; i < n * a; i++) {
    double difference = masked && mask.host[i / a] == 0 ? 0 : pred.host[i] - noise.host[i];
    total += difference * difference;
    expected[i] = weight * 2 * difference / divisor.host[0];
  }
  total = 0.25 + total / divisor.host[0];
  OP_RUN(env, diffusion_loss, .pred = pred.at[side], .noise = noise.at[side], .mask = mask.at[side],
         .divisor = divisor.at[side], .weight = weight, .loss = loss.at[side], .dpred = dpred.at[side]);
  op_compare(env, "loss", &loss, &total);
  if (hv_present(dpred.at[0])) op_compare(env, "dpred", &dpred, expected);
}

/* Sometimes the vocabulary is wider than any buffer of a kernel. */
static int64_t vocabulary_size(op_env *env) {
  return op_coin(env) ? op_size(env) + 1 : op_rounded(env, 1000 + op_below(env, 10 * env->max_size));
}

static void cross_entropy(op_env *env) {
  int64_t n = op_size(env), vocabulary = vocabulary_size(env);
  double weight = op_uniform(env, 0.2, 2), divisor_value = op_uniform(env, 1, 50);
  /* With the wide spread, exponentials overflow in float unless the largest logit is subtracted first. */
  double spread = op_coin(env) ? 4 : 60;
  op_operand logits = op_random(env, OP_T_OR_F32, n, vocabulary, spread, op_uniform(env, -30, 30));
  int32_t *label_values = random_ints(env, n, vocabulary);
  op_operand labels = op_ints(env, 1, n, label_values);
  op_operand divisor = scalar(env, OP_F32, divisor_value), loss = scalar(env, OP_S, 0.5);
  bool in_place = logits.at[0].dtype == env->dtype && op_coin(env);
  op_operand dlogits = in_place ? logits : op_coin(env) ? op_result(env, OP_T, n, vocabulary) : op_absent();
  double *expected = op_array(env, n * vocabulary), total = 0;
  for (int64_t i = 0; i < n; i++) {
    const double *row = logits.host + i * vocabulary;
    double sum = 0;
    for (int64_t j = 0; j < vocabulary; j++) sum += exp(row[j]);
    total += log(sum) - row[label_values[i]];
    for (int64_t j = 0; j < vocabulary; j++) {
      expected[i * vocabulary + j] = weight * (exp(row[j]) / sum - (j == label_values[i])) / divisor.host[0];
    }
  }
  total = 0.5 + total / divisor.host[0];
  OP_RUN(env, cross_entropy, .logits = logits.at[side], .labels = labels.at[side], .divisor = divisor.at[side],
         .weight = weight, .loss = loss.at[side], .dlogits = dlogits.at[side]);
  op_compare(env, "loss", &loss, &total);
  if (hv_present(dlogits.at[0])) op_compare(env, "dlogits", &dlogits, expected);
}

/* One logit that is NaN makes the loss NaN, wherever it is: a run must not go on as if nothing had happened. */
static void cross_entropy_of_nan(op_env *env) {
  int64_t n = op_size(env), vocabulary = vocabulary_size(env);
  double *values = op_array(env, n * vocabulary);
  for (int64_t i = 0; i < n * vocabulary; i++) values[i] = op_normal(env);
  int64_t row = op_below(env, n);
  values[row * vocabulary + (op_coin(env) ? 0 : op_below(env, vocabulary))] = NAN;
  op_operand logits = op_values(env, OP_T_OR_F32, n, vocabulary, values);
  op_operand labels = op_ints(env, 1, n, random_ints(env, n, vocabulary));
  op_operand divisor = scalar(env, OP_F32, 7), loss = scalar(env, OP_S, 0);
  OP_RUN(env, cross_entropy, .logits = logits.at[side], .labels = labels.at[side], .divisor = divisor.at[side],
         .weight = 1, .loss = loss.at[side]);
  for (int side = 0; side < OP_SIDES; side++) assert_true(isnan(op_read(env, side, &loss)[0]));
}

static void best_of_range(op_env *env) {
  int64_t n = op_size(env), vocabulary = vocabulary_size(env);
  int32_t first = (int32_t)op_below(env, vocabulary), count = (int32_t)(1 + op_below(env, vocabulary - first));
  op_operand logits = op_random(env, OP_T_OR_F32, n, vocabulary, 2, 0);
  op_operand ids = op_int_result(env, 1, n), probability = op_result(env, OP_F32, 1, n);
  double *expected_ids = op_array(env, n), *expected = op_array(env, n);
  for (int64_t i = 0; i < n; i++) {
    const double *row = logits.host + i * vocabulary;
    double sum = 0;
    int64_t best = first;
    for (int64_t j = 0; j < vocabulary; j++) sum += exp(row[j]);
    for (int64_t j = first; j < first + count; j++) best = row[j] > row[best] ? j : best;
    expected_ids[i] = (double)best;
    expected[i] = exp(row[best]) / sum;
  }
  OP_RUN(env, best_of_range, .logits = logits.at[side], .first = first, .count = count, .ids = ids.at[side],
         .probability = probability.at[side]);
  op_compare_within(env, "ids", &ids, expected_ids, 0);
  op_compare_within(env, "probability", &probability, expected, 1e-5); /* F32 whatever T is */
}

/* Logits are NaN in part or altogether. The id is used to look up a row of a table, so it must be in the range in any
 * case; it is that of the largest logit that is a number, or the first of the range if there is none. */
static void best_of_nan(op_env *env) {
  int64_t n = op_size(env), vocabulary = vocabulary_size(env);
  int32_t first = (int32_t)op_below(env, vocabulary), count = (int32_t)(1 + op_below(env, vocabulary - first));
  double *values = op_array(env, n * vocabulary), *expected = op_array(env, n), numbers = op_uniform(env, -0.5, 1);
  for (int64_t i = 0; i < n * vocabulary; i++) values[i] = op_uniform(env, 0, 1) < numbers ? op_normal(env) : NAN;
  op_operand logits = op_values(env, OP_T_OR_F32, n, vocabulary, values);
  for (int64_t i = 0; i < n; i++) {
    const double *row = logits.host + i * vocabulary;
    int64_t best = first;
    for (int64_t j = first; j < first + count; j++) best = isnan(row[best]) || row[j] > row[best] ? j : best;
    expected[i] = (double)(isnan(row[best]) ? first : best);
  }
  op_operand ids = op_int_result(env, 1, n), probability = op_result(env, OP_F32, 1, n);
  OP_RUN(env, best_of_range, .logits = logits.at[side], .first = first, .count = count, .ids = ids.at[side],
         .probability = probability.at[side]);
  op_compare_within(env, "ids", &ids, expected, 0);
}

typedef struct drawing {
  int64_t seed_step[2], samples[64];
  int64_t count, branches, rows;
} drawing;

static drawing random_drawing(op_env *env) {
  drawing d = {.count = 1 + op_below(env, 60), .branches = 1 + op_below(env, 5)};
  d.rows = d.count * d.branches;
  d.seed_step[0] = op_below(env, 1 << 30) - (1 << 29);
  d.seed_step[1] = op_below(env, 1 << 30) << 8;
  for (int64_t i = 0; i < d.count; i++) d.samples[i] = op_below(env, 1 << 30) << op_below(env, 20);
  return d;
}

static void draw_normal(op_env *env) {
  drawing d = random_drawing(env);
  int64_t m = op_width(env, d.rows);
  op_operand seed_step = op_longs(env, 1, 2, d.seed_step), samples = op_longs(env, 1, d.count, d.samples);
  op_operand y = op_result(env, OP_S, d.rows, m);
  double *expected = op_array(env, d.rows * m);
  for (int64_t i = 0; i < d.rows * m; i++) {
    int64_t row = i / m;
    expected[i] = (double)hv_random_normal((uint64_t)d.seed_step[0], HV_RANDOM_NOISE, (uint64_t)d.seed_step[1],
                                           (uint64_t)d.samples[row / d.branches], (uint32_t)(row % d.branches),
                                           (uint32_t)(i % m));
  }
  OP_RUN(env, draw_normal, .seed_step = seed_step.at[side], .samples = samples.at[side],
         .branches = (int32_t)d.branches, .domain = HV_RANDOM_NOISE, .y = y.at[side]);
  op_compare_within(env, "y", &y, expected, 0);
}

static void draw_below(op_env *env) {
  drawing d = random_drawing(env);
  int32_t limit = (int32_t)(1 + op_below(env, 1000));
  op_operand seed_step = op_longs(env, 1, 2, d.seed_step), samples = op_longs(env, 1, d.count, d.samples);
  op_operand y = op_int_result(env, 1, d.rows);
  double *expected = op_array(env, d.rows);
  for (int64_t i = 0; i < d.rows; i++) {
    expected[i] = hv_random_below((uint64_t)d.seed_step[0], HV_RANDOM_TIMESTEP, (uint64_t)d.seed_step[1],
                                  (uint64_t)d.samples[i / d.branches], (uint32_t)(i % d.branches), 0, (uint32_t)limit);
  }
  OP_RUN(env, draw_below, .seed_step = seed_step.at[side], .samples = samples.at[side], .branches = (int32_t)d.branches,
         .domain = HV_RANDOM_TIMESTEP, .limit = limit, .y = y.at[side]);
  op_compare_within(env, "y", &y, expected, 0);
}

static void sum_squares(op_env *env) {
  int64_t n = op_coin(env) ? op_size(env) : 1000 * op_size(env);
  op_operand x = op_random(env, OP_T_OR_F32, 1, n, 1, 0), y = scalar(env, OP_S, 2);
  double expected = 2;
  for (int64_t i = 0; i < n; i++) expected += x.host[i] * x.host[i];
  OP_RUN(env, sum_squares, .x = x.at[side], .y = y.at[side]);
  op_compare(env, "y", &y, &expected);
}

/* As many elements as one layer's gradients: more than a thousand blocks of a card sum in one turn. It takes long, so
 * it runs for one seed and dtype. */
static void sum_squares_many(op_env *env) {
  enum { MANY = 4400000 };
  if (env->dtype != HV_BF16 || env->seed != 1) return;
  double *values = op_array(env, MANY), expected = 0;
  for (int64_t i = 0; i < MANY; i++) {
    values[i] = (double)(i % 9 - 4) / 4;
    expected += values[i] * values[i];
  }
  op_operand x = op_values(env, OP_T, 1, MANY, values), y = scalar(env, OP_S, 0);
  OP_RUN(env, sum_squares, .x = x.at[side], .y = y.at[side]);
  op_compare_within(env, "y", &y, &expected, 1e-4);
}

static void clip_factor(op_env *env) {
  static const double limits[] = {0, 1, 100};
  double values[] = {op_uniform(env, 0.01, 400), INFINITY, NAN, 4e-12};
  int64_t which = op_below(env, 5) % 4;
  /* The last sum is so small that the 1e-6 which is added to the norm shows. */
  double squares = values[which], max_norm = which == 3 ? 1e-6 : limits[op_below(env, 3)];
  op_operand sum = scalar(env, OP_S, squares), norm = op_result(env, OP_S, 1, 1);
  op_operand dynamic = op_values(env, OP_S, 1, 5, (const double[]){1, 2, 3, 4, 5});
  double expected_norm = sqrt(sum.host[0]), expected[5] = {1, 2, 3, 1, 5};
  if (max_norm > 0 && expected_norm > max_norm) expected[3] = max_norm / (expected_norm + 1e-6);
  if (!isfinite(expected_norm)) expected[3] = -1;
  OP_RUN(env, clip_factor, .sum_squares = sum.at[side], .max_norm = max_norm, .norm = norm.at[side],
         .dynamic = dynamic.at[side]);
  if (isfinite(expected_norm)) op_compare(env, "norm", &norm, &expected_norm);
  op_compare(env, "dynamic", &dynamic, expected);
}

/* The third column of a range of parameters for AdamW: whether they decay, and their share of the learning rate. */
static int64_t range_rates(int32_t decay, float rate) {
  hv_adamw_range range = {.decay = decay, .rate = rate};
  int64_t column;
  memcpy(&column, &range.decay, sizeof column);
  return column;
}

enum { MOST_RANGES = 8 };

typedef struct random_ranges {
  int64_t rows[MOST_RANGES][3], count;
  int32_t decays[MOST_RANGES];
  double rates[MOST_RANGES];
} random_ranges;

/* Random ranges of n elements, with gaps before, between and after them. Some end at the end of a block of moments, or
 * one element before it. */
static random_ranges ranges_over(op_env *env, int64_t n) {
  random_ranges r = {.count = 0};
  for (int64_t at = op_below(env, 3); at < n && r.count < MOST_RANGES; r.count++) {
    int64_t end = at + 1 + op_below(env, n), *row = r.rows[r.count];
    if (op_coin(env)) end = (end + 1) / HV_MOMENT_BLOCK * HV_MOMENT_BLOCK + HV_MOMENT_BLOCK - op_below(env, 2);
    row[0] = at;
    row[1] = end < n ? end : n;
    r.decays[r.count] = op_coin(env);
    r.rates[r.count] = op_coin(env) ? 1 : 0.25;
    row[2] = range_rates(r.decays[r.count], (float)r.rates[r.count]);
    at = end + op_below(env, 3);
  }
  return r;
}

/* The third update of a run. The factor of the gradient is 0.5, or below 0 if the update is to be skipped. Epsilon is
 * large enough that a mistake in it shows. */
static const int adamw_update = 3;
static const double adamw_lr = 0.01, adamw_beta1 = 0.9, adamw_beta2 = 0.999, adamw_eps = 0.5, adamw_decay = 0.1;

static op_operand adamw_dynamic(op_env *env, bool skip) {
  double values[5] = {adamw_lr, 1 - pow(adamw_beta1, adamw_update), 1 - pow(adamw_beta2, adamw_update), skip ? -1 : 0.5,
                      adamw_update};
  return op_values(env, OP_S, 1, 5, values);
}

static void adamw_in_double(const random_ranges *ranges, const double *grad, double *p, double *m, double *v) {
  double correction1 = 1 - pow(adamw_beta1, adamw_update), correction2 = 1 - pow(adamw_beta2, adamw_update);
  for (int64_t r = 0; r < ranges->count; r++) {
    double lr = adamw_lr * ranges->rates[r], keep = ranges->decays[r] ? 1 - lr * adamw_decay : 1;
    for (int64_t i = ranges->rows[r][0]; i < ranges->rows[r][1]; i++) {
      double g = 0.5 * grad[i];
      m[i] = adamw_beta1 * m[i] + (1 - adamw_beta1) * g;
      v[i] = adamw_beta2 * v[i] + (1 - adamw_beta2) * g * g;
      p[i] = p[i] * keep - lr * (m[i] / correction1) / (sqrt(v[i] / correction2) + adamw_eps);
    }
  }
}

/* The F32 value that a BF16 parameter and its remainder form together. */
static double joined(double high, double low) {
  float value = (float)high;
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  bits += (uint32_t)(int32_t)low;
  memcpy(&value, &bits, sizeof value);
  return (double)value;
}

/* The update is compared with the formula in double, within the rounding of the stored dtypes. */
static void adamw(op_env *env) {
  int64_t n = op_rounded(env, op_coin(env) ? op_size(env) + 3 : 5000 + op_below(env, 5000));
  random_ranges ranges = ranges_over(env, n);
  bool skip = op_below(env, 5) == 0;
  op_operand param = op_random(env, OP_T, 1, n, 1, 0), grad = op_random(env, OP_T_OR_F32, 1, n, 1, 0);
  op_operand moment1 = op_random(env, OP_S, 1, n, 0.1, 0), moment2 = op_random(env, OP_S, 1, n, 0.001, 1);
  op_operand list = op_longs(env, ranges.count, 3, ranges.rows[0]), dynamic = adamw_dynamic(env, skip);
  double *p = op_array(env, n), *m = op_array(env, n), *v = op_array(env, n);
  memcpy(p, param.host, (size_t)n * sizeof *p);
  memcpy(m, moment1.host, (size_t)n * sizeof *m);
  memcpy(v, moment2.host, (size_t)n * sizeof *v);
  if (!skip) adamw_in_double(&ranges, grad.host, p, m, v);
  hv_tensor remainders[OP_SIDES] = {{.data = NULL}, {.data = NULL}};
  if (env->dtype == HV_BF16) {
    op_operand remainder = op_ints(env, 1, (n + 1) / 2, (const int32_t *)op_array(env, n)); /* pairs of 16-bit zeros */
    remainders[0] = hv_tensor_make(remainder.at[0].data, HV_I16, 1, n);
  }
  OP_RUN(env, adamw, .param = param.at[side], .remainder = remainders[side], .grad = grad.at[side],
         .moment1 = moment1.at[side], .moment2 = moment2.at[side], .ranges = list.at[side], .dynamic = dynamic.at[side],
         .beta1 = adamw_beta1, .beta2 = adamw_beta2, .eps = adamw_eps, .weight_decay = adamw_decay);
  double tolerance = env->dtype == HV_F64 ? 1e-12 : 1e-6;
  op_compare_within(env, "param", &param, p, env->dtype == HV_BF16 ? 1e-2 : tolerance);
  op_compare_within(env, "moment1", &moment1, m, tolerance);
  op_compare_within(env, "moment2", &moment2, v, tolerance);
  if (env->dtype != HV_BF16 || env->before_second) return;
  /* Parameter and remainder together must be the F32 master value. */
  op_operand low = {.at = {remainders[0], remainders[0]}};
  const double *high_values = op_read(env, 0, &param), *low_values = op_read(env, 0, &low);
  double difference = 0, norm = 0;
  for (int64_t i = 0; i < n; i++) {
    double master = joined(high_values[i], low_values[i]);
    difference += (master - p[i]) * (master - p[i]);
    norm += p[i] * p[i];
  }
  assert_true(sqrt(difference / norm) < 1e-6);
}

/* An update with a learning rate of 0 must keep every bit of the master values, for all 65536 possible remainders. */
static void adamw_masters(op_env *env) {
  enum { HALVES = 65536 };
  if (env->dtype != HV_BF16) return;
  double *high = op_array(env, HALVES), settings[5] = {0, 1, 1, 1, 1};
  int16_t *low = (int16_t *)op_array(env, HALVES);
  for (int i = 0; i < HALVES; i++) {
    high[i] = op_uniform(env, -2, 2);
    low[i] = (int16_t)(i - HALVES / 2);
  }
  op_operand param = op_values(env, OP_T, 1, HALVES, high), remainder = op_shorts(env, 1, HALVES, low);
  op_operand grad = op_random(env, OP_T, 1, HALVES, 1, 0), dynamic = op_values(env, OP_S, 1, 5, settings);
  op_operand moment1 = op_random(env, OP_S, 1, HALVES, 1, 0), moment2 = op_random(env, OP_S, 1, HALVES, 0, 1);
  op_operand ranges = op_longs(env, 1, 3, (const int64_t[]){0, HALVES, range_rates(1, 1)});
  hv_tensor remainders[OP_SIDES] = {remainder.at[0], {.data = NULL}};
  OP_RUN(env, adamw, .param = param.at[side], .remainder = remainders[side], .grad = grad.at[side],
         .moment1 = moment1.at[side], .moment2 = moment2.at[side], .ranges = ranges.at[side],
         .dynamic = dynamic.at[side], .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .weight_decay = 0.1);
  if (env->before_second) return;
  const double *new_high = op_read(env, 0, &param), *new_low = op_read(env, 0, &remainder);
  for (int i = 0; i < HALVES; i++) {
    float before = (float)param.host[i], after = (float)new_high[i];
    uint32_t bits_before, bits_after;
    memcpy(&bits_before, &before, sizeof before);
    memcpy(&bits_after, &after, sizeof after);
    assert_int_equal(bits_before + (uint32_t)(int32_t)low[i], bits_after + (uint32_t)(int32_t)new_low[i]);
  }
}

/* Moments in 8 bits: codes and scales as stored, and their values in double. */
typedef struct coded_moments {
  op_operand code1, code2, scale1, scale2;
  double *m, *v;
  const bool *inside; /* which elements are inside some range */
} coded_moments;

static bool *in_ranges(op_env *env, int64_t n, const random_ranges *ranges) {
  bool *inside = (bool *)op_array(env, n);
  for (int64_t r = 0; r < ranges->count; r++) {
    for (int64_t i = ranges->rows[r][0]; i < ranges->rows[r][1]; i++) inside[i] = true;
  }
  return inside;
}

static coded_moments random_moments(op_env *env, int64_t n, const bool *inside) {
  int64_t blocks = n / HV_MOMENT_BLOCK;
  coded_moments c = {.m = op_array(env, n), .v = op_array(env, n), .inside = inside};
  int8_t *code1 = (int8_t *)op_array(env, n);
  uint8_t *code2 = (uint8_t *)op_array(env, n);
  double *scale1 = op_array(env, blocks), *scale2 = op_array(env, blocks);
  for (int64_t b = 0; b < blocks; b++) {
    bool fresh = op_below(env, 4) == 0; /* before the first update */
    scale1[b] = fresh ? 0 : (float)pow(10, op_uniform(env, -8, 0));
    scale2[b] = fresh ? 0 : (float)pow(10, op_uniform(env, -8, 0));
    for (int64_t i = b * HV_MOMENT_BLOCK; i < (b + 1) * HV_MOMENT_BLOCK && !fresh; i++) {
      if (!inside[i]) continue;
      code1[i] = (int8_t)(op_below(env, 255) - 127);
      code2[i] = (uint8_t)op_below(env, 256);
      double root_m = code1[i] / 127.0, root_v = code2[i] / 255.0;
      c.m[i] = scale1[b] * root_m * fabs(root_m);
      c.v[i] = pow(scale2[b] * root_v * root_v, 2);
    }
  }
  c.code1 = op_raw(env, HV_I8, 1, n, code1);
  c.code2 = op_raw(env, HV_U8, 1, n, code2);
  c.scale1 = op_values(env, OP_F32, 1, blocks, scale1);
  c.scale2 = op_values(env, OP_F32, 1, blocks, scale2);
  return c;
}

static bool any_inside(const coded_moments *c, int64_t block) {
  for (int64_t i = 0; i < HV_MOMENT_BLOCK; i++) {
    if (c->inside[block * HV_MOMENT_BLOCK + i]) return true;
  }
  return false;
}

/* A block that no update reached must still decode to the same values. */
static void check_untouched(const coded_moments *c, int64_t block, const double *code1, const double *code2,
                            double scale1, double scale2) {
  for (int64_t i = block * HV_MOMENT_BLOCK; i < (block + 1) * HV_MOMENT_BLOCK; i++) {
    double root_m = code1[i] / 127, root_v = code2[i] / 255;
    assert_true(fabs(scale1 * root_m * fabs(root_m) - c->m[i]) <= 1e-12 * scale1);
    assert_true(fabs(scale2 * root_v * root_v - sqrt(c->v[i])) <= 1e-12 * scale2);
  }
}

/* `code` must be `at` rounded with dither: up if `share` + `dither` >= 1. If the sum is nearly 1, either result is
 * allowed. */
static void check_rounded(double code, double at, double share, double dither) {
  double expected = floor(at) + (share + dither >= 1), near = fabs(share + dither - 1) < 1e-3;
  assert_true(fabs(code - expected) <= near);
}

/* Checks one block's codes and scales, given its moments after the update in double. */
static void check_codes(const coded_moments *c, int64_t block, const double *code1, const double *code2, double scale1,
                        double scale2) {
  double largest1 = 0, largest2 = 0;
  int64_t first = block * HV_MOMENT_BLOCK, end = first + HV_MOMENT_BLOCK;
  for (int64_t i = first; i < end; i++) {
    largest1 = fmax(largest1, fabs(c->m[i]));
    largest2 = fmax(largest2, sqrt(c->v[i]));
  }
  assert_true(fabs(scale1 - largest1) <= 1e-6 * largest1);
  assert_true(fabs(scale2 - largest2) <= 1e-6 * largest2);
  for (int64_t i = first; i < end; i++) {
    double x1 = largest1 > 0 ? 127 * sqrt(fabs(c->m[i]) / largest1) : 0;
    double x2 = largest2 > 0 ? 255 * sqrt(sqrt(c->v[i]) / largest2) : 0;
    double dither = (double)hv_moment_dither(adamw_update, (uint32_t)(i - first));
    assert_true(code1[i] * c->m[i] >= 0);
    check_rounded(fabs(code1[i]), x1, (x1 * x1 - floor(x1) * floor(x1)) / (2 * floor(x1) + 1), dither);
    assert_true((code2[i] > 0) == (c->v[i] > 0));
    if (code2[i] > 1) check_rounded(code2[i], x2, x2 - floor(x2), dither);
    assert_true(code2[i] > 1 || x2 + dither < 2.001);
    assert_true(c->inside[i] || (code1[i] == 0 && code2[i] == 0));
  }
}

static void adamw_coded(op_env *env) {
  int64_t n = HV_MOMENT_BLOCK * (1 + op_below(env, 12));
  random_ranges ranges = ranges_over(env, n);
  bool skip = op_below(env, 5) == 0;
  coded_moments c = random_moments(env, n, in_ranges(env, n, &ranges));
  op_operand param = op_random(env, OP_T, 1, n, 1, 0), grad = op_random(env, OP_T_OR_F32, 1, n, 1, 0);
  op_operand list = op_longs(env, ranges.count, 3, ranges.rows[0]), dynamic = adamw_dynamic(env, skip);
  op_operand remainder = op_raw(env, HV_I16, 1, n, op_array(env, n));
  double *p = op_array(env, n);
  memcpy(p, param.host, (size_t)n * sizeof *p);
  if (!skip) adamw_in_double(&ranges, grad.host, p, c.m, c.v);
  hv_tensor remainders[OP_SIDES] = {{.data = NULL}, {.data = NULL}};
  if (env->dtype == HV_BF16) remainders[0] = remainder.at[0];
  OP_RUN(env, adamw, .param = param.at[side], .remainder = remainders[side], .grad = grad.at[side],
         .moment1 = c.code1.at[side], .moment2 = c.code2.at[side], .moment1_scale = c.scale1.at[side],
         .moment2_scale = c.scale2.at[side], .ranges = list.at[side], .dynamic = dynamic.at[side], .beta1 = adamw_beta1,
         .beta2 = adamw_beta2, .eps = adamw_eps, .weight_decay = adamw_decay);
  const double *code1 = op_read(env, 0, &c.code1), *code2 = op_read(env, 0, &c.code2);
  const double *scale1 = op_read(env, 0, &c.scale1), *scale2 = op_read(env, 0, &c.scale2);
  op_compare_within(env, "param", &param, p, env->dtype == HV_BF16 ? 1e-2 : 1e-6);
  if (env->before_second) return;
  for (int64_t b = 0; b < n / HV_MOMENT_BLOCK; b++) {
    bool updated = !skip && any_inside(&c, b);
    (updated ? check_codes : check_untouched)(&c, b, code1, code2, scale1[b], scale2[b]);
  }
}

/* Parameters [1, n], with remainders if T is BF16, and their master values in double. */
typedef struct master_operands {
  op_operand param, remainder;
  hv_tensor remainders[OP_SIDES];
  double *values;
} master_operands;

static master_operands random_masters(op_env *env, int64_t n) {
  master_operands m = {.param = op_random(env, OP_T, 1, n, 1, 0), .values = op_array(env, n)};
  memcpy(m.values, m.param.host, (size_t)n * sizeof *m.values);
  if (env->dtype != HV_BF16) return m;
  int16_t *low = (int16_t *)op_array(env, n);
  for (int64_t i = 0; i < n; i++) {
    low[i] = (int16_t)(op_below(env, 65536) - 32768);
    m.values[i] = joined(m.param.host[i], low[i]);
  }
  m.remainder = op_shorts(env, 1, n, low);
  m.remainders[0] = m.remainder.at[0];
  return m;
}

static void average(op_env *env) {
  int64_t n = op_coin(env) ? op_size(env) : op_rounded(env, 5000 + op_below(env, 5000));
  double weight = 0.125, factor = op_below(env, 4) == 0 ? -1 : 0.5;
  master_operands m = random_masters(env, n);
  op_operand average = op_random(env, OP_S, 1, n, 1, 0);
  op_operand weights = op_values(env, OP_S, 1, 1, &weight), factors = op_values(env, OP_S, 1, 1, &factor);
  double *expected = op_array(env, n);
  for (int64_t i = 0; i < n; i++) {
    expected[i] = average.host[i] + (factor < 0 ? 0 : weight) * (m.values[i] - average.host[i]);
  }
  OP_RUN(env, average, .param = m.param.at[side], .remainder = m.remainders[side], .average = average.at[side],
         .weight = weights.at[side], .factor = factors.at[side]);
  op_compare_within(env, "average", &average, expected, env->dtype == HV_F64 ? 1e-15 : 1e-6);
}

static void exchange(op_env *env) {
  int64_t n = op_coin(env) ? op_size(env) : op_rounded(env, 5000 + op_below(env, 5000));
  master_operands m = random_masters(env, n);
  op_operand average = op_random(env, OP_S, 1, n, 1, 0);
  OP_RUN(env, exchange, .param = m.param.at[side], .remainder = m.remainders[side], .average = average.at[side]);
  if (env->before_second) return;
  const double *old = op_read(env, 0, &average), *param = op_read(env, 0, &m.param);
  const double *low = env->dtype == HV_BF16 ? op_read(env, 0, &m.remainder) : NULL;
  for (int64_t i = 0; i < n; i++) {
    assert_true(old[i] == m.values[i]);
    assert_true((low ? joined(param[i], low[i]) : param[i]) == average.host[i]);
  }
}

const op_case op_head_cases[] = {
    {"q_sample", q_sample},
    {"sampler_step", sampler_step},
    {"diffusion_loss", diffusion_loss},
    {"cross_entropy", cross_entropy},
    {"cross_entropy (NaN)", cross_entropy_of_nan},
    {"best_of_range", best_of_range},
    {"best_of_range (NaN)", best_of_nan},
    {"draw_normal", draw_normal},
    {"draw_below", draw_below},
    {"sum_squares", sum_squares},
    {"sum_squares (many)", sum_squares_many},
    {"clip_factor", clip_factor},
    {"adamw", adamw},
    {"adamw (masters)", adamw_masters},
    {"average", average},
    {"exchange", exchange},
    {"adamw (8-bit moments)", adamw_coded},
    {NULL, NULL},
};
