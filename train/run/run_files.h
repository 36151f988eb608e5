/* What a run leaves on disk to go on from and to use: checkpoints, and the newest model.
 *
 * A checkpoint is begun between two steps by copying this rank's part of the state to the host; a thread writes the
 * copy while training goes on. When all ranks' files are written (which they tell each other with the sum of every step
 * that they make anyway), the first rank gives the checkpoint its name, removes those that need not stay, and brings
 * the model up to date from the checkpoint's files, in its thread as well. Without room for the copy, or with
 * checkpoint.async false, training waits instead.
 *
 * A checkpoint of the step that is the best so far brings RUN/best/ up to date likewise: a model directory that later
 * checkpoints do not touch, with RUN/best.json to tell of which step it is, and what was measured.
 *
 * On several ranks all make the same calls. An error, on whatever rank, is all ranks' error at the next call that takes
 * note of it; checkpoints that were complete stay.
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
  const hv_safetensors *carry; /* tensors of init_from, those that are no parameters go into the model; NULL: none */
  const hv_run_data *data;
  const hv_trainer *trainer;
  const hv_run_card *card; /* of the first rank: nothing is written or removed once it is not in its place */
  const hv_best *best;     /* of the run, up to date at every call; kept with checkpoints */
} hv_run_files_options;

typedef struct hv_run_files hv_run_files;

/* What the options point to outlives it. */
HV_NODISCARD hv_status hv_run_files_open(const hv_run_files_options *options, hv_run_files **out);

/* Gives up what is being written. NULL is allowed. */
void hv_run_files_close(hv_run_files *files);

/* Begins a checkpoint of the trainer's step; waits for the one before, if that is still being written. */
HV_NODISCARD hv_status hv_run_files_save(hv_run_files *files);

/* The same, with the model of that step whatever checkpoint.model_interval says. Does nothing where both are there. */
HV_NODISCARD hv_status hv_run_files_save_all(hv_run_files *files);

/* In every step: what this rank adds to a sum over ranks, and, with that sum, what has come of the writing. */
double hv_run_files_report(const hv_run_files *files);
HV_NODISCARD hv_status hv_run_files_advance(hv_run_files *files, double sum);

/* Waits for what is being written, on all ranks: for a run that ends with an error which is not the checkpoint's, and
 * which all ranks have come to. After an error of a checkpoint nothing is. */
HV_NODISCARD hv_status hv_run_files_settle(hv_run_files *files);

/* After an error that not all ranks have come to: tells of a checkpoint that it costs, and which one there is to go on
 * from. */
void hv_run_files_tell_newest(const hv_run_files *files);

/* Waits for what is being written, and writes a checkpoint and the model of the trainer's step if that is not on disk.
 */
HV_NODISCARD hv_status hv_run_files_finish(hv_run_files *files);

#endif
