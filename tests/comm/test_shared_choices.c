/* Ranks on emulated cards that would each find another algorithm to be the fastest take the first one's: the run is to
 * the byte that of ranks which all suppose so from the start. */
#include "tests/check.h"
#include "tests/comm/ranks.h"
#include "tests/train/program.h"

/* A run of two ranks, to its end; the second sees `second` in its environment. */
static void run_two(const char *folder, const char *name, const char *second, const char *rest) {
  char arguments[1024], command[3072];
  snprintf(arguments, sizeof arguments,
           "train/hvla-train run --config '%s' --set 'output=%s/%s' --device emu --set train.steps=2 "
           "--set train.batch_size=2 --set checkpoint.interval=0 %s",
           write_tiny_config(folder, "unset"), folder, name, rest);
  int length =
      snprintf(command, sizeof command, "%s : -np 1 env %s '" HVLA_BINARY_DIR "'/%s", arguments, second, arguments);
  assert_true(length < (int)sizeof command);
  expect_ranks(0, 1, command, "2 ranks on 1 host", "done");
}

static void all_ranks_take_what_the_first_measured(void **state) {
  static const char model[] = "model/model.safetensors", unmeasured[] = "--set measure_algorithms=false";
  assert_int_equal(setenv("HVLA_EMU_TIMES", "4,4,4,1", 1), 0);
  run_two(*state, "measured", "HVLA_EMU_TIMES=1,4,4,4", "");
  assert_int_equal(setenv("HVLA_EMU_ALGORITHM", "3", 1), 0);
  run_two(*state, "supposed", "HVLA_EMU_ALGORITHM=3", unmeasured);
  run_two(*state, "apart", "HVLA_EMU_ALGORITHM=0", unmeasured);
  assert_true(same_bytes(in_run(*state, "measured", model), in_run(*state, "supposed", model)));
  assert_false(same_bytes(in_run(*state, "apart", model), in_run(*state, "supposed", model)));
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(all_ranks_take_what_the_first_measured, make_folder, remove_folder),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
