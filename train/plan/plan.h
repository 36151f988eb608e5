/* `hvla-train plan`: whether a configuration fits on a number of devices, how long a step takes, and which settings
 * would be better. */
#ifndef HV_TRAIN_PLAN_PLAN_H
#define HV_TRAIN_PLAN_PLAN_H

#include "train/plan/forecast.h"

typedef struct hv_plan_result {
  json_t *json; /* what `hvla-train plan --json` prints; owned by the caller */
  bool fits;    /* the memory suffices, and the configuration can run */
} hv_plan_result;

/* Forecasts the configuration for options->ranks devices with `memory_bytes` each. If it cannot run as it is (a batch
 * that the ranks do not divide, sharding over three ranks), the advice says why, and the forecast is for the nearest
 * configuration that can. */
HV_NODISCARD hv_status hv_plan_make(const hv_train_config *config, const hv_forecast_options *options,
                                    size_t memory_bytes, hv_plan_result *out);

/* The same for a person. */
void hv_plan_format(const json_t *result, hv_text *out);

/* Explains the error with which a trainer failed to open on the device: if memory ran out, adds the forecast, and which
 * settings would have fit into the memory that others leave. Takes ownership of the error and returns it. `prompt`:
 * tokens at most, <s> included. */
hv_status hv_plan_explain(hv_status error, const hv_train_config *config, const hv_config *model, hv_device *device,
                          int32_t ranks, int32_t prompt);

#endif
