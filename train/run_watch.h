/* What people see of a run while it goes: the progress line, metrics.jsonl, held-out errors, and the end that a run
 * comes to when its gradients stay lost. All ranks call it alike; the first one writes and tells. */
#ifndef HV_TRAIN_RUN_WATCH_H
#define HV_TRAIN_RUN_WATCH_H

#include "train/metrics.h"
#include "train/progress.h"

typedef struct hv_run_watch {
  const hv_train_config *config; /* not owned */
  bool leader;                   /* the rank that writes and tells */
  int64_t total_steps, frames;   /* of the run; of the training split */
  hv_metrics *metrics;           /* of the leader; owned */
  hv_progress progress;
  int64_t skipped_in_row;
} hv_run_watch;

/* Watches a run from after `step` on. The run directory is there. After an error *out is empty. */
HV_NODISCARD hv_status hv_run_watch_open(const hv_train_config *config, bool leader, int64_t step, int64_t total_steps,
                                         int64_t frames, hv_run_watch *out);
void hv_run_watch_close(hv_run_watch *watch); /* leaves it empty */

/* Takes note of a step, the `step`-th, that took `seconds`: progress, and an error when too many in a row were skipped.
 */
HV_NODISCARD hv_status hv_run_watch_step(hv_run_watch *watch, int64_t step, const hv_step_result *result,
                                         double seconds);

/* Writes the step's figures where it is time to; `held_out`: what was measured after it, NULL for nothing. */
HV_NODISCARD hv_status hv_run_watch_report(hv_run_watch *watch, int64_t step, const hv_step_result *result,
                                           double learning_rate, const hv_validation *held_out);

#endif
