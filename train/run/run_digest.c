#include "train/run/run_digest.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "train/validation.h"

static uint64_t fold(uint64_t digest, const void *bytes, size_t size) {
  return XXH3_64bits_withSeed(bytes, size, digest);
}

uint64_t hv_run_digest_split(uint64_t digest, const hv_demonstrations *split, const hv_prompt_table *prompts) {
  size_t frames = (size_t)hv_demonstrations_frames(split);
  size_t instructions = (size_t)hv_demonstrations_instructions(split);
  for (int64_t e = 0; e < hv_demonstrations_episodes(split); e++) {
    const hv_episode *episode = hv_demonstrations_episode(split, e);
    const int64_t facts[] = {episode->frames, episode->instruction};
    digest = fold(digest, facts, sizeof facts);
  }
  digest = fold(digest, hv_demonstrations_actions(split),
                frames * (size_t)hv_demonstrations_action_dim(split) * sizeof(float));
  digest =
      fold(digest, hv_demonstrations_state(split), frames * (size_t)hv_demonstrations_state_dim(split) * sizeof(float));
  return fold(digest, prompts->ids, instructions * (size_t)prompts->stride * sizeof *prompts->ids);
}

enum {
  OF_LOSS = 1 << HV_METRIC_LOSS,
  OF_NOISE = 1 << HV_METRIC_DIFFUSION | 1 << HV_METRIC_ENSEMBLE,
  OF_ENSEMBLE = 1 << HV_METRIC_ENSEMBLE,
  OF_ALL = OF_LOSS | OF_NOISE | 1 << HV_METRIC_AUTOREGRESSIVE,
};

/* Keys of the configuration, and the metrics that depend on them. */
static const struct {
  const char *part, *key;
  unsigned metrics;
} settings[] = {
    {"data", "cameras", OF_ALL},       {"data", "gripper_dims", OF_ALL},       {"data", "absolute_dims", OF_ALL},
    {"validation", "samples", OF_ALL}, {"train", "branches", OF_LOSS},         {"train", "diffusion_weight", OF_LOSS},
    {"train", "ce_weight", OF_LOSS},   {"validation", "ddim_steps", OF_NOISE}, {"validation", "theta", OF_ENSEMBLE},
};

static hv_status fold_settings(const json_t *resolved, int32_t metric, uint64_t *digest) {
  static const size_t flags = JSON_COMPACT | JSON_SORT_KEYS | JSON_ENCODE_ANY | JSON_REAL_PRECISION(17);
  for (size_t i = 0; i < sizeof settings / sizeof settings[0]; i++) {
    const json_t *value = json_object_get(json_object_get(resolved, settings[i].part), settings[i].key);
    if (!value || !(settings[i].metrics >> metric & 1)) continue;
    char *text = json_dumps(value, flags);
    if (!text) return hv_error_memory("the configuration");
    *digest = fold(*digest, settings[i].key, strlen(settings[i].key));
    *digest = fold(*digest, text, strlen(text));
    free(text);
  }
  return HV_OK;
}

hv_status hv_run_digest_held_out(const hv_run_data *data, uint64_t *out) {
  json_t *resolved;
  *out = 0;
  if (!data->valid) return HV_OK;
  HV_TRY(hv_train_config_resolve(data->config, &resolved));
  hv_status status = fold_settings(resolved, data->config->validation.metric, out);
  json_decref(resolved);
  /* Errors are in units of this scale. */
  const hv_value_statistics *scale = &data->statistics.action;
  *out = fold(*out, scale->q01, (size_t)scale->dims * sizeof *scale->q01);
  *out = fold(*out, scale->q99, (size_t)scale->dims * sizeof *scale->q99);
  *out = hv_run_digest_split(*out, data->valid, &data->valid_prompts);
  return status;
}

static uint64_t fold_tensor(uint64_t digest, const hv_file_tensor *tensor) {
  enum { MOST = 4096 /* bytes of an end */ };
  size_t end = tensor->size < MOST ? tensor->size : MOST;
  digest = fold(digest, &tensor->size, sizeof tensor->size);
  digest = fold(digest, tensor->data, end);
  return fold(digest, (const char *)tensor->data + (tensor->size - end), end);
}

hv_status hv_run_digest_model(const hv_model_directory *directory, uint64_t *out) {
  json_t *config;
  *out = 0;
  if (!directory->tensors) return HV_OK;
  HV_TRY(hv_model_config_to_json(&directory->model, &config));
  char *text = json_dumps(config, JSON_COMPACT | JSON_SORT_KEYS);
  json_decref(config);
  if (!text) return hv_error_memory("the configuration");
  *out = fold(*out, text, strlen(text));
  free(text);
  for (int32_t i = 0; i < hv_safetensors_count(directory->tensors); i++) {
    *out = fold_tensor(*out, hv_safetensors_get(directory->tensors, i));
  }
  return HV_OK;
}
