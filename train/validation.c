#include "train/validation.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/clock.h"
#include "core/hybridvla/policy.h"
#include "core/tensor/nan_watch.h"

const char *hv_predictor_name(hv_predictor predictor) {
  static const char *const names[] = {"diffusion", "autoregressive", "ensemble", "mean_action"};
  return names[predictor];
}

/* Draws of validation differ from those of training by their seed. */
static uint64_t validation_seed(uint64_t seed) {
  return seed ^ 0x76616c6964617465u;
}

typedef struct measurement {
  hv_trainer *trainer;
  const hv_run_data *data;
  const hv_config *model;
  hv_policy *policy;
  hv_loader *loader;
  hv_progress *progress;
  int64_t averaged, counted; /* predictions where the ensemble averaged; action steps compared */
  double loss[2], weight[2]; /* sums over values, and the numbers of values */
  double *action;            /* [H A]: scratch */
  bool *gripper;             /* [A] */
  double *mean_action;       /* [A] */
} measurement;

/* The value that a robot would execute for one number of the model's output. */
static double as_executed(const measurement *m, int32_t dim, double value) {
  if (m->gripper[dim]) return value >= 0.5 ? 1.0 : 0.0;
  return fmin(fmax(value, -1.0), 1.0);
}

static void add_errors(const measurement *m, hv_predictor predictor, const double *predicted, const hv_batch *batch,
                       int32_t sample, hv_validation *out) {
  int32_t chunk = m->model->action_chunk, dims = m->model->action_dim;
  out->present[predictor] = true;
  for (int32_t h = 0; h < chunk; h++) {
    if (batch->action_mask && !batch->action_mask[sample * chunk + h]) continue;
    const float *truth = batch->actions + ((int64_t)sample * chunk + h) * dims;
    for (int32_t d = 0; d < dims; d++) out->dims[predictor][d] += fabs(predicted[h * dims + d] - (double)truth[d]);
  }
}

/* The actions that a robot would execute for a head's output. If that is not finite, hvla_predict returns no action:
 * then the result is false, and all values are NaN.
 */
static bool execute(const measurement *m, const float *output, double confidence, double *out) {
  int32_t dims = m->model->action_dim, values = m->model->action_chunk * dims;
  bool finite = isfinite(confidence);
  for (int32_t i = 0; i < values; i++) finite = finite && isfinite(output[i]);
  for (int32_t i = 0; i < values; i++) out[i] = finite ? as_executed(m, i % dims, (double)output[i]) : NAN;
  return finite;
}

/* Adds the errors of one frame's prediction. */
static void compare(measurement *m, const hv_policy_result *result, const hv_batch *batch, int32_t sample,
                    hv_validation *out) {
  int32_t chunk = m->model->action_chunk, dims = m->model->action_dim, values = chunk * dims;
  double *diffusion = m->action, *autoregressive = m->action + values, *other = m->action + 2 * values;
  bool finite = true;
  if (result->diffusion) {
    finite = execute(m, result->diffusion, 1, diffusion);
    add_errors(m, HV_PREDICT_DIFFUSION, diffusion, batch, sample, out);
  }
  if (result->autoregressive) {
    finite = execute(m, result->autoregressive, result->confidence, autoregressive) && finite;
    add_errors(m, HV_PREDICT_AUTOREGRESSIVE, autoregressive, batch, sample, out);
  }
  if (result->diffusion && result->autoregressive) {
    m->averaged += hv_ensemble(diffusion, autoregressive, result->confidence, m->data->config->validation.theta, chunk,
                               dims, m->gripper, other);
    for (int32_t i = 0; i < values && !finite; i++)
      other[i] = NAN; /* the ensemble of a gripper would be a number even then */
    add_errors(m, HV_PREDICT_ENSEMBLE, other, batch, sample, out);
  }
  for (int32_t i = 0; i < values; i++) other[i] = m->mean_action[i % dims];
  add_errors(m, HV_PREDICT_MEAN_ACTION, other, batch, sample, out);
  for (int32_t h = 0; h < chunk; h++) m->counted += !batch->action_mask || batch->action_mask[sample * chunk + h];
  out->not_finite += !finite;
}

static hv_status predict(measurement *m, const hv_loader_batch *loaded, int32_t sample, hv_policy_result *out) {
  const hv_batch *batch = &loaded->batch;
  const hv_config *model = m->model;
  int64_t pixels = (int64_t)model->num_cameras * model->vision[0].image_size * model->vision[0].image_size * 3;
  hv_observation observation = {.images = batch->images + sample * pixels,
                                .prompt_ids = batch->prompt_ids + (int64_t)sample * batch->prompt_stride,
                                .state = model->state_dim ? batch->state + (int64_t)sample * model->state_dim : NULL};
  while (observation.prompt_count < batch->prompt_stride && observation.prompt_ids[observation.prompt_count] >= 0) {
    observation.prompt_count++;
  }
  hv_policy_draws draws = {.seed = validation_seed(m->trainer->seed), .step = (uint64_t)loaded->frames[sample]};
  return hv_policy_predict(m->policy, &observation, &draws, out);
}

/* Adds the losses of one batch, each times the number of values that it is the mean of. */
static hv_status measure_loss(measurement *m, const hv_loader_batch *loaded) {
  hv_trainer *trainer = m->trainer;
  hv_batch batch = loaded->batch;
  hv_model_activations activations;
  double count[2];
  float loss[2] = {0};
  batch.sample_ids = loaded->frames; /* the same draws for a frame every time */
  hv_batch_count(m->model, &batch, trainer->limits.branches, &count[0], &count[1]);
  hv_sequence *sequence = hv_trainer_idle_sequence(trainer);
  HV_TRY(hv_sequence_build(sequence, &batch, validation_seed(trainer->seed), 0));
  hv_arena_release(&trainer->arena, 0);
  hv_sequence_upload(sequence, trainer->stream);
  hv_sequence_use(sequence, trainer->stream);
  hv_model_forward(trainer->model, sequence, &trainer->weights, false, &trainer->arena, trainer->stream, &activations);
  hv_sequence_done(sequence, trainer->stream);
  hv_tensor losses[2] = {activations.loss_diffusion, activations.loss_ce};
  for (int i = 0; i < 2; i++) {
    if (hv_present(losses[i])) hv_download(trainer->stream, &loss[i], losses[i].data, sizeof loss[i]);
  }
  HV_TRY(hv_stream_synchronize(trainer->stream));
  for (int i = 0; i < 2; i++) {
    m->loss[i] += (double)loss[i] * count[i];
    m->weight[i] += count[i];
  }
  return HV_OK;
}

/* Fetches the next batch, and fails on all ranks if it fails on one, since they may wait for one another in what
 * follows. */
static hv_status next_batch(const measurement *m, const hv_loader_batch **out) {
  hv_status status = hv_loader_next(m->loader, out);
  return m->trainer->comm ? hv_comm_agree(m->trainer->comm, "reading held-out frames", status) : status;
}

/* A barrier after each frame: a rank that has died is noticed as soon as in a training step, however long the whole
 * validation takes. */
static hv_status keep_together(const measurement *m) {
  return m->trainer->comm ? hv_comm_barrier(m->trainer->comm, "measuring held-out frames") : HV_OK;
}

/* Of R ranks, each predicts every R-th frame. If the last round has fewer frames than ranks, the remaining ranks
 * predict the last frame, too, without counting it: sharded parameters are gathered by calls that all ranks must make.
 */
static hv_status predict_batch(measurement *m, const hv_loader_batch *loaded, hv_validation *out) {
  const hv_comm *comm = m->trainer->comm;
  int32_t ranks = comm ? comm->size : 1, samples = loaded->batch.samples;
  for (int32_t first = 0; first < samples; first += ranks) {
    hv_policy_result result;
    int32_t sample = first + (comm ? comm->rank : 0);
    HV_TRY(predict(m, loaded, sample < samples ? sample : samples - 1, &result));
    if (sample < samples) compare(m, &result, &loaded->batch, sample, out);
    HV_TRY(keep_together(m));
  }
  return HV_OK;
}

static hv_status measure_batches(measurement *m, hv_validation *out) {
  double start = hv_clock_seconds();
  for (;;) {
    const hv_loader_batch *loaded;
    hv_progress_work(m->progress, "held-out frames", out->frames, hv_loader_samples(m->loader),
                     hv_clock_seconds() - start);
    HV_TRY(next_batch(m, &loaded));
    if (!loaded) return HV_OK;
    hv_status status = loaded->batch.samples > 0 ? measure_loss(m, loaded) : HV_OK;
    if (!status) status = predict_batch(m, loaded, out);
    out->frames += loaded->batch.samples;
    hv_loader_release(m->loader, loaded);
    if (status) return status;
  }
}

static hv_status open_measurement(measurement *m) {
  const hv_config *model = m->model;
  size_t dims = (size_t)model->action_dim;
  m->action = calloc(3 * dims * (size_t)model->action_chunk, sizeof *m->action);
  m->gripper = calloc(dims, sizeof *m->gripper);
  m->mean_action = calloc(dims, sizeof *m->mean_action);
  if (!m->action || !m->gripper || !m->mean_action) return hv_error_memory("the validation");
  const hv_value_statistics *statistics = &m->data->statistics.action;
  for (int32_t d = 0; d < model->action_dim; d++) {
    m->gripper[d] = !statistics->mask[d];
    double mean = hv_normalize_value(statistics, d, statistics->mean[d]);
    m->mean_action[d] = m->gripper[d] ? mean : fmin(fmax(mean, -1.0), 1.0);
  }
  hv_policy_options options = hv_policy_default_options(model);
  options.ddim_steps = (int32_t)m->data->config->validation.ddim_steps;
  options.max_prompt = m->data->valid_prompts.stride;
  HV_TRY(hv_policy_open(m->trainer->model, &options, &m->policy));
  return hv_run_data_open_validation(m->data, &m->loader);
}

_Static_assert((int)HV_MAX_ERROR_DIMS <= (int)HV_COMM_MAX_SUM, "a predictor's errors are one sum");

/* Sums over ranks what each has counted on its own frames. Losses need no sum: every rank computes them on all frames.
 */
static hv_status add_up(measurement *m, hv_validation *out) {
  hv_comm *comm = m->trainer->comm;
  hv_status status = hv_nan_watch_status(m->trainer->device);
  if (!comm) return status;
  HV_TRY(hv_comm_agree(comm, "measuring held-out frames", status));
  double counts[3 + HV_PREDICTORS] = {(double)m->averaged, (double)m->counted, (double)out->not_finite};
  for (int p = 0; p < HV_PREDICTORS; p++) counts[3 + p] = out->present[p];
  HV_TRY(hv_comm_sum(comm, "held-out frames", counts, 3 + HV_PREDICTORS));
  m->averaged = (int64_t)counts[0];
  m->counted = (int64_t)counts[1];
  out->not_finite = (int64_t)counts[2];
  for (int p = 0; p < HV_PREDICTORS; p++) {
    out->present[p] = counts[3 + p] > 0;
    HV_TRY(hv_comm_sum(comm, "held-out errors", out->dims[p], out->action_dim));
  }
  return HV_OK;
}

static void finish(const measurement *m, hv_validation *out) {
  const hv_loss_weights *weights = &m->trainer->weights;
  out->loss_diffusion = m->weight[0] > 0 ? m->loss[0] / m->weight[0] : 0;
  out->loss_ce = m->weight[1] > 0 ? m->loss[1] / m->weight[1] : 0;
  out->loss = weights->diffusion * out->loss_diffusion + weights->ce * out->loss_ce;
  out->ensemble_rate = out->frames > 0 ? (double)m->averaged / (double)out->frames : 0;
  for (int p = 0; p < HV_PREDICTORS; p++) {
    for (int32_t d = 0; d < out->action_dim; d++) {
      out->dims[p][d] /= (double)(m->counted > 0 ? m->counted : 1);
      out->error[p] += out->dims[p][d] / out->action_dim;
    }
  }
}

double hv_held_out_figure(const hv_validation *held_out, hv_held_out_metric metric) {
  hv_predictor predictor = HV_PREDICT_DIFFUSION;
  switch (metric) {
  case HV_METRIC_LOSS: return held_out->loss;
  case HV_METRIC_DIFFUSION: break;
  case HV_METRIC_AUTOREGRESSIVE: predictor = HV_PREDICT_AUTOREGRESSIVE; break;
  case HV_METRIC_ENSEMBLE: predictor = HV_PREDICT_ENSEMBLE; break;
  }
  return held_out->present[predictor] ? held_out->error[predictor] : NAN;
}

hv_status hv_validation_check(const hv_config *model) {
  if (model->action_dim <= HV_MAX_ERROR_DIMS) return HV_OK;
  return hv_error(HV_ERR_INPUT, "validation measures at most %d action dimensions, the model has %d", HV_MAX_ERROR_DIMS,
                  model->action_dim);
}

hv_status hv_validate(hv_trainer *trainer, const hv_run_data *data, hv_progress *progress, hv_validation *out) {
  hv_status status = HV_OK;
  measurement m = {.trainer = trainer, .data = data, .model = &data->model, .progress = progress};
  *out = (hv_validation){.action_dim = data->model.action_dim};
  HV_TRY(hv_validation_check(&data->model));
  HV_CHECK(open_measurement(&m));
  HV_CHECK(measure_batches(&m, out));
  HV_CHECK(add_up(&m, out));
  finish(&m, out);
done:
  hv_loader_close(m.loader);
  hv_policy_close(m.policy);
  free(m.action);
  free(m.gripper);
  free(m.mean_action);
  return status;
}
