/* Work in a background thread beside the training loop: when it is done, how its error is passed on, and how it is
 * cancelled. */
#include "train/checkpoint/background.h"

#include <time.h>

#include "tests/check.h"

typedef struct task {
  atomic_bool go_on, stopped;
} task;

static void nap(void) {
  nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
}

/* Waits until it may go on, is told to stop, or some seconds have passed; then ends with an error. */
static hv_status wait_for_either(void *context, const atomic_bool *stop) {
  task *t = context;
  for (int naps = 0; naps < 5000 && !atomic_load(&t->go_on) && !atomic_load(stop); naps++) nap();
  if (atomic_load(stop)) nap(); /* closing must wait for the end of this */
  atomic_store(&t->stopped, atomic_load(stop));
  return hv_error(HV_ERR_IO, "the disk is full");
}

static void the_outcome_is_told_once(void **state) {
  (void)state;
  hv_background *background;
  assert_ok(hv_background_open(true, &background));
  assert_true(hv_background_done(background));
  assert_ok(hv_background_wait(background));
  for (int i = 0; i < 2; i++) {
    task t = {0};
    hv_background_start(background, wait_for_either, &t);
    nap();
    assert_false(hv_background_done(background));
    atomic_store(&t.go_on, true);
    assert_error(hv_background_wait(background), "the disk is full");
    assert_true(hv_background_done(background));
    assert_ok(hv_background_wait(background));
  }
  hv_background_close(background);
}

static void closing_stops_the_work_and_waits_for_its_end(void **state) {
  (void)state;
  task t = {0};
  hv_background *background;
  assert_ok(hv_background_open(true, &background));
  hv_background_start(background, wait_for_either, &t);
  hv_background_close(background);
  assert_true(atomic_load(&t.stopped));
  hv_background_close(NULL);
}

static void without_a_thread_work_is_over_when_it_has_begun(void **state) {
  (void)state;
  task t = {.go_on = true};
  hv_background *background;
  assert_ok(hv_background_open(false, &background));
  hv_background_start(background, wait_for_either, &t);
  assert_true(hv_background_done(background));
  assert_error(hv_background_wait(background), "the disk is full");
  hv_background_start(background, wait_for_either, &t); /* nobody asks for its result */
  hv_background_close(background);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(the_outcome_is_told_once),
      cmocka_unit_test(closing_stops_the_work_and_waits_for_its_end),
      cmocka_unit_test(without_a_thread_work_is_over_when_it_has_begun),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
