/* A pool of worker threads, for all work beside the model: reading ahead, decoding, MPI, writing checkpoints.
 * (Operations of the CPU device use OpenMP instead.)
 *
 * A job's memory belongs to the submitter and must stay in place until the job has run; submitting allocates nothing
 * and cannot fail. Jobs start in the order of submission. Any thread may submit, a running job too.
 */
#ifndef HV_BASE_THREAD_POOL_H
#define HV_BASE_THREAD_POOL_H

#include "core/base/status.h"

typedef struct hv_thread_pool hv_thread_pool;

typedef struct hv_job {
  void (*run)(struct hv_job *job, int worker); /* worker: 0 … threads − 1, for scratch of its own */
  struct hv_job *next;                         /* used by the pool while the job waits */
} hv_job;

/* Starts `threads` (>= 1) workers. They block every signal, so that signals reach the thread that waits for them. */
HV_NODISCARD hv_status hv_thread_pool_open(int threads, hv_thread_pool **out);
void hv_thread_pool_submit(hv_thread_pool *pool, hv_job *job);
int hv_thread_pool_threads(const hv_thread_pool *pool);
/* Runs what was submitted, then joins the workers. NULL is allowed. */
void hv_thread_pool_close(hv_thread_pool *pool);

#endif
