/* The forecast of memory (`hvla-train plan`) against what a trainer really holds on a device, kind by kind, on one rank
 * and as one of four with every kind of sharding. test_forecast [DEVICE], by default cpu. */
#include "core/hybridvla/policy.h"
#include "tests/device.h"
#include "tests/train/program.h"
#include "train/plan/forecast.h"
#include "train/plan/made_up_batch.h"
#include "train/plan/plan.h"
#include "train/trainer_options.h"

enum { PROMPT = 12, STEPS = 2 };

static const char *under_test = "cpu";

/* A communicator without other ranks: results are just filled, because values do not matter for memory. */
static void close_alone(hv_comm *comm) {
  hv_comm_finish(comm);
}
static hv_status run_alone(hv_comm *comm, const hv_comm_call *call, hv_stream *stream) {
  (void)comm;
  if (call->collective == HV_REDUCE_SCATTER) hv_fill(stream, &(hv_fill_args){.dst = call->share});
  if (call->collective == HV_ALL_GATHER) hv_fill(stream, &(hv_fill_args){.dst = call->whole});
  return HV_OK;
}
static const hv_comm_methods alone = {.close = close_alone, .run = run_alone};

/* Opens and closes the policy that a run has beside its trainer for measuring held-out frames. */
static void hold_policy(const hv_train_config *config, const hv_trainer *trainer) {
  hv_policy *policy;
  hv_policy_options options = hv_policy_default_options(hv_model_get_config(trainer->model));
  if (!config->data.valid_split) return;
  options.ddim_steps = (int32_t)config->validation.ddim_steps;
  options.max_prompt = PROMPT;
  assert_ok(hv_policy_open(trainer->model, &options, &policy));
  hv_policy_close(policy);
}

static hv_memory_use memory_of_a_run(const hv_train_config *config, const hv_config *model, int32_t ranks) {
  hv_device *device;
  hv_trainer *trainer;
  hv_comm several = {0}, *comm = &several;
  hv_made_up_batch made_up;
  hv_step_result result;
  assert_ok(open_device(under_test, 1, &device));
  if (ranks > 1) {
    assert_ok(hv_comm_start(comm, "alone", &alone, device, 0, ranks));
  } else {
    assert_ok(hv_comm_single_open(device, &comm));
  }
  hv_trainer_options options = hv_trainer_options_make(config, model, ranks, PROMPT);
  options.comm = comm;
  assert_ok(hv_trainer_open(device, &options, &trainer));
  assert_ok(hv_trainer_initialize(trainer, NULL, NULL));
  assert_ok(hv_made_up_batch_open(model, options.limits.samples, PROMPT, &made_up));
  hv_fixed_source source = hv_fixed_source_make(&made_up.batch);
  for (int i = 0; i < STEPS; i++) assert_ok(hv_trainer_step(trainer, &source.source, 1e-4, &result));
  hold_policy(config, trainer);
  hv_memory_use peak = device->memory.peak;
  hv_made_up_batch_close(&made_up);
  hv_trainer_close(trainer);
  assert_int_equal(device->memory.held.total, ranks > 1 ? HV_COMM_MAX_SUM * sizeof(double) : 0);
  hv_comm_close(comm);
  hv_device_close(device);
  return peak;
}

/* The forecast for `device` of configs/tiny.yaml with these settings. */
static hv_forecast forecast_of(int32_t ranks, const char *device, const char *const *sets, size_t num_sets) {
  hv_train_config config;
  hv_model_config model;
  hv_model_directory directory;
  hv_forecast forecast;
  assert_ok(hv_train_config_load(HVLA_SOURCE_DIR "/configs/tiny.yaml", sets, num_sets, &config));
  assert_ok(hv_train_config_model(&config, &model, &directory));
  hv_forecast_options options = hv_forecast_h100(ranks, hv_train_config_dtype(&config));
  options.prompt = PROMPT;
  options.device = device;
  assert_ok(hv_forecast_make(&config, &model.config, &options, &forecast));
  assert_true(fabs(forecast.samples_per_s * forecast.step_seconds - (double)config.train.batch_size) < 1e-9);
  hv_model_directory_close(&directory);
  hv_model_config_free(&model);
  hv_train_config_free(&config);
  return forecast;
}

static void assert_forecast(int32_t ranks, const char *const *sets, size_t num_sets) {
  hv_train_config config;
  hv_model_config model;
  hv_model_directory directory;
  hv_forecast forecast = forecast_of(ranks, under_test, sets, num_sets);
  assert_ok(hv_train_config_load(HVLA_SOURCE_DIR "/configs/tiny.yaml", sets, num_sets, &config));
  assert_ok(hv_train_config_model(&config, &model, &directory));
  hv_memory_use run = memory_of_a_run(&config, &model.config, ranks);
  size_t seen = forecast.memory.total - forecast.unseen_bytes;
  double ratio = (double)seen / (double)run.total;
  print_message("%d ranks, %s: forecast %zu bytes, used %zu, ratio %.4f\n", ranks, sets[0], seen, run.total, ratio);
  assert_true(ratio > 0.95 && ratio < 1.05);
  for (int k = 0; k < HV_MEMORY_KINDS; k++) {
    /* Every kind must agree to the byte, except the workspace of other devices than the CPU, and communication buffers
     * of which the account knows nothing. */
    if (k == HV_MEMORY_WORKSPACE && strcmp(under_test, "cpu") != 0) continue;
    if (k == HV_MEMORY_COMMUNICATION && forecast.unseen_bytes > 0) continue;
    assert_int_equal(forecast.memory.bytes[k], run.bytes[k]);
  }
  hv_model_directory_close(&directory);
  hv_model_config_free(&model);
  hv_train_config_free(&config);
}

/* Without a held-out split no policy is opened. */
#define ALONE "data.valid_split=null"

static void one_rank_is_forecast(void **state) {
  (void)state;
  static const char *const plain[] = {"dtype=fp32", ALONE}, *const half[] = {"dtype=bf16", ALONE};
  static const char *const block[] = {"train.recompute=block", "dtype=bf16", "train.micro_batch=2", ALONE};
  assert_forecast(1, plain, 2);
  assert_forecast(1, half, 2);
  assert_forecast(1, block, 4);
}

static void measuring_is_forecast(void **state) {
  (void)state;
  static const char *const sets[] = {"dtype=fp32", "data.valid_split=valid"};
  assert_forecast(1, sets, 2);
}

static void each_sharding_is_forecast(void **state) {
  (void)state;
  static const char *const shardings[] = {"parallel.sharding=replicate", "parallel.sharding=optimizer",
                                          "parallel.sharding=gradients", "parallel.sharding=parameters"};
  static const char *const levels[] = {"train.recompute=none", "train.recompute=cheap", "train.recompute=block",
                                       "train.recompute=block"};
  for (int s = 0; s < 4; s++) {
    const char *const sets[] = {shardings[s], levels[s], s % 2 ? "dtype=bf16" : "dtype=fp32", ALONE};
    assert_forecast(4, sets, 4);
  }
}

/* The forecast for cards on a machine without any: memory that only a card needs (its context, NCCL) and the times,
 * which no account of ours can show. */
static void a_card_is_forecast_where_there_is_none(void **state) {
  (void)state;
  static const char *const whole[] = {"dtype=bf16", ALONE, "train.batch_size=8"};
  static const char *const parts[] = {"dtype=bf16", ALONE, "train.batch_size=8", "train.micro_batch=2"};
  hv_forecast one = forecast_of(1, "cuda", whole, 3), two = forecast_of(2, "cuda", whole, 3);
  hv_forecast cpu = forecast_of(2, "cpu", whole, 3), four = forecast_of(1, "cuda", parts, 4);
  assert_int_equal(one.unseen_bytes, 500000000);
  assert_int_equal(two.unseen_bytes, 900000000);
  assert_int_equal(cpu.unseen_bytes, 0);
  assert_int_equal(two.memory.bytes[HV_MEMORY_COMMUNICATION] - cpu.memory.bytes[HV_MEMORY_COMMUNICATION], 400000000);
  assert_true(one.memory.bytes[HV_MEMORY_COMMUNICATION] < 400000000);
  assert_true(one.memory.total - one.unseen_bytes < one.unseen_bytes);
  assert_true(two.traffic[HV_ALL_REDUCE].calls > 0);
  assert_true(one.model_flops > 0 && fabs(four.model_flops / one.model_flops - 1) < 1e-9);
  assert_true(fabs(one.model_flops / two.model_flops - 2) < 1e-9);
  /* A single card waits for no other, so nearly all of its step is computing. */
  assert_true(one.compute_seconds <= one.step_seconds && one.compute_seconds > 0.9 * one.step_seconds);
}

static size_t room_left;

static hv_device_room get_room(hv_device *device) {
  (void)device;
  return (hv_device_room){.available = room_left};
}

/* Whether the explanation of an out-of-memory error says that the configuration fits a card with that room. */
static bool would_fit(size_t room) {
  static const hv_device_methods methods = {.room = get_room};
  static const char *const sets[] = {ALONE, "train.batch_size=8"};
  hv_device card = {.name = "cuda", .methods = &methods};
  hv_train_config config;
  hv_model_config model;
  hv_model_directory directory;
  room_left = room;
  assert_ok(hv_train_config_load(HVLA_SOURCE_DIR "/configs/tiny.yaml", sets, 2, &config));
  assert_ok(hv_train_config_model(&config, &model, &directory));
  hv_status told = hv_plan_explain(hv_error(HV_ERR_MEMORY, "it is full"), &config, &model.config, &card, 1, PROMPT);
  bool fits = strstr(hv_status_message(told), " GB: the configuration as it is") != NULL;
  hv_status_free(told);
  hv_model_directory_close(&directory);
  hv_model_config_free(&model);
  hv_train_config_free(&config);
  return fits;
}

/* The room that a card reports no longer includes its context, so the forecast must not count the context again. */
static void what_fits_beside_a_context_is_told(void **state) {
  (void)state;
  static const char *const sets[] = {ALONE, "train.batch_size=8"};
  hv_forecast forecast = forecast_of(1, "cuda", sets, 2);
  size_t needed = forecast.memory.total - forecast.unseen_bytes;
  assert_true(would_fit(needed));
  assert_false(would_fit(needed - 1));
}

int main(int argc, char **argv) {
  if (argc > 1) under_test = argv[1];
  need_card(under_test);
  const struct CMUnitTest tests[] = {cmocka_unit_test(one_rank_is_forecast), cmocka_unit_test(measuring_is_forecast),
                                     cmocka_unit_test(each_sharding_is_forecast),
                                     cmocka_unit_test(a_card_is_forecast_where_there_is_none),
                                     cmocka_unit_test(what_fits_beside_a_context_is_told)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
