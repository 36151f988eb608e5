/* `hvla-train run`: from a configuration to a run directory, whose files docs/training.md lists.
 *
 * On several ranks every one calls hv_run with the same configuration. The first writes what belongs to the run as a
 * whole; a checkpoint is written by all. After an error on one rank the others may be waiting: hv_comm_abort ends them.
 */
#ifndef HV_TRAIN_RUN_RUN_H
#define HV_TRAIN_RUN_RUN_H

#include "train/config.h"
#include "train/run/interrupt.h"

typedef struct hv_run_options {
  hv_comm *comm;           /* the ranks of the run; `single` for one */
  bool resume;             /* continue from the newest complete checkpoint, or from the start if there is none */
  hv_trace *trace;         /* the trace to write; NULL: none */
  hv_interrupt *interrupt; /* polled before every step; NULL: never interrupted */
} hv_run_options;

/* Trains to the last step, to where validation.patience ends it, or to the end of the step in which a signal came to
 * any rank: then *signal_number is that signal, else 0. A checkpoint and the model are on disk in each case. */
HV_NODISCARD hv_status hv_run(const hv_train_config *config, hv_device *device, const hv_run_options *options,
                              int *signal_number);

#endif
