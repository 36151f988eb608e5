/* The cosine schedule and the samplers' steps, against formulas in double, published timesteps and values from Python.
 */
#include "core/hybridvla/schedule.h"

#include <math.h>

#include "tests/check.h"

static void assert_near(double a, double b, double tolerance) {
  if (!(fabs(a - b) <= tolerance * fmax(1.0, fabs(b)))) fail_msg("%.17g is not %.17g", a, b);
}

/* While beta is below its cap, the product over all steps telescopes to the curve itself, scaled to 1 at its start. */
static void alpha_bar_follows_the_curve(void **state) {
  (void)state;
  for (int32_t steps = 50; steps <= 1000; steps *= 2) {
    double bar[HV_MAX_DIFFUSION_STEPS];
    hv_schedule_alpha_bar(steps, bar);
    double start = pow(cos(0.008 / 1.008 * acos(-1.0) / 2), 2);
    for (int32_t t = 0; t < steps - 1; t++) {
      double u = (t + 1.0) / steps;
      assert_near(bar[t], pow(cos((u + 0.008) / 1.008 * acos(-1.0) / 2), 2) / start, 1e-12);
      assert_true(t == 0 || bar[t] < bar[t - 1]);
    }
    assert_near(bar[steps - 1] / bar[steps - 2], 0.001, 1e-9);
  }
}

/* Values of the same schedule, computed in Python in double. */
static void alpha_bar_has_known_values(void **state) {
  (void)state;
  double bar[100];
  hv_schedule_alpha_bar(100, bar);
  assert_near(bar[0], 0.9993687184016583, 1e-14);
  assert_near(bar[50], 0.4782646329454781, 1e-13);
  assert_near(bar[98] * 1e4, 2.4285722793500596, 1e-9);
}

static void ddim_keeps_the_published_timesteps(void **state) {
  (void)state;
  hv_sampler_stage stages[100];
  static const int32_t four[] = {75, 50, 25, 0};
  assert_ok(hv_schedule_ddim(100, 4, stages));
  for (int i = 0; i < 4; i++) assert_int_equal(stages[i].timestep, four[i]);
  assert_ok(hv_schedule_ddim(100, 1, stages));
  assert_int_equal(stages[0].timestep, 50);
  assert_ok(hv_schedule_ddim(100, 100, stages));
  assert_int_equal(stages[0].timestep, 99);
  assert_ok(hv_schedule_ddim(100, 3, stages)); /* stride 34, not 33, which keeps four */
  assert_int_equal(stages[0].timestep, 68);
}

static void ddim_counts_are_those_of_some_stride(void **state) {
  (void)state;
  static const int32_t possible[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 13, 15, 17, 20, 25, 34, 50, 100};
  hv_sampler_stage stages[100];
  for (int32_t n = -1; n <= 120; n++) {
    bool expected = false;
    for (size_t i = 0; i < sizeof possible / sizeof *possible; i++) expected |= possible[i] == n;
    hv_status status = n > 100 ? hv_schedule_ddim(100, n, NULL) : hv_schedule_ddim(100, n, stages);
    if (expected) assert_null(status);
    if (!expected) assert_int_equal(hv_status_code(status), HV_ERR_INPUT);
    hv_status_free(status);
  }
  assert_error(hv_schedule_ddim(100, 30, stages), "25 and 34");
}

/* Each stage against the textbook form of DDIM and DDPM, which computes x0 first, for arbitrary x, eps and noise. */
static void stages_equal_the_textbook_form(void **state) {
  (void)state;
  double bar[100], x = 0.83, eps = -1.27, noise = 0.41;
  hv_sampler_stage stages[100];
  hv_schedule_alpha_bar(100, bar);
  for (int n = 1; n <= 10; n += 9) { /* a single step goes straight to x0 */
    assert_ok(hv_schedule_ddim(100, n, stages));
    for (int i = 0; i < n; i++) {
      int32_t t = stages[i].timestep;
      double previous = i == n - 1 ? 1.0 : bar[stages[i + 1].timestep];
      double x0 = (x - sqrt(1 - bar[t]) * eps) / sqrt(bar[t]);
      double expected = sqrt(previous) * x0 + sqrt(1 - previous) * eps;
      assert_near(stages[i].x_factor * x + stages[i].eps_factor * eps, expected, 1e-12);
      assert_true(stages[i].noise_factor == 0.0);
    }
  }
  hv_schedule_ddpm(100, stages);
  for (int i = 0; i < 100; i++) {
    int32_t t = stages[i].timestep;
    assert_int_equal(t, 99 - i);
    double previous = t ? bar[t - 1] : 1.0, beta = 1 - bar[t] / previous;
    double x0 = (x - sqrt(1 - bar[t]) * eps) / sqrt(bar[t]);
    double mean = (beta * sqrt(previous) * x0 + (1 - previous) * sqrt(1 - beta) * x) / (1 - bar[t]);
    double expected = mean + (t ? sqrt(beta * (1 - previous) / (1 - bar[t])) * noise : 0.0);
    double found = stages[i].x_factor * x + stages[i].eps_factor * eps + stages[i].noise_factor * noise;
    assert_near(found, expected, 1e-8);
  }
}

static void refused_step_counts_say_what_is_possible(void **state) {
  (void)state;
  hv_sampler_stage stage;
  hv_status status = hv_schedule_ddim(0, 1, &stage);
  assert_int_equal(hv_status_code(status), HV_ERR_INPUT);
  hv_status_free(status);
  assert_error(hv_schedule_ddim(HV_MAX_DIFFUSION_STEPS + 1, 1, &stage), "1000");
  assert_error(hv_schedule_ddim(100, 101, &stage), "at most 100");
  assert_error(hv_schedule_ddim(100, INT32_MAX, &stage), "at most 100");
  assert_error(hv_schedule_ddim(100, INT32_MIN, &stage), "1 … 100");
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(alpha_bar_follows_the_curve),        cmocka_unit_test(alpha_bar_has_known_values),
      cmocka_unit_test(ddim_keeps_the_published_timesteps), cmocka_unit_test(ddim_counts_are_those_of_some_stride),
      cmocka_unit_test(stages_equal_the_textbook_form),     cmocka_unit_test(refused_step_counts_say_what_is_possible),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
