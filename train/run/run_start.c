#include "train/run/run_start.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "core/base/build_commit.h"
#include "core/base/directory.h"
#include "core/base/file.h"
#include "core/base/log.h"
#include "core/hybridvla/schedule.h"
#include "core/io/json.h"
#include "core/io/yaml.h"
#include "train/adapt.h"
#include "train/checkpoint/checkpoint.h"
#include "train/plan/best_rate.h"
#include "train/plan/plan.h"
#include "train/run/run_agreement.h"
#include "train/run/run_changes.h"
#include "train/run/run_choices.h"
#include "train/run/run_digest.h"
#include "train/trainer_options.h"

static const double PATIENCE = 0.02; /* seconds for the largest product that the device is measured by */

/* Steps of the whole run. Batches may have had another size up to the position, and the last one may go beyond the last
 * epoch. `exactly` keeps a rounding error from adding a batch: 2.2 epochs of 435 frames are 957 samples. */
static int64_t count_steps(const hv_train_config *config, int64_t frames, const hv_run_position *position) {
  static const double exactly = 1 - 1e-12;
  double batch = (double)config->train.batch_size,
         difference = (double)position->step * batch - (double)position->samples;
  if (config->train.steps > 0) return config->train.steps;
  double steps = ceil((config->train.epochs * (double)frames + difference) / batch * exactly);
  double least = position->step > 0 ? (double)position->step : 1;
  return (int64_t)fmax(steps, least);
}

/* A run that is already beyond its last step is an error, not finished. */
static hv_status check_steps(const hv_run_state *self) {
  int64_t step = self->trainer->step;
  if (step > self->trainer->total_steps) {
    return hv_error(HV_ERR_INPUT,
                    "%s is already at step %" PRId64 ", and train.steps is %" PRId64
                    ": a run cannot go back; increase train.steps, or choose another output",
                    self->config->output, step, self->trainer->total_steps);
  }
  if (step > 0 && step == self->trainer->total_steps) {
    hv_log_info("%s is already at step %" PRId64 ", its last: there is nothing to train", self->config->output, step);
  }
  return HV_OK;
}

static hv_status open_trainer(hv_run_state *self, hv_device *device) {
  hv_trainer_options options = hv_trainer_options_make(self->config, &self->model.config, self->comm->size,
                                                       hv_run_data_longest_prompt(&self->data));
  options.comm = self->comm;
  options.trace = self->trace;
  hv_status status = HV_OK;
  if (self->leader) status = hv_best_rate_measure(device, &options, PATIENCE, &self->device_flops);
  if (!status) status = hv_trainer_open(device, &options, &self->trainer);
  return hv_plan_explain(status, self->config, &self->model.config, device, self->comm->size, options.limits.prompt);
}

/* The length of lines that each end in a newline, without the last newline: the log adds its own. */
static int logged_length(const hv_text *lines) {
  return (int)lines->length - 1;
}

/* Reads parameters from init_from, and logs what is not simply copied. */
static hv_status start_from_directory(hv_run_state *self) {
  const hv_train_config *config = self->config;
  hv_text report = {0}, unexpected = {0};
  hv_adaptation adaptation = {
      .action_dims = &config->init.action_dims, .state_dims = &config->init.state_dims, .seed = (uint64_t)config->seed};
  hv_status status = self->leader ? hv_run_report_model_changes(&self->directory.model, &self->model) : HV_OK;
  if (!status) {
    status = hv_adapt_model(&self->directory, &self->model.config, &adaptation, self->trainer->params,
                            self->trainer->stream, &report, &unexpected);
  }
  if (!status && report.length > 0) {
    hv_log_info("started from %s:\n%.*s", config->init_from, logged_length(&report), hv_text_string(&report));
  }
  if (!status && unexpected.length > 0 && self->leader) {
    hv_log_warning("%s holds tensors that are not parameters of this model:\n%.*s", config->init_from,
                   logged_length(&unexpected), hv_text_string(&unexpected));
  }
  hv_text_free(&report);
  hv_text_free(&unexpected);
  return status;
}

/* Sets the initial parameters of a new run. */
static hv_status initialize(hv_run_state *self) {
  hv_trainer *trainer = self->trainer;
  HV_TRY(self->config->init_from ? start_from_directory(self) : hv_trainer_initialize(trainer, NULL, NULL));
  return hv_ema_reset(trainer->ema, trainer->stream);
}

static hv_status write_config(const hv_run_state *self) {
  json_t *resolved = NULL;
  char comment[128], *path = hv_path_join(self->config->output, "config.yaml");
  if (!path) return hv_error_memory("a path");
  snprintf(comment, sizeof comment, "Resolved by hvla-train %s, commit %s.", HVLA_VERSION, hv_build_commit());
  hv_status status = hv_train_config_resolve(self->config, &resolved);
  if (!status) status = hv_yaml_save(path, comment, resolved);
  json_decref(resolved);
  free(path);
  return status;
}

/* Checks what would otherwise fail at the first checkpoint, after many steps: if the name exists, it must be a
 * directory. */
static hv_status check_place(const char *output, const char *name) {
  char *path = hv_path_join(output, name);
  struct stat link, target;
  if (!path) return hv_error_memory("a path");
  bool wrong = lstat(path, &link) == 0 && (stat(path, &target) != 0 || !S_ISDIR(target.st_mode));
  hv_status status = HV_OK;
  if (wrong) {
    status = hv_error(HV_ERR_INPUT, "%s is not a directory, but the run writes its %s there; move it away", path, name);
  }
  free(path);
  return status;
}

/* Locks the directory, so that no other run begins in it, and checks that a run without --resume finds no checkpoints.
 */
static hv_status take_directory(hv_run_state *self) {
  int64_t *steps;
  size_t count;
  HV_TRY(hv_run_card_open(self->config->output, &self->card));
  HV_TRY(check_place(self->config->output, "model"));
  bool keeps_best = self->config->data.valid_split && self->config->validation.keep_best;
  if (keeps_best) HV_TRY(check_place(self->config->output, "best"));
  if (self->resume) return HV_OK;
  HV_TRY(hv_checkpoint_steps(self->config->output, &steps, &count));
  free(steps);
  if (count == 0) return HV_OK;
  return hv_error(HV_ERR_INPUT,
                  "%s already holds checkpoints of a run; add --resume to continue it, or choose another output",
                  self->config->output);
}

/* A run must not begin on top of another's results: checkpoints of which none can be used, or a model whose checkpoints
 * are gone, which may be the very one in init_from. */
static hv_status check_fresh(const hv_run_state *self) {
  const char *output = self->config->output;
  int64_t *steps;
  size_t count;
  HV_TRY(hv_checkpoint_steps(output, &steps, &count));
  free(steps);
  if (count > 0) {
    return hv_error(
        HV_ERR_INPUT,
        "%s: none of its checkpoints can be resumed from; to start anew there, move %s/checkpoints and %s/model away",
        output, output, output);
  }
  char *model = hv_path_join(output, "model");
  if (!model) return hv_error_memory("a path");
  bool empty = true; /* an empty directory is allowed, such as the mount point of a disk */
  hv_status status = hv_file_exists(model) ? hv_directory_is_empty(model, &empty) : HV_OK;
  free(model);
  if (status || empty) return status;
  return hv_error(HV_ERR_INPUT,
                  "%s holds a model but no checkpoint, and a new run there would replace the model; move %s/model "
                  "away, or choose another output",
                  output, output);
}

/* The step of the newest undamaged checkpoint; -1: there is none. */
static hv_status find_checkpoint(hv_run_state *self, int64_t *step) {
  hv_text damaged = {0};
  hv_status status = hv_checkpoint_find(self->config->output, self->comm, step, &damaged);
  if (damaged.length > 0) hv_log_warning("skipped damaged checkpoints:\n%s", hv_text_string(&damaged));
  hv_text_free(&damaged);
  return status;
}

/* The step that the run continues from; -1: it starts anew. */
static hv_status find_start(hv_run_state *self, int64_t *step) {
  *step = -1;
  HV_TRY(hv_comm_agree(self->comm, "taking the run directory", self->leader ? take_directory(self) : HV_OK));
  if (self->resume) HV_TRY(find_checkpoint(self, step));
  if (*step >= 0) return HV_OK;
  return hv_comm_agree(self->comm, "looking for checkpoints", self->leader ? check_fresh(self) : HV_OK);
}

static void resume_best(hv_run_state *self, const hv_best *found) {
  bool told = found->step >= 0 || found->since > 0;
  if (hv_best_resume(&self->best, found) || !told || !self->data.valid) return;
  hv_log_info("the held-out split, or how it is measured, has changed: earlier values of %s no longer count for the "
              "best model or for patience",
              self->best.metric);
}

static hv_status check_position(const hv_run_state *self, const hv_run_position *position) {
  const hv_train_config *config = self->config;
  if (position->seed != config->seed) {
    return hv_error(HV_ERR_INPUT, "%s was started with seed %" PRId64 ", not %" PRId64 ": its data order would change",
                    config->output, position->seed, config->seed);
  }
  if (position->samples % config->train.batch_size == 0) return HV_OK;
  return hv_error(HV_ERR_INPUT,
                  "%s has used %" PRId64 " samples so far, which is not a multiple of train.batch_size %" PRId64,
                  config->output, position->samples, config->train.batch_size);
}

/* Starts anew, or continues from the newest undamaged checkpoint. */
static hv_status begin(hv_run_state *self, hv_run_position *position) {
  const char *output = self->config->output;
  hv_trainer *trainer = self->trainer;
  int64_t step;
  *position = (hv_run_position){.seed = self->config->seed};
  HV_TRY(find_start(self, &step));
  if (step < 0) {
    if (self->resume) hv_log_info("%s holds no checkpoint to resume from: starting anew", output);
    return hv_comm_agree(self->comm, "setting the model's first values", initialize(self));
  }
  HV_TRY(hv_comm_agree(self->comm, "comparing configurations",
                       self->leader ? hv_run_report_changes(self->config) : HV_OK));
  HV_TRY(
      hv_checkpoint_load(output, step, trainer->params, trainer->optimizer, trainer->ema, trainer->stream, position));
  HV_TRY(hv_comm_agree(self->comm, "going on from the checkpoint", check_position(self, position)));
  trainer->step = position->step;
  trainer->samples = position->samples;
  trainer->skipped = position->skipped;
  trainer->means = position->means;
  hv_log_info("resumed from %s/checkpoints/step-%" PRId64, output, step);
  resume_best(self, &position->best);
  return hv_comm_agree(self->comm, "comparing statistics",
                       self->leader ? hv_run_data_report_changes(&self->data) : HV_OK);
}

/* Opens the files that the leader writes. */
static hv_status open_outputs(const hv_run_state *self) {
  hv_run_facts facts = {.config = self->config, .data = &self->data, .trainer = self->trainer};
  HV_TRY(write_config(self));
  return hv_run_card_begin(self->card, &facts);
}

/* The leader opens the run's files; all ranks watch the run. */
static hv_status open_watch(hv_run_state *self) {
  hv_status status = self->leader ? open_outputs(self) : HV_OK;
  if (!status) {
    status = hv_run_watch_open(self->config, &self->data, self->trainer, self->card, self->device_flops, &self->watch);
  }
  return hv_comm_agree(self->comm, "opening the run directory", status);
}

static hv_status open_files(hv_run_state *self) {
  hv_run_files_options options = {.config = self->config,
                                  .model = &self->model,
                                  .carry = self->directory.tensors,
                                  .data = &self->data,
                                  .trainer = self->trainer,
                                  .card = self->card,
                                  .best = &self->best};
  return hv_run_files_open(&options, &self->files);
}

/* Checks what would otherwise fail at the first validation, after many steps. A model that lacks a head has no figures
 * of it. */
static hv_status check_validation(const hv_run_state *self) {
  const hv_config *model = &self->model.config;
  if (self->config->data.valid_split) {
    HV_TRY(hv_error_context(hv_validation_check(model), "%s: data.valid_split", self->config->source));
  }
  if (self->config->data.valid_split && hv_config_has_diffusion(model)) {
    HV_TRY(
        hv_error_context(hv_schedule_check_ddim(model->diffusion_steps, (int32_t)self->config->validation.ddim_steps),
                         "%s: validation.ddim_steps", self->config->source));
  }
  hv_held_out_metric metric = (hv_held_out_metric)self->config->validation.metric;
  bool diffusion = metric == HV_METRIC_DIFFUSION || metric == HV_METRIC_ENSEMBLE;
  bool autoregression = metric == HV_METRIC_AUTOREGRESSIVE || metric == HV_METRIC_ENSEMBLE;
  bool lacks =
      (diffusion && !hv_config_has_diffusion(model)) || (autoregression && !hv_config_has_autoregression(model));
  if (!lacks) return HV_OK;
  return hv_error(HV_ERR_INPUT, "%s: validation.metric is %s, which a model with the objective %s does not have",
                  self->config->source, hv_train_config_metric(self->config), hv_objective_name(model->objective));
}

/* Warns of a run that is too short for its schedule: most often a trial of a long run's configuration. */
static void warn_of_short_schedule(const hv_run_state *self) {
  const hv_learning_rate *rate = &self->learning_rate;
  long long steps = rate->total_steps, warmup = rate->warmup_steps;
  double last = hv_learning_rate_at(rate, steps - 1);
  if (!self->leader) return;
  if (warmup > 0 && warmup >= steps) {
    hv_log_warning("optimizer.warmup_steps (%lld) is not less than the run's %lld steps: the learning rate rises until "
                   "the end, to %g of %g",
                   warmup, steps, last, rate->peak);
  } else if (rate->decay == HV_DECAY_COSINE && warmup + 1 == steps && last < rate->peak) {
    hv_log_warning("optimizer.schedule is cosine, but only the run's last step comes after the warm-up: its learning "
                   "rate is that at the cosine's end, %g of %g",
                   last, rate->peak);
  }
}

/* A new run measures its algorithms, the same for all ranks; a resumed run keeps those it had. */
static hv_status measure_algorithms(hv_run_state *self) {
  bool measured;
  if (!self->config->measure_algorithms || self->trainer->step > 0) return HV_OK;
  HV_TRY(hv_trainer_measure_choices(self->trainer, &self->source.source, &measured));
  return measured ? hv_run_choices_share(self->comm, self->trainer->device) : HV_OK;
}

/* Opens the run's batches and reads the first one, so that a run whose data cannot be read does not begin. */
static hv_status open_batches(hv_run_state *self, int64_t first_sample) {
  HV_TRY(hv_run_data_open_training(&self->data, first_sample, &self->loader));
  self->source = hv_loader_source_make(self->loader, &self->model.config, (int32_t)self->config->train.branches);
  if (self->trainer->step == self->trainer->total_steps) return HV_OK;
  return hv_trainer_read_ahead(self->trainer, &self->source.source);
}

hv_status hv_run_start(hv_run_state *self, hv_device *device) {
  const hv_train_config *config = self->config;
  hv_run_position position;
  HV_TRY(hv_train_config_check_run(config));
  HV_TRY(hv_train_config_check_ranks(config, self->comm->size));
  HV_TRY(hv_train_config_model(config, &self->model, &self->directory));
  HV_TRY(check_validation(self));
  HV_TRY(hv_run_data_open(config, &self->model.config, self->comm->rank, self->comm->size, &self->data));
  self->best = hv_best_make(hv_train_config_metric(config));
  HV_TRY(hv_run_digest_held_out(&self->data, &self->best.measured));
  HV_TRY(hv_run_check_agreement(config, self->resume, &self->directory, &self->data, self->best.measured, self->comm));
  if (self->resume) HV_TRY(hv_run_choices_load(config->output, device));
  HV_TRY(hv_comm_agree(self->comm, "opening the model", open_trainer(self, device)));
  HV_TRY(begin(self, &position));
  hv_status finite = hv_params_nan_status(self->trainer->params, self->trainer->stream);
  HV_TRY(hv_comm_agree(self->comm, "looking at the parameters", finite));
  int64_t frames = hv_demonstrations_frames(self->data.train);
  self->trainer->total_steps = count_steps(config, frames, &position);
  HV_TRY(hv_comm_agree(self->comm, "counting steps", check_steps(self)));
  self->learning_rate = (hv_learning_rate){.peak = config->optimizer.learning_rate,
                                           .warmup_steps = config->optimizer.warmup_steps,
                                           .decay = config->optimizer.schedule,
                                           .total_steps = self->trainer->total_steps,
                                           .final_ratio = config->optimizer.final_ratio};
  warn_of_short_schedule(self);
  HV_TRY(open_files(self));
  HV_TRY(hv_comm_agree(self->comm, "reading the first batch", open_batches(self, position.samples)));
  HV_TRY(measure_algorithms(self));
  HV_TRY(open_watch(self));
  hv_log_info("%lld parameters, %lld training frames, %lld steps of %lld samples",
              (long long)hv_params_total(self->trainer->params), (long long)frames,
              (long long)self->trainer->total_steps, (long long)config->train.batch_size);
  self->began = true;
  return HV_OK;
}
