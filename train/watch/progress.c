#include "train/watch/progress.h"

#include <inttypes.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "core/base/clock.h"
#include "core/base/log.h"
#include "train/watch/format_figure.h"

enum { LINE_SIZE = 256 };
static const double REDRAW_SECONDS = 0.1, LOG_SECONDS = 30;

hv_progress hv_progress_make(const hv_progress_options *options) {
  return (hv_progress){.options = *options, .terminal = isatty(STDERR_FILENO) == 1};
}

static double steps_per_second(const hv_progress *progress) {
  if (progress->timed_steps == 0 || progress->training_seconds <= 0) return 0;
  return (double)progress->timed_steps / progress->training_seconds;
}

double hv_progress_rate(const hv_progress *progress) {
  double steps = steps_per_second(progress);
  return steps > 0 ? steps * progress->options.batch_size : (double)NAN;
}

double hv_progress_flops(const hv_progress *progress) {
  return steps_per_second(progress) * progress->options.step_flops;
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

/* "  0.412 TFLOP/s, 63 % of the speed of light" */
static void format_flops(const hv_progress *progress, char *out, size_t size) {
  double flops = hv_progress_flops(progress), best = progress->options.device_flops;
  out[0] = 0;
  if (flops <= 0 || best <= 0) return;
  snprintf(out, size, "  %.3g TFLOP/s, %.0f %% of the speed of light", 1e-12 * flops, 100 * flops / best);
}

static void format_line(const hv_progress *progress, int64_t step, const hv_step_result *result, char line[LINE_SIZE]) {
  char left[32], flops[64], loss[HV_FIGURE_SIZE], diffusion[HV_FIGURE_SIZE], tokens[HV_FIGURE_SIZE];
  /* The first step is a warm-up, from which the time left cannot be estimated. */
  int64_t timed = progress->session_steps > 1 ? progress->timed_steps : 0, total = progress->options.total_steps;
  format_time_left(timed, timed + total - step, progress->training_seconds, left, sizeof left);
  format_flops(progress, flops, sizeof flops);
  hv_format_figure(result->loss, loss);
  hv_format_figure(result->loss_diffusion, diffusion);
  hv_format_figure(result->loss_ce, tokens);
  snprintf(line, LINE_SIZE,
           "step %" PRId64 "/%" PRId64 "  loss %s (diffusion %s, tokens %s)%s  %.1f samples/s  %s left%s", step, total,
           loss, diffusion, tokens, result->skipped ? "  SKIPPED" : "", hv_progress_rate(progress), left, flops);
}

/* Replaces the line shown before. A longer line than the terminal's is cut off, since a wrapped one could not be
 * erased. */
static void redraw(hv_progress *progress, double now, const char *line) {
  struct winsize window = {0};
  int width = INT_MAX;
  if (ioctl(STDERR_FILENO, TIOCGWINSZ, &window) == 0 && window.ws_col > 1) width = window.ws_col - 1;
  fprintf(stderr, "\r\033[K%.*s", width, line);
  fflush(stderr);
  progress->last_shown = now;
  progress->shown = true;
}

void hv_progress_step(hv_progress *progress, int64_t step, const hv_step_result *result, double seconds) {
  char line[LINE_SIZE];
  if (progress->session_steps++ <= 1) {
    progress->training_seconds = 0;
    progress->timed_steps = 0;
  }
  progress->training_seconds += seconds;
  progress->timed_steps++;
  bool last = step == progress->options.total_steps;
  if (!progress->terminal) {
    if (step % progress->options.log_interval != 0 && !last) return;
    format_line(progress, step, result, line);
    hv_log_info("%s", line);
    return;
  }
  double now = hv_clock_seconds();
  if (now - progress->last_shown < REDRAW_SECONDS && !last) return;
  format_line(progress, step, result, line);
  redraw(progress, now, line);
}

void hv_progress_work(hv_progress *progress, const char *what, int64_t done, int64_t total, double seconds) {
  char left[32], line[LINE_SIZE];
  if (!progress) return;
  double now = hv_clock_seconds(), interval = progress->terminal ? REDRAW_SECONDS : LOG_SECONDS;
  if (done == 0 && !progress->terminal) progress->last_shown = now;
  if (now - progress->last_shown < interval || done == total) return;
  progress->last_shown = now;
  format_time_left(done, total, seconds, left, sizeof left);
  snprintf(line, sizeof line, "%" PRId64 "/%" PRId64 " %s  %s left", done, total, what, left);
  if (progress->terminal) {
    redraw(progress, now, line);
  } else {
    hv_log_info("%s", line);
  }
}

void hv_progress_clear(hv_progress *progress) {
  if (!progress->shown) return;
  fprintf(stderr, "\r\033[K");
  fflush(stderr);
  progress->shown = false;
}
