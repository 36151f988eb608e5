/* Starts of `hvla-train run` that are refused leave nothing new and change nothing; and the lock that keeps two runs
 * out of one directory. */
#include <errno.h>
#include <pthread.h>
#include <sys/file.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "core/base/directory.h"
#include "tests/check.h"
#include "tests/train/damaged_demonstrations.h"
#include "tests/train/program.h"
#include "train/watch/run_card.h"

/* The run is refused when it has made and locked its directory already. It must then remove what it made, missing
 * parent directories included. */
static void expect_nothing_left(const char *folder, const char *rest, const char *words) {
  bool empty;
  expect_train(2, run_arguments(folder, "new/er/run", rest), words, NULL);
  if (hv_file_exists(in_folder(folder, "new"))) fail_msg("refused with %s, the run has left the directory new/", words);
  assert_ok(hv_make_directories(in_folder(folder, "there")));
  expect_train(2, run_arguments(folder, "there", rest), words, NULL);
  assert_ok(hv_directory_is_empty(in_folder(folder, "there"), &empty));
  if (!empty) fail_msg("refused with %s, the run has left something in its directory", words);
}

static void a_model_that_does_not_fit_leaves_nothing(void **state) {
  char rest[1024];
  expect_train(0, run_arguments(*state, "first", "--set train.steps=1"), NULL);
  snprintf(rest, sizeof rest, "--set 'init_from=%s/first/model' --set model.llm.intermediate_size=64",
           (const char *)*state);
  expect_nothing_left(*state, rest, "mlp.gate_proj.weight");
}

static void a_first_batch_that_cannot_be_read_leaves_nothing(void **state) {
  char rest[1024];
  const char *path = in_folder(*state, "damaged.hdf5"),
             *episode = write_damaged_demonstrations(path, frame_of_sample(2));
  snprintf(rest, sizeof rest, "--set 'data.files=%s'", path);
  expect_nothing_left(*state, rest, episode);
}

/* Files of an earlier run stay as they are, to the byte, and nothing is left that would stop the next start. */
static void a_refused_start_changes_nothing(void **state) {
  expect_train(0, run_arguments(*state, "run", "--set train.steps=3"), NULL);
  assert_ok(hv_remove_tree(in_run(*state, "run", "checkpoints")));
  char *before = read_file(in_run(*state, "run", "metrics.jsonl"));
  char *card = read_file(in_run(*state, "run", "run.json"));
  expect_train(2, run_arguments(*state, "run", ""), "holds a model but no checkpoint", NULL);
  char *after = read_file(in_run(*state, "run", "metrics.jsonl"));
  char *later = read_file(in_run(*state, "run", "run.json"));
  assert_string_equal(before, after);
  assert_string_equal(card, later);
  assert_int_equal(unlink(in_run(*state, "run", "run.json")), 0);
  expect_train(2, run_arguments(*state, "run", ""), "holds a model but no checkpoint", NULL);
  assert_false(hv_file_exists(in_run(*state, "run", "run.json")));
  assert_ok(hv_remove_tree(in_run(*state, "run", "model")));
  expect_train(0, run_arguments(*state, "run", "--set train.steps=3"), NULL);
  free(before);
  free(after);
  free(card);
  free(later);
}

static void *close_soon(void *card) {
  nanosleep(&(struct timespec){.tv_nsec = 60000000}, NULL);
  hv_run_card_close(card);
  return NULL;
}

/* A start waits for the lock of another that is then refused and removes its run.json. The waiting one must not go on
 * with the removed file: it makes a new one. */
static void a_start_beside_one_that_is_refused_begins(void **state) {
  pthread_t thread;
  hv_run_card *refused, *other;
  const char *run = in_folder(*state, "run");
  assert_ok(hv_run_card_open(run, &refused));
  assert_int_equal(pthread_create(&thread, NULL, close_soon, refused), 0);
  assert_ok(hv_run_card_open(run, &other));
  assert_int_equal(pthread_join(thread, NULL), 0);
  assert_ok(hv_run_card_check(other));
  int unknown;
  assert_true(hv_run_card_held(run, &unknown));
  hv_run_card_close(other);
  assert_false(hv_file_exists(run));
}

static const char *replaced; /* if set: this directory is replaced by a file when the next lock is asked for */
static int closed_twice;

/* flock and close replace the C library's functions. */
int flock(int file, int how) {
  if (replaced) {
    assert_ok(hv_remove_tree(replaced));
    write_text(replaced, "");
    replaced = NULL;
  }
  return (int)syscall(SYS_flock, file, how);
}

int close(int file) {
  int result = (int)syscall(SYS_close, file);
  closed_twice += result != 0 && errno == EBADF;
  return result;
}

/* The directory is replaced by a file during the start: the start ends with an error, and closes its file only once. */
static void a_start_that_lost_its_directory_ends(void **state) {
  hv_run_card *card;
  const char *run = in_folder(*state, "run");
  replaced = run;
  assert_error(hv_run_card_open(run, &card), "is not a directory");
  assert_null(card);
  assert_int_equal(closed_twice, 0);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(a_model_that_does_not_fit_leaves_nothing, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(a_first_batch_that_cannot_be_read_leaves_nothing, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(a_refused_start_changes_nothing, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(a_start_beside_one_that_is_refused_begins, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(a_start_that_lost_its_directory_ends, make_folder, remove_folder),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
