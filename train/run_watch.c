#include "train/run_watch.h"

#include "core/base/log.h"

/* Steps in a row that may be skipped for gradients that are not finite. */
enum { MAX_SKIPPED = 10 };

hv_status hv_run_watch_open(const hv_train_config *config, bool leader, int64_t step, int64_t total_steps,
                            int64_t frames, hv_run_watch *out) {
  *out = (hv_run_watch){.config = config, .leader = leader, .total_steps = total_steps, .frames = frames};
  out->progress = hv_progress_make(total_steps, config->log_interval, (int32_t)config->train.batch_size);
  return leader ? hv_metrics_open(config->output, step, config->metrics.tensorboard, &out->metrics) : HV_OK;
}

void hv_run_watch_close(hv_run_watch *watch) {
  hv_progress_clear(&watch->progress);
  hv_metrics_close(watch->metrics);
  *watch = (hv_run_watch){0};
}

/* A gradient that is not finite now and then is skipped; one after the other means that the run is lost. */
static hv_status check_skipped(hv_run_watch *watch, int64_t step, const hv_step_result *result) {
  watch->skipped_in_row = result->skipped ? watch->skipped_in_row + 1 : 0;
  if (watch->skipped_in_row < MAX_SKIPPED) return HV_OK;
  return hv_error(
      HV_ERR_INPUT,
      "the gradients of %d steps in a row, up to step %lld, were not finite; a lower optimizer.learning_rate "
      "may help, and the last checkpoint is from before",
      MAX_SKIPPED, (long long)step);
}

hv_status hv_run_watch_step(hv_run_watch *watch, int64_t step, const hv_step_result *result, double seconds) {
  if (watch->leader) hv_progress_step(&watch->progress, step, result, seconds);
  return check_skipped(watch, step, result);
}

static void tell_held_out(hv_run_watch *watch, int64_t step, const hv_validation *held_out) {
  hv_text text = {0};
  hv_text_add(&text, "step %lld  held out: loss %.4f, mean absolute error", (long long)step, held_out->loss);
  for (int p = 0; p < HV_PREDICTORS; p++) {
    if (held_out->present[p]) hv_text_add(&text, "  %s %.4f", hv_predictor_name(p), held_out->error[p]);
  }
  hv_progress_clear(&watch->progress);
  hv_log_info("%s", hv_text_string(&text));
  hv_text_free(&text);
}

hv_status hv_run_watch_report(hv_run_watch *watch, int64_t step, const hv_step_result *result, double learning_rate,
                              const hv_validation *held_out) {
  if (!watch->leader) return HV_OK;
  if (held_out) tell_held_out(watch, step, held_out);
  if (!held_out && step != watch->total_steps && step % watch->config->log_interval != 0) return HV_OK;
  hv_metrics_line line = {.step = step,
                          .epoch = (double)(step * watch->config->train.batch_size) / (double)watch->frames,
                          .result = *result,
                          .learning_rate = learning_rate,
                          .samples_per_s = hv_progress_rate(&watch->progress),
                          .held_out = held_out};
  return hv_metrics_write(watch->metrics, &line);
}
