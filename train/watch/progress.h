/* What a person sees of a run on standard error: one line in place on a terminal, a plain line every log_interval steps
 * otherwise. */
#ifndef HV_TRAIN_WATCH_PROGRESS_H
#define HV_TRAIN_WATCH_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

#include "train/trainer.h"

typedef struct hv_progress {
  int64_t total_steps, log_interval;
  int32_t batch_size;
  bool terminal, shown;
  double training_seconds; /* of this session's steps, the first left out: it warms up */
  int64_t timed_steps, session_steps;
  double last_shown;
} hv_progress;

hv_progress hv_progress_make(int64_t total_steps, int64_t log_interval, int32_t batch_size);

/* Counts a step that took `seconds`, and shows it where it is time to. `step`: steps done. */
void hv_progress_step(hv_progress *progress, int64_t step, const hv_step_result *result, double seconds);

/* Shows other work that takes long: `done` of `total` after `seconds`. In a log, every half minute. NULL: nothing. */
void hv_progress_work(hv_progress *progress, const char *what, int64_t done, int64_t total, double seconds);

/* Samples a second over this session's steps; 0 before there is a figure. */
double hv_progress_rate(const hv_progress *progress);

/* Clears the line, for a message or for good. */
void hv_progress_clear(hv_progress *progress);

#endif
