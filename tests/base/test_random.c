/* Random draws: Philox against the published test vectors, normals against the C library's double arithmetic and their
 * moments, uniform and bounded draws against their distributions, and a checksum that pins the bits of every build. */
#include <math.h>

#include "core/base/random.h"
#include "tests/check.h"

static void assert_block(hv_random_block block, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  assert_int_equal(block.word[0], a);
  assert_int_equal(block.word[1], b);
  assert_int_equal(block.word[2], c);
  assert_int_equal(block.word[3], d);
}

/* Test vectors of the cipher that its authors publish with Random123. */
static void known_answers(void **state) {
  (void)state;
  assert_block(hv_philox((hv_random_block){{0, 0, 0, 0}}, 0), 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8);
  hv_random_block ones = {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}};
  assert_block(hv_philox(ones, 0xffffffffffffffff), 0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd);
  hv_random_block pi = {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}};
  assert_block(hv_philox(pi, 0x299f31d0a4093822), 0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1);
}

/* Distance of a float from a double, in units in the last place of the float. */
static double ulps(float got, double want) {
  double magnitude = fabs(want), unit = ldexp(1, ilogb(magnitude > 0x1p-126 ? magnitude : 0x1p-126) - 23);
  return fabs((double)got - want) / unit;
}

static void normals_match_the_c_library(void **state) {
  (void)state;
  double worst_log = 0, worst_normal = 0;
  for (uint32_t i = 0; i < 500000; i++) {
    hv_random_block words = hv_random_words(hv_random_key(3, 50, 0), i, 0, 0);
    /* Of every three radii, one is very small and one very large, to reach the centre and the tails. */
    uint32_t radius = words.word[0], turn = words.word[1];
    if (i % 3 == 1) radius >>= words.word[2] % 32;
    if (i % 3 == 2) radius = ~(radius >> words.word[2] % 32);
    float u = fmaf((float)radius, 0x1p-32f, 0x1p-33f), cosine, sine;
    double log_error = u == 1 ? fabs((double)hv_random_log(u)) : ulps(hv_random_log(u), log((double)u));
    if (log_error > worst_log) worst_log = log_error;
    hv_random_box_muller(radius, turn, &cosine, &sine);
    double length = sqrt(-2 * log((double)u)), angle = 2 * M_PI * (double)turn / 4294967296.0;
    if (length == 0) continue;
    double error = fmax(ulps(cosine, length * cos(angle)), ulps(sine, length * sin(angle)));
    /* Near a zero of sine or cosine the reference itself is inexact: its angle is rounded to 2^-53 turns. */
    if (fmin(fabs(cos(angle)), fabs(sin(angle))) > 1e-6 && error > worst_normal) worst_normal = error;
  }
  assert_true(worst_log < 1.0);
  assert_true(worst_normal < 4.0);
}

static void tails_reach_six_sigma(void **state) {
  (void)state;
  float cosine, sine;
  hv_random_box_muller(0, 0, &cosine, &sine);
  assert_true(cosine > 6.7F && cosine < 6.8F);
  assert_true(sine == 0);
  hv_random_box_muller(0, 0x80000000, &cosine, &sine);
  assert_true(cosine < -6.7F);
  hv_random_box_muller(0, 0x40000000, &cosine, &sine);
  assert_true(sine > 6.7F);
  hv_random_box_muller(0, 0xc0000000, &cosine, &sine);
  assert_true(sine < -6.7F);
  hv_random_box_muller(UINT32_MAX, 0, &cosine, &sine);
  assert_true(cosine == 0);
}

enum { DRAWS = 1000000 };

/* A checksum over the bits of a million normals. If it changes, the compiler has contracted, reordered or rounded
 * differently, and runs on different devices no longer draw the same numbers. */
static void a_million_normals_have_the_same_bits_everywhere(void **state) {
  (void)state;
  uint64_t sum = 0;
  for (uint32_t i = 0; i < DRAWS; i++) {
    float value = hv_random_normal(42, HV_RANDOM_NOISE, 7, i / 1000, i / 100 % 10, i % 100);
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    sum = (sum ^ bits) * 1099511628211u;
  }
  assert_int_equal(sum, 0x69e9508b1247dfaa);
}

static void moments(void **state) {
  (void)state;
  double sum[5] = {0}, neighbours = 0, previous = 0;
  int beyond_three = 0;
  for (uint32_t i = 0; i < DRAWS; i++) {
    double x = (double)hv_random_normal(1, HV_RANDOM_NOISE, i / 50000, i, 0, i % 7), power = 1;
    for (int k = 1; k <= 4; k++) sum[k] += power *= x;
    neighbours += x * previous;
    previous = x;
    beyond_three += fabs(x) > 3;
  }
  /* Each limit is four standard errors. */
  assert_true(fabs(sum[1] / DRAWS) < 4e-3);
  assert_true(fabs(sum[2] / DRAWS - 1) < 4 * sqrt(2) * 1e-3);
  assert_true(fabs(sum[3] / DRAWS) < 4 * sqrt(15) * 1e-3);
  assert_true(fabs(sum[4] / DRAWS - 3) < 4 * sqrt(96) * 1e-3);
  assert_true(fabs(neighbours / DRAWS) < 4e-3);
  assert_true(abs(beyond_three - 2700) < 4 * 52);
}

static void uniforms_fill_the_interval(void **state) {
  (void)state;
  double sum = 0;
  int counts[16] = {0};
  for (uint32_t i = 0; i < DRAWS; i++) {
    float x = hv_random_uniform(9, HV_RANDOM_INIT, 0, 3, 0, i);
    assert_true(x >= 0 && x < 1);
    sum += (double)x;
    counts[(int)(x * 16)]++;
  }
  assert_true(fabs(sum / DRAWS - 0.5) < 4 * sqrt(1.0 / 12) * 1e-3);
  for (int i = 0; i < 16; i++) assert_true(abs(counts[i] - DRAWS / 16) < 4 * 243);
}

static void bounded_draws_are_even(void **state) {
  (void)state;
  enum { LIMIT = 100 };
  int counts[LIMIT] = {0};
  for (uint32_t i = 0; i < DRAWS; i++) {
    uint32_t x = hv_random_below(9, HV_RANDOM_TIMESTEP, 1, i / 4, i % 4, 0, LIMIT);
    assert_true(x < LIMIT);
    counts[x]++;
  }
  double chi = 0, expected = (double)DRAWS / LIMIT;
  for (int i = 0; i < LIMIT; i++) chi += pow(counts[i] - expected, 2) / expected;
  assert_true(chi < 160); /* chance would exceed this once in 10,000 times (99 degrees of freedom) */
  for (uint32_t i = 0; i < 1000; i++) {
    assert_int_equal(hv_random_below(1, 0, 0, i, 0, 0, 1), 0);
    assert_true(hv_random_below(1, 0, 0, i, 0, 1, UINT32_MAX) < UINT32_MAX);
  }
}

/* Changing any one of the six arguments changes the number; the same arguments always give the same number. */
static void every_argument_counts(void **state) {
  (void)state;
  const uint64_t high = (uint64_t)1 << 40;
  float base = hv_random_normal(1, 2, 3, 4, 5, 6);
  assert_true(base == hv_random_normal(1, 2, 3, 4, 5, 6));
  assert_true(base != hv_random_normal(2, 2, 3, 4, 5, 6));
  assert_true(base != hv_random_normal(1 + high, 2, 3, 4, 5, 6));
  assert_true(base != hv_random_normal(1, 3, 3, 4, 5, 6));
  assert_true(base != hv_random_normal(1, 2, 4, 4, 5, 6));
  assert_true(base != hv_random_normal(1, 2, 3 + high, 4, 5, 6));
  assert_true(base != hv_random_normal(1, 2, 3, 5, 5, 6));
  assert_true(base != hv_random_normal(1, 2, 3, 4 + high, 5, 6));
  assert_true(base != hv_random_normal(1, 2, 3, 4, 6, 6));
  assert_true(base != hv_random_normal(1, 2, 3, 4, 5, 7));
}

/* Deriving the key once and drawing four elements at a time, as kernels do, gives the same numbers as single draws. */
static void blocks_agree_with_single_draws(void **state) {
  (void)state;
  uint64_t key = hv_random_key(11, HV_RANDOM_POLICY_NOISE, 5);
  for (uint32_t quad = 0; quad < 100; quad++) {
    float values[4];
    hv_random_normals(key, 77, 2, quad, values);
    for (uint32_t j = 0; j < 4; j++) {
      assert_true(values[j] == hv_random_normal(11, HV_RANDOM_POLICY_NOISE, 5, 77, 2, 4 * quad + j));
    }
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(known_answers),
      cmocka_unit_test(normals_match_the_c_library),
      cmocka_unit_test(tails_reach_six_sigma),
      cmocka_unit_test(a_million_normals_have_the_same_bits_everywhere),
      cmocka_unit_test(moments),
      cmocka_unit_test(uniforms_fill_the_interval),
      cmocka_unit_test(bounded_draws_are_even),
      cmocka_unit_test(every_argument_counts),
      cmocka_unit_test(blocks_agree_with_single_draws),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
