#include "train/watch/progress.h"

#include <inttypes.h>
#include <stdio.h>
#include <unistd.h>

#include "core/base/clock.h"
#include "core/base/log.h"

enum { LINE_SIZE = 256 };
static const double REDRAW_SECONDS = 0.1, LOG_SECONDS = 30;

hv_progress hv_progress_make(int64_t total_steps, int64_t log_interval, int32_t batch_size) {
  return (hv_progress){.total_steps = total_steps,
                       .log_interval = log_interval,
                       .batch_size = batch_size,
                       .terminal = isatty(STDERR_FILENO) == 1};
}

double hv_progress_rate(const hv_progress *progress) {
  if (progress->timed_steps == 0 || progress->training_seconds <= 0) return 0;
  return (double)progress->timed_steps * progress->batch_size / progress->training_seconds;
}

/* The time that is left when `done` of `total` took `seconds`. */
static void format_time_left(int64_t done, int64_t total, double seconds, char *out, size_t size) {
  if (done == 0) {
    snprintf(out, size, "?");
    return;
  }
  int64_t left = (int64_t)(seconds / (double)done * (double)(total - done) + 0.5);
  if (left >= 3600) {
    snprintf(out, size, "%" PRId64 "h%02" PRId64 "m", left / 3600, left / 60 % 60);
  } else {
    snprintf(out, size, "%" PRId64 "m%02" PRId64 "s", left / 60, left % 60);
  }
}

static void format_line(const hv_progress *progress, int64_t step, const hv_step_result *result, char line[LINE_SIZE]) {
  char left[32];
  int64_t timed = progress->timed_steps;
  format_time_left(timed, timed + progress->total_steps - step, progress->training_seconds, left, sizeof left);
  snprintf(line, LINE_SIZE,
           "step %" PRId64 "/%" PRId64 "  loss %.4f (diffusion %.4f, tokens %.4f)  %.1f samples/s  %s left%s", step,
           progress->total_steps, result->loss, result->loss_diffusion, result->loss_ce, hv_progress_rate(progress),
           left, result->skipped ? "  SKIPPED" : "");
}

void hv_progress_step(hv_progress *progress, int64_t step, const hv_step_result *result, double seconds) {
  char line[LINE_SIZE];
  if (progress->session_steps++ > 0) {
    progress->training_seconds += seconds;
    progress->timed_steps++;
  }
  bool last = step == progress->total_steps;
  if (!progress->terminal) {
    if (step % progress->log_interval != 0 && !last) return;
    format_line(progress, step, result, line);
    hv_log_info("%s", line);
    return;
  }
  double now = hv_clock_seconds();
  if (now - progress->last_shown < REDRAW_SECONDS && !last) return;
  progress->last_shown = now;
  progress->shown = true;
  format_line(progress, step, result, line);
  fprintf(stderr, "\r\033[K%s", line);
  fflush(stderr);
}

void hv_progress_work(hv_progress *progress, const char *what, int64_t done, int64_t total, double seconds) {
  char left[32];
  if (!progress) return;
  double now = hv_clock_seconds(), interval = progress->terminal ? REDRAW_SECONDS : LOG_SECONDS;
  if (done == 0 && !progress->terminal) progress->last_shown = now;
  if (now - progress->last_shown < interval || done == total) return;
  progress->last_shown = now;
  format_time_left(done, total, seconds, left, sizeof left);
  if (!progress->terminal) {
    hv_log_info("%" PRId64 "/%" PRId64 " %s  %s left", done, total, what, left);
    return;
  }
  progress->shown = true;
  fprintf(stderr, "\r\033[K%" PRId64 "/%" PRId64 " %s  %s left", done, total, what, left);
  fflush(stderr);
}

void hv_progress_clear(hv_progress *progress) {
  if (!progress->shown) return;
  fprintf(stderr, "\r\033[K");
  fflush(stderr);
  progress->shown = false;
}
