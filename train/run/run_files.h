/* The checkpoints and models that a run writes.
 *
 * A checkpoint is begun between two steps by copying this rank's part of the state to the host; a thread writes the
 * copy while training goes on. When all ranks' files are written (which they tell each other in the sum of losses that
 * every step makes anyway), the first rank gives the checkpoint its final name, removes those that need not stay, and
 * brings the model up to date from the checkpoint's files, in its thread as well. Without room for the copy, or with
 * checkpoint.async false, training waits instead.
 *
 * A checkpoint of the best step so far also updates RUN/best/, a model directory that later checkpoints do not touch,
 * and RUN/best.json, which holds its step and what was measured.
 *
 * On several ranks all make the same calls. An error on any rank is returned on all ranks by the next call that ends
 * that phase of writing (advance, save, settle or finish); complete checkpoints stay.
 */
#ifndef HV_TRAIN_RUN_RUN_FILES_H
#define HV_TRAIN_RUN_RUN_FILES_H

#include "train/run/best.h"
#include "train/run/run_data.h"
#include "train/watch/run_card.h"

/* Seconds that ranks wait for one another while files are read or written. */
enum { HV_FILE_TIMEOUT = 1800 };

typedef struct hv_run_files_options {
  const hv_train_config *config;
  const hv_model_config *model;
  const hv_safetensors *carry; /* init_from's tensors: those that are no parameters go into the model too; NULL: none */
  const hv_run_data *data;
  const hv_trainer *trainer;
  const hv_run_card *card; /* the first rank's: nothing is written or removed once hv_run_card_check fails */
  const hv_best *best;     /* the run's, kept up to date by the caller; saved in checkpoints */
} hv_run_files_options;

typedef struct hv_run_files hv_run_files;

/* What the options point to outlives it. */
HV_NODISCARD hv_status hv_run_files_open(const hv_run_files_options *options, hv_run_files **out);

/* Gives up what is being written. NULL is allowed. */
void hv_run_files_close(hv_run_files *files);

/* Begins a checkpoint of the trainer's step; waits for the one before, if that is still being written. */
HV_NODISCARD hv_status hv_run_files_save(hv_run_files *files);

/* The same, and always with the model of that step, whatever checkpoint.model_interval is. Does nothing if both exist.
 */
HV_NODISCARD hv_status hv_run_files_save_all(hv_run_files *files);

/* In every step: report returns what this rank adds to a sum over ranks; advance takes that sum and, once all ranks
 * have written, begins to complete the checkpoint, or returns the error. */
double hv_run_files_report(const hv_run_files *files);
HV_NODISCARD hv_status hv_run_files_advance(hv_run_files *files, double sum);

/* Completes the checkpoint that is being written, on all ranks: for a run that ends with an error that all ranks know
 * of and that is not the checkpoint's own. */
HV_NODISCARD hv_status hv_run_files_settle(hv_run_files *files);

/* After an error that not all ranks know of: logs that the checkpoint being written is lost, and which one is the
 * newest to resume from. */
void hv_run_files_tell_newest(const hv_run_files *files);

/* Waits for what is being written, and writes a checkpoint and the model of the trainer's step if that is not on disk.
 */
HV_NODISCARD hv_status hv_run_files_finish(hv_run_files *files);

#endif
