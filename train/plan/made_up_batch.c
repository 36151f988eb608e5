#include "train/plan/made_up_batch.h"

#include <stdlib.h>

#include "core/base/random.h"

static float uniform(uint64_t element) {
  return 2.0f * hv_random_uniform(0, HV_RANDOM_INIT, 0, element >> 32, 0, (uint32_t)element) - 1.0f;
}

/* A token id between the first three, which are special, and the action tokens; any id if there is none between. */
static int32_t word(const hv_config *config, int64_t i) {
  enum { FIRST = 3 };
  int64_t count = config->action_base - config->action_bins - FIRST;
  if (count < 1) return (int32_t)(i * 7919 % config->llm.vocab_size);
  return FIRST + (int32_t)(i * 7919 % count);
}

hv_status hv_made_up_batch_open(const hv_config *config, int32_t samples, int32_t prompt, hv_made_up_batch *out) {
  int64_t side = config->vision[0].image_size, b = samples;
  int64_t pixels = b * config->num_cameras * side * side * 3, actions = b * config->action_chunk * config->action_dim;
  int64_t state = b * config->state_dim;
  *out = (hv_made_up_batch){.images = malloc((size_t)pixels),
                            .prompts = malloc((size_t)(b * prompt) * sizeof *out->prompts),
                            .state = malloc((size_t)(state + 1) * sizeof *out->state),
                            .actions = malloc((size_t)actions * sizeof *out->actions),
                            .sample_ids = malloc((size_t)b * sizeof *out->sample_ids)};
  if (!out->images || !out->prompts || !out->state || !out->actions || !out->sample_ids) {
    hv_made_up_batch_close(out);
    return hv_error_memory("a batch");
  }
  for (int64_t i = 0; i < pixels; i++) out->images[i] = (uint8_t)(i * 2654435761u >> 24);
  for (int64_t i = 0; i < b * prompt; i++) out->prompts[i] = word(config, i);
  for (int64_t i = 0; i < b; i++) {
    out->prompts[i * prompt] = config->token_bos;
    if (config->token_empty >= 0) out->prompts[(i + 1) * prompt - 1] = config->token_empty;
    out->sample_ids[i] = i;
  }
  for (int64_t i = 0; i < state; i++) out->state[i] = uniform((uint64_t)i);
  for (int64_t i = 0; i < actions; i++) out->actions[i] = uniform((uint64_t)i + 1000003u);
  out->batch = (hv_batch){.samples = samples,
                          .images = out->images,
                          .prompt_ids = out->prompts,
                          .prompt_stride = prompt,
                          .state = out->state,
                          .actions = out->actions,
                          .sample_ids = out->sample_ids};
  return HV_OK;
}

void hv_made_up_batch_close(hv_made_up_batch *batch) {
  free(batch->images);
  free(batch->prompts);
  free(batch->state);
  free(batch->actions);
  free(batch->sample_ids);
  *batch = (hv_made_up_batch){0};
}
