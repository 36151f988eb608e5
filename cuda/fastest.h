/* Finds the fastest of several ways to do the same work, by timing them on the card. */
#ifndef HV_CUDA_FASTEST_H
#define HV_CUDA_FASTEST_H

#include "cuda/runtime.h"

/* Queues the work, done in way number `way`. */
typedef hv_status (*hv_way)(void *context, int way);

/* Does the work several times in each of `count` (1 or more) ways and waits for it. Of ways within 1 % of each other
 * the first one wins; ways that fail are left out, and if all fail, the first error is returned. */
HV_NODISCARD hv_status hv_find_fastest(hv_queue *queue, hv_runtime *runtime, int count, hv_way run, void *context,
                                       int *fastest);

#endif
