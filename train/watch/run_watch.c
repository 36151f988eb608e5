#include "train/watch/run_watch.h"

#include "core/base/log.h"
#include "train/watch/format_figure.h"
#include "train/watch/skipped_step.h"

hv_status hv_run_watch_open(const hv_train_config *config, const hv_run_data *data, const hv_trainer *trainer,
                            const hv_run_card *card, double device_flops, hv_run_watch *out) {
  bool leader = data->rank == 0;
  *out = (hv_run_watch){.config = config, .data = data, .trainer = trainer, .card = card, .leader = leader};
  out->progress = hv_progress_make(&(hv_progress_options){.total_steps = trainer->total_steps,
                                                          .log_interval = config->log_interval,
                                                          .batch_size = (int32_t)config->train.batch_size,
                                                          .step_flops = trainer->matrix_flops * trainer->parts,
                                                          .device_flops = device_flops});
  if (!leader) return HV_OK;
  return hv_metrics_open(config->output, trainer->step, config->metrics.tensorboard, &out->metrics);
}

void hv_run_watch_close(hv_run_watch *watch) {
  hv_progress_clear(&watch->progress);
  hv_metrics_close(watch->metrics);
  json_decref(watch->suspects);
  *watch = (hv_run_watch){0};
}

/* Finds out where a skipped step went wrong, and logs it. */
static hv_status examine(hv_run_watch *watch, hv_skip_reason reason) {
  hv_suspect suspects[HV_MAX_SUSPECTS];
  hv_text text = {0};
  int count;
  HV_TRY(hv_suspects_find(watch->trainer, suspects, &count));
  if (!watch->leader) return HV_OK;
  watch->suspects = hv_suspects_describe(suspects, count, watch->data);
  hv_suspects_tell(watch->trainer->step, reason, watch->suspects, &text);
  hv_progress_clear(&watch->progress);
  hv_log_warning("%s", hv_text_string(&text));
  hv_text_free(&text);
  return HV_OK;
}

static void tell_held_out(hv_run_watch *watch, const hv_validation *held_out) {
  hv_text text = {0};
  char figure[HV_FIGURE_SIZE];
  hv_format_figure(held_out->loss, figure);
  hv_text_add(&text, "step %lld  held out: loss %s, mean absolute error", (long long)watch->trainer->step, figure);
  for (int p = 0; p < HV_PREDICTORS; p++) {
    if (!held_out->present[p]) continue;
    hv_format_figure(held_out->error[p], figure);
    hv_text_add(&text, "  %s %s", hv_predictor_name(p), figure);
  }
  hv_progress_clear(&watch->progress);
  hv_log_info("%s", hv_text_string(&text));
  hv_text_free(&text);
  if (held_out->not_finite == 0) return;
  hv_log_warning("step %lld: %lld of %lld held-out predictions are not finite; hvla-infer would refuse them, and their "
                 "errors are NaN",
                 (long long)watch->trainer->step, (long long)held_out->not_finite, (long long)held_out->frames);
}

static void tell_straggler(hv_run_watch *watch, const hv_pace *pace) {
  if (!hv_pace_alarm_ring(&watch->alarm, pace)) return;
  hv_progress_clear(&watch->progress);
  hv_log_warning("rank %d holds up the others: %.3f s a step, %.1f times the median rank's, because of %s",
                 pace->slowest, pace->own_max, pace->own_max / pace->median,
                 pace->slow_data ? "waiting for data (increase data.threads, or use a faster disk)"
                                 : "slow computation");
}

/* Whether a step's figures go into the metrics; the same on all ranks. */
static bool is_due(const hv_run_watch *watch, const hv_step_result *result, const hv_validation *held_out) {
  int64_t step = watch->trainer->step;
  return held_out || result->skipped || step == watch->trainer->total_steps || step % watch->config->log_interval == 0;
}

/* Writes and logs the figures, on the leader; `pace` is NULL before the first step. */
static hv_status write_figures(hv_run_watch *watch, const hv_step_result *result, double learning_rate,
                               const hv_pace *pace, const hv_validation *held_out) {
  int64_t frames = hv_demonstrations_frames(watch->data->train);
  HV_TRY(hv_run_card_check(watch->card));
  if (held_out) tell_held_out(watch, held_out);
  if (pace) tell_straggler(watch, pace);
  double flops = hv_progress_flops(&watch->progress), best = watch->progress.options.device_flops;
  hv_metrics_line line = {.step = watch->trainer->step,
                          .epoch = (double)watch->trainer->samples / (double)frames,
                          .result = *result,
                          .learning_rate = learning_rate,
                          .samples_per_s = hv_progress_rate(&watch->progress),
                          .model_flops = flops,
                          .speed_of_light = best > 0 ? flops / best : 0,
                          .memory_bytes = (double)watch->trainer->device->memory.peak.total,
                          .pace = pace,
                          .held_out = held_out,
                          .suspects = watch->suspects};
  return hv_metrics_write(watch->metrics, &line);
}

hv_status hv_run_watch_report(hv_run_watch *watch, const hv_step_result *result, double learning_rate,
                              const hv_validation *held_out) {
  hv_comm *comm = watch->trainer->comm;
  hv_pace pace;
  bool paced = watch->pace.steps > 0;
  if (!is_due(watch, result, held_out)) return HV_OK;
  if (paced) HV_TRY(hv_pace_measure(comm, &watch->pace, &pace));
  watch->pace = (hv_pace_sums){0};
  hv_status status = HV_OK;
  if (watch->leader) status = write_figures(watch, result, learning_rate, paced ? &pace : NULL, held_out);
  return hv_comm_agree(comm, "writing the figures", status);
}

/* While no step has changed anything, the learning rate cannot be the cause. */
static const char *advice(const hv_run_watch *watch) {
  if (hv_optimizer_updates(watch->trainer->optimizer) > 0) return "a lower optimizer.learning_rate may help";
  return "no step of the run has changed anything yet, so the learning rate is not the cause: check the frames named "
         "above and the initial model (init_from), or find the first value that is not finite with --debug-nan";
}

/* A step skipped now and then does no harm; many in a row mean that the run is lost. */
static hv_status check_skipped(hv_run_watch *watch, const hv_step_result *result, double learning_rate) {
  json_decref(watch->suspects);
  watch->suspects = NULL;
  if (!result->skipped) return HV_OK;
  HV_TRY(examine(watch, result->skipped));
  int64_t in_row = watch->trainer->skipped;
  if (in_row < watch->config->watch.max_skipped) return HV_OK;
  HV_TRY(hv_run_watch_report(watch, result, learning_rate, NULL));
  hv_status lost =
      hv_error(HV_ERR_INPUT,
               "%lld steps in a row, up to step %lld, were skipped (watch.max_skipped), because gradients were not "
               "finite or because of spikes; %s; checkpoints that were due meanwhile have not been written",
               (long long)in_row, (long long)watch->trainer->step, advice(watch));
  return hv_comm_agree(watch->trainer->comm, "training", lost);
}

hv_status hv_run_watch_step(hv_run_watch *watch, const hv_step_result *result, double learning_rate, double seconds,
                            double waited) {
  bool alone = watch->data->ranks == 1;
  watch->pace.steps++;
  watch->pace.step += seconds;
  watch->pace.own += alone ? seconds : result->own_seconds;
  watch->pace.wait += waited;
  if (watch->leader) hv_progress_step(&watch->progress, watch->trainer->step, result, seconds);
  return check_skipped(watch, result, learning_rate);
}
