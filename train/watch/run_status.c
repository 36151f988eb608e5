#include "train/watch/run_status.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/base/clock.h"
#include "core/io/json.h"
#include "train/validation.h"
#include "train/watch/format_figure.h"

void hv_format_duration(double seconds, char *out, size_t size) {
  static const double most = 1e15;
  if (!(seconds < most)) {
    snprintf(out, size, "?");
    return;
  }
  long long whole = llround(fmax(seconds, 0));
  if (whole >= 48 * 3600) {
    snprintf(out, size, "%lld d %02lld h", whole / 86400, whole / 3600 % 24);
  } else if (whole >= 3600) {
    snprintf(out, size, "%lld h %02lld min", whole / 3600, whole / 60 % 60);
  } else if (whole >= 60) {
    snprintf(out, size, "%lld min %02lld s", whole / 60, whole % 60);
  } else {
    snprintf(out, size, "%lld s", whole);
  }
}

/* The newest value of a key, null if it is not finite, and the lowest over all lines; NULL if no line has a finite one.
 */
static json_t *last_and_best(const hv_run_history *history, const char *key) {
  double last = hv_line_number(hv_run_history_last(history, key), key), best = (double)NAN;
  json_int_t best_step = 0;
  size_t index;
  const json_t *line;
  json_array_foreach(history->lines, index, line) {
    double value = hv_line_number(line, key);
    if (isfinite(value) && !(best <= value)) {
      best = value;
      best_step = json_integer_value(json_object_get(line, "step"));
    }
  }
  if (!isfinite(best)) return NULL;
  return json_pack("{s:o, s:f, s:I}", "last", hv_json_number(last), "best", best, "best_step", best_step);
}

static json_t *held_out(const hv_run_history *history) {
  const json_t *line = hv_run_history_last(history, "held_out_loss");
  if (!line) return json_null();
  json_t *object =
      json_pack("{s:O?, s:o?}", "step", json_object_get(line, "step"), "loss", last_and_best(history, "held_out_loss"));
  for (int p = 0; p < HV_PREDICTORS && object; p++) {
    char key[64];
    snprintf(key, sizeof key, "error_%s", hv_predictor_name(p));
    json_t *value = last_and_best(history, key);
    if (value) json_object_set_new(object, hv_predictor_name(p), value);
  }
  return object;
}

/* At least 0: figures seem to be from the future if this clock is behind that of the run, on another machine or put
 * back. */
static json_t *seconds_since(const json_t *line) {
  double since = hv_wall_seconds() - hv_line_number(line, "time");
  return hv_json_number(since < 0 ? 0 : since);
}

hv_status hv_run_status_make(const hv_run_history *history, json_t **out) {
  static const char *const of_the_last_line[] = {"epoch",     "samples_per_s",  "model_tflops", "speed_of_light",
                                                 "loss",      "loss_diffusion", "loss_ce",      "learning_rate",
                                                 "grad_norm", "memory_bytes",   "slowest_rank"};
  static const char *const of_the_card[] = {"host", "pid", "ranks", "device", "start", "message"};
  const json_t *last = hv_run_history_last(history, "step");
  int64_t steps = hv_run_history_steps(history);
  *out = json_pack("{s:o, s:s, s:I, s:o, s:o, s:o, s:I, s:o, s:o}", "run", hv_json_text(history->run), "state",
                   history->state, "step", (json_int_t)hv_run_history_step(history), "steps",
                   steps > 0 ? json_integer((json_int_t)steps) : json_null(), "seconds_left",
                   hv_json_number(hv_run_history_seconds_left(history)), "seconds_since", seconds_since(last),
                   "skipped", (json_int_t)hv_run_history_skipped(history), "checkpoint",
                   history->checkpoint >= 0 ? json_integer((json_int_t)history->checkpoint) : json_null(), "held_out",
                   held_out(history));
  if (!*out) return hv_error_memory("the status");
  for (size_t i = 0; i < sizeof of_the_last_line / sizeof of_the_last_line[0]; i++) {
    json_t *value = json_object_get(last, of_the_last_line[i]);
    if (value) json_object_set(*out, of_the_last_line[i], value);
  }
  for (size_t i = 0; i < sizeof of_the_card / sizeof of_the_card[0]; i++) {
    json_t *value = json_object_get(history->card, of_the_card[i]);
    if (value) json_object_set(*out, of_the_card[i], value);
  }
  if (strcmp(history->state, "unknown") == 0) {
    json_object_set_new(*out, "message", hv_json_text(hv_text_string(&history->doubt)));
  }
  return HV_OK;
}

/* A curve in one line of text: the run is cut into equal parts, and the mean of each is a bar. */
static void add_sparkline(const hv_run_history *history, const char *key, hv_text *out) {
  static const char *const bars[] = {"▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"};
  enum { BARS = sizeof bars / sizeof bars[0], WIDTH = 40 };
  double sums[WIDTH] = {0}, low = INFINITY, high = -INFINITY;
  int64_t counts[WIDTH] = {0}, lines = (int64_t)json_array_size(history->lines);
  int64_t width = lines < WIDTH ? lines : WIDTH;
  for (int64_t i = 0; i < lines; i++) {
    double value = hv_line_number(json_array_get(history->lines, (size_t)i), key);
    if (!isfinite(value)) continue;
    sums[i * width / lines] += value;
    counts[i * width / lines]++;
  }
  for (int64_t i = 0; i < width; i++) {
    if (counts[i] == 0) continue;
    low = fmin(low, sums[i] / (double)counts[i]);
    high = fmax(high, sums[i] / (double)counts[i]);
  }
  for (int64_t i = 0; i < width; i++) {
    if (counts[i] == 0) {
      hv_text_add(out, " ");
      continue;
    }
    double height = high > low ? (sums[i] / (double)counts[i] - low) / (high - low) : 0;
    hv_text_add(out, "%s", bars[(int)(height * (BARS - 1) + 0.5)]);
  }
}

/* A loss that is null was not finite, except in a line without a step's figures (validation.at_start). */
static void add_losses(const hv_run_history *history, const json_t *status, hv_text *out) {
  static const char *const names[][2] = {{"loss", "loss"}, {"loss_diffusion", "diffusion"}, {"loss_ce", "tokens"}};
  char figure[HV_FIGURE_SIZE];
  if (hv_run_history_step(history) == 0) return;
  for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
    if (!json_object_get(status, names[i][0])) continue;
    hv_format_figure(hv_line_number(status, names[i][0]), figure);
    hv_text_add(out, "  %-11s %-10s ", names[i][1], figure);
    add_sparkline(history, names[i][0], out);
    hv_text_add(out, "\n");
  }
}

/* "best 0.4476 at 12", if there is one. */
static void add_best(const json_t *value, hv_text *out) {
  char figure[HV_FIGURE_SIZE];
  double best = hv_line_number(value, "best");
  if (!isfinite(best)) return;
  hv_format_figure(best, figure);
  hv_text_add(out, "   best %s at %lld", figure, (long long)json_integer_value(json_object_get(value, "best_step")));
}

static void add_held_out(const json_t *measured, hv_text *out) {
  const json_t *loss = json_object_get(measured, "loss");
  char figure[HV_FIGURE_SIZE];
  if (!json_is_object(measured)) return;
  hv_format_figure(hv_line_number(loss, "last"), figure);
  hv_text_add(out, "held out at step %lld\n  loss %31s",
              (long long)json_integer_value(json_object_get(measured, "step")), figure);
  add_best(loss, out);
  hv_text_add(out, "\n");
  for (int p = 0; p < HV_PREDICTORS; p++) {
    const json_t *error = json_object_get(measured, hv_predictor_name(p));
    if (!error) continue;
    hv_format_figure(hv_line_number(error, "last"), figure);
    hv_text_add(out, "  error of %-16s %10s", hv_predictor_name(p), figure);
    if (p != HV_PREDICT_MEAN_ACTION) add_best(error, out);
    hv_text_add(out, "\n");
  }
}

static void add_state(const hv_run_history *history, const json_t *status, hv_text *out) {
  char since[32];
  hv_format_duration(hv_line_number(status, "seconds_since"), since, sizeof since);
  hv_text_add(out, "%s: %s", history->run, history->state);
  if (json_is_string(json_object_get(status, "host"))) {
    hv_text_add(out, " (process %lld on %s, %lld rank%s, %s)",
                (long long)json_integer_value(json_object_get(status, "pid")), hv_line_text(status, "host"),
                (long long)json_integer_value(json_object_get(status, "ranks")),
                json_integer_value(json_object_get(status, "ranks")) == 1 ? "" : "s", hv_line_text(status, "device"));
  }
  if (json_array_size(history->lines) > 0) hv_text_add(out, ", newest figures %s ago", since);
  hv_text_add(out, "\n");
  const char *message = json_string_value(json_object_get(status, "message"));
  if (message) hv_text_add(out, "  %s\n", message);
  if (strcmp(history->state, "dead") == 0) {
    hv_text_add(out, "  it ended without saying why (killed?); %s\n",
                history->checkpoint >= 0 ? "--resume continues from the newest checkpoint"
                                         : "there is no checkpoint, so it must start anew");
  }
}

void hv_run_status_format(const hv_run_history *history, const json_t *status, hv_text *out) {
  char left[32];
  int64_t step = hv_run_history_step(history), steps = hv_run_history_steps(history);
  add_state(history, status, out);
  hv_text_add(out, "step %lld", (long long)step);
  if (steps > 0) hv_text_add(out, " of %lld (%.0f %%)", (long long)steps, 100.0 * (double)step / (double)steps);
  double rate = hv_line_number(status, "samples_per_s");
  if (isfinite(rate)) hv_text_add(out, "   %.1f samples/s", rate);
  double light = hv_line_number(status, "speed_of_light");
  if (isfinite(light)) hv_text_add(out, ", %.0f %% of the speed of light", 100 * light);
  double memory = hv_line_number(status, "memory_bytes");
  if (isfinite(memory)) hv_text_add(out, "   %.3g GB", 1e-9 * memory);
  if (strcmp(history->state, "running") == 0) {
    hv_format_duration(hv_line_number(status, "seconds_left"), left, sizeof left);
    hv_text_add(out, "   %s left", left);
  }
  hv_text_add(out, "\n");
  add_losses(history, status, out);
  add_held_out(json_object_get(status, "held_out"), out);
  if (history->checkpoint >= 0) {
    hv_text_add(out, "newest checkpoint: step %lld, complete\n", (long long)history->checkpoint);
  } else {
    hv_text_add(out, "no checkpoint yet\n");
  }
  if (history->damaged.length > 0) hv_text_add(out, "damaged checkpoints:\n%s\n", hv_text_string(&history->damaged));
  int64_t skipped = hv_run_history_skipped(history);
  if (skipped > 0) hv_text_add(out, "%lld step%s skipped\n", (long long)skipped, skipped == 1 ? " was" : "s were");
}
