/* Sorting measured numbers and finding their median. */
#include "core/base/median.h"
#include "tests/check.h"

static void values_are_sorted(void **state) {
  (void)state;
  double values[] = {3, -1, 1e300, 0.5, -0.25, 3}, sorted[] = {-1, -0.25, 0.5, 3, 3, 1e300};
  hv_sort_values(values, 6);
  assert_memory_equal(values, sorted, sizeof sorted);
}

static void the_middle_is_found(void **state) {
  (void)state;
  assert_true(hv_median((double[]){7}, 1) == 7);
  assert_true(hv_median((double[]){9, 1}, 2) == 5);
  assert_true(hv_median((double[]){9, 1, 2}, 3) == 2);
  assert_true(hv_median((double[]){9, 1, 2, 4}, 4) == 3);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(values_are_sorted), cmocka_unit_test(the_middle_is_found)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
