/* A synthetic batch in the shape of a configuration's batches, for benchmarks and forecasts, which read no data. */
#ifndef HV_TRAIN_PLAN_MADE_UP_BATCH_H
#define HV_TRAIN_PLAN_MADE_UP_BATCH_H

#include "core/hybridvla/sequence.h"

typedef struct hv_made_up_batch {
  hv_batch batch; /* points into the arrays below, which are owned */
  uint8_t *images;
  int32_t *prompts;
  float *state, *actions;
  int64_t *sample_ids;
} hv_made_up_batch;

/* `samples` of them with prompts of `prompt` tokens, <s> included. After an error *out holds nothing. */
HV_NODISCARD hv_status hv_made_up_batch_open(const hv_config *config, int32_t samples, int32_t prompt,
                                             hv_made_up_batch *out);
void hv_made_up_batch_close(hv_made_up_batch *batch); /* leaves it empty */

#endif
