/* A training run's state, and all that happens before its first step: checks, data, model, trainer, the checkpoint it
 * continues from, its files. Only run.c includes this. */
#ifndef HV_TRAIN_RUN_RUN_START_H
#define HV_TRAIN_RUN_RUN_START_H

#include "train/run/best.h"
#include "train/run/interrupt.h"
#include "train/run/run_data.h"
#include "train/run/run_files.h"
#include "train/watch/run_card.h"
#include "train/watch/run_watch.h"

typedef struct hv_run_state {
  const hv_train_config *config;
  hv_comm *comm;
  bool leader; /* this rank writes and logs */
  bool resume; /* as in hv_run_options, with the next two */
  hv_trace *trace;
  hv_interrupt *interrupt;

  hv_model_config model;
  hv_model_directory directory; /* of init_from; closed without it */
  hv_run_data data;
  hv_trainer *trainer;
  hv_loader *loader;
  hv_loader_source source;
  hv_run_card *card; /* of the leader */
  bool began;        /* the files in the directory are this run's */
  hv_run_watch watch;
  hv_learning_rate learning_rate;
  hv_run_files *files;
  hv_best best;
  bool owed;           /* a checkpoint was due after a skipped step, and was put off */
  double device_flops; /* best rate of the leader's device, operations a second */
  hv_text why;         /* of the leader: why the run ended before its last step; empty if it did not */
} hv_run_state;

/* Makes the state from its first members, up to `interrupt`, which the caller sets; the others are zero. Every rank
 * calls this, and they agree on the outcome of what each does alone, so that the leader, which has locked the
 * directory, learns of a failure. After an error the state is in part open, and the caller closes it as after success.
 */
HV_NODISCARD hv_status hv_run_start(hv_run_state *self, hv_device *device);

#endif
