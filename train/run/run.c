#include "train/run/run.h"

#include <inttypes.h>
#include <math.h>

#include "core/base/clock.h"
#include "core/base/log.h"
#include "train/run/run_start.h"
#include "train/watch/format_figure.h"
#include "train/watch/report.h"

static bool due(int64_t step, int64_t interval) {
  return interval > 0 && step % interval == 0;
}

/* Measures the held-out split with the parameters that would be saved: the moving averages, if they are kept. */
static hv_status validate(hv_run_state *self, hv_validation *out) {
  hv_trainer *trainer = self->trainer;
  hv_ema_exchange(trainer->ema, trainer->stream);
  hv_status status = hv_stream_synchronize(trainer->stream); /* the policy reads parameters in a stream of its own */
  if (!status) status = hv_validate(trainer, &self->data, self->leader ? &self->watch.progress : NULL, out);
  hv_ema_exchange(trainer->ema, trainer->stream);
  return status;
}

/* Compares a validation with the best so far, by the first rank's figure. Validation may take long, so a signal that
 * came meanwhile is returned in *signal_number, not only after the next step. */
static hv_status judge(hv_run_state *self, const hv_validation *held_out, bool *better, int *signal_number) {
  double numbers[1 + HV_INTERRUPT_SIGNALS] = {0};
  if (self->leader) numbers[0] = hv_held_out_figure(held_out, (hv_held_out_metric)self->config->validation.metric);
  hv_interrupt_tell(self->interrupt, numbers + 1);
  HV_TRY(hv_comm_sum(self->comm, "the held-out figure", numbers, 1 + HV_INTERRUPT_SIGNALS));
  *better = hv_best_take(&self->best, self->trainer->step, numbers[0]);
  if (!*signal_number) *signal_number = hv_interrupt_hear(numbers + 1);
  return HV_OK;
}

static hv_status measure(hv_run_state *self, hv_validation *out, bool *better, int *signal_number) {
  HV_TRY(validate(self, out));
  return judge(self, out, better, signal_number);
}

/* Saves a checkpoint if one is due. After a skipped step it is put off until a step that is not skipped, so that
 * parameters of a run that is diverging do not displace sound ones. A new best model is saved in any case. */
static hv_status save_due(hv_run_state *self, const hv_step_result *result, bool best) {
  self->owed |= due(self->trainer->step, self->config->checkpoint.interval);
  if (!best && (!self->owed || result->skipped)) return HV_OK;
  self->owed = false;
  return hv_run_files_save(self->files);
}

/* Whatever follows a step: validation, figures, checkpoint. */
static hv_status after_step(hv_run_state *self, const hv_step_result *result, double learning_rate,
                            int *signal_number) {
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
static hv_status measure_start(hv_run_state *self) {
  hv_validation held_out;
  bool better;
  int came = 0;
  if (!self->data.valid || !self->config->validation.at_start || self->trainer->step > 0) return HV_OK;
  HV_TRY(measure(self, &held_out, &better, &came));
  hv_step_result none = {.loss = NAN, .loss_diffusion = NAN, .loss_ce = NAN, .grad_norm = NAN};
  return hv_run_watch_report(&self->watch, &none, NAN, &held_out);
}

static void describe_stale(const hv_run_state *self, hv_text *out) {
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
static bool is_stale(hv_run_state *self) {
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
static void tell(hv_run_state *self) {
  double *numbers = self->trainer->numbers;
  hv_interrupt_tell(self->interrupt, numbers);
  numbers[REQUEST] = hv_interrupt_take_request(self->interrupt);
  numbers[WRITTEN] = hv_run_files_report(self->files);
}

static hv_status hear(hv_run_state *self, int *signal_number, bool *save) {
  const double *numbers = self->trainer->numbers;
  *signal_number = hv_interrupt_hear(numbers);
  *save = numbers[REQUEST] > 0 && !*signal_number;
  return hv_run_files_advance(self->files, numbers[WRITTEN]);
}

/* Warns if no validation was better than the one before the first step. */
static void report_no_better(const hv_run_state *self) {
  if (!self->leader || self->best.step != 0) return;
  hv_log_warning(
      "%s was best before the first step (%.4f): the run has not improved its initial model, and there is no best/",
      self->best.metric, self->best.figure);
}

static hv_status train(hv_run_state *self, int *signal_number) {
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
static void keep_checkpoint(const hv_run_state *self) {
  hv_status moved = hv_comm_agree(self->comm, "looking for the run directory", hv_run_card_check(self->card));
  hv_status late = moved ? HV_OK : hv_run_files_settle(self->files);
  if (late) hv_log_warning("%s", hv_status_message(late));
  hv_status_free(moved);
  hv_status_free(late);
}

/* If not all ranks know of an error, the checkpoint is not waited for: the rank with the error ends all
 * (hv_comm_abort), and logs which checkpoint is the newest. If a rank was lost, ranks 0 and 1 log it, since one of them
 * is still there. */
static void tell_newest_checkpoint(const hv_run_state *self) {
  hv_status lost = hv_comm_status(self->comm);
  if (!lost || self->comm->rank <= 1) hv_run_files_tell_newest(self->files);
  hv_status_free(lost);
}

static bool all_ranks_know(const hv_run_state *self) {
  return self->comm->size == 1 || hv_comm_all_know(self->comm);
}

/* Writes into run.json how the run ended. */
static hv_status end_run(const hv_run_state *self, hv_status status, int signal_number) {
  if (!self->card) return status;
  const char *state = status ? "failed" : (signal_number ? "stopped" : "finished");
  const char *message = status ? hv_status_message(status) : (self->why.length > 0 ? self->why.data : NULL);
  return hv_status_first(status, hv_run_card_end(self->card, state, message));
}

static void close_run(hv_run_state *self) {
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

static bool is_in_place(const hv_run_state *self) {
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

hv_status hv_run(const hv_train_config *config, hv_device *device, const hv_run_options *options, int *signal_number) {
  hv_run_state self = {.config = config,
                       .comm = options->comm,
                       .leader = options->comm->rank == 0,
                       .resume = options->resume,
                       .trace = options->trace,
                       .interrupt = options->interrupt};
  *signal_number = 0;
  /* Ranks do not read equally fast, and one measures for all, so they wait longer for each other here. */
  hv_comm_set_timeout(self.comm, HV_FILE_TIMEOUT);
  hv_status status = hv_run_start(&self, device);
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
