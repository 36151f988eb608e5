/* Training on several ranks equals training on one: losses, gradient norms and values after 20 steps, for every kind of
 * sharding (train_ranks.c holds both sides against each other). */
#include "tests/check.h"
#include "tests/comm/ranks.h"

static void train(const char *folder, int ranks, const char *settings) {
  char command[512];
  snprintf(command, sizeof command, "tests/comm/train_ranks %s %s", folder, settings);
  expect_ranks(0, ranks, command, "nothing shared: loss", "optimizer shared: loss", "gradients shared: loss",
               "parameters shared: loss");
  expect_same_records(folder, ranks, "reduce_scatter fp32 4096 gradients of llm_backbone.llm.model.layers.1\n");
}

static void ranks_together_equal_one_alone(void **state) {
  for (int ranks = 2; ranks <= 8; ranks *= 2) train(*state, ranks, "1");
}

static void ranks_that_accumulate_equal_one_that_does_not(void **state) {
  train(*state, 2, "4");
}

static void ranks_in_bf16_stay_close_to_one(void **state) {
  train(*state, 2, "1 bf16");
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(ranks_together_equal_one_alone, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(ranks_that_accumulate_equal_one_that_does_not, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(ranks_in_bf16_stay_close_to_one, make_folder, remove_folder),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
