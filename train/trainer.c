#include "train/trainer.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/clock.h"
#include "core/hybridvla/policy.h"
#include "core/tensor/nan_watch.h"
#include "core/tensor/ops.h"

static hv_status next_fixed(hv_batch_source *source, const hv_batch **out) {
  *out = ((hv_fixed_source *)source)->batch;
  return HV_OK;
}

static void release_fixed(hv_batch_source *source, const hv_batch *batch) {
  (void)source;
  (void)batch;
}

hv_fixed_source hv_fixed_source_make(const hv_batch *batch) {
  return (hv_fixed_source){.source = {.next = next_fixed, .release = release_fixed}, .batch = batch};
}

/* Tokens of the longest sequence, in training or in the policy that validation uses. */
static int64_t most_positions(const hv_config *config, const hv_sequence_limits *limits) {
  int64_t prefix = (int64_t)limits->prompt + (int64_t)config->num_cameras * hv_config_patches(config) + 2;
  int64_t chunk = config->action_chunk, predicting = hv_policy_positions(config, limits->prompt);
  int64_t training = prefix + 1 + chunk + 2 + chunk * config->action_dim + 1;
  return training > predicting ? training : predicting;
}

/* Opens the arena, large enough for training steps and for passes without gradients. */
static hv_status open_arena(hv_trainer *trainer, const hv_trainer_options *options) {
  hv_model_step step = {.config = options->config,
                        .dtype = options->dtype,
                        .gradients = options->gradients,
                        .limits = options->limits,
                        .frozen = options->freeze,
                        .frozen_count = options->freeze_count,
                        .training = true};
  hv_plan_counts counts;
  size_t training, measuring;
  HV_TRY(hv_model_plan_step(&step, &training, &counts));
  trainer->matrix_flops = counts.matrix_flops;
  step.recompute = options->recompute;
  if (step.recompute.level != HV_RECOMPUTE_NONE) HV_TRY(hv_model_plan_step(&step, &training, NULL));
  step.training = false;
  HV_TRY(hv_model_plan_step(&step, &measuring, NULL));
  return hv_arena_open(trainer->device, HV_MEMORY_ACTIVATIONS, training > measuring ? training : measuring,
                       "activations", &trainer->arena);
}

hv_status hv_trainer_open(hv_device *device, const hv_trainer_options *options, hv_trainer **out) {
  hv_status status = HV_OK;
  void *host;
  *out = NULL;
  hv_trainer *trainer = calloc(1, sizeof *trainer);
  if (!trainer) return hv_error_memory("the trainer");
  trainer->device = device;
  trainer->limits = options->limits;
  trainer->parts = options->parts;
  trainer->weights = options->weights;
  trainer->seed = options->seed;
  trainer->spikes = options->spikes;
  trainer->comm = options->comm;
  trainer->trace = options->trace;
  HV_CHECK(hv_stream_open(device, &trainer->stream));
  HV_CHECK(hv_stream_open(device, &trainer->uploads));
  HV_CHECK(hv_model_open(options->config, device, options->dtype, &trainer->model));
  trainer->params = hv_model_params(trainer->model);
  hv_params_trace(trainer->params, options->trace);
  HV_CHECK(hv_params_freeze(trainer->params, options->freeze, options->freeze_count));
  HV_CHECK(hv_params_scale_rates(trainer->params, options->rate_patterns, options->rate_factors, options->rate_count));
  if (options->comm) HV_CHECK(hv_params_distribute(trainer->params, options->comm, options->sharding));
  HV_CHECK(hv_params_allocate(trainer->params));
  HV_CHECK(hv_params_allocate_gradients(trainer->params, options->gradients));
  if (!options->no_update) {
    HV_CHECK(hv_optimizer_open(trainer->params, &options->optimizer, trainer->stream, &trainer->optimizer));
    if (options->ema_decay > 0) {
      HV_CHECK(hv_ema_open(trainer->optimizer, trainer->params, options->ema_decay, &trainer->ema));
    }
  }
  HV_CHECK(hv_model_prepare(trainer->model, most_positions(options->config, &options->limits),
                            (int64_t)options->limits.samples * options->config->num_cameras, trainer->stream));
  for (int i = 0; i < 2; i++) {
    HV_CHECK(hv_sequence_open(options->config, device, &options->limits, &trainer->sequences[i]));
    hv_sequence_trace(trainer->sequences[i], options->trace);
  }
  hv_model_set_recompute(trainer->model, options->recompute);
  HV_CHECK(open_arena(trainer, options));
  HV_CHECK(hv_device_allocate_host(device, (size_t)options->parts * sizeof *trainer->losses, "the losses", &host));
  trainer->losses = host;
  memset(trainer->losses, 0, (size_t)options->parts * sizeof *trainer->losses);
  *out = trainer;
  trainer = NULL;
done:
  hv_trainer_close(trainer);
  return status;
}

void hv_trainer_close(hv_trainer *trainer) {
  if (!trainer) return;
  hv_stream_close(trainer->uploads); /* waits for the batch that is being uploaded */
  hv_device_release_host(trainer->device, trainer->losses);
  hv_arena_close(&trainer->arena);
  for (int i = 0; i < 2; i++) hv_sequence_close(trainer->sequences[i]);
  hv_ema_close(trainer->ema);
  hv_optimizer_close(trainer->optimizer);
  hv_model_close(trainer->model);
  hv_stream_close(trainer->stream);
  free(trainer);
}

hv_status hv_trainer_initialize(hv_trainer *trainer, const hv_model_directory *directory, hv_text *unexpected) {
  if (directory) return hv_model_directory_fill(directory, trainer->params, trainer->stream, unexpected);
  return hv_params_initialize(trainer->params, trainer->seed, trainer->stream);
}

hv_sequence *hv_trainer_idle_sequence(hv_trainer *trainer) {
  return trainer->sequences[trainer->built ? 1 - trainer->current : trainer->current];
}

/* Fetches the run's next batch, builds it into the sequence that the next pass uses, and starts its upload. */
static hv_status send_next(hv_trainer *trainer, hv_batch_source *source, int64_t step) {
  const hv_batch *batch;
  hv_sequence *sequence = trainer->sequences[trainer->current];
  hv_span *span = hv_trace_begin(trainer->trace, HV_TRACE_LOADER, "wait for", "a batch", NULL);
  hv_status status = source->next(source, &batch);
  hv_trace_end(span, NULL);
  HV_TRY(status);
  status = hv_sequence_build(sequence, batch, trainer->seed, (uint64_t)step);
  source->release(source, batch);
  HV_TRY(status);
  hv_sequence_upload(sequence, trainer->uploads);
  trainer->built = true;
  return HV_OK;
}

hv_status hv_trainer_read_ahead(hv_trainer *trainer, hv_batch_source *source) {
  return trainer->built ? HV_OK : send_next(trainer, source, trainer->step);
}

static void download_loss(hv_trainer *trainer, hv_tensor loss, float *to) {
  *to = 0.0f;
  if (hv_present(loss)) hv_download(trainer->stream, to, loss.data, sizeof *to);
}

static bool is_alone(const hv_trainer *trainer) {
  return !trainer->comm || trainer->comm->size == 1;
}

int64_t hv_trainer_batch(const hv_trainer *trainer) {
  return (int64_t)trainer->limits.samples * trainer->parts * (trainer->comm ? trainer->comm->size : 1);
}

/* Sums over parts and ranks the losses, which are already divided by the counts of the whole batch, and the caller's
 * numbers. Waits for the device and for the other ranks. `own` is this rank's error or NULL; an error of any rank is
 * returned on all. */
static hv_status sum_over_ranks(hv_trainer *trainer, hv_status own, hv_step_result *out) {
  enum { FAILED = 2 + HV_TRAINER_NUMBERS, SUMS };
  double sums[SUMS] = {0};
  hv_status status = hv_stream_synchronize(trainer->stream);
  if (status) return hv_status_first(own, status);
  for (int32_t part = 0; part < trainer->parts; part++) {
    for (int i = 0; i < 2; i++) sums[i] += trainer->losses[part][i];
  }
  memcpy(sums + 2, trainer->numbers, sizeof trainer->numbers);
  if (!is_alone(trainer)) {
    own = hv_status_first(own, hv_nan_watch_status(trainer->device));
    sums[FAILED] = own ? 1 : 0;
    status = hv_comm_sum(trainer->comm, "losses, signals and files", sums, SUMS);
    if (status) return hv_status_first(own, status);
    if (sums[FAILED] > 0) return hv_comm_agree(trainer->comm, "the step", own);
  }
  memcpy(trainer->numbers, sums + 2, sizeof trainer->numbers);
  out->loss_diffusion = sums[0];
  out->loss_ce = sums[1];
  out->loss = trainer->weights.diffusion * sums[0] + trainer->weights.ce * sums[1];
  return HV_OK;
}

/* Clips and updates, unless a spike or an error on any rank forbids it: then loss and norm must be known before the
 * update is queued. Several ranks always sum their figures before it: after it, the sum would have to wait until all
 * updated values are published, which otherwise the next forward pass hides. */
static hv_status update(hv_trainer *trainer, hv_status own, double learning_rate, hv_step_result *out) {
  bool judged = trainer->spikes.factor > 0, ahead = judged || !is_alone(trainer), not_finite;
  hv_nan_watch_pass(trainer->device, "update");
  hv_optimizer_measure(trainer->optimizer, learning_rate, trainer->stream);
  if (ahead) HV_TRY(sum_over_ranks(trainer, own, out));
  if (judged) {
    out->grad_norm = hv_optimizer_norm(trainer->optimizer);
    if (isfinite(out->grad_norm)) {
      out->skipped = hv_spike_judge(&trainer->spikes, &trainer->means, out->loss, out->grad_norm);
    }
    if (out->skipped) return HV_OK;
  }
  hv_span *span = hv_trace_begin(trainer->trace, HV_TRACE_COMPUTE, "update", "parameters", trainer->stream);
  hv_optimizer_update(trainer->optimizer, trainer->stream);
  hv_ema_update(trainer->ema, trainer->stream);
  hv_trace_end(span, trainer->stream);
  HV_TRY(ahead ? hv_stream_synchronize(trainer->stream) : sum_over_ranks(trainer, own, out));
  hv_optimizer_finish(trainer->optimizer, &out->grad_norm, &not_finite);
  out->skipped = not_finite ? HV_SKIP_NOT_FINITE : HV_SKIP_NONE;
  if (!not_finite) hv_spike_add(&trainer->spikes, &trainer->means, out->loss, out->grad_norm);
  return HV_OK;
}

/* Queues the forward and backward pass over the current sequence. */
static void run_pass(hv_trainer *trainer, bool last, hv_model_activations *activations) {
  hv_stream *stream = trainer->stream;
  hv_sequence *sequence = trainer->sequences[trainer->current];
  hv_arena_release(&trainer->arena, 0);
  hv_sequence_use(sequence, stream);
  hv_params_begin_pass(trainer->params, last, stream);
  hv_model_forward(trainer->model, sequence, &trainer->weights, true, &trainer->arena, stream, activations);
  hv_model_backward(trainer->model, sequence, activations, &trainer->arena, stream);
  hv_sequence_done(sequence, stream);
}

hv_status hv_trainer_measure_choices(hv_trainer *trainer, hv_batch_source *source, bool *measured) {
  hv_model_activations activations;
  bool leads = !trainer->comm || trainer->comm->rank == 0;
  *measured = !trainer->device->nan_watch && hv_device_measure_choices(trainer->device, leads);
  if (!*measured) return HV_OK;
  hv_status status = hv_trainer_read_ahead(trainer, source);
  if (!status) {
    hv_params_zero_gradients(trainer->params, trainer->stream);
    /* The first pass of a step sets most gradients, later ones add to them: these are different products. */
    int32_t passes = trainer->parts < 2 ? trainer->parts : 2;
    for (int32_t pass = 0; pass < passes; pass++) run_pass(trainer, pass + 1 == passes, &activations);
    hv_params_end_passes(trainer->params, trainer->stream);
    status = hv_stream_synchronize(trainer->stream);
  }
  (void)hv_device_measure_choices(trainer->device, false);
  return status;
}

/* Moves on to the next batch; if that fails, the current one stays. After the last step nothing is read, so that a
 * batch that no step needs cannot make it fail. */
static hv_status take_next(hv_trainer *trainer, hv_batch_source *source, int64_t step) {
  trainer->built = false;
  if (trainer->total_steps > 0 && step >= trainer->total_steps) return HV_OK;
  trainer->current = 1 - trainer->current;
  hv_status status = send_next(trainer, source, step);
  if (status) trainer->current = 1 - trainer->current;
  return status;
}

/* A rank that fails alone, because it cannot read a batch, still runs the rest of the step, since the others wait for
 * it: by the sum at the end all learn of the error, and none updates anything. */
hv_status hv_trainer_step(hv_trainer *trainer, hv_batch_source *source, double learning_rate, hv_step_result *out) {
  hv_stream *stream = trainer->stream;
  double start = hv_clock_seconds();
  *out = (hv_step_result){0};
  HV_TRY(hv_trainer_read_ahead(trainer, source));
  hv_params_zero_gradients(trainer->params, stream);
  hv_status own = HV_OK;
  for (int32_t part = 0; part < trainer->parts; part++) {
    hv_model_activations activations;
    run_pass(trainer, part + 1 == trainer->parts, &activations);
    download_loss(trainer, activations.loss_diffusion, &trainer->losses[part][0]);
    download_loss(trainer, activations.loss_ce, &trainer->losses[part][1]);
    if (!own) own = take_next(trainer, source, trainer->step + (part + 1 == trainer->parts));
    if (own && is_alone(trainer)) return own;
  }
  if (!is_alone(trainer)) {
    hv_status status = hv_stream_synchronize(stream);
    if (status) return hv_status_first(own, status);
    out->own_seconds = hv_clock_seconds() - start;
  }
  HV_TRY(update(trainer, own, learning_rate, out));
  /* The upload stream's errors do not reach the other stream, so they are asked for here. This waits for nothing new:
   * the copy had the whole step to finish. */
  HV_TRY(hv_error_context(hv_stream_synchronize(trainer->uploads), "sending a batch to the device"));
  HV_TRY(hv_arena_status(&trainer->arena));
  HV_TRY(hv_nan_watch_status(trainer->device));
  trainer->step++;
  trainer->skipped = out->skipped ? trainer->skipped + 1 : 0;
  trainer->samples += hv_trainer_batch(trainer);
  return HV_OK;
}
