#include "train/plan/bench.h"

#include <stdlib.h>

#include "core/base/clock.h"
#include "core/base/median.h"
#include "train/plan/best_rate.h"
#include "train/plan/made_up_batch.h"
#include "train/plan/plan.h"
#include "train/trainer_options.h"

enum { STAGE_BUILD, STAGE_FORWARD, STAGE_BACKWARD, STAGE_OPTIMIZER, STAGES };
static const double PATIENCE = 0.5; /* seconds for the largest product that is measured */
static const char *const stage_names[STAGES] = {"build", "forward", "backward", "optimizer"};

typedef struct bench {
  const hv_train_config *config;
  const hv_bench_options *options;
  hv_model_config model;
  hv_model_directory directory;
  hv_trainer *trainer;
  hv_made_up_batch made_up;
  double *times[STAGES + 1]; /* [steps]: of each stage and of the whole step */
  hv_memory_use memory;      /* of the device, at the peak */
  double rate;               /* floating-point operations a second */
} bench;

static hv_trainer_options make_options(const bench *self, int32_t samples) {
  hv_trainer_options options =
      hv_trainer_options_make(self->config, &self->model.config, 1, (int32_t)self->config->bench_prompt + 1);
  options.limits.samples = samples;
  options.parts = 1;
  options.trace = self->options->trace;
  options.no_update = !self->options->optimizer;
  return options;
}

static hv_status open_trainer(bench *self, hv_device *device, const hv_trainer_options *options) {
  hv_status status = hv_trainer_open(device, options, &self->trainer);
  hv_train_config asked = *self->config; /* with the batch that is measured */
  asked.train.batch_size = asked.train.micro_batch = options->limits.samples;
  HV_TRY(hv_plan_explain(status, &asked, &self->model.config, device, 1, options->limits.prompt));
  return hv_trainer_initialize(self->trainer, NULL, NULL);
}

/* The step of trainer.c, with a wait after every stage. `times` is NULL for the warm-up step. */
static hv_status timed_step(bench *self, double times[STAGES]) {
  hv_trainer *trainer = self->trainer;
  hv_stream *stream = trainer->stream;
  hv_sequence *sequence = hv_trainer_idle_sequence(trainer);
  hv_model_activations activations;
  double at[STAGES + 1], norm;
  bool skipped;
  at[0] = hv_clock_seconds();
  HV_TRY(hv_sequence_build(sequence, &self->made_up.batch, 0, 0));
  hv_sequence_upload(sequence, stream);
  hv_sequence_use(sequence, stream);
  hv_params_zero_gradients(trainer->params, stream);
  HV_TRY(hv_stream_synchronize(stream));
  at[1] = hv_clock_seconds();
  hv_arena_release(&trainer->arena, 0);
  hv_model_forward(trainer->model, sequence, &trainer->weights, true, &trainer->arena, stream, &activations);
  HV_TRY(hv_stream_synchronize(stream));
  at[2] = hv_clock_seconds();
  hv_model_backward(trainer->model, sequence, &activations, &trainer->arena, stream);
  hv_sequence_done(sequence, stream);
  HV_TRY(hv_stream_synchronize(stream));
  at[3] = hv_clock_seconds();
  if (self->options->optimizer) {
    hv_optimizer_step(trainer->optimizer, self->config->optimizer.learning_rate, stream);
    hv_ema_update(trainer->ema, stream);
    HV_TRY(hv_stream_synchronize(stream));
    hv_optimizer_finish(trainer->optimizer, &norm, &skipped);
  }
  at[4] = hv_clock_seconds();
  HV_TRY(hv_arena_status(&trainer->arena));
  for (int i = 0; times && i < STAGES; i++) times[i] = at[i + 1] - at[i];
  return HV_OK;
}

/* Measures them as a run does before its first step. */
static hv_status measure_algorithms(const bench *self) {
  hv_fixed_source source = hv_fixed_source_make(&self->made_up.batch);
  bool measured;
  if (!self->config->measure_algorithms) return HV_OK;
  return hv_trainer_measure_choices(self->trainer, &source.source, &measured);
}

static hv_status time_steps(bench *self) {
  size_t steps = (size_t)self->options->steps;
  for (int i = 0; i <= STAGES; i++) {
    self->times[i] = calloc(steps, sizeof **self->times);
    if (!self->times[i]) return hv_error_memory("the measured times");
  }
  HV_TRY(measure_algorithms(self));
  HV_TRY(timed_step(self, NULL));
  for (size_t s = 0; s < steps; s++) {
    double stages[STAGES];
    HV_TRY(timed_step(self, stages));
    for (int i = 0; i < STAGES; i++) {
      self->times[i][s] = stages[i];
      self->times[STAGES][s] += stages[i];
    }
  }
  return HV_OK;
}

static hv_status report(bench *self, const hv_sequence_counts *counts, json_t **out) {
  const hv_trainer *trainer = self->trainer;
  size_t steps = (size_t)self->options->steps;
  double *total = self->times[STAGES], median = 1e3 * hv_median(total, steps);
  json_t *stages = json_object();
  for (int i = 0; i < STAGES; i++) {
    if (i == STAGE_OPTIMIZER && !self->options->optimizer) continue;
    json_object_set_new(stages, stage_names[i], json_real(1e3 * hv_median(self->times[i], steps)));
  }
  double flops = trainer->matrix_flops;
  *out = json_pack("{s:f, s:{s:f, s:f, s:f}, s:f, s:f, s:f, s:I, s:o, s:s, s:s, s:i, s:i, s:f}", "samples_per_s",
                   1e3 * counts->samples / median, "ms", "min", 1e3 * total[0], "median", median, "max",
                   1e3 * total[steps - 1], "tokens_per_sample", (double)counts->rows / counts->samples, "model_tflops",
                   flops / median * 1e-9, "speed_of_light", flops / self->rate / (median * 1e-3), "peak_memory_bytes",
                   (json_int_t)self->memory.total, "stages", stages, "device", trainer->device->name, "dtype",
                   hv_dtype_name(hv_train_config_dtype(self->config)), "batch", counts->samples, "branches",
                   counts->branches, "matrix_product_tflops", self->rate * 1e-12);
  return *out ? HV_OK : hv_error_memory("the benchmark's result");
}

/* Measures the device's best rate, with the algorithms that prove to be the fastest. */
static hv_status measure_rate(bench *self, hv_device *device, const hv_trainer_options *trainer) {
  (void)hv_device_measure_choices(device, true);
  hv_status status = hv_best_rate_measure(device, trainer, PATIENCE, &self->rate);
  (void)hv_device_measure_choices(device, false);
  return status;
}

hv_status hv_bench(const hv_train_config *config, hv_device *device, const hv_bench_options *options, json_t **out) {
  hv_status status = HV_OK;
  bench self = {.config = config, .options = options};
  int32_t samples = (int32_t)(options->batch > 0 ? options->batch : hv_train_config_micro_batch(config, 1));
  *out = NULL;
  HV_CHECK(hv_train_config_model(config, &self.model, &self.directory));
  HV_CHECK(hv_made_up_batch_open(&self.model.config, samples, (int32_t)config->bench_prompt + 1, &self.made_up));
  hv_trainer_options trainer = make_options(&self, samples);
  HV_CHECK(measure_rate(&self, device, &trainer));
  HV_CHECK(open_trainer(&self, device, &trainer));
  HV_CHECK(time_steps(&self));
  self.memory = device->memory.peak;
  const hv_sequence_counts *counts = hv_sequence_get_counts(hv_trainer_idle_sequence(self.trainer));
  status = report(&self, counts, out);
done:
  hv_trainer_close(self.trainer);
  hv_model_directory_close(&self.directory);
  hv_model_config_free(&self.model);
  for (int i = 0; i <= STAGES; i++) free(self.times[i]);
  hv_made_up_batch_close(&self.made_up);
  return status;
}
