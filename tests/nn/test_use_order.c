/* The order in which parameter groups are used: it is recorded in one pass and predicted in the next. */
#include "core/nn/use_order.h"
#include "tests/check.h"

enum { CAPACITY = 6 };

static int make_order(void **state) {
  hv_use_order *order = malloc(sizeof *order);
  assert_non_null(order);
  assert_ok(hv_use_order_open(CAPACITY, order));
  *state = order;
  return 0;
}

static int remove_order(void **state) {
  hv_use_order_close(*state);
  free(*state);
  return 0;
}

/* Uses the groups in turn; expected[i] is the group that must be predicted after groups[i], -1 for none. */
static void pass(hv_use_order *order, hv_group_id first, int count, const hv_group_id *groups,
                 const hv_group_id *expected) {
  assert_int_equal(hv_use_order_begin(order), first);
  for (int i = 0; i < count; i++) assert_int_equal(hv_use_order_next(order, groups[i]), expected[i]);
}

static const hv_group_id usual[] = {3, 1, 2, 1, 3};
static const hv_group_id unknown[] = {-1, -1, -1, -1, -1, -1, -1};
static const hv_group_id foretold[] = {1, 2, 1, 3, -1};

static void the_second_pass_is_foretold(void **state) {
  pass(*state, -1, 5, usual, unknown);
  pass(*state, 3, 5, usual, foretold);
  pass(*state, 3, 5, usual, foretold);
}

static void uses_between_passes_change_nothing(void **state) {
  pass(*state, -1, 5, usual, unknown);
  hv_use_order_end(*state);
  for (hv_group_id g = 0; g < 3; g++) assert_int_equal(hv_use_order_next(*state, g), -1);
  pass(*state, 3, 5, usual, foretold);
  hv_use_order_end(*state);
  assert_int_equal(hv_use_order_next(*state, 0), -1);
  pass(*state, 3, 5, usual, foretold);
}

static void another_way_is_learnt_anew(void **state) {
  const hv_group_id other[] = {3, 2, 1}, partly[] = {1, -1, -1}, then[] = {2, 1, -1};
  pass(*state, -1, 5, usual, unknown);
  pass(*state, 3, 3, other, partly);
  pass(*state, -1, 3, other, unknown);
  pass(*state, 3, 3, other, then);
}

static void what_finds_no_room_is_not_foretold(void **state) {
  const hv_group_id many[] = {0, 1, 2, 3, 4, 5, 6}, most[] = {1, 2, 3, 4, 5, -1, -1};
  pass(*state, -1, 7, many, unknown);
  pass(*state, 0, 7, many, most);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(the_second_pass_is_foretold, make_order, remove_order),
      cmocka_unit_test_setup_teardown(uses_between_passes_change_nothing, make_order, remove_order),
      cmocka_unit_test_setup_teardown(another_way_is_learnt_anew, make_order, remove_order),
      cmocka_unit_test_setup_teardown(what_finds_no_room_is_not_foretold, make_order, remove_order),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
