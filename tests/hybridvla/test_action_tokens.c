/* Action tokens: the token of an action against the definition, which counts edges, and the action of a token. */
#include "core/hybridvla/action_tokens.h"

#include <math.h>

#include "tests/check.h"

enum { BASE = 32000, BINS = 256 };

/* The definition: the number of edges at or below the action, counted one by one. */
static int32_t counted(double action, int32_t bins) {
  double clipped = fmin(fmax(action, -1.0), 1.0);
  int32_t n = 0;
  for (int32_t i = 0; i < bins; i++) n += (i == bins - 1 ? 1.0 : i * (2.0 / (bins - 1)) + -1.0) <= clipped;
  return BASE - n;
}

static void check(double action, int32_t bins) {
  int32_t found = hv_action_token(action, BASE, bins), expected = counted(action, bins);
  if (found != expected) fail_msg("%.17g is token %d, not %d", action, found, expected);
}

static void tokens_count_the_edges(void **state) {
  (void)state;
  for (int32_t bins = 2; bins <= 256; bins += 127)
    for (int32_t i = 0; i < bins; i++) {
      double edge = i == bins - 1 ? 1.0 : i * (2.0 / (bins - 1)) + -1.0;
      check(edge, bins);
      check(nextafter(edge, -2.0), bins);
      check(nextafter(edge, 2.0), bins);
      check((float)edge, bins);
    }
  for (int i = 0; i < 8000; i++) check(-1.5 + 0.00037 * i, BINS);
}

static void ends_have_the_ids_that_files_use(void **state) {
  (void)state;
  assert_int_equal(hv_action_token(-1.0, BASE, BINS), BASE - 1);
  assert_int_equal(hv_action_token(-7.0, BASE, BINS), BASE - 1);
  assert_int_equal(hv_action_token(1.0, BASE, BINS), BASE - 256);
  assert_int_equal(hv_action_token(INFINITY, BASE, BINS), BASE - 256);
  assert_int_equal(hv_action_token(0.0, BASE, BINS), BASE - 128);
}

static void centres_lie_in_the_middle_of_their_bins(void **state) {
  (void)state;
  double width = 2.0 / (BINS - 1);
  for (int32_t n = 1; n <= BINS - 1; n++) {
    double centre = hv_action_from_token(BASE - n, BASE, BINS);
    assert_true(fabs(centre - (-1.0 + (n - 0.5) * width)) < 1e-12);
    assert_int_equal(hv_action_token(centre, BASE, BINS), BASE - n);
  }
  /* An action of exactly 1 has an id but no bin of its own: it gets the last bin. Ids out of range are clipped. */
  double last = hv_action_from_token(BASE - 255, BASE, BINS), first = hv_action_from_token(BASE - 1, BASE, BINS);
  assert_true(hv_action_from_token(BASE - 256, BASE, BINS) == last);
  assert_true(hv_action_from_token(0, BASE, BINS) == last);
  assert_true(hv_action_from_token(BASE + 5, BASE, BINS) == first);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(tokens_count_the_edges),
      cmocka_unit_test(ends_have_the_ids_that_files_use),
      cmocka_unit_test(centres_lie_in_the_middle_of_their_bins),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
