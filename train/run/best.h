/* The best model of a run so far, by one metric of the held-out split (smaller is better): which model to keep, and
 * when to stop early. Part of a checkpoint, so that a resumed run goes on counting. */
#ifndef HV_TRAIN_RUN_BEST_H
#define HV_TRAIN_RUN_BEST_H

#include <stdbool.h>
#include <stdint.h>

enum { HV_BEST_METRIC = 32 };

typedef struct hv_best {
  char metric[HV_BEST_METRIC]; /* the metric's name */
  int64_t step;                /* step of the best model; −1: none yet */
  double figure;
  int64_t since;     /* measurements since then, none of them better; without a best, all that followed a step */
  uint64_t measured; /* digest of what is measured, and how (hv_run_digest_held_out); 0: not known */
} hv_best;

hv_best hv_best_make(const char *metric);

/* Continues from the best of a checkpoint. False, and no change, if that cannot be compared with new figures, because
 * it has another metric or was measured on other data or in another way. What is not known counts as equal. */
bool hv_best_resume(hv_best *best, const hv_best *found);

/* Enters a figure; true if it is the best so far, which one that is not finite never is. */
bool hv_best_take(hv_best *best, int64_t step, double figure);

/* Whether `patience` measurements in a row brought nothing better; never with 0. */
bool hv_best_is_stale(const hv_best *best, int64_t patience);

#endif
