/* What a person sees of a run on standard error: one line in place on a terminal, a plain line every log_interval steps
 * otherwise. */
#ifndef HV_TRAIN_WATCH_PROGRESS_H
#define HV_TRAIN_WATCH_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

#include "train/trainer.h"

typedef struct hv_progress_options {
  int64_t total_steps, log_interval;
  int32_t batch_size;  /* samples of a step, of all ranks */
  double step_flops;   /* of matrix products of one rank's part of a step */
  double device_flops; /* best rate of one rank's device, operations a second; 0: not known */
} hv_progress_options;

typedef struct hv_progress {
  hv_progress_options options;
  bool terminal, shown;
  double training_seconds; /* of this session's timed steps; the first step, a warm-up, counts only while it is the only
                              one */
  int64_t timed_steps, session_steps;
  double last_shown;
} hv_progress;

hv_progress hv_progress_make(const hv_progress_options *options);

/* Counts a step that took `seconds`, and shows it where it is time to. `step`: steps done. */
void hv_progress_step(hv_progress *progress, int64_t step, const hv_step_result *result, double seconds);

/* Shows other work that takes long: `done` of `total` after `seconds`. In a log, every half minute. NULL: nothing. */
void hv_progress_work(hv_progress *progress, const char *what, int64_t done, int64_t total, double seconds);

/* Means over this session's timed steps (training_seconds), waits for data and for other ranks included.
 */
double hv_progress_rate(const hv_progress *progress);  /* samples a second; NAN: not measured yet */
double hv_progress_flops(const hv_progress *progress); /* of matrix products a second, each rank's device; 0: not yet */

/* Clears the line, for a message or for good. */
void hv_progress_clear(hv_progress *progress);

#endif
