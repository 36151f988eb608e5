#include "train/run/run.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "core/base/build_commit.h"
#include "core/base/clock.h"
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
#include "train/run/run_files.h"
#include "train/trainer_options.h"
#include "train/watch/format_figure.h"
#include "train/watch/report.h"
#include "train/watch/run_card.h"
#include "train/watch/run_watch.h"

static const double PATIENCE = 0.02; /* seconds for the largest product that the device is measured by */

typedef struct run {
  const hv_train_config *config;
  const hv_run_options *options;
  hv_comm *comm;
  bool leader; /* this rank writes and logs */
  hv_model_config model;
  hv_model_directory directory; /* of init_from; closed without it */
  hv_run_data data;
  hv_trainer *trainer;
  hv_loader *loader;
  hv_loader_source source;
  hv_run_card *card; /* of the leader */
  bool began;        /* the files in the directory are this run's */
  hv_run_watch watch;
  hv_learning_rate learning_rate;
  hv_run_files *files;
  hv_best best;
  bool owed;           /* a checkpoint was due after a skipped step, and was put off */
  double device_flops; /* best rate of the leader's device, operations a second */
  hv_text why;         /* of the leader: why the run ended before its last step; empty if it did not */
} run;

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
static hv_status check_steps(const run *self) {
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

static hv_status open_trainer(run *self, hv_device *device) {
  hv_trainer_options options = hv_trainer_options_make(self->config, &self->model.config, self->comm->size,
                                                       hv_run_data_longest_prompt(&self->data));
  options.comm = self->comm;
  options.trace = self->options->trace;
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
static hv_status start_from_directory(run *self) {
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
static hv_status initialize(run *self) {
  hv_trainer *trainer = self->trainer;
  HV_TRY(self->config->init_from ? start_from_directory(self) : hv_trainer_initialize(trainer, NULL, NULL));
  return hv_ema_reset(trainer->ema, trainer->stream);
}

static hv_status write_config(const run *self) {
  hv_status status = HV_OK;
  json_t *resolved = NULL;
  hv_text text = {0};
  char *path = hv_path_join(self->config->output, "config.yaml");
  if (!path) return hv_error_memory("a path");
  HV_CHECK(hv_train_config_resolve(self->config, &resolved));
  hv_text_add(&text, "# Resolved by hvla-train %s, commit %s.\n", HVLA_VERSION, hv_build_commit());
  HV_CHECK(hv_yaml_format(resolved, &text));
  status = hv_write_file_atomic(path, hv_text_string(&text), text.length);
done:
  hv_text_free(&text);
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
static hv_status take_directory(run *self) {
  int64_t *steps;
  size_t count;
  HV_TRY(hv_run_card_open(self->config->output, &self->card));
  HV_TRY(check_place(self->config->output, "model"));
  bool keeps_best = self->config->data.valid_split && self->config->validation.keep_best;
  if (keeps_best) HV_TRY(check_place(self->config->output, "best"));
  if (self->options->resume) return HV_OK;
  HV_TRY(hv_checkpoint_steps(self->config->output, &steps, &count));
  free(steps);
  if (count == 0) return HV_OK;
  return hv_error(HV_ERR_INPUT,
                  "%s already holds checkpoints of a run; add --resume to continue it, or choose another output",
                  self->config->output);
}

/* A run must not begin on top of another's results: checkpoints of which none can be used, or a model whose checkpoints
 * are gone, which may be the very one in init_from. */
static hv_status check_fresh(const run *self) {
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
static hv_status find_checkpoint(run *self, int64_t *step) {
  hv_text damaged = {0};
  hv_status status = hv_checkpoint_find(self->config->output, self->comm, step, &damaged);
  if (damaged.length > 0) hv_log_warning("skipped damaged checkpoints:\n%s", hv_text_string(&damaged));
  hv_text_free(&damaged);
  return status;
}

/* The step that the run continues from; -1: it starts anew. */
static hv_status find_start(run *self, int64_t *step) {
  *step = -1;
  HV_TRY(hv_comm_agree(self->comm, "taking the run directory", self->leader ? take_directory(self) : HV_OK));
  if (self->options->resume) HV_TRY(find_checkpoint(self, step));
  if (*step >= 0) return HV_OK;
  return hv_comm_agree(self->comm, "looking for checkpoints", self->leader ? check_fresh(self) : HV_OK);
}

static void resume_best(run *self, const hv_best *found) {
  bool told = found->step >= 0 || found->since > 0;
  if (hv_best_resume(&self->best, found) || !told || !self->data.valid) return;
  hv_log_info("the held-out split, or how it is measured, has changed: earlier values of %s no longer count for the "
              "best model or for patience",
              self->best.metric);
}

static hv_status check_position(const run *self, const hv_run_position *position) {
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
static hv_status begin(run *self, hv_run_position *position) {
  const char *output = self->config->output;
  hv_trainer *trainer = self->trainer;
  int64_t step;
  *position = (hv_run_position){.seed = self->config->seed};
  HV_TRY(find_start(self, &step));
  if (step < 0) {
    if (self->options->resume) hv_log_info("%s holds no checkpoint to resume from: starting anew", output);
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
static hv_status open_outputs(const run *self) {
  hv_run_facts facts = {
      .config = self->config, .data = &self->data, .trainer = self->trainer, .ranks = self->comm->size};
  HV_TRY(write_config(self));
  return hv_run_card_begin(self->card, &facts);
}

/* The leader opens the run's files; all ranks watch the run. */
static hv_status open_watch(run *self) {
  hv_status status = self->leader ? open_outputs(self) : HV_OK;
  if (!status) {
    status = hv_run_watch_open(self->config, &self->data, self->trainer, self->card, self->device_flops, &self->watch);
  }
  return hv_comm_agree(self->comm, "opening the run directory", status);
}

static hv_status open_files(run *self) {
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
static hv_status check_validation(const run *self) {
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
static void warn_of_short_schedule(const run *self) {
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
static hv_status measure_algorithms(run *self) {
  bool measured;
  if (!self->config->measure_algorithms || self->trainer->step > 0) return HV_OK;
  HV_TRY(hv_trainer_measure_choices(self->trainer, &self->source.source, &measured));
  return measured ? hv_run_choices_share(self->comm, self->trainer->device) : HV_OK;
}

/* Opens the run's batches and reads the first one, so that a run whose data cannot be read does not begin. */
static hv_status open_batches(run *self, int64_t first_sample) {
  HV_TRY(hv_run_data_open_training(&self->data, first_sample, &self->loader));
  self->source = hv_loader_source_make(self->loader, &self->model.config, (int32_t)self->config->train.branches);
  if (self->trainer->step == self->trainer->total_steps) return HV_OK;
  return hv_trainer_read_ahead(self->trainer, &self->source.source);
}

/* Ranks agree on the outcome of what each does alone, so that the leader, which has locked the directory, learns of a
 * failure. */
static hv_status open_run(run *self, hv_device *device) {
  const hv_train_config *config = self->config;
  hv_run_position position;
  HV_TRY(hv_train_config_check_run(config));
  HV_TRY(hv_train_config_check_ranks(config, self->comm->size));
  HV_TRY(hv_train_config_model(config, &self->model, &self->directory));
  HV_TRY(check_validation(self));
  HV_TRY(hv_run_data_open(config, &self->model.config, self->comm->rank, self->comm->size, &self->data));
  self->best = hv_best_make(hv_train_config_metric(config));
  HV_TRY(hv_run_digest_held_out(&self->data, &self->best.measured));
  HV_TRY(hv_run_check_agreement(config, self->options->resume, &self->directory, &self->data, self->best.measured,
                                self->comm));
  if (self->options->resume) HV_TRY(hv_run_choices_load(config->output, device));
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

/* Writes into run.json how the run ended. */
static hv_status end_run(const run *self, hv_status status, int signal_number) {
  if (!self->card) return status;
  const char *state = status ? "failed" : (signal_number ? "stopped" : "finished");
  const char *message = status ? hv_status_message(status) : (self->why.length > 0 ? self->why.data : NULL);
  return hv_status_first(status, hv_run_card_end(self->card, state, message));
}

static void close_run(run *self) {
  hv_run_files_close(self->files);
  hv_run_watch_close(&self->watch);
  hv_loader_close(self->loader);
  hv_trainer_close(self->trainer);
  hv_run_data_close(&self->data);
  hv_model_directory_close(&self->directory);
  hv_model_config_free(&self->model);
  hv_run_card_close(self->card);
  hv_text_free(&self->why);
}

static bool is_in_place(const run *self) {
  hv_status moved = hv_run_card_check(self->card);
  bool there = !moved;
  hv_status_free(moved);
  return there;
}

/* Called after everything is closed, so that the report shows the run as ended. An error here does not make the run a
 * failed one. */
static void write_report(const char *output) {
  hv_status status = hv_report_write(output, NULL);
  if (status) hv_log_warning("cannot write the run's report: %s", hv_status_message(status));
  hv_status_free(status);
}

static bool due(int64_t step, int64_t interval) {
  return interval > 0 && step % interval == 0;
}

/* Measures the held-out split with the parameters that would be saved: the moving averages, if they are kept. */
static hv_status validate(run *self, hv_validation *out) {
  hv_trainer *trainer = self->trainer;
  hv_ema_exchange(trainer->ema, trainer->stream);
  hv_status status = hv_stream_synchronize(trainer->stream); /* the policy reads parameters in a stream of its own */
  if (!status) status = hv_validate(trainer, &self->data, self->leader ? &self->watch.progress : NULL, out);
  hv_ema_exchange(trainer->ema, trainer->stream);
  return status;
}

/* Compares a validation with the best so far, by the first rank's figure. Validation may take long, so a signal that
 * came meanwhile is returned in *signal_number, not only after the next step. */
static hv_status judge(run *self, const hv_validation *held_out, bool *better, int *signal_number) {
  double numbers[1 + HV_INTERRUPT_SIGNALS] = {0};
  if (self->leader) numbers[0] = hv_held_out_figure(held_out, (hv_held_out_metric)self->config->validation.metric);
  hv_interrupt_tell(self->options->interrupt, numbers + 1);
  HV_TRY(hv_comm_sum(self->comm, "the held-out figure", numbers, 1 + HV_INTERRUPT_SIGNALS));
  *better = hv_best_take(&self->best, self->trainer->step, numbers[0]);
  if (!*signal_number) *signal_number = hv_interrupt_hear(numbers + 1);
  return HV_OK;
}

static hv_status measure(run *self, hv_validation *out, bool *better, int *signal_number) {
  HV_TRY(validate(self, out));
  return judge(self, out, better, signal_number);
}

/* Saves a checkpoint if one is due. After a skipped step it is put off until a step that is not skipped, so that
 * parameters of a run that is diverging do not displace sound ones. A new best model is saved in any case. */
static hv_status save_due(run *self, const hv_step_result *result, bool best) {
  self->owed |= due(self->trainer->step, self->config->checkpoint.interval);
  if (!best && (!self->owed || result->skipped)) return HV_OK;
  self->owed = false;
  return hv_run_files_save(self->files);
}

/* Whatever follows a step: validation, figures, checkpoint. */
static hv_status after_step(run *self, const hv_step_result *result, double learning_rate, int *signal_number) {
  const hv_train_config *config = self->config;
  int64_t step = self->trainer->step;
  bool last = step == self->trainer->total_steps, better = false;
  hv_validation held_out;
  bool measured = self->data.valid && (due(step, config->validation.interval) || last);
  if (measured) HV_TRY(measure(self, &held_out, &better, signal_number));
  HV_TRY(hv_run_watch_report(&self->watch, result, learning_rate, measured ? &held_out : NULL));
  return last ? HV_OK : save_due(self, result, better && config->validation.keep_best);
}

/* Validates before the first step: writes a line of metrics without a step's figures, and sets what the run has to
 * beat. There is no best/ of it, which would be a copy of the initial model. A signal is handled after the first step.
 */
static hv_status measure_start(run *self) {
  hv_validation held_out;
  bool better;
  int came = 0;
  if (!self->data.valid || !self->config->validation.at_start || self->trainer->step > 0) return HV_OK;
  HV_TRY(measure(self, &held_out, &better, &came));
  hv_step_result none = {.loss = NAN, .loss_diffusion = NAN, .loss_ce = NAN, .grad_norm = NAN};
  return hv_run_watch_report(&self->watch, &none, NAN, &held_out);
}

static void describe_stale(const run *self, hv_text *out) {
  const hv_best *best = &self->best;
  char figure[HV_FIGURE_SIZE];
  hv_text_add(out, "stopped early after step %" PRId64 ": %s ", self->trainer->step, best->metric);
  if (best->step < 0) {
    hv_text_add(out, "was not finite in %" PRId64 " measurements", best->since);
  } else {
    hv_format_figure(best->figure, figure);
    hv_text_add(out, "has not improved on %s at step %" PRId64 " in %" PRId64 " measurements", figure, best->step,
                best->since);
  }
}

/* Whether the run ends before its last step. */
static bool is_stale(run *self) {
  if (!hv_best_is_stale(&self->best, self->config->validation.patience)) return false;
  if (!self->leader) return true;
  describe_stale(self, &self->why);
  hv_log_info("%s", hv_text_string(&self->why));
  return true;
}

/* Indices into the trainer's numbers; those of signals come first. */
enum { REQUEST = HV_INTERRUPT_SIGNALS, WRITTEN };
_Static_assert(WRITTEN + 1 == (int)HV_TRAINER_NUMBERS, "the trainer must have as many numbers");

/* What ranks tell each other in every step, each in one of the trainer's numbers: a signal to any rank stops all after
 * the same step, or makes all save, and a checkpoint is completed when all have written. */
static void tell(run *self) {
  double *numbers = self->trainer->numbers;
  hv_interrupt_tell(self->options->interrupt, numbers);
  numbers[REQUEST] = hv_interrupt_take_request(self->options->interrupt);
  numbers[WRITTEN] = hv_run_files_report(self->files);
}

static hv_status hear(run *self, int *signal_number, bool *save) {
  const double *numbers = self->trainer->numbers;
  *signal_number = hv_interrupt_hear(numbers);
  *save = numbers[REQUEST] > 0 && !*signal_number;
  return hv_run_files_advance(self->files, numbers[WRITTEN]);
}

/* Warns if no validation was better than the one before the first step. */
static void report_no_better(const run *self) {
  if (!self->leader || self->best.step != 0) return;
  hv_log_warning(
      "%s was best before the first step (%.4f): the run has not improved its initial model, and there is no best/",
      self->best.metric, self->best.figure);
}

static hv_status train(run *self, int *signal_number) {
  hv_trainer *trainer = self->trainer;
  HV_TRY(measure_start(self));
  while (trainer->step < trainer->total_steps && !is_stale(self)) {
    tell(self);
    double learning_rate = hv_learning_rate_at(&self->learning_rate, trainer->step);
    double start = hv_clock_seconds();
    hv_step_result result;
    int came;
    bool save;
    self->source.waited = 0;
    HV_TRY(hv_trainer_step(trainer, &self->source.source, learning_rate, &result));
    HV_TRY(hv_run_watch_step(&self->watch, &result, learning_rate, hv_clock_seconds() - start, self->source.waited));
    HV_TRY(hear(self, &came, &save));
    HV_TRY(after_step(self, &result, learning_rate, &came));
    if (save) HV_TRY(hv_run_files_save_all(self->files));
    if (came && trainer->step < trainer->total_steps) {
      *signal_number = came;
      hv_text_add(&self->why, "stopped by %s; --resume continues", hv_interrupt_name(came));
      break;
    }
  }
  if (!*signal_number) report_no_better(self);
  return hv_run_files_finish(self->files);
}

/* A checkpoint that is being written when the run fails is sound. All ranks wait for it, unless the directory was
 * moved. */
static void keep_checkpoint(const run *self) {
  hv_status moved = hv_comm_agree(self->comm, "looking for the run directory", hv_run_card_check(self->card));
  hv_status late = moved ? HV_OK : hv_run_files_settle(self->files);
  if (late) hv_log_warning("%s", hv_status_message(late));
  hv_status_free(moved);
  hv_status_free(late);
}

/* If not all ranks know of an error, the checkpoint is not waited for: the rank with the error ends all
 * (hv_comm_abort), and logs which checkpoint is the newest. If a rank was lost, ranks 0 and 1 log it, since one of them
 * is still there. */
static void tell_newest_checkpoint(const run *self) {
  hv_status lost = hv_comm_status(self->comm);
  if (!lost || self->comm->rank <= 1) hv_run_files_tell_newest(self->files);
  hv_status_free(lost);
}

static bool all_ranks_know(const run *self) {
  return self->comm->size == 1 || hv_comm_all_know(self->comm);
}

hv_status hv_run(const hv_train_config *config, hv_device *device, const hv_run_options *options, int *signal_number) {
  run self = {.config = config, .options = options, .comm = options->comm, .leader = options->comm->rank == 0};
  *signal_number = 0;
  /* Ranks do not read equally fast, and one measures for all, so they wait longer for each other here. */
  hv_comm_set_timeout(self.comm, HV_FILE_TIMEOUT);
  hv_status status = open_run(&self, device);
  hv_comm_set_timeout(self.comm, config->parallel.timeout);
  bool trains = !status;
  if (trains) status = train(&self, signal_number);
  if (status) hv_interrupt_silence(options->interrupt);
  bool together = status && all_ranks_know(&self);
  if (trains && together) keep_checkpoint(&self);
  if (trains && status && !together) tell_newest_checkpoint(&self);
  status = end_run(&self, status, *signal_number);
  bool report = self.began && self.leader && is_in_place(&self);
  close_run(&self);
  if (report) write_report(config->output);
  /* A rank that exits ends the others, so all first write what they have to say of the error, a long report too. */
  if (together) {
    hv_comm_set_timeout(self.comm, HV_FILE_TIMEOUT);
    hv_status_free(hv_comm_barrier(self.comm, "the end of a failed run"));
  }
  return status;
}
