/* `hvla-train plan`: whether a configuration fits so many devices, what a step will take, and what would do better. */
#ifndef HV_TRAIN_PLAN_PLAN_H
#define HV_TRAIN_PLAN_PLAN_H

#include "train/plan/forecast.h"

typedef struct hv_plan_result {
  json_t *json; /* what `hvla-train plan --json` prints; owned by the caller */
  bool fits;    /* and can run */
} hv_plan_result;

/* Forecasts the configuration for options->ranks devices with so much memory each. What it cannot be run with (a batch
 * that the ranks do not divide, sharding over three) is told in the advice, and the forecast is for the nearest
 * configuration that can. */
HV_NODISCARD hv_status hv_plan_make(const hv_train_config *config, const hv_forecast_options *options,
                                    size_t memory_bytes, hv_plan_result *out);

/* The same for a person. */
void hv_plan_format(const json_t *result, hv_text *out);

/* What a trainer that could not be opened on the device ended with. Where memory ran out, the forecast is added, and
 * which settings would have fit what others leave. Takes ownership and returns it. `prompt`: tokens at most, <s>
 * included. */
hv_status hv_plan_explain(hv_status error, const hv_train_config *config, const hv_config *model, hv_device *device,
                          int32_t ranks, int32_t prompt);

#endif
