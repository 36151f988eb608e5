#include "infer/hvla.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/file.h"
#include "core/io/json.h"
#include "core/io/model_directory.h"
#include "infer/device.h"
#include "infer/hvla_internal.h"

int hvla_version(void) {
  return HVLA_VERSION_NUMBER;
}

hvla_code hv_infer_report(hv_status status, hvla_error *error) {
  if (error) *error = (hvla_error){0};
  if (!status) return HVLA_OK;
  hvla_code code = hv_status_code(status) == HV_ERR_NO ? HVLA_ERROR_INPUT : (hvla_code)hv_status_code(status);
  if (error) {
    static const char cut[] = " …";
    error->code = code;
    int length = snprintf(error->message, sizeof error->message, "%s", hv_status_message(status));
    if (length >= (int)sizeof error->message) {
      size_t at = sizeof error->message - sizeof cut;
      while (at > 0 && ((unsigned char)error->message[at] & 0xc0) == 0x80) at--; /* not inside a character */
      memcpy(error->message + at, cut, sizeof cut);
    }
  }
  hv_status_free(status);
  return code;
}

hvla_options hvla_default_options(void) {
  return (hvla_options){.max_prompt = 512, .measure_algorithms = 1};
}

/* Opens the model and fills its parameters from the directory. */
static hv_status load_parameters(hvla_model *model, hv_dtype dtype) {
  hv_status status;
  hv_model_directory directory = {0};
  hv_stream *stream = NULL;
  HV_CHECK(hv_model_directory_open(model->directory, &directory));
  model->config = directory.model.config;
  HV_CHECK(hv_model_open(&model->config, model->device, dtype, &model->model));
  /* Before memory is allocated: the config.json of another model may ask for any amount. */
  HV_CHECK(hv_model_directory_check(&directory, hv_model_params(model->model)));
  HV_CHECK(hv_params_allocate(hv_model_params(model->model)));
  HV_CHECK(hv_stream_open(model->device, &stream));
  HV_CHECK(hv_model_directory_fill(&directory, hv_model_params(model->model), stream, NULL));
done:
  hv_stream_close(stream);
  hv_model_directory_close(&directory);
  return status;
}

static hv_status load_tokenizer(hvla_model *model) {
  hv_status status = HV_OK;
  char *path = hv_model_directory_tokenizer(model->directory);
  if (!path) return hv_error_memory("a path");
  if (!hv_file_exists(path)) goto done; /* reported when a prediction needs it */
  HV_CHECK(hv_tokenizer_open(path, &model->tokenizer));
  HV_CHECK(hv_prompt_check_tokenizer(model->tokenizer, &model->config, path));
done:
  free(path);
  return status;
}

static hv_status load_statistics(hvla_model *model) {
  char *path = hv_model_directory_statistics(model->directory);
  if (!path) return hv_error_memory("a path");
  hv_status status = hv_json_load(path, &model->statistics);
  if (!status && (!json_is_object(model->statistics) || json_object_size(model->statistics) == 0))
    status = hv_error(HV_ERR_INPUT, "%s: an object with the statistics of at least one data set is expected", path);
  free(path);
  return status;
}

static hv_status allocate_buffers(hvla_model *model) {
  const hv_config *config = &model->config;
  size_t side = (size_t)config->vision[0].image_size;
  size_t values = (size_t)config->action_chunk * (size_t)config->action_dim;
  model->images = malloc((size_t)config->num_cameras * side * side * 3);
  model->state = calloc((size_t)config->state_dim + 1, sizeof *model->state);
  model->gripper = calloc((size_t)config->action_dim, sizeof *model->gripper);
  model->action = calloc(3 * values, sizeof *model->action);
  if (!model->images || !model->state || !model->gripper || !model->action)
    return hv_error_memory("the buffers of a model");
  model->diffusion = model->action + values;
  model->autoregressive = model->diffusion + values;
  return HV_OK;
}

static hv_status load(hvla_model *model, const char *directory, const hvla_options *options) {
  enum { MOST_TOKENS = 1 << 20 }; /* beyond any instruction; positions are 32-bit integers */
  hv_dtype dtype;
  if (!directory) return hv_error(HV_ERR_INPUT, "no model directory is given");
  if (options->max_prompt < 1 || options->max_prompt > MOST_TOKENS)
    return hv_error(HV_ERR_INPUT, "max_prompt is %d: 1 to %d tokens are possible", options->max_prompt, MOST_TOKENS);
  model->max_prompt = options->max_prompt;
  model->measure_algorithms = options->measure_algorithms != 0;
  model->directory = strdup(directory);
  if (!model->directory) return hv_error_memory("a path");
  HV_TRY(hv_infer_open_device(options->device, options->threads, &model->device));
  HV_TRY(hv_infer_parse_dtype(options->dtype, model->device, &dtype));
  HV_TRY(load_parameters(model, dtype));
  HV_TRY(load_tokenizer(model));
  HV_TRY(load_statistics(model));
  return allocate_buffers(model);
}

hvla_code hvla_load(const char *directory, const hvla_options *options, hvla_model **out, hvla_error *error) {
  hvla_options defaults = hvla_default_options();
  if (!out)
    return hv_infer_report(hv_error(HV_ERR_INPUT, "out is NULL; a pointer to an hvla_model * is expected"), error);
  *out = NULL;
  hvla_model *model = calloc(1, sizeof *model);
  hv_status status = model ? load(model, directory, options ? options : &defaults) : hv_error_memory("a model");
  if (status) {
    hvla_free(model);
  } else {
    *out = model;
  }
  return hv_infer_report(status, error);
}

void hvla_free(hvla_model *model) {
  if (!model) return;
  hv_policy_close(model->policy);
  hv_model_close(model->model);
  hv_device_close(model->device);
  for (int i = 0; i < HV_MAX_CAMERAS; i++) hv_resizer_close(model->cameras[i].resizer);
  hv_dataset_statistics_free(&model->scale);
  json_decref(model->statistics);
  hv_token_list_free(&model->prompt);
  hv_tokenizer_close(model->tokenizer);
  free(model->instruction);
  free(model->images);
  free(model->state);
  free(model->gripper);
  free(model->action);
  free(model->directory);
  free(model);
}

int hvla_action_dim(const hvla_model *model) {
  return model->config.action_dim;
}
int hvla_action_chunk(const hvla_model *model) {
  return model->config.action_chunk;
}
int hvla_state_dim(const hvla_model *model) {
  return model->config.state_dim;
}
int hvla_num_cameras(const hvla_model *model) {
  return model->config.num_cameras;
}
const char *hvla_camera(const hvla_model *model, int index) {
  return index >= 0 && index < model->config.num_cameras ? model->config.cameras[index] : NULL;
}
int hvla_image_size(const hvla_model *model) {
  return model->config.vision[0].image_size;
}
int hvla_diffusion_steps(const hvla_model *model) {
  return model->config.diffusion_steps;
}
const char *hvla_objective(const hvla_model *model) {
  return hv_objective_name(model->config.objective);
}
int hvla_num_unnorm_keys(const hvla_model *model) {
  return (int)json_object_size(model->statistics);
}
const char *hvla_unnorm_key(const hvla_model *model, int index) {
  const char *key;
  json_t *entry;
  json_object_foreach(model->statistics, key, entry) {
    if (index-- == 0) return key;
  }
  return NULL;
}
