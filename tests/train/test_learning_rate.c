/* The learning rate with warm-up, constant and along a cosine, at the steps where it changes course. */
#include <math.h>

#include "tests/check.h"
#include "train/learning_rate.h"

static void assert_close(double found, double expected) {
  if (!(fabs(found - expected) <= 1e-15)) fail_msg("%.17g, expected %.17g", found, expected);
}

static void stays_constant(void **state) {
  (void)state;
  hv_learning_rate schedule = {.peak = 2e-5, .decay = HV_DECAY_CONSTANT, .total_steps = 10};
  for (int64_t step = 0; step < 20; step++) assert_close(hv_learning_rate_at(&schedule, step), 2e-5);
}

static void warms_up_linearly(void **state) {
  (void)state;
  hv_learning_rate schedule = {.peak = 1e-3, .warmup_steps = 4, .decay = HV_DECAY_CONSTANT, .total_steps = 10};
  const double expected[] = {2.5e-4, 5e-4, 7.5e-4, 1e-3, 1e-3};
  for (int64_t step = 0; step < 5; step++) assert_close(hv_learning_rate_at(&schedule, step), expected[step]);
}

static void falls_along_a_cosine(void **state) {
  (void)state;
  hv_learning_rate schedule = {
      .peak = 1.0, .warmup_steps = 2, .decay = HV_DECAY_COSINE, .total_steps = 7, .final_ratio = 0.1};
  assert_close(hv_learning_rate_at(&schedule, 1), 1.0);
  assert_close(hv_learning_rate_at(&schedule, 2), 1.0);
  assert_close(hv_learning_rate_at(&schedule, 4), 0.55); /* half way between 2 and 6 */
  assert_close(hv_learning_rate_at(&schedule, 6), 0.1);
  assert_close(hv_learning_rate_at(&schedule, 100), 0.1);
}

static void survives_a_warm_up_as_long_as_the_run(void **state) {
  (void)state;
  hv_learning_rate schedule = {.peak = 1.0, .warmup_steps = 3, .decay = HV_DECAY_COSINE, .total_steps = 3};
  assert_close(hv_learning_rate_at(&schedule, 2), 1.0);
  assert_close(hv_learning_rate_at(&schedule, 3), 0.0);
  schedule.total_steps = 4;
  assert_close(hv_learning_rate_at(&schedule, 3), 0.0); /* a cosine over one step is at its end */
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(stays_constant),
      cmocka_unit_test(warms_up_linearly),
      cmocka_unit_test(falls_along_a_cosine),
      cmocka_unit_test(survives_a_warm_up_as_long_as_the_run),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
