#include "train/run/run_data.h"

#include <stdlib.h>
#include <string.h>

#include "core/base/clock.h"
#include "core/base/file.h"
#include "core/base/log.h"
#include "core/base/nearest.h"
#include "core/io/json.h"
#include "core/text/prompt.h"
#include "data/sample_order.h"
#include "data/statistics.h"

/* Every name in data.cameras must be a camera of the model. */
static hv_status check_cameras(const hv_train_config *config, const hv_config *model) {
  const hv_string_map *cameras = &config->data.cameras;
  for (size_t i = 0; i < cameras->count; i++) {
    hv_text known = {0};
    bool found = false;
    for (int32_t c = 0; c < model->num_cameras; c++) {
      hv_text_add(&known, "%s%s", c ? ", " : "", model->cameras[c]);
      found |= strcmp(cameras->names[i], model->cameras[c]) == 0;
    }
    hv_status status = HV_OK;
    if (!found) {
      status = hv_error(HV_ERR_INPUT, "%s: data.cameras names \"%s\"; the model's cameras are %s", config->source,
                        cameras->names[i], hv_text_string(&known));
    }
    hv_text_free(&known);
    if (status) return status;
  }
  return HV_OK;
}

/* What the file calls the model's camera. */
static const char *camera_in_file(const hv_train_config *config, const char *camera) {
  const hv_string_map *cameras = &config->data.cameras;
  for (size_t i = 0; i < cameras->count; i++) {
    if (strcmp(cameras->names[i], camera) == 0) return cameras->values[i];
  }
  return camera;
}

/* The columns of the file's actions that are the model's; on the heap, NULL without memory. */
static int32_t *action_columns(const hv_data_settings *data) {
  int32_t *columns = malloc((data->action_dims.count + 1) * sizeof *columns);
  for (size_t i = 0; columns && i < data->action_dims.count; i++) columns[i] = (int32_t)data->action_dims.items[i];
  return columns;
}

static hv_status open_split(const hv_train_config *config, const hv_config *model, const char *split,
                            hv_demonstrations **out) {
  const hv_data_settings *data = &config->data;
  const char *cameras[HV_MAX_CAMERAS];
  for (int32_t c = 0; c < model->num_cameras; c++) cameras[c] = camera_in_file(config, model->cameras[c]);
  int32_t *columns = action_columns(data);
  if (!columns) return hv_error_memory("the demonstrations");
  hv_demonstrations_options options = {
      .files = (const char *const *)data->files.items,
      .num_files = data->files.count,
      .split = split,
      .cameras = cameras,
      .num_cameras = (size_t)model->num_cameras,
      .state_keys = (const char *const *)data->state_keys.items,
      .num_state_keys = model->state_dim > 0 ? data->state_keys.count : 0,
      .default_state = model->state_dim > 0 && data->state_keys.count == 0,
      .instruction = data->instruction,
      .override_instruction = data->override_instruction,
      .need_instruction = true,
      .action_columns = columns,
      .num_action_columns = (int32_t)data->action_dims.count,
      .action_dim = model->action_dim,
      .state_dim = model->state_dim,
  };
  hv_status status = hv_demonstrations_open(&options, out);
  free(columns);
  return status;
}

static hv_status encode_prompts(const hv_tokenizer *tokenizer, const hv_config *model,
                                const hv_demonstrations *demonstrations, hv_prompt_table *out) {
  hv_status status = HV_OK;
  int32_t count = hv_demonstrations_instructions(demonstrations);
  hv_token_list *lists = calloc((size_t)count + 1, sizeof *lists);
  if (!lists) return hv_error_memory("the prompts");
  out->stride = 1;
  for (int32_t i = 0; i < count; i++) {
    HV_CHECK(hv_prompt_encode(tokenizer, model, hv_demonstrations_instruction(demonstrations, i), &lists[i]));
    if ((int32_t)lists[i].count > out->stride) out->stride = (int32_t)lists[i].count;
  }
  out->ids = malloc((size_t)count * (size_t)out->stride * sizeof *out->ids + 1);
  if (!out->ids) {
    status = hv_error_memory("the prompts");
    goto done;
  }
  for (int32_t i = 0; i < count; i++) {
    int32_t *ids = out->ids + (int64_t)i * out->stride;
    for (int32_t t = 0; t < out->stride; t++) ids[t] = (size_t)t < lists[i].count ? lists[i].ids[t] : -1;
  }
done:
  for (int32_t i = 0; i < count; i++) hv_token_list_free(&lists[i]);
  free(lists);
  return status;
}

static hv_status open_prompts(hv_run_data *data) {
  hv_tokenizer *tokenizer;
  data->tokenizer_path = hv_train_config_tokenizer(data->config);
  if (!data->tokenizer_path) return hv_error_memory("the tokenizer's path");
  HV_TRY(hv_tokenizer_open(data->tokenizer_path, &tokenizer));
  hv_status status = hv_prompt_check_tokenizer(tokenizer, &data->model, data->tokenizer_path);
  if (!status) status = encode_prompts(tokenizer, &data->model, data->train, &data->train_prompts);
  if (!status && data->valid) status = encode_prompts(tokenizer, &data->model, data->valid, &data->valid_prompts);
  hv_tokenizer_close(tokenizer);
  return status;
}

/* The unnorm key: as configured, or the first file's name without directory and extension; on the heap. */
static char *statistics_key(const hv_data_settings *data) {
  if (data->statistics_key) return strdup(data->statistics_key);
  const char *slash = strrchr(data->files.items[0], '/');
  const char *name = slash ? slash + 1 : data->files.items[0];
  const char *dot = strrchr(name, '.');
  return dot && dot > name ? strndup(name, (size_t)(dot - name)) : strdup(name);
}

static hv_status check_dims(const hv_train_config *config, const hv_int_list *dims, const char *key, int32_t limit) {
  for (size_t i = 0; i < dims->count; i++) {
    if (dims->items[i] < limit) continue;
    return hv_error(HV_ERR_INPUT, "%s: %s names dimension %lld; the model's actions have 0 to %d", config->source, key,
                    (long long)dims->items[i], limit - 1);
  }
  return HV_OK;
}

static hv_status check_chosen(const hv_train_config *config) {
  const hv_int_list *dims = &config->data.action_dims;
  for (size_t i = 0; i < dims->count; i++) {
    for (size_t j = 0; j < i; j++) {
      if (dims->items[i] != dims->items[j]) continue;
      return hv_error(HV_ERR_INPUT, "%s: data.action_dims names dimension %lld twice", config->source,
                      (long long)dims->items[i]);
    }
  }
  return HV_OK;
}

/* A gripper that is not scaled is predicted as 0 or 1: values of -1 and 1, as in robosuite, would be lost. */
static void warn_of_unscaled(const hv_run_data *data) {
  const hv_int_list *dims = &data->config->data.gripper_dims;
  const hv_value_statistics *action = &data->statistics.action;
  for (size_t i = 0; i < dims->count && data->rank == 0; i++) {
    double low = action->min[dims->items[i]], high = action->max[dims->items[i]];
    if (low >= 0 && high <= 1) continue;
    hv_log_warning("data.gripper_dims names dimension %lld, whose values range from %g to %g, but which is not scaled "
                   "and is predicted as 0 or 1: remove a gripper with other values from data.gripper_dims",
                   (long long)dims->items[i], low, high);
  }
}

static hv_status compute_statistics(hv_run_data *data) {
  hv_status status = HV_OK;
  const hv_data_settings *settings = &data->config->data;
  int32_t gripper_count = (int32_t)settings->gripper_dims.count;
  int32_t *gripper = calloc((size_t)gripper_count + 1, sizeof *gripper);
  char *key = statistics_key(settings);
  if (!gripper || !key) {
    status = hv_error_memory("the statistics");
    goto done;
  }
  HV_CHECK(check_dims(data->config, &settings->gripper_dims, "data.gripper_dims", data->model.action_dim));
  HV_CHECK(check_dims(data->config, &settings->absolute_dims, "data.absolute_dims", data->model.action_dim));
  for (int32_t i = 0; i < gripper_count; i++) gripper[i] = (int32_t)settings->gripper_dims.items[i];
  HV_CHECK(hv_statistics_compute(data->train, key, gripper, gripper_count > 0 ? gripper_count : -1, &data->statistics));
  warn_of_unscaled(data);
  data->absolute = calloc((size_t)data->model.action_dim, sizeof *data->absolute);
  if (!data->absolute) {
    status = hv_error_memory("the statistics");
    goto done;
  }
  for (size_t i = 0; i < settings->absolute_dims.count; i++) data->absolute[settings->absolute_dims.items[i]] = true;
done:
  free(gripper);
  free(key);
  return status;
}

/* Whether `known` has the same statistics under the key of these demonstrations, or none. HV_ERR_INPUT if `known` is
 * not a mapping of keys. */
static hv_status compare_known_key(const hv_run_data *data, const json_t *known, const char *path, bool *same) {
  const char *key = data->statistics.key;
  hv_dataset_statistics before;
  *same = true;
  if (json_is_object(known) && !json_object_get(known, key)) return HV_OK;
  HV_TRY(hv_dataset_statistics_from_json(known, path, key, &before));
  *same = hv_dataset_statistics_equal(&before, &data->statistics);
  hv_dataset_statistics_free(&before);
  return HV_OK;
}

/* A key that the model already has must have the same statistics: what was learnt under it is scaled by them. */
static hv_status check_known_key(const hv_run_data *data, const json_t *known, const char *path) {
  const char *key = data->statistics.key;
  bool same;
  HV_TRY(compare_known_key(data, known, path, &same));
  if (same) return HV_OK;
  return hv_error(HV_ERR_INPUT,
                  "%s: the key \"%s\" of these demonstrations already stands for different ones in %s; choose another "
                  "with data.statistics_key",
                  data->config->source, key, path);
}

/* Makes dataset_statistics.json of the run's model: the keys of init_from, and this run's own. */
static hv_status merge_statistics(hv_run_data *data) {
  hv_status status = HV_OK;
  char *path = NULL;
  json_t *known = NULL;
  HV_CHECK(hv_dataset_statistics_to_json(&data->statistics, &data->statistics_document));
  if (!data->config->init_from) goto done;
  path = hv_model_directory_statistics(data->config->init_from);
  if (!path) {
    status = hv_error_memory("the statistics");
    goto done;
  }
  if (!hv_file_exists(path)) goto done;
  HV_CHECK(hv_json_load(path, &known));
  HV_CHECK(check_known_key(data, known, path));
  if (json_object_update(data->statistics_document, known) != 0) status = hv_error_memory("the statistics");
done:
  json_decref(known);
  free(path);
  return status;
}

/* Whether the episode is in the training split, too. Both splits name the same files by the same paths. */
static bool is_trained_on(const hv_demonstrations *train, const hv_episode *held_out) {
  for (int64_t i = 0; i < hv_demonstrations_episodes(train); i++) {
    const hv_episode *episode = hv_demonstrations_episode(train, i);
    if (strcmp(episode->name, held_out->name) == 0 && strcmp(episode->file, held_out->file) == 0) return true;
  }
  return false;
}

/* Compares the episodes themselves: splits may overlap whatever their names are. */
static void warn_of_seen(const hv_run_data *data) {
  const hv_data_settings *settings = &data->config->data;
  if (data->rank != 0 || !data->valid) return;
  int64_t episodes = hv_demonstrations_episodes(data->valid), seen = 0;
  for (int64_t i = 0; i < episodes; i++) seen += is_trained_on(data->train, hv_demonstrations_episode(data->valid, i));
  if (seen == 0) return;
  hv_log_warning(
      "%lld of the %lld held-out episodes (data.valid_split: %s) are trained on, too (data.train_split: %s): "
      "errors on them do not show how well the model does on what it has not seen",
      (long long)seen, (long long)episodes, settings->valid_split,
      settings->train_split ? settings->train_split : "all episodes");
}

hv_status hv_run_data_open(const hv_train_config *config, const hv_config *model, int32_t rank, int32_t ranks,
                           hv_run_data *out) {
  hv_status status = HV_OK;
  *out = (hv_run_data){.config = config, .model = *model, .rank = rank, .ranks = ranks};
  HV_CHECK(check_cameras(config, model));
  HV_CHECK(check_chosen(config));
  HV_CHECK(open_split(config, model, config->data.train_split, &out->train));
  if (config->data.valid_split) HV_CHECK(open_split(config, model, config->data.valid_split, &out->valid));
  HV_CHECK(compute_statistics(out));
  HV_CHECK(merge_statistics(out));
  warn_of_seen(out);
  status = open_prompts(out);
done:
  if (status) hv_run_data_close(out);
  return status;
}

hv_status hv_run_data_report_changes(const hv_run_data *data) {
  json_t *known = NULL;
  bool same = true;
  char *model = hv_path_join(data->config->output, "model"),
       *path = model ? hv_model_directory_statistics(model) : NULL;
  hv_status status = path ? HV_OK : hv_error_memory("a path");
  if (status) goto done;
  if (!hv_file_exists(path)) {
    hv_log_warning("%s is missing, so these demonstrations cannot be compared with those that this run has trained on",
                   path);
    goto done;
  }
  hv_status unread = hv_json_load(path, &known);
  if (!unread) unread = compare_known_key(data, known, path, &same);
  /* Not an error, since the next checkpoint writes the model again. */
  if (unread) hv_log_warning("%s", hv_status_message(unread));
  hv_status_free(unread);
  if (!same) {
    hv_log_warning("these demonstrations are not those that this run has trained on: their statistics, by which "
                   "actions are scaled, differ from %s; to continue with other data, start a new run with init_from",
                   path);
  }
done:
  json_decref(known);
  free(path);
  free(model);
  return status;
}

void hv_run_data_close(hv_run_data *data) {
  hv_demonstrations_close(data->train);
  hv_demonstrations_close(data->valid);
  hv_dataset_statistics_free(&data->statistics);
  json_decref(data->statistics_document);
  free(data->tokenizer_path);
  free(data->absolute);
  free(data->train_prompts.ids);
  free(data->valid_prompts.ids);
  *data = (hv_run_data){0};
}

int32_t hv_run_data_longest_prompt(const hv_run_data *data) {
  int32_t train = data->train_prompts.stride, valid = data->valid_prompts.stride;
  return train > valid ? train : valid;
}

static hv_loader_options loader_options(const hv_run_data *data, const hv_prompt_table *prompts) {
  const hv_data_settings *settings = &data->config->data;
  return (hv_loader_options){
      .config = &data->model,
      .statistics = &data->statistics,
      .absolute = data->absolute,
      .prompts = prompts->ids,
      .prompt_stride = prompts->stride,
      .batch = (int32_t)hv_train_config_micro_batch(data->config, data->ranks),
      .threads = (int32_t)settings->threads,
      .read_ahead = (int32_t)settings->read_ahead,
      .cache_bytes = (size_t)settings->cache_bytes,
  };
}

int64_t hv_run_data_frame(const hv_run_data *data, int64_t sample) {
  int64_t frames = hv_demonstrations_frames(data->train);
  return hv_sample_order((uint64_t)data->config->seed, (uint64_t)(sample / frames), frames, sample % frames);
}

hv_status hv_run_data_open_training(const hv_run_data *data, int64_t first_sample, hv_loader **out) {
  hv_loader_options options = loader_options(data, &data->train_prompts);
  options.global_batch = (int32_t)data->config->train.batch_size;
  options.rank = data->rank;
  options.ranks = data->ranks;
  options.seed = (uint64_t)data->config->seed;
  options.first_sample = (uint64_t)first_sample;
  return hv_loader_open(data->train, &options, out);
}

hv_status hv_run_data_open_validation(const hv_run_data *data, hv_loader **out) {
  hv_loader_options options = loader_options(data, &data->valid_prompts);
  options.sequential = true;
  options.samples = data->config->validation.samples;
  options.cache_bytes = 0;
  return hv_loader_open(data->valid, &options, out);
}

static hv_status next_batch(hv_batch_source *source, const hv_batch **out) {
  hv_loader_source *self = (hv_loader_source *)source;
  const hv_config *model = self->model;
  double start = hv_clock_seconds();
  HV_TRY(hv_loader_next(self->loader, &self->loaded));
  self->waited += hv_clock_seconds() - start;
  int32_t labelled = model->objective == HV_AUTOREGRESSIVE ? 1 : self->branches;
  self->batch = self->loaded->batch;
  self->batch.diffusion_divisor = (double)self->loaded->global_steps * self->branches * model->action_dim;
  self->batch.label_divisor =
      (double)self->loaded->global_samples * labelled * (model->action_chunk * model->action_dim + 1);
  *out = &self->batch;
  return HV_OK;
}

static void release_batch(hv_batch_source *source, const hv_batch *batch) {
  hv_loader_source *self = (hv_loader_source *)source;
  (void)batch;
  hv_loader_release(self->loader, self->loaded);
  self->loaded = NULL;
}

hv_loader_source hv_loader_source_make(hv_loader *loader, const hv_config *model, int32_t branches) {
  return (hv_loader_source){
      .source = {.next = next_batch, .release = release_batch}, .loader = loader, .model = model, .branches = branches};
}
