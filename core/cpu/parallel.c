#include "core/cpu/parallel.h"

#include <omp.h>
#include <stdlib.h>

enum { SCRATCH_ALIGNMENT = 64, INITIAL_SCRATCH = 4 << 20, MAX_PARTIAL_SUMS = 256 };

static size_t round_up(size_t bytes) {
  return (bytes + SCRATCH_ALIGNMENT - 1) / SCRATCH_ALIGNMENT * SCRATCH_ALIGNMENT;
}

hv_status hv_cpu_pool_open(int threads, hv_cpu_pool *out) {
  *out = (hv_cpu_pool){.threads = threads};
  out->scratch = calloc((size_t)threads, sizeof *out->scratch);
  if (!out->scratch) return hv_error_memory("the CPU device's threads");
  if (hv_cpu_reserve(out, INITIAL_SCRATCH)) return HV_OK;
  hv_status error = out->error;
  out->error = HV_OK;
  hv_cpu_pool_close(out);
  return error;
}

void hv_cpu_pool_close(hv_cpu_pool *pool) {
  for (int i = 0; pool->scratch && i < pool->threads; i++) free(pool->scratch[i]);
  free(pool->scratch);
  free(pool->list);
  hv_status_free(pool->error);
  *pool = (hv_cpu_pool){0};
}

static void remember_out_of_memory(hv_cpu_pool *pool, size_t bytes) {
  hv_status error =
      hv_error(HV_ERR_MEMORY, "out of memory: the CPU device needs %zu bytes of scratch per thread", bytes);
  pool->error = hv_status_first(pool->error, error);
}

bool hv_cpu_reserve(hv_cpu_pool *pool, size_t bytes) {
  if (bytes <= pool->scratch_bytes) return true;
  size_t wanted = round_up(bytes > 2 * pool->scratch_bytes ? bytes : 2 * pool->scratch_bytes);
  for (int i = 0; i < pool->threads; i++) {
    free(pool->scratch[i]);
    pool->scratch[i] = NULL;
  }
  pool->scratch_bytes = 0;
  for (int i = 0; i < pool->threads; i++) {
    pool->scratch[i] = aligned_alloc(SCRATCH_ALIGNMENT, wanted);
    if (!pool->scratch[i]) {
      remember_out_of_memory(pool, wanted);
      return false;
    }
  }
  pool->scratch_bytes = wanted;
  return true;
}

bool hv_cpu_reserve_list(hv_cpu_pool *pool, size_t bytes) {
  if (bytes <= pool->list_bytes) return true;
  size_t wanted = round_up(bytes > 2 * pool->list_bytes ? bytes : 2 * pool->list_bytes);
  free(pool->list);
  pool->list_bytes = 0;
  pool->list = aligned_alloc(SCRATCH_ALIGNMENT, wanted);
  if (!pool->list) {
    remember_out_of_memory(pool, wanted);
    return false;
  }
  pool->list_bytes = wanted;
  return true;
}

static int64_t smaller(int64_t a, int64_t b) {
  return a < b ? a : b;
}

int hv_cpu_alone_begin(void) {
  int threads = omp_get_max_threads();
  omp_set_num_threads(1);
  return threads;
}

void hv_cpu_alone_end(int threads) {
  omp_set_num_threads(threads);
}

void hv_cpu_for(hv_cpu_pool *pool, int64_t count, int64_t grain, hv_cpu_body body, const void *context) {
  int64_t tasks = (count + grain - 1) / grain;
  /* Not an `if` clause: libgomp allocates a team for every parallel region of one thread. */
  if (tasks <= 1 || pool->threads == 1) {
    int outside = hv_cpu_alone_begin();
    for (int64_t i = 0; i < tasks; i++) body(context, i * grain, smaller(count, (i + 1) * grain), pool->scratch[0]);
    hv_cpu_alone_end(outside);
    return;
  }
#pragma omp parallel for num_threads(pool->threads) schedule(dynamic, 1)
  for (int64_t i = 0; i < tasks; i++) {
    body(context, i * grain, smaller(count, (i + 1) * grain), pool->scratch[omp_get_thread_num()]);
  }
}

typedef struct sum_context {
  hv_cpu_sum_body body;
  const void *context;
  int64_t count, tasks;
  double *partial;
} sum_context;

static void partial_sums(const void *context, int64_t first, int64_t last, void *scratch) {
  const sum_context *c = context;
  for (int64_t i = first; i < last; i++) {
    c->partial[i] = c->body(c->context, c->count * i / c->tasks, c->count * (i + 1) / c->tasks, scratch);
  }
}

double hv_cpu_sum(hv_cpu_pool *pool, int64_t count, int64_t elements, hv_cpu_sum_body body, const void *context) {
  double partial[MAX_PARTIAL_SUMS];
  int64_t grain = hv_cpu_grain(elements);
  int64_t tasks = smaller((count + grain - 1) / grain, MAX_PARTIAL_SUMS);
  sum_context c = {.body = body, .context = context, .count = count, .tasks = tasks, .partial = partial};
  hv_cpu_for(pool, tasks, 1, partial_sums, &c);
  double sum = 0;
  for (int64_t i = 0; i < tasks; i++) sum += partial[i];
  return sum;
}
