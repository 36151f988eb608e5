/* Loops over tasks on the device's threads, with scratch memory for each thread. Which tasks there are depends on
 * shapes alone, and a task's result never on the thread that runs it, so neither does an operation's result. */
#ifndef HV_CPU_PARALLEL_H
#define HV_CPU_PARALLEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/base/status.h"

typedef struct hv_cpu_pool {
  int threads;
  size_t scratch_bytes;
  char **scratch; /* one block a thread, aligned to 64 bytes */
  size_t list_bytes;
  void *list; /* for the calling thread: lists an operation makes before its loops */
  hv_status error;
} hv_cpu_pool;

HV_NODISCARD hv_status hv_cpu_pool_open(int threads, hv_cpu_pool *out);
void hv_cpu_pool_close(hv_cpu_pool *pool);

/* Makes every thread's scratch, or the list, at least so large. Both only grow, so that a repeated call allocates
 * nothing. False without memory: pool->error is set, and the operation gives up. */
HV_NODISCARD bool hv_cpu_reserve(hv_cpu_pool *pool, size_t bytes);
HV_NODISCARD bool hv_cpu_reserve_list(hv_cpu_pool *pool, size_t bytes);

/* OpenBLAS starts as many threads as OpenMP would, at every call outside a parallel region. Between these two it starts
 * none, and afterwards the calling thread's OpenMP is as it was. */
HV_NODISCARD int hv_cpu_alone_begin(void);
void hv_cpu_alone_end(int outside);

/* Does items [first, last); scratch is this thread's. */
typedef void (*hv_cpu_body)(const void *context, int64_t first, int64_t last, void *scratch);

/* Runs body over [0, count) in tasks of `grain` items; a single task runs in the calling thread. */
void hv_cpu_for(hv_cpu_pool *pool, int64_t count, int64_t grain, hv_cpu_body body, const void *context);

/* The grain for items that touch `elements` numbers each: tasks large enough to be worth handing out. */
static inline int64_t hv_cpu_grain(int64_t elements) {
  int64_t grain = 16384 / (elements > 0 ? elements : 1);
  return grain > 0 ? grain : 1;
}

/* The sum of body over tasks that cover [0, count), added up in order; `elements` as for hv_cpu_grain. */
typedef double (*hv_cpu_sum_body)(const void *context, int64_t first, int64_t last, void *scratch);
double hv_cpu_sum(hv_cpu_pool *pool, int64_t count, int64_t elements, hv_cpu_sum_body body, const void *context);

#endif
