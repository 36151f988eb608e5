#include "tests/infer/tiny_directory.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/random.h"
#include "core/cpu/cpu.h"
#include "core/hybridvla/model.h"
#include "core/io/json.h"
#include "core/io/model_directory.h"

static const char configuration[] =
    "{\"model_type\": \"hybridvla\", \"action_dim\": 7, \"action_chunk\": 2, \"state_dim\": 5,"
    " \"cameras\": [\"front\", \"wrist\"], \"projector\": \"gelu-mlp\", \"vision\": [{\"prefix\":"
    " \"vision_backbone.siglip_featurizer\", \"width\": 24, \"depth\": 3, \"num_heads\": 2, \"mlp_width\": 48,"
    " \"patch_size\": 14, \"image_size\": 28, \"layer_norm_eps\": 1e-6, \"class_token\": false, \"register_tokens\": 0,"
    " \"layer_scale\": false, \"pre_norm\": false, \"activation\": \"gelu\", \"image_mean\": [0.5, 0.5, 0.5],"
    " \"image_std\": [0.5, 0.5, 0.5]}], \"llm\": {\"model_type\": \"llama\", \"hidden_size\": 32,"
    " \"intermediate_size\": 48, \"num_hidden_layers\": 2, \"num_attention_heads\": 4, \"num_key_value_heads\": 2,"
    " \"rms_norm_eps\": 1e-5, \"rope_theta\": 10000.0, \"vocab_size\": 32064, \"hidden_act\": \"silu\"},"
    " \"diffusion\": {\"steps\": 100, \"schedule\": \"squaredcos_cap_v2\"}, \"action_tokens\": {\"base\": 32000,"
    " \"bins\": 256}, \"special_tokens\": {\"bos\": 1, \"eos\": 2, \"pad\": 32000, \"bod\": 32001, \"eod\": 32002,"
    " \"empty\": 29871}}";

#define SMALL_TOKENIZER HVLA_SOURCE_DIR "/tests/fixtures/tokenizer/small.model"

/* Replaces members of the configuration. */
static const char small_vocabulary[] =
    "{\"llm\": {\"vocab_size\": 1024}, \"action_tokens\": {\"base\": 1000}, \"special_tokens\": {\"pad\": 1000,"
    " \"bod\": 1001, \"eod\": 1002, \"empty\": 924}}";

static void succeed(hv_status status) {
  if (!status) return;
  fprintf(stderr, "tiny model directory: %s\n", hv_status_message(status));
  exit(2);
}

static void *allocate(size_t count, size_t size) {
  void *memory = calloc(count, size);
  if (!memory) succeed(hv_error_memory("a tiny model"));
  return memory;
}

/* Random values, large enough that every part of the model changes the result. */
static void fill(hv_params *params, const tiny_directory_options *options, hv_stream *stream) {
  for (hv_param_id id = 0; id < hv_params_count(params); id++) {
    const hv_param *param = hv_params_get(params, id);
    size_t count = (size_t)(param->rows * param->cols);
    float *values = allocate(count, sizeof *values);
    double scale = param->rank > 1 ? 1.0 / sqrt((double)param->cols) : 0.1, start = param->init == HV_INIT_ONE;
    for (size_t i = 0; i < count; i++)
      values[i] = (float)(start + scale * (double)hv_random_normal(5, HV_RANDOM_INIT, (uint64_t)id, i, 0, 0));
    if (options->not_finite && !strcmp(param->name, "final_layer.mlp.fc2.bias")) values[0] = NAN;
    succeed(hv_param_write(params, id, HV_F32, values, stream));
    free(values);
  }
}

/* The statistics of one quantity [dims] of a data set, different for each `seed`; the last dimension is a gripper if
 * `gripper`. */
static json_t *value_statistics(int32_t dims, int seed, int gripper) {
  static const char *const names[] = {"mean", "std", "min", "max", "q01", "q99"};
  static const double offsets[] = {0.0, 0.3, -1.1, 1.2, -1.0, 1.0};
  json_t *entry = json_object(), *mask = json_array();
  for (int n = 0; n < 6; n++) {
    json_t *values = json_array();
    for (int32_t d = 0; d < dims; d++) json_array_append_new(values, json_real(0.1 * d * seed + seed * offsets[n]));
    json_object_set_new(entry, names[n], values);
  }
  for (int32_t d = 0; d < dims; d++) json_array_append_new(mask, json_boolean(!gripper || d + 1 < dims));
  json_object_set_new(entry, "mask", mask);
  return entry;
}

static json_t *statistics(const tiny_directory_options *options) {
  static const char *const keys[] = {"lift", "drawer"};
  json_t *document = json_object();
  for (int k = 0; k < 2 && k < options->keys; k++) {
    json_t *entry = json_pack("{s:o, s:i, s:i}", "action", value_statistics(TINY_ACTIONS, 1 + k, 1), "num_transitions",
                              100, "num_trajectories", 3);
    if (!options->no_state) json_object_set_new(entry, "proprio", value_statistics(TINY_STATE, 2 + k, 0));
    json_object_set_new(document, keys[k], entry);
  }
  return document;
}

void write_tiny_directory(const char *path, const tiny_directory_options *options) {
  hv_device *device;
  hv_stream *stream;
  hv_model *model;
  hv_model_config config;
  json_t *document = json_loads(configuration, 0, NULL), *small = json_loads(small_vocabulary, 0, NULL);
  json_t *stats = statistics(options);
  if (options->objective) json_object_set_new(document, "objective", json_string(options->objective));
  if (options->no_state) json_object_set_new(document, "state_dim", json_integer(0));
  if (options->small) json_object_update_recursive(document, small);
  succeed(hv_model_config_from_json(document, "tiny model", HV_UNKNOWN_REFUSE, &config));
  succeed(hv_cpu_device_open(NULL, &device));
  succeed(hv_stream_open(device, &stream));
  succeed(hv_model_open(&config.config, device, HV_F32, &model));
  succeed(hv_params_allocate(hv_model_params(model)));
  fill(hv_model_params(model), options, stream);
  hv_model_save save = {.model = &config,
                        .params = hv_model_params(model),
                        .dtype = HV_F32,
                        .tokenizer_path = options->small ? SMALL_TOKENIZER : TINY_TOKENIZER,
                        .statistics = stats};
  succeed(hv_model_directory_save(path, &save, stream));
  hv_model_close(model);
  hv_stream_close(stream);
  hv_device_close(device);
  hv_model_config_free(&config);
  json_decref(stats);
  json_decref(document);
  json_decref(small);
}
