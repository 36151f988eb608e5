/* The pool of worker threads: order of jobs, worker numbers, jobs that submit jobs, closing, blocked signals, and
 * invalid numbers of threads. */
#include "core/base/thread_pool.h"

#include <pthread.h>
#include <signal.h>

#include "tests/check.h"

enum { JOBS = 200, THREADS = 3 };

typedef struct numbered_job {
  hv_job job; /* first, so that a pointer to it is one to the whole */
  hv_thread_pool *pool;
  int number;
  struct numbered_job *follower; /* submitted while this one runs */
} numbered_job;

/* What the jobs noted, in the order in which they ran. */
static struct {
  pthread_mutex_t mutex;
  int count, numbers[JOBS], workers[JOBS];
} record = {.mutex = PTHREAD_MUTEX_INITIALIZER};

static void note(hv_job *job, int worker) {
  numbered_job *self = (numbered_job *)job;
  if (self->follower) hv_thread_pool_submit(self->pool, &self->follower->job);
  pthread_mutex_lock(&record.mutex);
  record.numbers[record.count] = self->number;
  record.workers[record.count++] = worker;
  pthread_mutex_unlock(&record.mutex);
}

static numbered_job jobs[JOBS];

static hv_thread_pool *open_pool(int threads) {
  hv_thread_pool *pool;
  record.count = 0;
  assert_ok(hv_thread_pool_open(threads, &pool));
  assert_int_equal(hv_thread_pool_threads(pool), threads);
  for (int i = 0; i < JOBS; i++) jobs[i] = (numbered_job){.job.run = note, .pool = pool, .number = i};
  return pool;
}

static void one_worker_keeps_the_order(void **state) {
  (void)state;
  hv_thread_pool *pool = open_pool(1);
  for (int i = 0; i < JOBS; i++) hv_thread_pool_submit(pool, &jobs[i].job);
  hv_thread_pool_close(pool);
  assert_int_equal(record.count, JOBS);
  for (int i = 0; i < JOBS; i++) assert_int_equal(record.numbers[i], i);
}

/* Closing waits for all submitted jobs; each has run once, on a worker of the pool. */
static void every_job_runs_once(void **state) {
  (void)state;
  bool ran[JOBS] = {false};
  hv_thread_pool *pool = open_pool(THREADS);
  for (int i = 0; i < JOBS; i++) hv_thread_pool_submit(pool, &jobs[i].job);
  hv_thread_pool_close(pool);
  assert_int_equal(record.count, JOBS);
  for (int i = 0; i < JOBS; i++) {
    assert_false(ran[record.numbers[i]]);
    ran[record.numbers[i]] = true;
    assert_in_range(record.workers[i], 0, THREADS - 1);
  }
}

static void a_job_submits_the_next(void **state) {
  (void)state;
  hv_thread_pool *pool = open_pool(THREADS);
  for (int i = 0; i + 1 < JOBS; i++) jobs[i].follower = &jobs[i + 1];
  hv_thread_pool_submit(pool, &jobs[0].job);
  hv_thread_pool_close(pool); /* jobs submitted while it closes run too */
  assert_int_equal(record.count, JOBS);
}

static pthread_barrier_t meeting;

static void meet(hv_job *job, int worker) {
  pthread_barrier_wait(&meeting);
  note(job, worker);
}

/* The jobs wait for one another, so they end only if all workers run at the same time; each has a number of its own. */
static void workers_run_at_once(void **state) {
  (void)state;
  bool seen[THREADS] = {false};
  hv_thread_pool *pool = open_pool(THREADS);
  assert_int_equal(pthread_barrier_init(&meeting, NULL, THREADS), 0);
  for (int i = 0; i < THREADS; i++) {
    jobs[i].job.run = meet;
    hv_thread_pool_submit(pool, &jobs[i].job);
  }
  hv_thread_pool_close(pool);
  pthread_barrier_destroy(&meeting);
  for (int i = 0; i < THREADS; i++) seen[record.workers[i]] = true;
  for (int i = 0; i < THREADS; i++) assert_true(seen[i]);
}

static sigset_t mask_of_worker;

static void note_mask(hv_job *job, int worker) {
  pthread_sigmask(SIG_SETMASK, NULL, &mask_of_worker);
  note(job, worker);
}

static void workers_block_signals(void **state) {
  (void)state;
  sigset_t before, after;
  assert_int_equal(pthread_sigmask(SIG_SETMASK, NULL, &before), 0);
  hv_thread_pool *pool = open_pool(1);
  jobs[0].job.run = note_mask;
  hv_thread_pool_submit(pool, &jobs[0].job);
  hv_thread_pool_close(pool);
  assert_int_equal(pthread_sigmask(SIG_SETMASK, NULL, &after), 0);
  static const int signals[] = {SIGINT, SIGTERM, SIGHUP, SIGUSR1};
  for (size_t i = 0; i < sizeof signals / sizeof signals[0]; i++) {
    assert_true(sigismember(&mask_of_worker, signals[i]));
    assert_int_equal(sigismember(&after, signals[i]), sigismember(&before, signals[i]));
  }
}

static void no_worker_is_refused(void **state) {
  (void)state;
  hv_thread_pool *pool;
  assert_error(hv_thread_pool_open(0, &pool), "at least 1 thread", "0");
  assert_null(pool);
  assert_error(hv_thread_pool_open(-1, &pool), "at least 1 thread", "-1");
  hv_thread_pool_close(NULL);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(one_worker_keeps_the_order), cmocka_unit_test(every_job_runs_once),
      cmocka_unit_test(a_job_submits_the_next),     cmocka_unit_test(workers_run_at_once),
      cmocka_unit_test(workers_block_signals),      cmocka_unit_test(no_worker_is_refused),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
