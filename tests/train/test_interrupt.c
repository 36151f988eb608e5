/* Signals to a running hvla-train: it ends in an orderly way with the right exit code and a checkpoint, and the resumed
 * run ends in the same bytes as an undisturbed one. */
#include <fcntl.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

#include "tests/check.h"
#include "tests/train/program.h"
#include "train/run/interrupt.h"

/* More steps than any test waits for. */
#define ENDLESS "--set train.steps=100000 "

/* The last step in the log; 0: none yet. */
static int last_step(const char *log) {
  static const char before[] = "step ";
  int step = 0;
  char *text = read_file(log), *end;
  for (const char *at = text; (at = strstr(at, before)) != NULL; at++) {
    long number = strtol(at + strlen(before), &end, 10);
    if (*end == '/') step = (int)number;
  }
  free(text);
  return step;
}

/* Starts a run and sends it a signal after some steps. It must end with this code and message, and leave a checkpoint
 * of its last step and the model. */
static void interrupt(void **state, const char *settings, int signal_number, int code, const char *said) {
  const char *log = in_folder(*state, "log");
  char checkpoint[64];
  pid_t process = start_train(run_arguments(*state, "run", settings), log);
  wait_for_text(log, "step 3/");
  assert_int_equal(kill(process, signal_number), 0);
  assert_int_equal(wait_for_exit(process), code);
  wait_for_text(log, said);
  snprintf(checkpoint, sizeof checkpoint, "checkpoints/step-%d/state.json", last_step(log));
  assert_true(hv_file_exists(in_run(*state, "run", checkpoint)));
  assert_true(hv_file_exists(in_run(*state, "run", "model/model.safetensors")));
}

/* Resumes the run up to `steps` steps: it must leave the same bytes as an undisturbed run. */
static void resume(void **state, const char *settings, int steps) {
  char rest[256];
  snprintf(rest, sizeof rest, "%s --set train.steps=%d", settings, steps);
  expect_train(0, run_arguments(*state, "whole", rest), NULL);
  snprintf(rest, sizeof rest, "%s --set train.steps=%d --resume", settings, steps);
  expect_train(0, run_arguments(*state, "run", rest), "resumed from", NULL);
  assert_same_state(*state, "run", "whole", steps);
}

static void interrupt_and_resume(void **state, const char *settings, int signal_number, int code, const char *said) {
  char rest[256];
  snprintf(rest, sizeof rest, ENDLESS "%s", settings);
  interrupt(state, rest, signal_number, code, said);
  resume(state, settings, last_step(in_folder(*state, "log")) + 3);
}

/* The cosine of the learning rate depends on the number of steps, so it is the same before and after resuming. */
static void a_terminated_run_can_be_requeued(void **state) {
  enum { STEPS = 40 };
  static const char settings[] =
      LARGE_VOCABULARY "--set train.steps=40 --set optimizer.schedule=cosine --set checkpoint.interval=0";
  interrupt(state, settings, SIGTERM, 75, "stopped by SIGTERM");
  if (last_step(in_folder(*state, "log")) == STEPS) fail_msg("the run was over before the signal came");
  resume(state, settings, STEPS);
}

static void an_interrupted_run_goes_on(void **state) {
  interrupt_and_resume(state, "--set checkpoint.interval=0", SIGINT, 130, "stopped by Ctrl-C");
}

/* SIGHUP comes when the terminal is closed. */
static void a_run_that_is_hung_up_can_be_requeued(void **state) {
  interrupt_and_resume(state, "--set checkpoint.interval=0", SIGHUP, 75, "stopped by SIGHUP");
}

/* With `2>&1 | tee log`, Ctrl-C ends tee as well. The run's last messages find no reader, and its checkpoint is written
 * all the same. */
static void a_run_outlives_the_reader_of_its_log(void **state) {
  enum { FAR_END = 9 };
  char words[4096] = "";
  size_t used = 0;
  int ends[2];
  assert_int_equal(pipe(ends), 0);
  assert_int_equal(dup2(ends[1], FAR_END), FAR_END);
  pid_t process = start_shell("exec '%s' %s 2>&%d", HVLA_BINARY_DIR "/train/hvla-train",
                              run_arguments(*state, "run", ENDLESS), FAR_END);
  close(ends[1]);
  close(FAR_END);
  while (!strstr(words, "step 3/")) {
    ssize_t got = read(ends[0], words + used, sizeof words - 1 - used);
    if (got <= 0) fail_msg("the run ended early; its output was: %s", words);
    used += (size_t)got;
    words[used] = '\0';
  }
  close(ends[0]);
  assert_int_equal(kill(process, SIGINT), 0);
  assert_int_equal(wait_for_exit(process), 130);
  assert_true(hv_file_exists(in_run(*state, "run", "model/model.safetensors")));
}

/* Under nohup, SIGHUP is ignored and Ctrl-C is not. */
static void nohup_keeps_a_run_going(void **state) {
  const char *log = in_folder(*state, "log");
  char later[32];
  pid_t process = start_shell("trap '' HUP; exec '%s' %s > '%s' 2>&1", HVLA_BINARY_DIR "/train/hvla-train",
                              run_arguments(*state, "run", ENDLESS), log);
  wait_for_text(log, "step 3/");
  assert_int_equal(kill(process, SIGHUP), 0);
  snprintf(later, sizeof later, "step %d/", last_step(log) + 10);
  wait_for_text(log, later);
  assert_int_equal(kill(process, SIGINT), 0);
  assert_int_equal(wait_for_exit(process), 130);
}

/* SIGUSR1 is a batch system's warning. It comes while a large checkpoint is being written, which is finished too. */
static void a_preempted_run_finishes_what_it_writes(void **state) {
  interrupt_and_resume(state, LARGE_VOCABULARY "--set checkpoint.interval=1", SIGUSR1, 75, "stopped by SIGUSR1");
}

/* Measuring is slow here. A signal during it ends the run after this measurement, not after one more step with another.
 */
static void a_signal_while_measuring_ends_the_run_there(void **state) {
  const char *log = in_folder(*state, "log");
  pid_t process = start_train(
      run_arguments(*state, "run",
                    "--set train.steps=60 --set log_interval=1 --set data.valid_split=train "
                    "--set validation.interval=1 --set validation.samples=120 --set validation.ddim_steps=100 "
                    "--set validation.keep_best=false --set checkpoint.interval=0"),
      log);
  wait_for_text(log, "step 1/60");
  assert_int_equal(kill(process, SIGTERM), 0);
  assert_int_equal(wait_for_exit(process), 75);
  wait_for_text(log, "step 1  held out");
  assert_true(hv_file_exists(in_run(*state, "run", "checkpoints/step-1/state.json")));
}

/* On SIGUSR2 a run writes a checkpoint and the model, and goes on. */
static void a_checkpoint_is_written_on_demand(void **state) {
  const char *log = in_folder(*state, "log");
  char rest[1024];
  int64_t tries = 0;
  pid_t process =
      start_train(run_arguments(*state, "run", "--set train.steps=100000 --set checkpoint.interval=0"), log);
  wait_for_text(log, "step 2/");
  assert_int_equal(kill(process, SIGUSR2), 0);
  while (!hv_file_exists(in_run(*state, "run", "model/model.safetensors")) && tries++ < 600) {
    nanosleep(&(struct timespec){.tv_nsec = 100000000}, NULL);
  }
  snprintf(rest, sizeof rest, "model --run '%s/run' --out '%s/copy'", (char *)*state, (char *)*state);
  expect_train(0, rest, "the model of step", NULL);
  assert_true(
      same_bytes(in_run(*state, "run", "model/model.safetensors"), in_run(*state, "copy", "model.safetensors")));
  assert_int_equal(kill(process, SIGKILL), 0);
  assert_int_equal(wait_for_exit(process), 128 + SIGKILL);
}

/* A step of this run takes long: a second Ctrl-C ends the run without waiting for the step, so there is no checkpoint.
 */
static void a_second_interrupt_ends_at_once(void **state) {
  const char *log = in_folder(*state, "log");
  pid_t process = start_train(
      run_arguments(
          *state, "run",
          "--set model.objective=diffusion --set train.batch_size=1024 --set train.branches=64 --set train.steps=2"),
      log);
  wait_for_text(log, "steps of 1024 samples");
  assert_int_equal(kill(process, SIGINT), 0);
  wait_for_text(log, "finishing the step");
  assert_int_equal(kill(process, SIGTERM), 0);
  assert_int_equal(kill(process, SIGINT), 0);
  assert_int_equal(wait_for_exit(process), 130);
  assert_false(hv_file_exists(in_run(*state, "run", "checkpoints")));
}

static bool has_come(const hv_interrupt *interrupt) {
  double numbers[HV_INTERRUPT_SIGNALS];
  hv_interrupt_tell(interrupt, numbers);
  return hv_interrupt_hear(numbers) != 0;
}

/* The messages about a SIGTERM, in a process whose run is failing or not. One thread takes all signals in turn: once it
 * has taken the second one, it has printed what there is to say about the first. */
static char *words_of_termination(const char *log, bool failing) {
  pid_t child = fork();
  assert_true(child >= 0);
  if (child == 0) {
    hv_interrupt *interrupt;
    int fd = open(log, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (dup2(fd, STDERR_FILENO) < 0 || hv_interrupt_open(&interrupt)) _exit(1);
    if (failing) hv_interrupt_silence(interrupt);
    kill(getpid(), SIGTERM);
    while (!has_come(interrupt)) usleep(1000);
    kill(getpid(), SIGUSR2);
    while (!hv_interrupt_take_request(interrupt)) usleep(1000);
    _exit(0);
  }
  assert_int_equal(wait_for_exit(child), 0);
  return read_file(log);
}

/* If one rank fails, the launcher sends SIGTERM to the others. A run that is failing anyway must not then promise a
 * checkpoint. */
static void a_run_that_fails_promises_no_checkpoint(void **state) {
  char *words = words_of_termination(in_folder(*state, "log"), false);
  assert_non_null(strstr(words, "SIGTERM: finishing the step"));
  free(words);
  words = words_of_termination(in_folder(*state, "log"), true);
  assert_string_equal(words, "");
  free(words);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(a_terminated_run_can_be_requeued, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(an_interrupted_run_goes_on, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(a_run_that_is_hung_up_can_be_requeued, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(a_run_outlives_the_reader_of_its_log, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(nohup_keeps_a_run_going, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(a_preempted_run_finishes_what_it_writes, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(a_signal_while_measuring_ends_the_run_there, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(a_checkpoint_is_written_on_demand, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(a_second_interrupt_ends_at_once, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(a_run_that_fails_promises_no_checkpoint, make_folder, remove_folder),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
