/* What the run directory beside a model tells of its training: config.yaml, metrics.jsonl, and best.json, which names
 * the step of RUN/best/. */
#ifndef HV_INFER_RUN_RECORD_H
#define HV_INFER_RUN_RECORD_H

#include <jansson.h>

#include "core/base/status.h"
#include "core/base/text.h"

/* Everything is owned; what is not known is NULL. */
typedef struct hv_run_record {
  char *config_text; /* config.yaml as it is written */
  json_t *config;
  json_t *last, *held_out; /* the last line of metrics.jsonl up to the model's step; the last with held_out_loss */
  hv_text doubts;          /* a sentence for each file that exists but cannot be used */
} hv_run_record;

/* Looks in the parent of the model directory `model`, whose config.json is `model_config`. A configuration of another
 * model, or a damaged file, is not used: it becomes a doubt, not an error. */
HV_NODISCARD hv_status hv_run_record_load(const char *model, const json_t *model_config, hv_run_record *out);
void hv_run_record_free(hv_run_record *record); /* leaves it empty */

#endif
