/* The fastest of several ways to do one piece of work on a card, by the card's clock. */
#ifndef HV_CUDA_FASTEST_H
#define HV_CUDA_FASTEST_H

#include "cuda/runtime.h"

/* Queues the work done in that way; after each of them the card holds something else. */
typedef hv_status (*hv_way)(void *context, int way);

/* Does the work in each of the ways, several times, and waits for it. Of ways that are as good as equal it takes the
 * first, and none that fails: an error where all do. `count` is 1 or more. */
HV_NODISCARD hv_status hv_find_fastest(hv_queue *queue, hv_runtime *runtime, int count, hv_way run, void *context,
                                       int *fastest);

#endif
