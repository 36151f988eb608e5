/* `hvla-train status` on runs that are running, finished, stopped, killed and failed, and on made-up files; and the
 * lock by which it knows, which also keeps a second run out of the directory. */
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "core/io/json.h"
#include "tests/check.h"
#include "tests/train/program.h"
#include "train/watch/format_figure.h"
#include "train/watch/run_card.h"
#include "train/watch/run_status.h"

static const char *run_of(const char *folder, const char *rest) {
  static char arguments[2048];
  snprintf(arguments, sizeof arguments, "run --config '%s' %s", write_tiny_config(folder, in_folder(folder, "run")),
           rest);
  return arguments;
}

/* What `status RUN --json` prints. */
static json_t *status_of(const char *folder) {
  char arguments[1024], *output;
  json_t *status;
  snprintf(arguments, sizeof arguments, "status '%s/run' --json", folder);
  int code = run_train("", arguments, &output);
  if (code != 0) fail_msg("status ended with %d: %s", code, output);
  assert_ok(hv_json_parse(output, strlen(output), "the status", &status));
  free(output);
  return status;
}

static void assert_state(const char *folder, const char *state) {
  json_t *status = status_of(folder);
  assert_string_equal(json_string_value(json_object_get(status, "state")), state);
  json_decref(status);
}

static void tells_of_a_finished_run(void **state) {
  expect_train(0,
               run_of(*state, "--set data.valid_split=valid --set validation.samples=3 --set validation.interval=2 "
                              "--set checkpoint.interval=4"),
               NULL);
  json_t *status = status_of(*state);
  const json_t *error = json_object_get(json_object_get(status, "held_out"), "diffusion");
  json_t *last = last_metrics(in_folder(*state, "run"), "error_diffusion");
  assert_string_equal(json_string_value(json_object_get(status, "state")), "finished");
  assert_int_equal(json_integer_value(json_object_get(status, "step")), 6);
  assert_int_equal(json_integer_value(json_object_get(status, "steps")), 6);
  assert_int_equal(json_integer_value(json_object_get(status, "checkpoint")), 6);
  assert_int_equal(json_integer_value(json_object_get(status, "skipped")), 0);
  assert_true(json_number_value(json_object_get(status, "seconds_left")) == 0);
  assert_true(json_number_value(json_object_get(error, "last")) ==
              json_number_value(json_object_get(last, "error_diffusion")));
  assert_true(json_number_value(json_object_get(error, "best")) <= json_number_value(json_object_get(error, "last")));
  json_decref(status);
  json_decref(last);

  char arguments[1024];
  snprintf(arguments, sizeof arguments, "status '%s/run' --follow", (const char *)*state);
  expect_train(0, arguments, "finished", "step 6 of 6 (100 %)", "held out at step 6", "error of ensemble",
               "newest checkpoint: step 6, complete", NULL);
}

/* Runs in one directory, one after the other: running, stopped by a signal, resumed, killed. */
static void knows_the_living_from_the_dead(void **state) {
  char log[512], metrics[512], second[2048];
  snprintf(log, sizeof log, "%s/log", (const char *)*state);
  snprintf(metrics, sizeof metrics, "%s/run/metrics.jsonl", (const char *)*state);
  snprintf(second, sizeof second, "%s", run_of(*state, "--resume"));
  pid_t process = start_train(run_of(*state, "--set train.steps=100000 --set checkpoint.interval=0"), log);
  wait_for_text(metrics, "\n");
  json_t *status = status_of(*state);
  assert_string_equal(json_string_value(json_object_get(status, "state")), "running");
  assert_int_equal(json_integer_value(json_object_get(status, "pid")), process);
  assert_true(json_number_value(json_object_get(status, "seconds_since")) < 60);
  json_decref(status);
  expect_train(2, second, "another run is going on there", NULL);
  assert_state(*state, "running"); /* the refused run has changed nothing */

  assert_int_equal(kill(process, SIGTERM), 0);
  assert_int_equal(wait_for_exit(process), 75);
  json_t *stopped = status_of(*state);
  assert_string_equal(json_string_value(json_object_get(stopped, "state")), "stopped");
  assert_string_equal(json_string_value(json_object_get(stopped, "message")), "stopped by SIGTERM; --resume continues");
  json_decref(stopped);

  snprintf(log, sizeof log, "%s/second-log", (const char *)*state);
  process = start_train(run_of(*state, "--set train.steps=100000 --set checkpoint.interval=0 --resume"), log);
  wait_for_text(log, "samples/s");
  assert_int_equal(kill(process, SIGKILL), 0);
  assert_int_equal(wait_for_exit(process), 128 + SIGKILL);
  assert_state(*state, "dead");
}

static void tells_why_a_run_failed(void **state) {
  char *output;
  expect_train(0, run_of(*state, "--set train.steps=3"), NULL);
  assert_true(run_train("ulimit -f 800;", run_of(*state, "--resume"), &output) == 2);
  free(output);
  json_t *status = status_of(*state);
  assert_string_equal(json_string_value(json_object_get(status, "state")), "failed");
  assert_non_null(strstr(json_string_value(json_object_get(status, "message")), "training.safetensors"));
  json_decref(status);
}

/* From some moment on every write fails (a limit of 0 on the size of files), so the run cannot even note its failure.
 * Its run.json must stay as it was. */
static void a_card_that_cannot_be_written_stays(void **state) {
  char log[512];
  snprintf(log, sizeof log, "%s/log", (const char *)*state);
  pid_t process = start_train(run_of(*state, "--set train.steps=100000 --set checkpoint.interval=0"), log);
  wait_for_text(in_run(*state, "run", "metrics.jsonl"), "\n");
  assert_int_equal(prlimit(process, RLIMIT_FSIZE, &(struct rlimit){0}, NULL), 0);
  assert_int_equal(wait_for_exit(process), 2);
  json_t *status = status_of(*state);
  assert_string_equal(json_string_value(json_object_get(status, "state")), "dead");
  assert_int_equal(json_integer_value(json_object_get(status, "pid")), process);
  json_decref(status);
}

/* What --resume would do with a killed run: begin anew if there is no checkpoint, else go on from the newest. */
static void tells_a_dead_run_what_is_left_of_it(void **state) {
  char arguments[1024];
  assert_ok(hv_make_directories(in_folder(*state, "run")));
  write_text(in_run(*state, "run", "run.json"), "{\"state\": \"running\"}");
  snprintf(arguments, sizeof arguments, "status '%s/run'", (const char *)*state);
  expect_train(0, arguments, "(killed?); there is no checkpoint, so it must start anew", "no checkpoint yet", NULL);
  expect_train(0, run_of(*state, "--set train.steps=1"), NULL);
  write_text(in_run(*state, "run", "run.json"), "{\"state\": \"running\"}");
  expect_train(0, arguments, "(killed?); --resume continues from the newest checkpoint", NULL);
}

/* A run whose losses are null, not finite, and whose last line is incomplete because it is just being written. */
static void tells_of_figures_that_are_not_finite(void **state) {
  assert_ok(hv_make_directories(in_folder(*state, "run")));
  write_text(in_run(*state, "run", "metrics.jsonl"),
             "{\"step\": 1, \"loss\": 2.5, \"time\": 1}\n"
             "{\"step\": 2, \"loss\": null, \"held_out_loss\": null, \"skipped\": true}\n{\"step\": 3, \"lo");
  json_t *status = status_of(*state);
  assert_string_equal(json_string_value(json_object_get(status, "state")), "unknown");
  assert_non_null(strstr(json_string_value(json_object_get(status, "message")), "no run.json"));
  assert_int_equal(json_integer_value(json_object_get(status, "step")), 2);
  assert_int_equal(json_integer_value(json_object_get(status, "skipped")), 1);
  assert_true(json_is_null(json_object_get(json_object_get(status, "held_out"), "loss")));
  json_decref(status);

  char arguments[1024], *output;
  snprintf(arguments, sizeof arguments, "status '%s/run'", (const char *)*state);
  int code = run_train("", arguments, &output);
  bool told = strstr(output, "  loss        nan  ") && strstr(output, "held out at step 2") && !strstr(output, "best");
  if (code != 0 || !told) fail_msg("ended with %d:\n%s", code, output);
  free(output);
  write_text(in_run(*state, "run", "metrics.jsonl"),
             "{\"step\": 1, \"held_out_loss\": 5e27}\n{\"step\": 2, \"held_out_loss\": null}\n");
  expect_train(0, arguments, "  nan   best 5.0000e+27 at 1", NULL);
}

/* The files hold absurd numbers, whose sums and differences overflow: status still prints something sensible. */
static void tells_of_figures_that_no_run_has(void **state) {
  char arguments[1024];
  assert_ok(hv_make_directories(in_folder(*state, "run")));
  snprintf(arguments, sizeof arguments, "status '%s/run'", (const char *)*state);
  write_text(in_run(*state, "run", "run.json"),
             "{\"state\": \"finished\", \"host\": \"node1\", \"steps\": 9223372036854775807, \"batch_size\": 1e99}");
  write_text(in_run(*state, "run", "metrics.jsonl"),
             "{\"step\": -9223372036854775807, \"loss\": 1e308, \"samples_per_s\": 1e-300}\n"
             "{\"step\": -9223372036854775807, \"loss\": -1e308}\n");
  expect_train(0, arguments, "(process 0 on node1, 0 ranks, ?)", "step -9223372036854775807 of", NULL);
  write_text(in_run(*state, "run", "metrics.jsonl"), "{\"step\": 1, \"loss\": 1e99}\n{\"step\": 2, \"loss\": -1e99}\n");
  expect_train(0, arguments, "-1.0000e+99 █▁\n", NULL);
  write_text(in_run(*state, "run", "metrics.jsonl"), "{\"held_out_loss\": 3}\n"); /* without a step */
  expect_train(0, arguments, "best 3.0000 at 0", NULL);
}

/* The metrics were written by a machine whose clock is ahead of this one's. */
static void tells_of_no_time_that_lies_ahead(void **state) {
  char arguments[1024];
  assert_ok(hv_make_directories(in_folder(*state, "run")));
  write_text(in_run(*state, "run", "metrics.jsonl"), "{\"step\": 1, \"loss\": 2.5, \"time\": 99999999999}\n");
  json_t *status = status_of(*state);
  assert_true(json_number_value(json_object_get(status, "seconds_since")) == 0);
  json_decref(status);
  snprintf(arguments, sizeof arguments, "status '%s/run'", (const char *)*state);
  expect_train(0, arguments, "newest figures 0 s ago", NULL);
}

/* The time left is that of the remaining samples at the last rate; of equal figures, the first is the best. */
static void tells_what_is_left_and_what_was_best(void **state) {
  assert_ok(hv_make_directories(in_folder(*state, "run")));
  write_text(in_run(*state, "run", "run.json"), "{\"state\": \"running\", \"steps\": 100, \"batch_size\": 8}");
  write_text(in_run(*state, "run", "metrics.jsonl"),
             "{\"step\": 10, \"held_out_loss\": 5}\n{\"step\": 20, \"held_out_loss\": 4}\n"
             "{\"step\": 30, \"held_out_loss\": 4}\n{\"step\": 40, \"held_out_loss\": 4.5, \"samples_per_s\": 4}\n");
  json_t *status = status_of(*state);
  const json_t *loss = json_object_get(json_object_get(status, "held_out"), "loss");
  assert_true(number_in(status, "seconds_left") == (100 - 40) * 8 / 4.0);
  assert_true(number_in(loss, "last") == 4.5 && number_in(loss, "best") == 4);
  assert_true(number_in(loss, "best_step") == 20);
  json_decref(status);
}

static void refuses_what_is_no_run(void **state) {
  char arguments[1024];
  snprintf(arguments, sizeof arguments, "status '%s'", (const char *)*state);
  expect_train(2, arguments, "holds no run", NULL);
  expect_train(2, "status", "RUN", NULL);
}

/* A link to itself cannot be read, not even by root. That is an error, and not "holds no run": one might be behind it.
 */
static void tells_what_cannot_be_read(void **state) {
  char arguments[1024];
  assert_int_equal(symlink("loop", in_folder(*state, "loop")), 0);
  snprintf(arguments, sizeof arguments, "status '%s/loop'", (const char *)*state);
  expect_train(2, arguments, "loop/config.yaml", "Too many levels of symbolic links", NULL);
  assert_ok(hv_make_directories(in_folder(*state, "run")));
  assert_int_equal(symlink("run.json", in_run(*state, "run", "run.json")), 0);
  snprintf(arguments, sizeof arguments, "status '%s/run'", (const char *)*state);
  expect_train(0, arguments, "unknown", "run/run.json", "Too many levels of symbolic links", NULL);
}

static void formats_durations(void **state) {
  static const struct {
    double seconds;
    const char *text;
  } cases[] = {{0, "0 s"},           {-3593, "0 s"},       {59.4, "59 s"}, {125, "2 min 05 s"},
               {7500, "2 h 05 min"}, {266400, "3 d 02 h"}, {1e300, "?"},   {NAN, "?"}};
  char text[32];
  (void)state;
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    hv_format_duration(cases[i].seconds, text, sizeof text);
    assert_string_equal(text, cases[i].text);
  }
}

/* The name of a directory need not be UTF-8, as on older file systems. */
static void a_directory_of_any_name_is_looked_at(void **state) {
  char arguments[1024], *output;
  const char *run = in_folder(*state, "caf\xe9");
  assert_ok(hv_make_directories(run));
  write_text(in_folder(run, "metrics.jsonl"), "{\"step\": 7, \"loss\": 2.5, \"time\": 1.5}\n");
  snprintf(arguments, sizeof arguments, "status '%s' --json", run);
  int code = run_train("", arguments, &output);
  if (code != 0 || !strstr(output, "\"step\": 7")) fail_msg("status ended with %d: %s", code, output);
  free(output);
}

static void formats_figures(void **state) {
  static const struct {
    double value;
    const char *text;
  } cases[] = {{5.24696, "5.2470"}, {-999999, "-999999.0000"}, {2379032695607977836544.0, "2.3790e+21"}, {NAN, "nan"}};
  char text[HV_FIGURE_SIZE];
  (void)state;
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    hv_format_figure(cases[i].value, text);
    assert_string_equal(text, cases[i].text);
  }
}

static void *let_go(void *file) {
  nanosleep(&(struct timespec){.tv_nsec = 50000000}, NULL);
  close(*(int *)file);
  return NULL;
}

/* To see whether a run is alive, `status` holds the lock for a moment. A run that starts then waits for it. */
static void a_look_keeps_no_run_from_beginning(void **state) {
  pthread_t thread;
  hv_run_card *card;
  int file = open(in_folder(*state, "run.json"), O_RDONLY | O_CREAT, 0666);
  assert_true(file >= 0);
  assert_int_equal(flock(file, LOCK_SH), 0);
  assert_int_equal(pthread_create(&thread, NULL, let_go, &file), 0);
  assert_ok(hv_run_card_open(*state, &card));
  assert_int_equal(pthread_join(thread, NULL), 0);
  int unknown;
  assert_true(hv_run_card_held(*state, &unknown));
  hv_run_card_close(card);
  assert_false(hv_run_card_held(*state, &unknown));
}

static int lock_problem; /* the errno of flock; 0: it works */

/* Replaces the C library's function. */
int flock(int file, int how) {
  errno = lock_problem;
  return lock_problem ? -1 : (int)syscall(SYS_flock, file, how);
}

/* On some cluster file systems there are no locks. Then nobody can know whether a run is alive, and its state is
 * "unknown". */
static void without_locks_nothing_is_called_dead(void **state) {
  static const struct {
    int problem;
    const char *said, *state;
  } cases[] = {{ENOSYS, "running", "unknown"}, {ENOLCK, "finished", "finished"}, {0, "running", "dead"}};
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    char card[64];
    hv_run_history history;
    snprintf(card, sizeof card, "{\"state\": \"%s\"}", cases[i].said);
    write_text(in_folder(*state, "run.json"), card);
    lock_problem = cases[i].problem;
    assert_ok(hv_run_history_read(*state, &history));
    lock_problem = 0;
    assert_string_equal(history.state, cases[i].state);
    bool doubts = strstr(hv_text_string(&history.doubt), "cannot be locked (Function not implemented)") != NULL;
    assert_true(doubts == (cases[i].problem == ENOSYS));
    hv_run_history_free(&history);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(a_directory_of_any_name_is_looked_at, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(a_look_keeps_no_run_from_beginning, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(without_locks_nothing_is_called_dead, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(tells_of_a_finished_run, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(knows_the_living_from_the_dead, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(tells_why_a_run_failed, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(a_card_that_cannot_be_written_stays, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(tells_a_dead_run_what_is_left_of_it, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(tells_of_figures_that_are_not_finite, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(tells_of_figures_that_no_run_has, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(tells_what_is_left_and_what_was_best, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(refuses_what_is_no_run, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(tells_of_no_time_that_lies_ahead, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(tells_what_cannot_be_read, make_folder, remove_folder),
      cmocka_unit_test(formats_durations),
      cmocka_unit_test(formats_figures),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
