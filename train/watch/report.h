/* The report of a run: one HTML page that needs nothing else, with curves, held-out errors for each dimension, data,
 * environment, checkpoints, skipped steps and the configuration. */
#ifndef HV_TRAIN_WATCH_REPORT_H
#define HV_TRAIN_WATCH_REPORT_H

#include "train/watch/run_history.h"

HV_NODISCARD hv_status hv_report_format(const hv_run_history *history, hv_text *out);

/* Reads the run directory and writes the page to `path`, NULL: RUN/report.html. */
HV_NODISCARD hv_status hv_report_write(const char *run, const char *path);

#endif
