#include <stddef.h>

#include "core/io/json.h"
#include "train/commands.h"
#include "train/device.h"
#include "train/plan/bench.h"

typedef struct bench_options {
  char *config, *device, *trace;
  hv_string_list sets;
  bool json, random_weights, optimizer;
  int64_t steps, batch_size;
} bench_options;

static const hv_option options[] = {
    HV_CONFIG_OPTION(bench_options),
    HV_SET_OPTION(bench_options),
    {.key = "random-weights",
     .type = HV_OPTION_BOOL,
     .offset = offsetof(bench_options, random_weights),
     .fallback = "false",
     .doc = "Required: the benchmark reads no weights but makes random ones."},
    {.key = "batch",
     .type = HV_OPTION_INT,
     .offset = offsetof(bench_options, batch_size),
     .fallback = "0",
     .max = HV_BATCH_SIZE_MAX,
     .unit = "N",
     .doc = "Samples per step; 0: the configuration's micro-batch."},
    {.key = "optimizer",
     .type = HV_OPTION_BOOL,
     .offset = offsetof(bench_options, optimizer),
     .fallback = "false",
     .doc = "Update the parameters, too; without it only forward and backward."},
    {.key = "steps",
     .type = HV_OPTION_INT,
     .offset = offsetof(bench_options, steps),
     .fallback = "5",
     .min = 1,
     .max = 1e6,
     .unit = "N",
     .doc = "Steps to measure, after one warm-up step."},
    HV_DEVICE_OPTION(bench_options),
    HV_TRACE_OPTION(bench_options),
    HV_JSON_OPTION(bench_options),
};

static void format_bench(const json_t *result, hv_text *out) {
  const json_t *ms = json_object_get(result, "ms");
  hv_text_add(out, "%.2f samples/s  step %.1f ms (%.1f to %.1f)  %.0f tokens a sample\n",
              json_number_value(json_object_get(result, "samples_per_s")),
              json_number_value(json_object_get(ms, "median")), json_number_value(json_object_get(ms, "min")),
              json_number_value(json_object_get(ms, "max")),
              json_number_value(json_object_get(result, "tokens_per_sample")));
  hv_text_add(out, "%.3f TFLOP/s of necessary work, %.0f %% of the speed of light, %.2f GB\n",
              json_number_value(json_object_get(result, "model_tflops")),
              100.0 * json_number_value(json_object_get(result, "speed_of_light")),
              1e-9 * json_number_value(json_object_get(result, "peak_memory_bytes")));
  const char *stage;
  const json_t *value;
  json_object_foreach(json_object_get(result, "stages"), stage, value) {
    hv_text_add(out, "  %-10s %8.1f ms\n", stage, json_number_value(value));
  }
}

static hv_status work(const void *values, hv_command_result *out) {
  const bench_options *given = values;
  hv_status status = HV_OK;
  hv_train_config config = {0};
  hv_device *device = NULL;
  hv_trace *trace = NULL;
  json_t *result = NULL;
  hv_bench_options what = {.batch = given->batch_size, .steps = given->steps, .optimizer = given->optimizer};
  if (!given->random_weights)
    return hv_error(HV_ERR_INPUT, "bench needs --random-weights: it reads no weights but makes random ones");
  HV_CHECK(hv_train_config_load(given->config, (const char *const *)given->sets.items, given->sets.count, &config));
  HV_CHECK(hv_train_open_device(given->device ? given->device : config.device, config.threads, 0, &device));
  if (given->trace) HV_CHECK(hv_trace_open(given->trace, 0, &trace));
  what.trace = trace;
  HV_CHECK(hv_bench(&config, device, &what, &result));
  if (given->json) {
    HV_CHECK(hv_json_format_line(result, &out->text));
    hv_text_add(&out->text, "\n");
  } else {
    format_bench(result, &out->text);
  }
done:
  json_decref(result);
  status = hv_status_first(status, hv_trace_close(trace));
  hv_device_close(device);
  hv_train_config_free(&config);
  return status;
}

const hv_command hv_command_bench = {
    .name = "bench",
    .summary = "Measure how fast training steps run.",
    .help = "Runs steps with random weights and inputs, and prints samples per second, milliseconds per step\n"
            "and per stage, memory, and the share of the speed of light: the time that the necessary matrix\n"
            "products would take at the best rate measured in the same run, over the time taken. That rate is\n"
            "the best of an 8192-cube product (a smaller one on slow devices) and of the products of an MLP in\n"
            "the step's own shapes.\n\n"
            "  hvla-train bench --config configs/bench-cpu.yaml --random-weights --optimizer --json\n",
    .options = options,
    .num_options = sizeof options / sizeof options[0],
    .values_size = sizeof(bench_options),
    .work = work,
};
