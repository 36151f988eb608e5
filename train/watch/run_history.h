/* A run's history, read from its directory, for `hvla-train status` and `hvla-train report`. It can be read while the
 * run goes on. */
#ifndef HV_TRAIN_WATCH_RUN_HISTORY_H
#define HV_TRAIN_WATCH_RUN_HISTORY_H

#include <jansson.h>

#include "core/base/status.h"
#include "core/base/text.h"

/* All owned. */
typedef struct hv_run_history {
  char *run;          /* the directory */
  json_t *card;       /* run.json; an empty object if there is none */
  json_t *config;     /* config.yaml; an empty object if there is none */
  json_t *lines;      /* of metrics.jsonl: an array of its objects, in order */
  const char *state;  /* "running", "finished", "stopped", "failed", "dead" (it ended without saying why), "unknown" */
  hv_text doubt;      /* why the state is unknown */
  int64_t checkpoint; /* step of the newest complete checkpoint; -1: none */
  hv_text damaged;    /* newer checkpoints that are incomplete, one a line */
} hv_run_history;

/* HV_ERR_INPUT if the directory holds nothing of a run. */
HV_NODISCARD hv_status hv_run_history_read(const char *run, hv_run_history *out);
void hv_run_history_free(hv_run_history *history); /* leaves it empty */

/* A number of a line, NAN if there is none. A number beyond 1e100 counts as none, so that sums and means of the
 * returned numbers are finite. */
double hv_line_number(const json_t *line, const char *key);

/* A text of a line, "?" where it has none. */
const char *hv_line_text(const json_t *line, const char *key);

/* Where the run stands. */
int64_t hv_run_history_step(const hv_run_history *history);  /* of the newest line; 0: none yet */
int64_t hv_run_history_steps(const hv_run_history *history); /* of the whole run; 0: not known */
int64_t hv_run_history_skipped(const hv_run_history *history);
double hv_run_history_seconds_left(const hv_run_history *history); /* at the rate of the newest line; NAN: not known */
const json_t *hv_run_history_last(const hv_run_history *history, const char *key); /* newest line with the key; NULL */

#endif
