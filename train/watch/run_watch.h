/* What people see of a run while it goes: the progress line, metrics.jsonl, held-out errors, steps that changed
 * nothing, ranks that hold up the others, and the end that a run comes to when its gradients stay lost. All ranks call
 * it alike; the first one writes and tells. */
#ifndef HV_TRAIN_WATCH_RUN_WATCH_H
#define HV_TRAIN_WATCH_RUN_WATCH_H

#include "train/watch/metrics.h"
#include "train/watch/progress.h"
#include "train/watch/run_card.h"

typedef struct hv_run_watch {
  const hv_train_config *config;
  const hv_run_data *data;
  const hv_trainer *trainer;
  const hv_run_card *card;
  bool leader; /* the rank that writes and tells */
  int64_t total_steps;
  hv_metrics *metrics; /* of the leader; owned */
  hv_progress progress;
  json_t *suspects; /* of the newest step, where it was skipped: hv_suspects_describe; owned, NULL: none */
  hv_pace_sums pace;
  hv_pace_alarm alarm;
} hv_run_watch;

/* Watches a run from the trainer's step on; what is given outlives the watch. `device_flops`: hv_best_rate_measure, 0
 * where it was not measured; `card`: the leader's, of the run directory, which is there. After an error *out is empty.
 */
HV_NODISCARD hv_status hv_run_watch_open(const hv_train_config *config, const hv_run_data *data,
                                         const hv_trainer *trainer, const hv_run_card *card, int64_t total_steps,
                                         double device_flops, hv_run_watch *out);
void hv_run_watch_close(hv_run_watch *watch); /* leaves it empty */

/* Takes note of the trainer's newest step, which took `seconds`, `waited` of them for data: progress, where it went
 * wrong if it was skipped, and an error when too many in a row were, with that step's figures written: no report
 * follows. */
HV_NODISCARD hv_status hv_run_watch_step(hv_run_watch *watch, const hv_step_result *result, double learning_rate,
                                         double seconds, double waited);

/* Writes that step's figures where it is time to; `held_out`: what was measured after it, NULL for nothing. */
HV_NODISCARD hv_status hv_run_watch_report(hv_run_watch *watch, const hv_step_result *result, double learning_rate,
                                           const hv_validation *held_out);

#endif
