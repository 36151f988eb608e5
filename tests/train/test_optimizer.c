/* AdamW on the CPU against its formula in double, in every dtype; averages of parameters; and what must not change:
 * frozen parameters, and everything if a gradient is not finite. */
#include <math.h>

#include "core/cpu/cpu.h"
#include "tests/check.h"
#include "train/ema.h"
#include "train/optimizer.h"

enum { WEIGHT, BIAS, FROZEN, MIXED, ALL_FROZEN, PARAMS, LARGEST = 24 };

/* The learning rate of "mixed.weight" is this times that of the others. */
#define MIXED_RATE 0.25

typedef struct toy {
  hv_device *device;
  hv_stream *stream;
  hv_params *params;
  hv_optimizer *optimizer;
} toy;

static void declare(hv_params *params, const char *name, int32_t rank, int64_t rows, int64_t cols, bool decay) {
  hv_param_spec spec = {.name = name, .shape = {rows, cols}, .init = HV_INIT_ZERO, .decay = decay};
  if (rank == 1) spec.shape[0] = cols, spec.shape[1] = 0;
  hv_params_declare(params, &spec);
}

static float value_of(int param, int element) {
  return sinf((float)(param * 31 + element) + 0.5f);
}

static void open_toy(toy *t, hv_dtype dtype, const hv_optimizer_settings *settings) {
  const char *const frozen[] = {"frozen*"}, *const scaled[] = {"weight", "*w*ght"};
  const double factors[] = {1.0, MIXED_RATE};
  float values[LARGEST];
  assert_ok(hv_cpu_device_open(NULL, &t->device));
  assert_ok(hv_stream_open(t->device, &t->stream));
  assert_ok(hv_params_open(t->device, dtype, &t->params));
  hv_params_begin_group(t->params, "a");
  declare(t->params, "weight", 2, 4, 5, true);
  declare(t->params, "bias", 1, 1, 5, false);
  hv_params_begin_group(t->params, "b");
  declare(t->params, "frozen.weight", 2, 3, 3, true);
  declare(t->params, "mixed.weight", 2, 6, 4, true);
  hv_params_begin_group(t->params, "c");
  declare(t->params, "frozen.all", 1, 1, 8, true);
  assert_ok(hv_params_freeze(t->params, frozen, 1));
  assert_ok(hv_params_scale_rates(t->params, scaled, factors, 2));
  assert_ok(hv_params_allocate(t->params));
  assert_ok(hv_params_allocate_gradients(t->params, HV_F32));
  for (int p = 0; p < PARAMS; p++) {
    for (int i = 0; i < LARGEST; i++) values[i] = value_of(p, i);
    assert_ok(hv_param_write(t->params, p, HV_F32, values, t->stream));
  }
  assert_ok(hv_optimizer_open(t->params, settings, t->stream, &t->optimizer));
}

static void close_toy(toy *t) {
  hv_optimizer_close(t->optimizer);
  hv_params_close(t->params);
  hv_stream_close(t->stream);
  hv_device_close(t->device);
}

static int64_t count_of(const toy *t, int param) {
  const hv_param *p = hv_params_get(t->params, param);
  return p->rows * p->cols;
}

static void write_gradients(const toy *t, float scale, float odd_one) {
  for (int p = 0; p < PARAMS; p++) {
    float gradient[LARGEST];
    hv_tensor to = hv_param_gradient(t->params, p);
    if (!hv_present(to)) continue;
    for (int i = 0; i < LARGEST; i++) gradient[i] = scale * cosf((float)(p * 17 + i * 3));
    if (p == BIAS) gradient[2] = odd_one;
    hv_upload(t->stream, to.data, gradient, (size_t)count_of(t, p) * sizeof *gradient);
    assert_ok(hv_stream_synchronize(t->stream));
  }
}

static void read_value(const toy *t, int param, float *values) {
  assert_ok(hv_param_read(t->params, param, HV_F32, values, t->stream));
}

static void step(const toy *t, double learning_rate, double *norm, bool *skipped) {
  hv_optimizer_step(t->optimizer, learning_rate, t->stream);
  assert_ok(hv_stream_synchronize(t->stream));
  hv_optimizer_finish(t->optimizer, norm, skipped);
}

static const hv_optimizer_settings settings = {
    .beta1 = 0.9, .beta2 = 0.99, .eps = 1e-8, .weight_decay = 0.1, .max_norm = 1.5};

/* The update of torch.optim.AdamW in double; state is [value, m, v]. */
static void reference_step(double *state, double gradient, double learning_rate, double decay, int t) {
  state[1] = settings.beta1 * state[1] + (1 - settings.beta1) * gradient;
  state[2] = settings.beta2 * state[2] + (1 - settings.beta2) * gradient * gradient;
  state[0] -= learning_rate * decay * state[0];
  double m = state[1] / (1 - pow(settings.beta1, t)), v = state[2] / (1 - pow(settings.beta2, t));
  state[0] -= learning_rate * m / (sqrt(v) + settings.eps);
}

static void check_against_formula(hv_dtype dtype, double tolerance) {
  toy t;
  double states[PARAMS][LARGEST][3] = {0};
  open_toy(&t, dtype, &settings);
  for (int p = 0; p < PARAMS; p++) {
    float values[LARGEST];
    read_value(&t, p, values);
    for (int64_t i = 0; i < count_of(&t, p); i++) states[p][i][0] = values[i];
  }
  for (int n = 1; n <= 50; n++) {
    double norm, expected_norm = 0, learning_rate = 1e-2 / n;
    bool skipped;
    float scale = 0.05f * (float)n; /* norms from below to above the one at which gradients are clipped */
    write_gradients(&t, scale, 0.25f);
    step(&t, learning_rate, &norm, &skipped);
    assert_false(skipped);
    double gradients[PARAMS][LARGEST];
    for (int p = 0; p < PARAMS; p++) {
      for (int64_t i = 0; i < count_of(&t, p); i++) {
        gradients[p][i] = (double)(scale * cosf((float)(p * 17 + i * 3)));
        if (p == BIAS && i == 2) gradients[p][i] = 0.25;
        if (hv_params_get(t.params, p)->trainable) expected_norm += gradients[p][i] * gradients[p][i];
      }
    }
    expected_norm = sqrt(expected_norm);
    assert_true(fabs(norm - expected_norm) < 1e-5 * expected_norm);
    double factor = fmin(1.0, settings.max_norm / (expected_norm + 1e-6));
    for (int p = 0; p < PARAMS; p++) {
      if (!hv_params_get(t.params, p)->trainable) continue;
      for (int64_t i = 0; i < count_of(&t, p); i++) {
        double rate = learning_rate * (p == MIXED ? MIXED_RATE : 1);
        reference_step(states[p][i], factor * gradients[p][i], rate, p == BIAS ? 0 : settings.weight_decay, n);
      }
    }
  }
  assert_int_equal(hv_optimizer_updates(t.optimizer), 50);
  for (int p = 0; p < PARAMS; p++) {
    float values[LARGEST];
    read_value(&t, p, values);
    for (int64_t i = 0; i < count_of(&t, p); i++) {
      double expected = states[p][i][0], bound = tolerance * fmax(fabs(expected), 0.1);
      if (!(fabs((double)values[i] - expected) <= bound)) {
        fail_msg("parameter %d, element %d: %.9g, expected %.9g", p, (int)i, (double)values[i], expected);
      }
    }
  }
  close_toy(&t);
}

static void follows_adamw(void **state) {
  (void)state;
  check_against_formula(HV_F32, 2e-6);
}

/* BF16 parameters with remainders. Without them, steps of 1e-4 would be lost in BF16's 8 bits, an error of several per
 * cent. */
static void keeps_full_precision_beside_bf16(void **state) {
  (void)state;
  check_against_formula(HV_BF16, 1.0 / 256);
}

/* The master value of a BF16 parameter is (bits << 16) + remainder. */
static void remainders_restore_the_master_value(void **state) {
  (void)state;
  toy t, full;
  double norm;
  bool skipped;
  uint16_t stored[LARGEST];
  int16_t remainders[LARGEST];
  float expected[LARGEST];
  open_toy(&t, HV_BF16, &settings);
  open_toy(&full, HV_F32, &settings);
  for (int p = 0; p < PARAMS; p++) { /* both optimizers start from the rounded values */
    float values[LARGEST];
    read_value(&t, p, values);
    assert_ok(hv_param_write(full.params, p, HV_F32, values, full.stream));
  }
  for (int n = 0; n < 20; n++) {
    write_gradients(&t, 0.3f, 0.25f);
    write_gradients(&full, 0.3f, 0.25f);
    step(&t, 1e-4, &norm, &skipped);
    step(&full, 1e-4, &norm, &skipped);
  }
  const hv_param *param = hv_params_get(t.params, MIXED);
  hv_tensor remainder = hv_optimizer_group_state(t.optimizer, param->group).remainder;
  hv_download(t.stream, stored, hv_param_value(t.params, MIXED).data, sizeof stored);
  hv_download(t.stream, remainders, (char *)remainder.data + param->offset * 2, sizeof remainders);
  assert_ok(hv_stream_synchronize(t.stream));
  read_value(&full, MIXED, expected);
  for (int i = 0; i < LARGEST; i++) {
    uint32_t bits = ((uint32_t)stored[i] << 16) + (uint32_t)(int32_t)remainders[i];
    float master;
    memcpy(&master, &bits, sizeof master);
    assert_true(master == expected[i]);
    assert_int_equal(stored[i], hv_bf16_from_float(master));
  }
  close_toy(&t);
  close_toy(&full);
}

static void skips_gradients_that_are_not_finite(void **state) {
  (void)state;
  const float odd[] = {NAN, INFINITY, -INFINITY};
  for (int i = 0; i < 3; i++) {
    toy t;
    double norm;
    bool skipped;
    float before[LARGEST], after[LARGEST];
    open_toy(&t, HV_F32, &settings);
    write_gradients(&t, 0.1f, 0.25f);
    step(&t, 1e-2, &norm, &skipped);
    for (int p = 0; p < PARAMS; p++) {
      read_value(&t, p, before);
      write_gradients(&t, 0.1f, odd[i]);
      step(&t, 1e-2, &norm, &skipped);
      assert_true(skipped);
      assert_false(isfinite(norm));
      read_value(&t, p, after);
      assert_memory_equal(before, after, (size_t)count_of(&t, p) * sizeof *before);
    }
    assert_int_equal(hv_optimizer_updates(t.optimizer), 1);
    write_gradients(&t, 0.1f, 0.25f);
    step(&t, 1e-2, &norm, &skipped);
    assert_false(skipped);
    read_value(&t, WEIGHT, after);
    assert_true(isfinite(after[0]) && after[0] != before[0]);
    close_toy(&t);
  }
}

static void leaves_frozen_parameters_alone(void **state) {
  (void)state;
  toy t;
  double norm;
  bool skipped;
  float values[LARGEST];
  open_toy(&t, HV_F32, &settings);
  for (int n = 0; n < 5; n++) {
    write_gradients(&t, 1.0f, 0.25f);
    step(&t, 0.1, &norm, &skipped);
  }
  const int frozen[] = {FROZEN, ALL_FROZEN};
  for (int f = 0; f < 2; f++) {
    read_value(&t, frozen[f], values);
    for (int64_t i = 0; i < count_of(&t, frozen[f]); i++) assert_true(values[i] == value_of(frozen[f], (int)i));
  }
  hv_optimizer_state none = hv_optimizer_group_state(t.optimizer, hv_params_get(t.params, ALL_FROZEN)->group);
  assert_false(hv_present(none.moment1) || hv_present(none.moment2) || hv_present(none.remainder));
  close_toy(&t);
}

/* Averages against their formula in double, over updates of which one is skipped; and the exchange of averages and
 * parameters. */
static void check_average(hv_dtype dtype) {
  enum { UPDATES = 20 };
  const double decay = 0.5;
  toy t;
  hv_ema *ema;
  double expected[LARGEST], norm;
  bool skipped;
  float values[LARGEST], trained[LARGEST], frozen[LARGEST], after[LARGEST];
  open_toy(&t, dtype, &settings);
  read_value(&t, FROZEN, frozen);
  assert_ok(hv_ema_open(t.optimizer, t.params, decay, &ema));
  assert_ok(hv_ema_reset(ema, t.stream));
  read_value(&t, MIXED, values);
  for (int i = 0; i < LARGEST; i++) expected[i] = values[i];
  for (int n = 1; n <= UPDATES; n++) {
    write_gradients(&t, 0.3f, n == 4 ? NAN : 0.25f);
    hv_optimizer_step(t.optimizer, 1e-2, t.stream);
    hv_ema_update(ema, t.stream);
    assert_ok(hv_stream_synchronize(t.stream));
    hv_optimizer_finish(t.optimizer, &norm, &skipped);
    assert_int_equal(skipped, n == 4);
    if (skipped) continue;
    double updates = n < 4 ? n : n - 1, weight = 1 - fmin(decay, (1 + updates) / (10 + updates));
    read_value(&t, MIXED, values);
    for (int i = 0; i < LARGEST; i++) expected[i] += weight * ((double)values[i] - expected[i]);
    memcpy(trained, values, sizeof trained);
    hv_ema_exchange(ema, t.stream);
    read_value(&t, MIXED, values);
    for (int i = 0; i < LARGEST; i++) {
      assert_true(fabs((double)values[i] - expected[i]) <
                  (dtype == HV_F32 ? 1e-6 : 1.0 / 128) * fmax(fabs(expected[i]), 0.1));
    }
    assert_memory_not_equal(values, trained, sizeof values);
    read_value(&t, FROZEN, after);
    assert_memory_equal(after, frozen, (size_t)count_of(&t, FROZEN) * sizeof *after);
    hv_ema_exchange(ema, t.stream);
    read_value(&t, MIXED, values);
    assert_memory_equal(values, trained, sizeof values);
  }
  assert_false(hv_present(hv_ema_group(ema, hv_params_get(t.params, ALL_FROZEN)->group)));
  hv_ema_close(ema);
  close_toy(&t);
}

static void averages_follow_the_parameters(void **state) {
  (void)state;
  check_average(HV_F32);
  check_average(HV_BF16);
}

/* Parameters that are adjacent in memory, as in real models, are decayed each by its own settings. Gradients are 0, so
 * that nothing else changes them. */
static void neighbours_keep_their_own_settings(void **state) {
  (void)state;
  enum { COUNT = 64, NEIGHBOURS = 4 };
  const char *const names[NEIGHBOURS] = {"a", "b", "c", "slow"}, *const pattern[] = {"slow"};
  const bool decays[NEIGHBOURS] = {true, false, true, true};
  const double factor = 0.25, learning_rate = 0.5;
  toy t;
  assert_ok(hv_cpu_device_open(NULL, &t.device));
  assert_ok(hv_stream_open(t.device, &t.stream));
  assert_ok(hv_params_open(t.device, HV_F32, &t.params));
  hv_params_begin_group(t.params, "group");
  for (int p = 0; p < NEIGHBOURS; p++) declare(t.params, names[p], 1, 1, COUNT, decays[p]);
  assert_ok(hv_params_scale_rates(t.params, pattern, &factor, 1));
  assert_ok(hv_params_allocate(t.params));
  assert_ok(hv_params_allocate_gradients(t.params, HV_F32));
  float values[COUNT];
  for (int i = 0; i < COUNT; i++) values[i] = 1;
  for (int p = 0; p < NEIGHBOURS; p++) {
    assert_int_equal(hv_params_get(t.params, p)->offset, p * COUNT);
    assert_ok(hv_param_write(t.params, p, HV_F32, values, t.stream));
  }
  assert_ok(hv_optimizer_open(t.params, &settings, t.stream, &t.optimizer));
  double norm;
  bool skipped;
  step(&t, learning_rate, &norm, &skipped);
  for (int p = 0; p < NEIGHBOURS; p++) {
    double rate = p == 3 ? learning_rate * factor : learning_rate;
    double expected = decays[p] ? 1 - rate * settings.weight_decay : 1;
    read_value(&t, p, values);
    for (int i = 0; i < COUNT; i++) assert_true(fabs((double)values[i] - expected) < 1e-6);
  }
  close_toy(&t);
}

/* With moments in 8 bits, those of a table of embeddings stay in fp32, because most of its rows get no gradient in a
 * step. */
static void tables_keep_whole_moments(void **state) {
  (void)state;
  hv_optimizer_settings coded = settings;
  coded.moments = HV_MOMENTS_INT8;
  const hv_param_spec table = {.name = "table", .shape = {9, 5}, .lookup = true};
  toy t;
  assert_ok(hv_cpu_device_open(NULL, &t.device));
  assert_ok(hv_stream_open(t.device, &t.stream));
  assert_ok(hv_params_open(t.device, HV_F32, &t.params));
  hv_group_id words = hv_params_begin_group(t.params, "words");
  hv_params_declare(t.params, &table);
  hv_group_id layer = hv_params_begin_group(t.params, "layer");
  declare(t.params, "weight", 2, 9, 5, true);
  assert_ok(hv_params_allocate(t.params));
  assert_ok(hv_params_allocate_gradients(t.params, HV_F32));
  assert_ok(hv_optimizer_open(t.params, &coded, t.stream, &t.optimizer));
  assert_int_equal(hv_optimizer_group_state(t.optimizer, words).moment1.dtype, HV_F32);
  assert_int_equal(hv_optimizer_group_state(t.optimizer, words).moment2.dtype, HV_F32);
  assert_int_equal(hv_optimizer_group_state(t.optimizer, layer).moment1.dtype, HV_I8);
  assert_int_equal(hv_optimizer_group_state(t.optimizer, layer).moment2.dtype, HV_U8);
  close_toy(&t);
}

static void refuses_rates_without_effect(void **state) {
  (void)state;
  const double factors[] = {2, 3};
  const struct {
    const char *patterns[2], *error;
  } cases[] = {{{"*", "nothing*"}, "\"nothing*\" of a learning rate matches no parameter"},
               {{"*weight", "mixed.*"}, "\"mixed.*\" of a learning rate has no effect"},
               {{"bias", "frozen*"}, "\"frozen*\" of a learning rate has no effect"}};
  toy t;
  open_toy(&t, HV_F32, &settings);
  for (int i = 0; i < 3; i++)
    assert_error(hv_params_scale_rates(t.params, cases[i].patterns, factors, 2), cases[i].error);
  close_toy(&t);
}

static void needs_something_to_train(void **state) {
  (void)state;
  hv_device *device;
  hv_stream *stream;
  hv_params *params;
  hv_optimizer *optimizer;
  const char *const all[] = {"*"};
  assert_ok(hv_cpu_device_open(NULL, &device));
  assert_ok(hv_stream_open(device, &stream));
  assert_ok(hv_params_open(device, HV_F32, &params));
  hv_params_begin_group(params, "a");
  declare(params, "weight", 2, 4, 5, true);
  assert_ok(hv_params_freeze(params, all, 1));
  assert_ok(hv_params_allocate(params));
  assert_error(hv_optimizer_open(params, &settings, stream, &optimizer), "every parameter is frozen");
  hv_params_close(params);
  hv_stream_close(stream);
  hv_device_close(device);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(follows_adamw),
      cmocka_unit_test(keeps_full_precision_beside_bf16),
      cmocka_unit_test(remainders_restore_the_master_value),
      cmocka_unit_test(skips_gradients_that_are_not_finite),
      cmocka_unit_test(leaves_frozen_parameters_alone),
      cmocka_unit_test(averages_follow_the_parameters),
      cmocka_unit_test(neighbours_keep_their_own_settings),
      cmocka_unit_test(tables_keep_whole_moments),
      cmocka_unit_test(refuses_rates_without_effect),
      cmocka_unit_test(needs_something_to_train),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
