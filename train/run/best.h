/* The best of a run so far, by one of the figures that are measured on the held-out split: which model to keep, and
 * when to stop. Smaller is better. Part of a checkpoint, so that a run that is resumed goes on counting. */
#ifndef HV_TRAIN_RUN_BEST_H
#define HV_TRAIN_RUN_BEST_H

#include <stdbool.h>
#include <stdint.h>

enum { HV_BEST_METRIC = 32 };

typedef struct hv_best {
  char metric[HV_BEST_METRIC]; /* the figure's name */
  int64_t step;                /* after which the best one was measured; −1: none yet */
  double figure;
  int64_t since; /* measurements after it, none of them better */
} hv_best;

hv_best hv_best_make(const char *metric);

/* Takes note of a figure, true: it is the best so far. One that is not finite never is. */
bool hv_best_take(hv_best *best, int64_t step, double figure);

/* Whether `patience` measurements in a row brought nothing better; never with 0. */
bool hv_best_is_stale(const hv_best *best, int64_t patience);

#endif
