#include "train/checkpoint/background.h"

#include <pthread.h>
#include <stdlib.h>

#include "core/base/thread_pool.h"

struct hv_background {
  hv_job job; /* first: the pool passes it to run(), which casts it */
  hv_thread_pool *pool;
  hv_background_work *work;
  void *context;
  atomic_bool stop;
  pthread_mutex_t mutex;
  pthread_cond_t changed;
  bool running; /* guarded by the mutex, as is the outcome */
  hv_status outcome;
};

hv_status hv_background_open(bool thread, hv_background **out) {
  *out = NULL;
  hv_background *background = calloc(1, sizeof *background);
  if (!background) return hv_error_memory("a background thread");
  pthread_mutex_init(&background->mutex, NULL);
  pthread_cond_init(&background->changed, NULL);
  hv_status status = thread ? hv_thread_pool_open(1, &background->pool) : HV_OK;
  if (status) {
    hv_background_close(background);
    return status;
  }
  *out = background;
  return HV_OK;
}

void hv_background_close(hv_background *background) {
  if (!background) return;
  atomic_store(&background->stop, true);
  hv_status_free(hv_background_wait(background));
  hv_thread_pool_close(background->pool);
  pthread_cond_destroy(&background->changed);
  pthread_mutex_destroy(&background->mutex);
  free(background);
}

static void run(hv_job *job, int worker) {
  hv_background *background = (hv_background *)job;
  (void)worker;
  hv_status outcome = background->work(background->context, &background->stop);
  pthread_mutex_lock(&background->mutex);
  background->outcome = outcome;
  background->running = false;
  pthread_cond_signal(&background->changed);
  pthread_mutex_unlock(&background->mutex);
}

void hv_background_start(hv_background *background, hv_background_work *work, void *context) {
  background->work = work;
  background->context = context;
  background->job = (hv_job){.run = run};
  background->running = true;
  if (background->pool) {
    hv_thread_pool_submit(background->pool, &background->job);
  } else {
    run(&background->job, 0);
  }
}

bool hv_background_done(hv_background *background) {
  pthread_mutex_lock(&background->mutex);
  bool done = !background->running;
  pthread_mutex_unlock(&background->mutex);
  return done;
}

hv_status hv_background_wait(hv_background *background) {
  pthread_mutex_lock(&background->mutex);
  while (background->running) pthread_cond_wait(&background->changed, &background->mutex);
  hv_status outcome = background->outcome;
  background->outcome = HV_OK;
  pthread_mutex_unlock(&background->mutex);
  return outcome;
}
