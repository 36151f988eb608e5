#include <stddef.h>

#include "core/io/json.h"
#include "train/checkpoint/checkpoint_files.h"
#include "train/commands.h"
#include "train/plan/plan.h"

static const char *const devices[] = {"cuda", "cpu", "emu", NULL};

typedef struct plan_options {
  char *config;
  int32_t device; /* index into `devices` */
  hv_string_list sets;
  bool json;
  int64_t gpus, node_gpus;
  double gpu_memory, matrix_tflops, memory_tb, node_gb, network_gb, link_efficiency;
} plan_options;

static const hv_option options[] = {
    HV_CONFIG_OPTION(plan_options),
    HV_SET_OPTION(plan_options),
    {.key = "gpus",
     .type = HV_OPTION_INT,
     .offset = offsetof(plan_options, gpus),
     .fallback = "1",
     .min = 1,
     .max = HV_CHECKPOINT_RANKS,
     .unit = "N",
     .doc = "GPUs that train together, one rank each."},
    {.key = "gpu-memory",
     .type = HV_OPTION_FLOAT,
     .offset = offsetof(plan_options, gpu_memory),
     .fallback = "80",
     .min = 1e-6,
     .max = 1e6,
     .unit = "GB",
     .doc = "Memory of each GPU."},
    {.key = "device",
     .type = HV_OPTION_ENUM,
     .offset = offsetof(plan_options, device),
     .fallback = "cuda",
     .choices = devices,
     .doc = "Whose own memory (context, workspaces) is counted; cpu and emu take none."},
    {.key = "matrix-tflops",
     .type = HV_OPTION_FLOAT,
     .offset = offsetof(plan_options, matrix_tflops),
     .fallback = "0",
     .max = 1e6,
     .unit = "TFLOP/s",
     .doc = "Rate of matrix products in the configuration's dtype; 0: an H100's."},
    {.key = "memory-tb-per-s",
     .type = HV_OPTION_FLOAT,
     .offset = offsetof(plan_options, memory_tb),
     .fallback = "0",
     .max = 1e6,
     .unit = "TB/s",
     .doc = "Rate of device memory; 0: an H100's."},
    {.key = "node-gpus",
     .type = HV_OPTION_INT,
     .offset = offsetof(plan_options, node_gpus),
     .fallback = "8",
     .min = 1,
     .max = 1 << 16,
     .unit = "N",
     .doc = "GPUs in one machine."},
    {.key = "node-gb-per-s",
     .type = HV_OPTION_FLOAT,
     .offset = offsetof(plan_options, node_gb),
     .fallback = "0",
     .max = 1e6,
     .unit = "GB/s",
     .doc = "Rate from a GPU to the others in its machine, one direction; 0: an H100's NVLink."},
    {.key = "network-gb-per-s",
     .type = HV_OPTION_FLOAT,
     .offset = offsetof(plan_options, network_gb),
     .fallback = "0",
     .max = 1e6,
     .unit = "GB/s",
     .doc = "Rate from a GPU to other machines, one direction; 0: 400 Gb/s."},
    {.key = "link-efficiency",
     .type = HV_OPTION_FLOAT,
     .offset = offsetof(plan_options, link_efficiency),
     .fallback = "0.8",
     .min = 0.01,
     .max = 1,
     .doc = "Fraction of these two rates that collectives reach."},
    HV_JSON_OPTION(plan_options),
};

static void put(double given, double unit, double *rate) {
  if (given > 0) *rate = given * unit;
}

static hv_forecast_options assume(const plan_options *given, const hv_train_config *config) {
  hv_forecast_options assumed = hv_forecast_h100((int32_t)given->gpus, hv_train_config_dtype(config));
  assumed.prompt = (int32_t)config->bench_prompt + 1;
  assumed.device = devices[given->device];
  assumed.links.node_ranks = (int32_t)given->node_gpus;
  assumed.links.efficiency = given->link_efficiency;
  put(given->matrix_tflops, 1e12, &assumed.flops_per_s);
  put(given->memory_tb, 1e12, &assumed.bytes_per_s);
  put(given->node_gb, 1e9, &assumed.links.node_bytes_per_s);
  put(given->network_gb, 1e9, &assumed.links.network_bytes_per_s);
  return assumed;
}

static hv_status work(const void *values, hv_command_result *out) {
  const plan_options *given = values;
  hv_status status = HV_OK;
  hv_train_config config = {0};
  hv_plan_result result = {0};
  HV_CHECK(hv_train_config_load(given->config, (const char *const *)given->sets.items, given->sets.count, &config));
  hv_forecast_options assumed = assume(given, &config);
  HV_CHECK(hv_plan_make(&config, &assumed, (size_t)(given->gpu_memory * 1e9), &result));
  if (given->json) {
    HV_CHECK(hv_json_format_line(result.json, &out->text));
    hv_text_add(&out->text, "\n");
  } else {
    hv_plan_format(result.json, &out->text);
  }
  out->exit_code = result.fits ? 0 : 1;
done:
  json_decref(result.json);
  hv_train_config_free(&config);
  return status;
}

const hv_command hv_command_plan = {
    .name = "plan",
    .summary = "Forecast a configuration's memory and speed on a number of GPUs.",
    .help = "Runs steps as one of the ranks on a device that only counts: needs no GPU, no data and little\n"
            "memory. Prints memory by kind, what each parallel.sharding and train.recompute would need, the\n"
            "time of a step at the assumed rates, and advice. Prompts are assumed to have\n"
            "bench.prompt_tokens tokens. Memory is in GB (10^9 bytes) or MB. The exit code is 0 if the\n"
            "configuration fits and runs, 1 if not.\n\n"
            "  hvla-train plan --config configs/7b.yaml --gpus 8 --gpu-memory 80\n",
    .options = options,
    .num_options = sizeof options / sizeof options[0],
    .values_size = sizeof(plan_options),
    .work = work,
};
