/* Signals to a running hvla-train. */
#include <signal.h>

#include "tests/check.h"
#include "tests/train/program.h"

enum { STEPS = 60 };
static const char *const schedule = "--set train.steps=60 --set optimizer.schedule=cosine --set checkpoint.interval=0";

/* Signals a run at some step and, after the exit code was `code`, resumes it: the end has the same bytes as a run that
 * nothing disturbed. */
static void interrupt_and_resume(void **state, int signal_number, int code, const char *said) {
  const char *log = in_folder(*state, "log");
  char final[128];
  expect_train(0, run_arguments(*state, "whole", schedule), NULL);
  pid_t process = start_train(run_arguments(*state, "run", schedule), log);
  wait_for_text(log, "step 3/60");
  assert_int_equal(kill(process, signal_number), 0);
  assert_int_equal(wait_for_exit(process), code);
  wait_for_text(log, said);
  snprintf(final, sizeof final, "checkpoints/step-%d/training.safetensors", STEPS);
  if (hv_file_exists(in_run(*state, "run", final))) fail_msg("the run was over before the signal came");
  assert_true(hv_file_exists(in_run(*state, "run", "model/model.safetensors")));
  char rest[256];
  snprintf(rest, sizeof rest, "%s --resume", schedule);
  expect_train(0, run_arguments(*state, "run", rest), "resumed from", NULL);
  assert_same_state(*state, "run", "whole", STEPS);
}

static void a_terminated_run_can_be_requeued(void **state) {
  interrupt_and_resume(state, SIGTERM, 75, "stopped by SIGTERM");
}

static void an_interrupted_run_goes_on(void **state) {
  interrupt_and_resume(state, SIGINT, 130, "stopped by Ctrl-C");
}

/* A step of this run takes seconds: the second Ctrl-C does not wait for its end, and there is no checkpoint. */
static void a_second_interrupt_ends_at_once(void **state) {
  const char *log = in_folder(*state, "log");
  pid_t process = start_train(
      run_arguments(
          *state, "run",
          "--set model.objective=diffusion --set train.batch_size=4096 --set train.branches=64 --set train.steps=2"),
      log);
  wait_for_text(log, "steps of 4096 samples");
  assert_int_equal(kill(process, SIGINT), 0);
  wait_for_text(log, "finishing the step");
  assert_int_equal(kill(process, SIGINT), 0);
  assert_int_equal(wait_for_exit(process), 130);
  assert_false(hv_file_exists(in_run(*state, "run", "checkpoints")));
}

/* Killed in the middle of whatever it was doing, a run resumes from a whole checkpoint to the same end. */
static void survives_being_killed(void **state) {
  enum { KILLS = 4 };
  const char *log = in_folder(*state, "log");
  const char *often = "--set train.steps=60 --set checkpoint.interval=1 --resume";
  expect_train(0, run_arguments(*state, "whole", "--set train.steps=60 --set checkpoint.interval=0"), NULL);
  for (int i = 0; i < KILLS; i++) {
    char text[64];
    pid_t process = start_train(run_arguments(*state, "run", often), log);
    snprintf(text, sizeof text, "step %d/60", 3 + 7 * i);
    wait_for_text(log, text);
    assert_int_equal(kill(process, SIGKILL), 0);
    assert_int_equal(wait_for_exit(process), 128 + SIGKILL);
  }
  expect_train(0, run_arguments(*state, "run", often), "resumed from", NULL);
  assert_same_state(*state, "run", "whole", STEPS);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(a_terminated_run_can_be_requeued, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(an_interrupted_run_goes_on, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(a_second_interrupt_ends_at_once, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(survives_being_killed, make_folder, remove_folder),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
