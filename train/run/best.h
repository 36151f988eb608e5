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
  int64_t since;     /* measurements after it, none of them better; without one, those after a step */
  uint64_t measured; /* what it is measured on, and how: hv_run_digest_held_out; 0: not known */
} hv_best;

hv_best hv_best_make(const char *metric);

/* Goes on from the best of a checkpoint. False where that says nothing about figures of now, and the best stays as it
 * is: it was another figure, or was measured otherwise. Where either is not known, it is taken. */
bool hv_best_resume(hv_best *best, const hv_best *found);

/* Takes note of a figure, true: it is the best so far. One that is not finite never is. */
bool hv_best_take(hv_best *best, int64_t step, double figure);

/* Whether `patience` measurements in a row brought nothing better; never with 0. */
bool hv_best_is_stale(const hv_best *best, int64_t patience);

#endif
