#include "cuda/fastest.h"

#include <math.h>

/* The ways take turns in each round, so that all meet the same changes of the card's clock rate; the first round is a
 * warm-up. */
enum { ROUNDS = 3, RUNS_OF_A_ROUND = 2, MOST_WAYS = 16 };

/* A way replaces an earlier one only if it takes less than this part of its time. */
static const double AS_GOOD_AS_EQUAL = 0.99;

static hv_status time_way(hv_queue *queue, hv_timer *timer, int way, hv_way run, void *context, double *seconds) {
  HV_TRY(hv_timer_begin(timer, queue));
  for (int i = 0; i < RUNS_OF_A_ROUND; i++) HV_TRY(run(context, way));
  HV_TRY(hv_timer_end(timer, queue));
  return hv_timer_seconds(timer, seconds);
}

/* *best: seconds of each way, the least of its rounds; infinite if it failed. *failure: the first error. */
static void time_ways(hv_queue *queue, hv_timer *timer, int count, hv_way run, void *context, double *best,
                      hv_status *failure) {
  bool failed[MOST_WAYS] = {};
  for (int way = 0; way < count; way++) best[way] = INFINITY;
  for (int round = 0; round < ROUNDS; round++) {
    for (int way = 0; way < count; way++) {
      double seconds;
      if (failed[way]) continue;
      hv_status status = time_way(queue, timer, way, run, context, &seconds);
      failed[way] = status != HV_OK;
      *failure = hv_status_first(*failure, status);
      if (failed[way]) best[way] = INFINITY;
      if (!status && round > 0 && seconds < best[way]) best[way] = seconds;
    }
  }
}

hv_status hv_find_fastest(hv_queue *queue, hv_runtime *runtime, int count, hv_way run, void *context, int *fastest) {
  hv_timer *timer;
  double best[MOST_WAYS];
  hv_status failure = HV_OK;
  *fastest = 0;
  if (count > MOST_WAYS) count = MOST_WAYS;
  HV_TRY(hv_timer_open(runtime, &timer));
  time_ways(queue, timer, count, run, context, best, &failure);
  hv_timer_close(timer);
  for (int way = 1; way < count; way++) {
    if (best[way] < AS_GOOD_AS_EQUAL * best[*fastest]) *fastest = way;
  }
  if (isinf(best[*fastest])) return failure;
  hv_status_free(failure); /* of a way that was left out */
  return HV_OK;
}
