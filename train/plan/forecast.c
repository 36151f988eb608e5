#include "train/plan/forecast.h"

#include <string.h>

#include "core/hybridvla/policy.h"
#include "train/plan/made_up_batch.h"
#include "train/trainer_options.h"

/* Memory that CUDA and NCCL take on a card for themselves. Assumed, not measured yet. */
static const size_t cuda_context_bytes = 500000000, nccl_bytes = 400000000;

/* From the host to a card: the nominal rate of PCIe 5.0 with 16 lanes in one direction. */
static const double upload_bytes_per_s = 64e9;

hv_forecast_options hv_forecast_h100(int32_t ranks, hv_dtype dtype) {
  return (hv_forecast_options){
      .ranks = ranks,
      .device = "cuda",
      .flops_per_s = dtype == HV_BF16 ? 789e12 : 50e12,
      .bytes_per_s = 3.0e12,
      .links = {
          .node_ranks = 8, .node_bytes_per_s = 450e9, .network_bytes_per_s = 50e9, .efficiency = 0.8, .hop_s = 5e-6}};
}

static hv_plan_machine machine_of(const hv_forecast_options *options) {
  hv_plan_machine machine = {.flops_per_s = options->flops_per_s, .bytes_per_s = options->bytes_per_s};
  if (strcmp(options->device, "cuda") != 0) return machine;
  machine.device_bytes = cuda_context_bytes;
  machine.stream_bytes = HV_CUDA_WORKSPACE;
  machine.upload_bytes_per_s = upload_bytes_per_s;
  return machine;
}

/* The buffers that NCCL takes for itself. */
static size_t library_bytes(const hv_forecast_options *options) {
  return options->ranks > 1 && strcmp(options->device, "cuda") == 0 ? nccl_bytes : 0;
}

static hv_status hold_library(hv_device *plan, const hv_forecast_options *options) {
  void *held;
  size_t bytes = library_bytes(options);
  if (bytes == 0) return HV_OK;
  return hv_device_allocate(plan, HV_MEMORY_COMMUNICATION, bytes, "NCCL's buffers", &held);
}

size_t hv_forecast_unseen_bytes(const hv_forecast_options *options) {
  return machine_of(options).device_bytes + library_bytes(options);
}

/* Counts the policy that a run with validation opens beside the trainer. */
static hv_status hold_policy(const hv_train_config *config, const hv_trainer *trainer, int32_t prompt) {
  hv_policy *policy;
  if (!config->data.valid_split) return HV_OK;
  hv_policy_options options = hv_policy_default_options(hv_model_get_config(trainer->model));
  options.ddim_steps = (int32_t)config->validation.ddim_steps;
  options.max_prompt = prompt;
  HV_TRY(hv_policy_open(trainer->model, &options, &policy));
  hv_policy_close(policy);
  return HV_OK;
}

/* Times the third step, after two: from the second on, each begins while values updated by the one before are still
 * being published. */
static hv_status time_step(hv_trainer *trainer, const hv_made_up_batch *made_up, hv_forecast *out) {
  hv_device *plan = trainer->device;
  hv_fixed_source source = hv_fixed_source_make(&made_up->batch);
  hv_step_result result;
  hv_plan_counts counts;
  HV_TRY(hv_trainer_step(trainer, &source.source, 1e-4, &result));
  HV_TRY(hv_trainer_step(trainer, &source.source, 1e-4, &result));
  double begin = hv_plan_device_now(plan);
  hv_memory_use peak = plan->memory.peak;
  hv_plan_device_reset(plan);
  if (trainer->comm->size > 1) hv_plan_comm_reset(trainer->comm);
  HV_TRY(hv_trainer_step(trainer, &source.source, 1e-4, &result));
  HV_TRY(hv_params_order_status(trainer->params));
  hv_plan_device_counts(plan, &counts);
  out->memory = plan->memory.peak.total > peak.total ? plan->memory.peak : peak;
  out->step_seconds = hv_plan_device_now(plan) - begin;
  out->compute_seconds = counts.seconds;
  out->model_flops = trainer->matrix_flops * trainer->parts;
  if (trainer->comm->size > 1) hv_plan_comm_traffic(trainer->comm, out->traffic);
  return HV_OK;
}

hv_status hv_forecast_make(const hv_train_config *config, const hv_config *model, const hv_forecast_options *options,
                           hv_forecast *out) {
  hv_status status = HV_OK;
  hv_device *plan = NULL;
  hv_comm *comm = NULL;
  hv_trainer *trainer = NULL;
  hv_made_up_batch made_up = {0};
  hv_plan_machine machine = machine_of(options);
  hv_trainer_options trainer_options = hv_trainer_options_make(config, model, options->ranks, options->prompt);
  *out = (hv_forecast){0};
  HV_CHECK(hv_plan_device_open(&plan));
  HV_CHECK(hv_plan_device_set_machine(plan, &machine));
  out->unseen_bytes = hv_forecast_unseen_bytes(options);
  HV_CHECK(hold_library(plan, options));
  if (options->ranks > 1) {
    HV_CHECK(hv_plan_comm_open(plan, 0, options->ranks, &options->links, &comm));
  } else {
    HV_CHECK(hv_comm_single_open(plan, &comm));
  }
  trainer_options.comm = comm;
  HV_CHECK(hv_trainer_open(plan, &trainer_options, &trainer));
  HV_CHECK(hv_made_up_batch_open(model, trainer_options.limits.samples, options->prompt, &made_up));
  HV_CHECK(time_step(trainer, &made_up, out));
  HV_CHECK(hold_policy(config, trainer, options->prompt));
  if (plan->memory.peak.total > out->memory.total) out->memory = plan->memory.peak;
  if (out->step_seconds > 0) out->samples_per_s = (double)config->train.batch_size / out->step_seconds;
done:
  hv_made_up_batch_close(&made_up);
  hv_trainer_close(trainer);
  hv_comm_close(comm);
  hv_device_close(plan);
  return status;
}
