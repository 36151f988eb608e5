/* `hvla-train check`: the numbers of one batch (interchange.md §2). */
#ifndef HV_TRAIN_CHECK_H
#define HV_TRAIN_CHECK_H

#include "core/tensor/device.h"

typedef struct hv_check_options {
  const char *model, *batch, *out; /* paths: model directory, safetensors in and out */
  int32_t objective;               /* hv_objective; −1: the model's */
  hv_dtype dtype;
  int64_t steps; /* AdamW steps on the batch after the first pass */
  double learning_rate;
} hv_check_options;

/* HV_ERR_INPUT names what is wrong with the batch: a missing tensor, a dtype, a shape, a range, all shapes together.
 * After an error nothing has been written. */
HV_NODISCARD hv_status hv_check(const hv_check_options *options, hv_device *device);

#endif
