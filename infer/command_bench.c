/* hvla-infer bench: how long a prediction takes, and how close that is to the best that the machine can do. */
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/clock.h"
#include "core/base/median.h"
#include "core/hybridvla/policy.h"
#include "core/io/json.h"
#include "core/io/model_directory.h"
#include "core/io/yaml.h"
#include "core/tensor/rates.h"
#include "infer/bench_load.h"
#include "infer/commands.h"
#include "infer/device.h"
#include "infer/hvla.h"

typedef struct bench_options {
  char *config, *model; /* one of them */
  bool random_weights, load, no_measuring;
  int32_t mode, sampler, ar_condition; /* hvla_mode, hvla_sampler, hvla_ar_condition */
  int64_t ddim_steps, prompt, repeat, threads;
  char *device;
  int32_t dtype;
  bool json;
} bench_options;

static const hv_option options[] = {
    {.key = "config",
     .type = HV_OPTION_PATH,
     .offset = offsetof(bench_options, config),
     .fallback = "null",
     .unit = "FILE",
     .doc = "A run configuration, whose model (the key `model`) is measured. Needs --random-weights."},
    {.key = "random-weights",
     .type = HV_OPTION_BOOL,
     .offset = offsetof(bench_options, random_weights),
     .fallback = "false",
     .doc = "Fill the weights with random values; the time does not depend on them."},
    {.key = "model",
     .type = HV_OPTION_PATH,
     .offset = offsetof(bench_options, model),
     .fallback = "null",
     .unit = "DIR",
     .doc = "Model directory, instead of --config."},
    {.key = "load",
     .type = HV_OPTION_BOOL,
     .offset = offsetof(bench_options, load),
     .fallback = "false",
     .doc = "Measure how long loading --model takes, not predictions, and compare it with a plain sequential read of "
            "the same files. Before each, the files are dropped from the system's cache."},
    HV_MODE_OPTION(bench_options, "Which heads run; auto: all that the model has."),
    HV_SAMPLER_OPTION(bench_options),
    HV_DDIM_STEPS_OPTION(bench_options),
    HV_AR_CONDITION_OPTION(bench_options),
    {.key = "prompt",
     .type = HV_OPTION_INT,
     .offset = offsetof(bench_options, prompt),
     .fallback = "26",
     .min = 1,
     .max = 65536,
     .unit = "N",
     .doc = "Number of tokens of the prompt after <s>."},
    {.key = "repeat",
     .type = HV_OPTION_INT,
     .offset = offsetof(bench_options, repeat),
     .fallback = "10",
     .min = 1,
     .max = 1e6,
     .unit = "N",
     .doc = "Predictions that are timed, after two that are not; with --load, how often the model is loaded."},
    {.key = "no-measuring",
     .type = HV_OPTION_BOOL,
     .offset = offsetof(bench_options, no_measuring),
     .fallback = "false",
     .doc = "On a card, use the matrix-product algorithms that its library ranks first, instead of measuring in the "
            "first prediction which are the fastest."},
    HV_DEVICE_OPTION(bench_options),
    HV_DTYPE_OPTION(bench_options),
    HV_THREADS_OPTION(bench_options),
    HV_JSON_OPTION(bench_options),
};

enum { VISION, PREFILL, DENOISE, DECODE, STAGES, WARM_UP = 2, SEED = 1 };
static const double PATIENCE = 0.5; /* seconds that the largest measured product may take */
static const char *const stage_names[STAGES] = {"vision", "prefill", "denoise", "decode"};

typedef struct bench {
  const bench_options *given;
  hv_config config;
  hv_device *device;
  hv_dtype dtype;
  hv_model *model;
  hv_policy_options policy_options;
  uint8_t *images;
  int32_t *prompt;
  float *state;
  double *ms, *stages[STAGES]; /* [repeat] */
  double bytes, flops, product_rate, read_rate, light_seconds;
  size_t memory; /* the device's peak while predictions run */
} bench;

/* Opens the model with the parameters of a model directory, or with random ones. */
static hv_status load_model(bench *self, hv_stream *stream) {
  hv_status status;
  hv_model_directory directory = {0};
  hv_model_config model = {0};
  json_t *document = NULL;
  if (self->given->model) {
    HV_CHECK(hv_model_directory_open(self->given->model, &directory));
    self->config = directory.model.config;
  } else {
    HV_CHECK(hv_yaml_load(self->given->config, &document));
    const json_t *mapping = json_object_get(document, "model");
    if (!json_is_object(mapping)) {
      status = hv_error(HV_ERR_INPUT, "%s: model is missing: the keys of a config.json are expected under it",
                        self->given->config);
      goto done;
    }
    HV_CHECK(hv_error_context(hv_model_config_from_json(mapping, "model", HV_UNKNOWN_REFUSE, &model), "%s",
                              self->given->config));
    self->config = model.config;
  }
  HV_CHECK(hv_model_open(&self->config, self->device, self->dtype, &self->model));
  /* Before memory is allocated: the config.json of another model may ask for any amount. */
  if (self->given->model) HV_CHECK(hv_model_directory_check(&directory, hv_model_params(self->model)));
  HV_CHECK(hv_params_allocate(hv_model_params(self->model)));
  if (self->given->model) {
    HV_CHECK(hv_model_directory_fill(&directory, hv_model_params(self->model), stream, NULL));
  } else {
    HV_CHECK(hv_params_initialize(hv_model_params(self->model), SEED, stream));
    HV_CHECK(hv_stream_synchronize(stream));
  }
done:
  json_decref(document);
  hv_model_config_free(&model);
  hv_model_directory_close(&directory);
  return status;
}

/* Synthetic pictures, the first tokens of the vocabulary, a state of zeros: the time does not depend on values. */
static hv_status make_observation(bench *self, hv_observation *out) {
  const hv_config *config = &self->config;
  size_t side = (size_t)config->vision[0].image_size, pixels = (size_t)config->num_cameras * side * side * 3;
  int32_t count = (int32_t)self->given->prompt + 1;
  self->images = malloc(pixels);
  self->prompt = malloc((size_t)count * sizeof *self->prompt);
  self->state = calloc((size_t)config->state_dim + 1, sizeof *self->state);
  if (!self->images || !self->prompt || !self->state) return hv_error_memory("an observation");
  for (size_t i = 0; i < pixels; i++) self->images[i] = (uint8_t)(i * 37);
  for (int32_t i = 0; i < count; i++) self->prompt[i] = i ? 3 + i % 13 : config->token_bos;
  *out = (hv_observation){.images = self->images,
                          .prompt_ids = self->prompt,
                          .prompt_count = count,
                          .state = config->state_dim ? self->state : NULL};
  return HV_OK;
}

static void choose_policy(bench *self) {
  static const hv_mode modes[] = {[HVLA_MODE_ENSEMBLE] = HV_MODE_ENSEMBLE,
                                  [HVLA_MODE_DIFFUSION] = HV_MODE_DIFFUSION,
                                  [HVLA_MODE_AUTOREGRESSIVE] = HV_MODE_AUTOREGRESSIVE};
  const bench_options *given = self->given;
  hv_policy_options *policy = &self->policy_options;
  *policy = hv_policy_default_options(&self->config);
  policy->max_prompt = (int32_t)given->prompt + 1;
  policy->ddim_steps = (int32_t)given->ddim_steps;
  policy->sampler = (hv_sampler)given->sampler;
  policy->measure_algorithms = !given->no_measuring;
  if (given->mode != HVLA_MODE_DEFAULT) policy->mode = modes[given->mode];
  if (given->ar_condition != HVLA_AR_DEFAULT) policy->ar_condition = (hv_ar_condition)(given->ar_condition - 1);
}

/* Times `repeat` predictions; `timing`: their stages instead of the whole. */
static hv_status time_predictions(bench *self, const hv_observation *observation, bool timing) {
  hv_policy *policy;
  hv_policy_options policy_options = self->policy_options;
  hv_policy_result result;
  policy_options.timing = timing;
  HV_TRY(hv_policy_open(self->model, &policy_options, &policy));
  hv_status status = HV_OK;
  for (int64_t i = -WARM_UP; i < self->given->repeat; i++) {
    hv_policy_draws draws = {.seed = SEED, .step = (uint64_t)(i + WARM_UP)};
    double start = hv_clock_seconds();
    HV_CHECK(hv_policy_predict(policy, observation, &draws, &result));
    double ms = 1e3 * (hv_clock_seconds() - start);
    if (i < 0) continue;
    if (!timing) self->ms[i] = ms;
    if (!timing) continue;
    const double parts[STAGES] = {result.vision_ms, result.prefill_ms, result.denoise_ms, result.decode_ms};
    for (int s = 0; s < STAGES; s++) self->stages[s][i] = parts[s];
  }
done:
  hv_policy_close(policy);
  return status;
}

/* The time that the necessary work takes at the measured rates: for vision and each pass the longer of reading the
 * weights and computing. */
static hv_status measure_light(bench *self) {
  const hv_llm_config *llm = &self->config.llm;
  hv_policy *policy;
  int32_t count;
  int64_t rows = hv_policy_positions(&self->config, (int32_t)self->given->prompt + 1);
  (void)hv_device_measure_choices(self->device, !self->given->no_measuring);
  hv_status status = hv_measure_products(self->device, self->dtype, rows, llm->hidden_size, llm->intermediate_size,
                                         PATIENCE, &self->product_rate);
  (void)hv_device_measure_choices(self->device, false);
  HV_TRY(status);
  HV_TRY(hv_measure_read(self->device, self->dtype, &self->read_rate));
  HV_TRY(hv_policy_open(self->model, &self->policy_options, &policy));
  const hv_policy_work *work = hv_policy_get_work(policy, &count);
  for (int32_t i = 0; i < count; i++) {
    double reading = work[i].weight_bytes / self->read_rate, computing = work[i].matrix_flops / self->product_rate;
    self->bytes += work[i].weight_bytes;
    self->flops += work[i].matrix_flops;
    self->light_seconds += reading > computing ? reading : computing;
  }
  hv_policy_close(policy);
  return HV_OK;
}

static hv_status report(bench *self, hv_text *out) {
  size_t count = (size_t)self->given->repeat;
  double middle = hv_median(self->ms, count), light = 1e3 * self->light_seconds / middle;
  json_t *stages = json_object();
  for (int s = 0; s < STAGES; s++)
    json_object_set_new(stages, stage_names[s], json_real(hv_median(self->stages[s], count)));
  if (!self->given->json) {
    hv_text_add(out, "%s on %s, %s\n", hv_mode_choices[self->policy_options.mode + 1], self->device->name,
                hv_dtype_name(self->dtype));
    hv_text_add(out, "  ms a prediction  %.2f (min %.2f, max %.2f), %.2f Hz\n", middle, self->ms[0],
                self->ms[count - 1], 1e3 / middle);
    for (int s = 0; s < STAGES; s++)
      hv_text_add(out, "    %-9s      %.2f ms\n", stage_names[s], hv_median(self->stages[s], count));
    hv_text_add(out, "  weights read     %.1f MB at %.1f GB/s; %.2f GFLOP at %.1f GFLOP/s: speed of light %.2f\n",
                1e-6 * self->bytes, 1e-9 * self->read_rate, 1e-9 * self->flops, 1e-9 * self->product_rate, light);
    hv_text_add(out, "  device memory    %.1f MB\n", 1e-6 * (double)self->memory);
    json_decref(stages);
    return HV_OK;
  }
  json_t *object =
      json_pack("{s:{s:f, s:f, s:f}, s:f, s:I, s:f, s:I, s:o, s:s, s:s, s:s, s:f, s:f, s:f}", "ms", "min", self->ms[0],
                "median", middle, "max", self->ms[count - 1], "hz", 1e3 / middle, "bytes_read", (json_int_t)self->bytes,
                "speed_of_light", light, "peak_memory_bytes", (json_int_t)self->memory, "stages", stages, "mode",
                hv_mode_choices[self->policy_options.mode + 1], "device", self->device->name, "dtype",
                hv_dtype_name(self->dtype), "matrix_gflop", 1e-9 * self->flops, "matrix_product_gflops",
                1e-9 * self->product_rate, "read_gb_per_s", 1e-9 * self->read_rate);
  if (!object) return hv_error_memory("the benchmark's result");
  hv_status status = hv_json_format_line(object, out);
  hv_text_add(out, "\n");
  json_decref(object);
  return status;
}

static hv_status run(bench *self, hv_stream **stream, hv_text *out) {
  const bench_options *given = self->given;
  hv_observation observation;
  size_t repeat = (size_t)given->repeat;
  if (!given->config == !given->model)
    return hv_error(HV_ERR_INPUT, "give one model to measure: --config FILE --random-weights, or --model DIR");
  if (given->config && !given->random_weights)
    return hv_error(HV_ERR_INPUT,
                    "--config %s: a configuration has no weights; add --random-weights, or give a "
                    "model directory with --model DIR",
                    given->config);
  if (given->model && given->random_weights)
    return hv_error(HV_ERR_INPUT, "--random-weights needs --config; --model %s has weights of its own", given->model);
  self->ms = calloc(repeat, sizeof *self->ms);
  if (!self->ms) return hv_error_memory("the measured times");
  for (int s = 0; s < STAGES; s++) {
    self->stages[s] = calloc(repeat, sizeof **self->stages);
    if (!self->stages[s]) return hv_error_memory("the measured times");
  }
  HV_TRY(hv_infer_open_device(given->device, (int)given->threads, &self->device));
  HV_TRY(hv_infer_parse_dtype(hv_dtype_choices[given->dtype], self->device, &self->dtype));
  HV_TRY(hv_stream_open(self->device, stream));
  HV_TRY(load_model(self, *stream));
  choose_policy(self);
  HV_TRY(make_observation(self, &observation));
  hv_memory_reset_peak(&self->device->memory);
  HV_TRY(time_predictions(self, &observation, false));
  self->memory = self->device->memory.peak.total;
  HV_TRY(time_predictions(self, &observation, true));
  HV_TRY(measure_light(self));
  return report(self, out);
}

static hv_status work(const void *values, hv_command_result *result) {
  const bench_options *given = values;
  hv_text *out = &result->text;
  if (given->load) {
    if (!given->model)
      return hv_error(HV_ERR_INPUT, "--load needs --model DIR, the model directory whose loading is measured");
    return hv_bench_load(&(hv_bench_load_options){.model = given->model,
                                                  .device = given->device,
                                                  .dtype = hv_dtype_choices[given->dtype],
                                                  .threads = (int)given->threads,
                                                  .repeat = given->repeat,
                                                  .json = given->json},
                         out);
  }
  bench self = {.given = given};
  hv_stream *stream = NULL;
  hv_status status = run(&self, &stream, out);
  hv_stream_close(stream);
  hv_model_close(self.model);
  hv_device_close(self.device);
  for (int s = 0; s < STAGES; s++) free(self.stages[s]);
  free(self.ms);
  free(self.images);
  free(self.prompt);
  free(self.state);
  return status;
}

const hv_command hv_command_bench = {
    .name = "bench",
    .summary = "Measure how long a prediction takes, by stages, and how close that is to the machine's best.",
    .help =
        "\"Speed of light\" is the least time that a prediction needs on this machine, over the time that it takes:\n"
        "1 is the best possible. The least time is, for the image encoders and for each pass, the longer of\n"
        "reading the weights and multiplying by them, at the rates measured in the same run.\n"
        "Stages: vision: image encoders; prefill: the pass over the prefix and the first step of each head;\n"
        "denoise: later passes that denoise, which may decode tokens too; decode: passes that only decode.\n"
        "\n"
        "  hvla-infer bench --config configs/bench-cpu.yaml --random-weights\n"
        "  hvla-infer bench --model runs/lift/model --mode diffusion --json\n"
        "  hvla-infer bench --model runs/lift/model --load --repeat 5\n",
    .options = options,
    .num_options = sizeof options / sizeof *options,
    .values_size = sizeof(bench_options),
    .work = work,
};
