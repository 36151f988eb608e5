/* Reports a run while it goes on: the progress line, metrics.jsonl, held-out errors, skipped steps, slow ranks; and
 * ends it if too many steps in a row are skipped. All ranks make the same calls; the first one writes and logs. */
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
  bool leader;         /* whether this rank writes and logs */
  hv_metrics *metrics; /* of the leader; owned */
  hv_progress progress;
  json_t *suspects; /* of the newest step, where it was skipped: hv_suspects_describe; owned, NULL: none */
  hv_pace_sums pace;
  hv_pace_alarm alarm;
} hv_run_watch;

/* Watches a run from the trainer's step on; the arguments must outlive the watch. `device_flops`: from
 * hv_best_rate_measure, 0 if not measured; `card`: the leader's, whose run directory exists. After an error *out is
 * empty.
 */
HV_NODISCARD hv_status hv_run_watch_open(const hv_train_config *config, const hv_run_data *data,
                                         const hv_trainer *trainer, const hv_run_card *card, double device_flops,
                                         hv_run_watch *out);
void hv_run_watch_close(hv_run_watch *watch); /* leaves it empty */

/* Enters the trainer's newest step, which took `seconds`, `waited` of them for data: shows progress, and says where a
 * skipped step went wrong. If too many in a row were skipped, writes that step's figures and returns an error;
 * hv_run_watch_report is not called then. */
HV_NODISCARD hv_status hv_run_watch_step(hv_run_watch *watch, const hv_step_result *result, double learning_rate,
                                         double seconds, double waited);

/* Writes that step's figures if they are due; `held_out`: the validation after it, or NULL. */
HV_NODISCARD hv_status hv_run_watch_report(hv_run_watch *watch, const hv_step_result *result, double learning_rate,
                                           const hv_validation *held_out);

#endif
