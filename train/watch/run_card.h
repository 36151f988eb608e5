/* RUN/run.json: who trains in a run directory, on what, and how it ended. The process of rank 0 holds a lock on the
 * file (flock) as long as it lives, so that no second run begins there, and `hvla-train status` can tell a running run
 * from a killed one.
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

/* Makes the run directory where it is missing and takes the lock. HV_ERR_INPUT if another process has it; the message
 * says which. The file keeps its content until hv_run_card_begin. */
HV_NODISCARD hv_status hv_run_card_open(const char *run, hv_run_card **out);

/* Releases the lock. If the run has not begun, removes the file, and the directories that were made for it if they are
 * empty. NULL is allowed. */
void hv_run_card_close(hv_run_card *card);

/* What the card says about a run. */
typedef struct hv_run_facts {
  const hv_train_config *config;
  const hv_run_data *data;
  const hv_trainer *trainer; /* at the step from which the run continues */
} hv_run_facts;

/* Writes the card of a run in state "running"; after an error the run has not begun. */
HV_NODISCARD hv_status hv_run_card_begin(hv_run_card *card, const hv_run_facts *facts);
/* Writes how it ended; `message` may be NULL. Does nothing on a card that was not begun. */
HV_NODISCARD hv_status hv_run_card_end(hv_run_card *card, const char *state, const char *message);

/* HV_ERR_INPUT if the directory was moved, removed or replaced since the card was opened: then the lock no longer keeps
 * another run from beginning there. A different file with the same content counts as this card. HV_OK for NULL, on the
 * ranks that have no card. */
HV_NODISCARD hv_status hv_run_card_check(const hv_run_card *card);

/* Whether a process leads a run in the directory now. *unknown: the errno for which the file cannot be locked, so that
 * false says nothing; else 0. */
bool hv_run_card_held(const char *run, int *unknown);

#endif
