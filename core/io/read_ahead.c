#include "core/io/read_ahead.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "core/base/thread_pool.h"

/* Bytes of one request. Asking for the next one at the same time (MADV_WILLNEED) was slower: it breaks up what the
 * kernel reads ahead by itself. */
static const size_t WINDOW = 8 << 20;

struct hv_read_ahead {
  hv_job job;
  const hv_mapped_range *ranges;
  size_t count, page;
  hv_thread_pool *pool;
  pthread_mutex_t mutex;
  pthread_cond_t changed;
  size_t done;      /* ranges that are in memory; under the mutex */
  atomic_bool stop; /* set by close: no more is needed */
};

/* Waits until the bytes are in memory and mapped. */
static void fetch(const hv_read_ahead *self, const char *data, size_t size) {
  uintptr_t skew = (uintptr_t)data % self->page;
#ifdef MADV_POPULATE_READ
  if (madvise((void *)((uintptr_t)data - skew), size + skew, MADV_POPULATE_READ) == 0 || errno != EINVAL) return;
#endif
  /* Kernels before 5.14 lack it; reading a byte of each page does the same. */
  for (size_t at = 0; at < size; at += self->page) (void)*(const volatile char *)(data + at);
}

static void read_range(hv_read_ahead *self, const hv_mapped_range *range) {
  const char *data = range->data;
  for (size_t at = 0; at < range->size && !self->stop; at += WINDOW) {
    size_t left = range->size - at;
    fetch(self, data + at, left < WINDOW ? left : WINDOW);
  }
}

static void run(hv_job *job, int worker) {
  hv_read_ahead *self = (hv_read_ahead *)job;
  (void)worker;
  for (size_t i = 0; i < self->count && !self->stop; i++) {
    read_range(self, &self->ranges[i]);
    pthread_mutex_lock(&self->mutex);
    self->done = i + 1;
    pthread_cond_broadcast(&self->changed);
    pthread_mutex_unlock(&self->mutex);
  }
}

hv_status hv_read_ahead_open(const hv_mapped_range *ranges, size_t count, hv_read_ahead **out) {
  *out = NULL;
  hv_read_ahead *self = calloc(1, sizeof *self);
  if (!self) return hv_error_memory("a thread that reads ahead");
  *self = (hv_read_ahead){.job = {.run = run},
                          .ranges = ranges,
                          .count = count,
                          .page = (size_t)sysconf(_SC_PAGESIZE),
                          .mutex = PTHREAD_MUTEX_INITIALIZER,
                          .changed = PTHREAD_COND_INITIALIZER};
  hv_status status = hv_thread_pool_open(1, &self->pool);
  if (status) {
    free(self);
    return status;
  }
  hv_thread_pool_submit(self->pool, &self->job);
  *out = self;
  return HV_OK;
}

void hv_read_ahead_wait(hv_read_ahead *ahead, size_t index) {
  pthread_mutex_lock(&ahead->mutex);
  while (ahead->done <= index) pthread_cond_wait(&ahead->changed, &ahead->mutex);
  pthread_mutex_unlock(&ahead->mutex);
}

void hv_read_ahead_close(hv_read_ahead *ahead) {
  if (!ahead) return;
  ahead->stop = true;
  hv_thread_pool_close(ahead->pool);
  pthread_mutex_destroy(&ahead->mutex);
  pthread_cond_destroy(&ahead->changed);
  free(ahead);
}
