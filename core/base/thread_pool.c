#include "core/base/thread_pool.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>

typedef struct hv_worker {
  hv_thread_pool *pool;
  pthread_t thread;
  int index;
} hv_worker;

struct hv_thread_pool {
  pthread_mutex_t mutex;
  pthread_cond_t changed;
  hv_job *first, *last; /* waiting */
  bool closing;
  int threads; /* that run */
  hv_worker workers[];
};

static void *work(void *argument) {
  const hv_worker *worker = argument;
  hv_thread_pool *pool = worker->pool;
  pthread_mutex_lock(&pool->mutex);
  for (;;) {
    while (!pool->first && !pool->closing) pthread_cond_wait(&pool->changed, &pool->mutex);
    hv_job *job = pool->first;
    if (!job) break;
    pool->first = job->next;
    if (!pool->first) pool->last = NULL;
    pthread_mutex_unlock(&pool->mutex);
    job->run(job, worker->index);
    pthread_mutex_lock(&pool->mutex);
  }
  pthread_mutex_unlock(&pool->mutex);
  return NULL;
}

/* Starts the next worker with all signals blocked. */
static hv_status start_worker(hv_thread_pool *pool) {
  hv_worker *worker = &pool->workers[pool->threads];
  *worker = (hv_worker){.pool = pool, .index = pool->threads};
  sigset_t all, previous;
  sigfillset(&all);
  int failure = pthread_sigmask(SIG_SETMASK, &all, &previous);
  if (failure) return hv_error_errno(failure, "cannot block signals for a thread");
  failure = pthread_create(&worker->thread, NULL, work, worker);
  int restored = pthread_sigmask(SIG_SETMASK, &previous, NULL);
  if (failure) return hv_error_errno(failure, "cannot start a thread");
  pool->threads++;
  if (restored) return hv_error_errno(restored, "cannot restore the signal mask");
  return HV_OK;
}

hv_status hv_thread_pool_open(int threads, hv_thread_pool **out) {
  *out = NULL;
  if (threads < 1) return hv_error(HV_ERR_INPUT, "a thread pool needs at least 1 thread, not %d", threads);
  hv_thread_pool *pool = calloc(1, sizeof *pool + (size_t)threads * sizeof(hv_worker));
  if (!pool) return hv_error_memory("a thread pool");
  pthread_mutex_init(&pool->mutex, NULL);
  pthread_cond_init(&pool->changed, NULL);
  for (int i = 0; i < threads; i++) {
    hv_status status = start_worker(pool);
    if (status) {
      hv_thread_pool_close(pool);
      return status;
    }
  }
  *out = pool;
  return HV_OK;
}

void hv_thread_pool_submit(hv_thread_pool *pool, hv_job *job) {
  job->next = NULL;
  pthread_mutex_lock(&pool->mutex);
  if (pool->last) {
    pool->last->next = job;
  } else {
    pool->first = job;
  }
  pool->last = job;
  pthread_cond_signal(&pool->changed);
  pthread_mutex_unlock(&pool->mutex);
}

int hv_thread_pool_threads(const hv_thread_pool *pool) {
  return pool->threads;
}

void hv_thread_pool_close(hv_thread_pool *pool) {
  if (!pool) return;
  pthread_mutex_lock(&pool->mutex);
  pool->closing = true;
  pthread_cond_broadcast(&pool->changed);
  pthread_mutex_unlock(&pool->mutex);
  for (int i = 0; i < pool->threads; i++) pthread_join(pool->workers[i].thread, NULL);
  pthread_cond_destroy(&pool->changed);
  pthread_mutex_destroy(&pool->mutex);
  free(pool);
}
