/* RUN/run.json: who trains in a run directory, on what, and how it ended. The process that leads the run holds a lock
 * on the file (flock) for as long as it lives, so that no second run begins there and `hvla-train status` knows a run
 * that goes on from one that was killed.
 *
 *   state             "running", "finished", "stopped" (by a signal) or "failed"
 *   message           why it failed, or ended before its last step
 *   pid, host, start, end       start and end in seconds since 1970
 *   ranks, device, processors, system, version, commit, dtype
 *   first_step, steps, batch_size, parameters, trainable
 *   data              the splits: frames and episodes; instructions, cameras, widths
 */
#ifndef HV_TRAIN_WATCH_RUN_CARD_H
#define HV_TRAIN_WATCH_RUN_CARD_H

#include "train/run/run_data.h"

typedef struct hv_run_card hv_run_card;

/* Makes the run directory where it is missing and takes the lock. HV_ERR_INPUT where another process has it; the
 * message says which. What the file said before stays until hv_run_card_begin. */
HV_NODISCARD hv_status hv_run_card_open(const char *run, hv_run_card **out);

/* Lets the lock go. Of a run that did not begin, the file and the directories that were made for it are removed, these
 * as far as they are empty. NULL is allowed. */
void hv_run_card_close(hv_run_card *card);

/* What a run is, for the file. */
typedef struct hv_run_facts {
  const hv_train_config *config;
  const hv_run_data *data;
  const hv_trainer *trainer; /* at the step that the run goes on from */
  int32_t ranks;
  int64_t total_steps;
} hv_run_facts;

/* Writes the card of a run in state "running"; after an error the run has not begun. */
HV_NODISCARD hv_status hv_run_card_begin(hv_run_card *card, const hv_run_facts *facts);
/* Writes how it ended; `message` may be NULL. Does nothing on a card that was not begun. */
HV_NODISCARD hv_status hv_run_card_end(hv_run_card *card, const char *state, const char *message);

/* HV_ERR_INPUT where the directory was moved, removed or replaced since the card was opened: another run may have begun
 * there, which the lock keeps from nothing. A card that is another file and holds the same is taken for this one. NULL,
 * of the ranks that have no card, is in its place. */
HV_NODISCARD hv_status hv_run_card_check(const hv_run_card *card);

/* Whether a process leads a run in the directory now. *unknown: the errno for which the file cannot be locked, so that
 * false says nothing; else 0. */
bool hv_run_card_held(const char *run, int *unknown);

#endif
