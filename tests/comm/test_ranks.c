/* Training on several ranks equals training on one: losses, gradient norms and parameters after 20 steps for every kind
 * of sharding, and after 8 steps for other settings. train_ranks.c trains and compares both sides. */
#include "tests/check.h"
#include "tests/comm/ranks.h"

static bool is_long(void) {
  return getenv("HVLA_LONG_TESTS") != NULL;
}

static void train(const char *folder, int ranks, const char *settings) {
  char command[512], line[128];
  bool bf16 = strstr(settings, "gradients=bf16") != NULL;
  snprintf(command, sizeof command, "tests/comm/train_ranks '%s' %s %s", folder, is_long() ? "steps=20" : "", settings);
  expect_ranks(0, ranks, command, "nothing shared: loss", "optimizer shared: loss", "gradients shared: loss",
               "parameters shared: loss");
  const char *group = strstr(settings, "trained=heads") ? "final_layer" : "llm_backbone.llm.model.layers.1";
  snprintf(line, sizeof line, "reduce_scatter %s 8192 gradients of %s\n", bf16 ? "bf16" : "fp32", group);
  expect_same_records(folder, ranks, line);
}

/* With a sanitizer a step takes five times as long; then the default of 8 steps is enough. */
#ifdef __SANITIZE_ADDRESS__
static const char all_steps[] = "";
#else
static const char all_steps[] = "steps=20";
#endif

static void ranks_together_equal_one_alone(void **state) {
  for (int ranks = 2; ranks <= 8; ranks *= 2) train(*state, ranks, all_steps);
}

static void ranks_that_accumulate_equal_one_that_does_not(void **state) {
  train(*state, 2, "parts=4");
}

/* Few parts are trained, so that in the next step a buffer may be used for the same group as before, with none between.
 */
static void ranks_that_train_little_equal_one_alone(void **state) {
  train(*state, 2, "trained=heads");
  train(*state, 2, "trained=heads parts=2");
}

static void ranks_in_bf16_stay_close_to_one(void **state) {
  train(*state, 2, "dtype=bf16");
}

/* Sums of gradients over ranks and micro-batches are rounded to bf16 as well. */
static void ranks_with_bf16_gradients_stay_close_to_one(void **state) {
  train(*state, 2, "dtype=bf16 gradients=bf16");
  train(*state, 2, "dtype=bf16 gradients=bf16 parts=4");
}

static void ranks_with_8_bit_moments_stay_close_to_one(void **state) {
  train(*state, 2, "moments=int8");
}

/* Over NCCL, with the emulated device's replacement for the library. */
static void emulated_cards_together_equal_one_alone(void **state) {
  if (!is_long()) {
    train(*state, 2, "device=emu samples=2 branches=1 steps=2");
    return;
  }
  for (int ranks = 2; ranks <= 8; ranks *= 2) train(*state, ranks, "device=emu samples=8 branches=1");
  train(*state, 2, "device=emu samples=8 branches=1 parts=2");
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(ranks_together_equal_one_alone, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(ranks_that_accumulate_equal_one_that_does_not, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(ranks_that_train_little_equal_one_alone, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(ranks_in_bf16_stay_close_to_one, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(ranks_with_bf16_gradients_stay_close_to_one, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(ranks_with_8_bit_moments_stay_close_to_one, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(emulated_cards_together_equal_one_alone, make_folder, remove_folder),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
