/* AdamW moments in 8 bits: how closely a code keeps a value, and that many dithered updates converge to the exact
 * moments. */
#include <math.h>

#include "core/tensor/moments.h"
#include "tests/check.h"

/* The error is at most the distance to the next code. */
static void keeps_values_to_a_code(void **state) {
  (void)state;
  for (int i = 0; i <= 20000; i++) {
    float share = (float)i / 20000, scale = 3e-5f;
    for (int d = 0; d < 4; d++) {
      float dither = 0.25f * (float)d;
      float m = hv_moment1_decode(hv_moment1_encode(-share * scale, scale, dither), scale);
      assert_true(fabs(sqrt((double)(-m / scale)) - sqrt((double)share)) <= 1.0001 / 127);
      float root_v = hv_moment2_decode(hv_moment2_encode(share * scale, scale, dither), scale);
      assert_true(fabs(sqrt((double)(root_v / scale)) - sqrt((double)share)) <= 1.0001 / 255);
    }
  }
}

/* Decoding and encoding a code gives the same code. */
static void repeats_codes(void **state) {
  (void)state;
  for (int code = -127; code <= 127; code++) {
    assert_int_equal(hv_moment1_encode(hv_moment1_decode((int8_t)code, 0.7f), 0.7f, 0.5f), code);
  }
  for (int code = 0; code <= 255; code++) {
    assert_int_equal(hv_moment2_encode(hv_moment2_decode((uint8_t)code, 0.7f), 0.7f, 0.5f), code);
  }
}

/* With v rounded to 0, a step would be m / eps. */
static void keeps_v_above_0(void **state) {
  (void)state;
  assert_int_equal(hv_moment2_encode(0.0f, 1.0f, 0.99f), 0);
  assert_int_equal(hv_moment2_encode(1e-20f, 1.0f, 0.0f), 1);
  assert_int_equal(hv_moment2_encode(0.0f, 0.0f, 0.5f), 0);
  assert_int_equal(hv_moment1_encode(0.0f, 0.0f, 0.5f), 0);
}

/* The dither differs between the updates of one element and between the elements of one update, and its mean over
 * either is 0.5: rounding errors average out. */
static void dither_differs(void **state) {
  (void)state;
  double over_updates = 0, over_elements = 0;
  for (uint32_t i = 0; i < HV_MOMENT_BLOCK; i++) {
    float of_update = hv_moment_dither(i + 1, 77), of_element = hv_moment_dither(77, i);
    assert_true(of_update >= 0 && of_update < 1 && of_element >= 0 && of_element < 1);
    over_updates += (double)of_update / HV_MOMENT_BLOCK;
    over_elements += (double)of_element / HV_MOMENT_BLOCK;
  }
  assert_true(fabs(over_updates - 0.5) < 0.02);
  assert_true(fabs(over_elements - 0.5) < 0.02);
}

/* The mean of v over late updates with a constant gradient, starting from `start`; the block's scale stays 1, as if a
 * larger neighbour held it. */
static double settled(double start, double gradient_squared) {
  const double beta2 = 0.999;
  double mean = 0;
  uint8_t code = hv_moment2_encode((float)sqrt(start), 1.0f, 0.5f);
  for (uint32_t t = 1; t <= 20000; t++) {
    double root = (double)hv_moment2_decode(code, 1.0f), v = beta2 * root * root + (1 - beta2) * gradient_squared;
    code = hv_moment2_encode((float)sqrt(v), 1.0f, hv_moment_dither(t, 77));
    if (t > 10000) mean += v / 10000;
  }
  return mean;
}

/* An update changes v by 0.1 %, less than half the distance between codes: rounded to nearest, v would never move. */
static void v_follows_small_changes(void **state) {
  (void)state;
  const double targets[] = {0.3, 0.01, 1e-4};
  for (int i = 0; i < 3; i++) {
    assert_true(fabs(settled(0.9, targets[i]) / targets[i] - 1) < 0.1);
    assert_true(fabs(settled(1e-6, targets[i]) / targets[i] - 1) < 0.1);
  }
}

/* Averaged over many updates, the decoded codes of a value m are m itself. */
static void m_is_kept_in_the_mean(void **state) {
  (void)state;
  const float values[] = {1e-6f, 3e-5f, 1e-3f, 0.0127f, 0.3f, 0.9f};
  for (int i = 0; i < 6; i++) {
    double mean = 0;
    for (uint32_t t = 1; t <= 100000; t++) {
      mean += (double)hv_moment1_decode(hv_moment1_encode(values[i], 1.0f, hv_moment_dither(t, 77)), 1.0f) / 100000;
    }
    assert_true(fabs(mean / (double)values[i] - 1) < 0.02);
  }
}

/* Without gradients m decays to 0, also if it is small beside the largest of its block. Rounded to nearest, codes of 9
 * and less would never decay, while v does, and steps would grow. */
static void m_dies_away(void **state) {
  (void)state;
  for (uint32_t element = 0; element < HV_MOMENT_BLOCK; element++) {
    int8_t code = 100;
    for (uint32_t t = 1; t <= 400; t++) {
      float m = 0.9f * hv_moment1_decode(code, 1.0f);
      code = hv_moment1_encode(m, 1.0f, hv_moment_dither(t, element));
    }
    assert_int_equal(code, 0);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(keeps_values_to_a_code),
      cmocka_unit_test(repeats_codes),
      cmocka_unit_test(keeps_v_above_0),
      cmocka_unit_test(dither_differs),
      cmocka_unit_test(v_follows_small_changes),
      cmocka_unit_test(m_is_kept_in_the_mean),
      cmocka_unit_test(m_dies_away),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
