/* A run of hvla-train is killed (SIGKILL) again and again, at any moment: while it starts, trains, writes checkpoints
 * or removes old ones. It must always resume from a whole checkpoint and end in the same bytes as an undisturbed run.
 */
#include <signal.h>
#include <time.h>

#include "core/base/random.h"
#include "tests/check.h"
#include "tests/train/program.h"

enum { STEPS = 100 };
static const char *const settings =
    LARGE_VOCABULARY "--set train.steps=100 --set train.batch_size=2 --set checkpoint.interval=1 --resume";

static const char *const undisturbed =
    LARGE_VOCABULARY "--set train.steps=100 --set train.batch_size=2 --set checkpoint.interval=0";

static void pause_ms(int ms) {
  nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000L}, NULL);
}

/* The step from which the process that wrote the log resumed; 0: it began anew; -1: it was killed before it said so, or
 * before it wrote a log. */
static int resumed_step(const char *log) {
  int step = -1;
  if (!hv_file_exists(log)) return -1;
  char *text = read_file(log);
  if (strstr(text, "skipped damaged checkpoints")) fail_msg("a kill left a checkpoint that is damaged:\n%s", text);
  const char *resumed = strstr(text, "resumed from");
  if (resumed) {
    const char *number = strstr(resumed, "/step-");
    assert_non_null(number);
    step = (int)strtol(number + strlen("/step-"), NULL, 10);
  } else if (strstr(text, "starting anew")) {
    step = 0;
  }
  free(text);
  return step;
}

/* metrics.jsonl has one line for each step, in order: no step was lost or counted twice. */
static void assert_every_step_once(const char *run) {
  json_t *lines = read_metrics(run);
  size_t i;
  const json_t *line;
  assert_int_equal(json_array_size(lines), STEPS);
  json_array_foreach(lines, i, line) assert_int_equal(json_integer_value(json_object_get(line, "step")), i + 1);
  json_decref(lines);
}

/* The run is finished: it must equal the undisturbed one. */
static void assert_undisturbed(const char *folder) {
  assert_every_step_once(in_folder(folder, "run"));
  assert_same_state(folder, "run", "whole", STEPS);
}

/* Starts or resumes the run and kills it, now and then while it starts, else while it trains. Returns whether the run
 * had finished before. */
static bool kill_once(const char *folder, const char *log, uint64_t trial) {
  (void)unlink(log); /* an earlier one would be taken for this one's */
  pid_t process = start_train(run_arguments(folder, "run", settings), log);
  if (trial % 4 != 0) wait_for_text(log, " parameters, ");
  pause_ms((int)hv_random_below(5, HV_RANDOM_INIT, 0, trial, 0, 0, 600));
  assert_int_equal(kill(process, SIGKILL), 0); /* nobody has waited for it yet, so the id is still its own */
  int code = wait_for_exit(process);
  if (code != 0 && code != 128 + SIGKILL) fail_msg("the run ended with %d; see %s", code, log);
  return code == 0;
}

static void resumes_after_kills_at_any_moment(void **state) {
  char log[512];
  snprintf(log, sizeof log, "%s", in_folder(*state, "log")); /* a copy, because in_folder reuses its buffers */
  int kills = getenv("HVLA_LONG_TESTS") ? 200 : 20, newest = 0, resumed = 0;
  expect_train(0, run_arguments(*state, "whole", undisturbed), NULL);
  for (int done = 0; done < kills;) {
    bool ended = kill_once(*state, log, (uint64_t)done);
    int step = resumed_step(log);
    /* A complete checkpoint stays complete: the run never resumes from an earlier step than before. */
    if (step >= 0 && step < newest) fail_msg("kill %d: resumed from step %d, from %d before", done, step, newest);
    if (step > newest) newest = step;
    resumed += step > 0;
    done += !ended;
    if (!ended) continue;
    assert_undisturbed(*state);
    assert_ok(hv_remove_tree(in_folder(*state, "run")));
    newest = 0;
  }
  assert_true(resumed > kills / 4);
  expect_train(0, run_arguments(*state, "run", settings), NULL);
  assert_undisturbed(*state);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(resumes_after_kills_at_any_moment, make_folder, remove_folder),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
