#include "train/check.h"

#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/file.h"
#include "core/tensor/nan_watch.h"
#include "train/check_batch.h"
#include "train/trainer.h"

enum { NAME_SIZE = 512 };

typedef struct check {
  const hv_check_options *options;
  hv_model_directory directory;
  hv_config config; /* with the objective asked for */
  hv_file_batch file;
  hv_trainer *trainer;
  hv_safetensors_writer *writer;
  float *staging; /* room for the largest tensor that is written */
} check;

static hv_status choose_objective(check *self) {
  const hv_config *model = &self->directory.model.config;
  self->config = *model;
  if (self->options->objective < 0) return HV_OK;
  self->config.objective = (hv_objective)self->options->objective;
  bool lacks = (hv_config_has_diffusion(&self->config) && !hv_config_has_diffusion(model)) ||
               (hv_config_has_autoregression(&self->config) && !hv_config_has_autoregression(model));
  if (!lacks) return HV_OK;
  return hv_error(HV_ERR_INPUT, "%s was trained with the objective %s and lacks a head that --objective %s needs",
                  self->options->model, hv_objective_name(model->objective), hv_objective_name(self->config.objective));
}

static hv_status open_trainer(check *self, hv_device *device) {
  char patterns[HV_MAX_TOWERS][HV_PREFIX_SIZE + 2];
  const char *freeze[HV_MAX_TOWERS];
  for (int32_t i = 0; i < self->config.num_towers; i++) {
    snprintf(patterns[i], sizeof patterns[i], "%s.*", self->config.vision[i].prefix);
    freeze[i] = patterns[i];
  }
  hv_trainer_options options = {
      .config = &self->config,
      .dtype = self->options->dtype,
      .limits = {.samples = self->file.batch.samples,
                 .branches = self->file.branches,
                 .prompt = self->file.batch.prompt_stride},
      .parts = 1,
      .freeze = freeze,
      .freeze_count = self->config.num_towers,
      .weights = {.diffusion = 1, .ce = 1},
      .optimizer = {.beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .max_norm = 1.0},
  };
  HV_TRY(hv_trainer_open(device, &options, &self->trainer));
  HV_TRY(hv_trainer_initialize(self->trainer, &self->directory, NULL));
  return hv_params_nan_status(self->trainer->params, self->trainer->stream);
}

static hv_status declare(check *self, const char *name, int32_t rank, const int64_t *shape) {
  return hv_safetensors_writer_declare(self->writer, name, HV_F32, rank, shape);
}

static hv_status declare_params(check *self, const char *prefix) {
  const hv_params *params = self->trainer->params;
  for (hv_param_id i = 0; i < hv_params_count(params); i++) {
    char name[NAME_SIZE];
    const hv_param *param = hv_params_get(params, i);
    if (!param->trainable) continue;
    snprintf(name, sizeof name, "%s.%s", prefix, param->name);
    HV_TRY(declare(self, name, param->rank, param->shape));
  }
  return HV_OK;
}

static hv_status declare_all(check *self, int64_t vision_width) {
  const hv_config *config = &self->config;
  const int64_t one[] = {1}, steps[] = {self->options->steps};
  int64_t samples = self->file.batch.samples, views = config->num_cameras, patches = hv_config_patches(config);
  const int64_t noise[] = {samples, self->file.branches, config->action_chunk, config->action_dim};
  const int64_t features[] = {samples, views, patches, vision_width};
  const int64_t tokens[] = {samples, views, patches, config->llm.hidden_size};
  HV_TRY(declare(self, "loss", 1, one));
  if (hv_config_has_diffusion(config)) HV_TRY(declare(self, "loss_diffusion", 1, one));
  if (hv_config_has_autoregression(config)) HV_TRY(declare(self, "loss_ce", 1, one));
  if (hv_config_has_diffusion(config)) HV_TRY(declare(self, "noise_pred", 4, noise));
  HV_TRY(declare(self, "vision_features", 4, features));
  HV_TRY(declare(self, "image_tokens", 4, tokens));
  HV_TRY(declare_params(self, "grad"));
  if (self->options->steps == 0) return HV_OK;
  HV_TRY(declare(self, "losses", 1, steps));
  return declare_params(self, "param");
}

static hv_status write_floats(check *self, const float *values, int64_t count) {
  return hv_safetensors_writer_write(self->writer, values, (size_t)count * sizeof *values);
}

/* Writes a tensor on the device as floats, row by row, since its rows need not be contiguous. */
static hv_status write_tensor(check *self, hv_tensor tensor) {
  hv_stream *stream = self->trainer->stream;
  size_t row_bytes = (size_t)tensor.cols * hv_dtype_size(tensor.dtype);
  void *row = malloc(row_bytes ? row_bytes : 1);
  if (!row) return hv_error_memory("a tensor's row");
  hv_status status = HV_OK;
  for (int64_t i = 0; i < tensor.rows && !status; i++) {
    hv_download(stream, row, hv_tensor_rows(tensor, i, 1).data, row_bytes);
    status = hv_stream_synchronize(stream);
    if (status) break;
    hv_dtype_convert(HV_F32, self->staging, tensor.dtype, row, tensor.cols);
    status = write_floats(self, self->staging, tensor.cols);
  }
  free(row);
  return status;
}

static hv_status read_loss(const check *self, hv_tensor loss, float *out) {
  *out = 0.0f;
  if (!hv_present(loss)) return HV_OK;
  hv_download(self->trainer->stream, out, loss.data, sizeof *out);
  return hv_stream_synchronize(self->trainer->stream);
}

static hv_status write_losses(check *self, const hv_model_activations *activations) {
  float diffusion, ce;
  HV_TRY(read_loss(self, activations->loss_diffusion, &diffusion));
  HV_TRY(read_loss(self, activations->loss_ce, &ce));
  float loss = diffusion + ce;
  HV_TRY(write_floats(self, &loss, 1));
  if (hv_config_has_diffusion(&self->config)) HV_TRY(write_floats(self, &diffusion, 1));
  if (hv_config_has_autoregression(&self->config)) HV_TRY(write_floats(self, &ce, 1));
  return HV_OK;
}

static hv_status write_gradients(check *self) {
  hv_params *params = self->trainer->params;
  for (hv_param_id i = 0; i < hv_params_count(params); i++) {
    const hv_param *param = hv_params_get(params, i);
    if (!param->trainable) continue;
    HV_TRY(hv_param_read_gradient(params, i, HV_F32, self->staging, self->trainer->stream));
    HV_TRY(write_floats(self, self->staging, param->rows * param->cols));
  }
  return HV_OK;
}

/* Runs one forward and one backward pass, and writes losses, outputs and gradients. */
static hv_status write_pass(check *self) {
  hv_trainer *trainer = self->trainer;
  hv_stream *stream = trainer->stream;
  hv_sequence *sequence = hv_trainer_idle_sequence(trainer);
  hv_model_activations activations;
  HV_TRY(hv_error_context(hv_sequence_build(sequence, &self->file.batch, 0, 0), "%s", self->options->batch));
  hv_file_batch_warn(&self->file, &self->config, self->options->batch);
  hv_params_zero_gradients(trainer->params, stream);
  hv_arena_release(&trainer->arena, 0);
  hv_sequence_upload(sequence, stream);
  hv_sequence_use(sequence, stream);
  hv_model_forward(trainer->model, sequence, &trainer->weights, true, &trainer->arena, stream, &activations);
  HV_TRY(hv_stream_synchronize(stream));
  HV_TRY(declare_all(self, activations.vision_features.cols));
  HV_TRY(write_losses(self, &activations));
  if (hv_config_has_diffusion(&self->config)) HV_TRY(write_tensor(self, activations.noise_pred));
  HV_TRY(write_tensor(self, activations.vision_features));
  HV_TRY(write_tensor(self, activations.image_tokens));
  hv_model_backward(trainer->model, sequence, &activations, &trainer->arena, stream);
  hv_sequence_done(sequence, stream);
  HV_TRY(hv_stream_synchronize(stream));
  HV_TRY(hv_arena_status(&trainer->arena));
  HV_TRY(hv_nan_watch_status(trainer->device));
  return write_gradients(self);
}

static hv_status write_steps(check *self) {
  hv_trainer *trainer = self->trainer;
  hv_fixed_source source = hv_fixed_source_make(&self->file.batch);
  for (int64_t step = 0; step < self->options->steps; step++) {
    hv_step_result result;
    HV_TRY(hv_trainer_step(trainer, &source.source, self->options->learning_rate, &result));
    float loss = (float)result.loss;
    HV_TRY(write_floats(self, &loss, 1));
  }
  hv_params *params = trainer->params;
  for (hv_param_id i = 0; i < hv_params_count(params) && self->options->steps > 0; i++) {
    const hv_param *param = hv_params_get(params, i);
    if (!param->trainable) continue;
    HV_TRY(hv_optimizer_read_master(trainer->optimizer, i, self->staging, trainer->stream));
    HV_TRY(write_floats(self, self->staging, param->rows * param->cols));
  }
  return HV_OK;
}

static hv_status allocate_staging(check *self) {
  const hv_params *params = self->trainer->params;
  int64_t largest = self->config.llm.hidden_size + hv_config_vision_width(&self->config);
  for (hv_param_id i = 0; i < hv_params_count(params); i++) {
    const hv_param *param = hv_params_get(params, i);
    if (param->rows * param->cols > largest) largest = param->rows * param->cols;
  }
  self->staging = malloc((size_t)largest * sizeof *self->staging);
  return self->staging ? HV_OK : hv_error_memory("the results");
}

/* Results must not take the place of what they are computed from. */
static hv_status check_out(const hv_check_options *options) {
  if (hv_file_is_same(options->out, options->batch)) {
    return hv_error(HV_ERR_INPUT, "--out %s is the same file as --batch and would overwrite it; choose another",
                    options->out);
  }
  char *copy = strdup(options->out);
  if (!copy) return hv_error_memory(options->out);
  bool inside = hv_file_is_same(dirname(copy), options->model);
  free(copy);
  if (!inside) return HV_OK;
  return hv_error(HV_ERR_INPUT, "--out %s lies in the model directory of --model; choose a file elsewhere",
                  options->out);
}

hv_status hv_check(const hv_check_options *options, hv_device *device) {
  hv_status status = HV_OK;
  check self = {.options = options};
  HV_TRY(check_out(options));
  HV_CHECK(hv_model_directory_open(options->model, &self.directory));
  HV_CHECK(choose_objective(&self));
  HV_CHECK(hv_file_batch_open(options->batch, &self.config, &self.file));
  HV_CHECK(open_trainer(&self, device));
  HV_CHECK(allocate_staging(&self));
  HV_CHECK(hv_safetensors_writer_open(options->out, &self.writer));
  HV_CHECK(write_pass(&self));
  HV_CHECK(write_steps(&self));
  status = hv_safetensors_writer_commit(self.writer);
  self.writer = NULL;
done:
  hv_safetensors_writer_abort(self.writer);
  free(self.staging);
  hv_trainer_close(self.trainer);
  hv_file_batch_close(&self.file);
  hv_model_directory_close(&self.directory);
  return status;
}
