#include "train/watch/report.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/base/file.h"
#include "core/io/yaml.h"
#include "train/checkpoint/checkpoint_files.h"
#include "train/validation.h"
#include "train/watch/report_chart.h"
#include "train/watch/report_style.h"
#include "train/watch/run_status.h"

/* A curve's points out of the metrics, and the same smoothed. */
typedef struct points {
  double *x, *y, *smooth_x, *smooth; /* one block, owned */
  size_t count, smooth_count;
} points;

/* The lines that have a step, and a finite number under the key. */
static hv_status collect(const hv_run_history *history, const char *key, points *out) {
  size_t index, lines = json_array_size(history->lines);
  const json_t *line;
  *out = (points){.x = malloc((4 * lines + 1) * sizeof *out->x)};
  if (!out->x) return hv_error_memory("a curve");
  out->y = out->x + lines;
  out->smooth_x = out->y + lines;
  out->smooth = out->smooth_x + lines;
  json_array_foreach(history->lines, index, line) {
    double step = hv_line_number(line, "step"), value = hv_line_number(line, key);
    if (!isfinite(step) || !isfinite(value)) continue;
    out->x[out->count] = step;
    out->y[out->count++] = value;
  }
  return HV_OK;
}

/* Running means over a twentieth of the run, shorter at both ends. A long run has them only at as many places as can be
 * seen: at every step, their cost would grow with the square of the steps. */
static void smooth(points *p) {
  enum { MOST_PLACES = 500 };
  size_t half = p->count / 40;
  p->smooth_count = p->count < MOST_PLACES ? p->count : MOST_PLACES;
  for (size_t place = 0; place < p->smooth_count; place++) {
    size_t i = p->smooth_count > 1 ? place * (p->count - 1) / (p->smooth_count - 1) : 0;
    size_t reach = half < i ? half : i;
    if (reach > p->count - 1 - i) reach = p->count - 1 - i;
    double sum = 0;
    for (size_t j = i - reach; j <= i + reach; j++) sum += p->y[j];
    p->smooth_x[place] = p->x[i];
    p->smooth[place] = sum / (double)(2 * reach + 1);
  }
}

/* A figure of every step as a faint curve with its running mean, and a held-out figure beside it (key NULL: none). */
static hv_status draw_training(const hv_run_history *history, const char *title, const char *unit, const char *key,
                               const char *held_out_key, int colour, hv_text *out) {
  points raw = {0}, held_out = {0};
  hv_status status = HV_OK;
  HV_CHECK(collect(history, key, &raw));
  if (held_out_key) HV_CHECK(collect(history, held_out_key, &held_out));
  smooth(&raw);
  hv_chart chart = {.title = title, .unit = unit, .count = 3, .cut_spikes = true};
  chart.series[0] =
      (hv_series){.name = "", .x = raw.x, .y = raw.y, .count = raw.count, .colour = colour, .faint = true};
  chart.series[1] = (hv_series){.name = held_out_key ? "training" : "running mean",
                                .x = raw.smooth_x,
                                .y = raw.smooth,
                                .count = raw.smooth_count,
                                .colour = colour};
  chart.series[2] = (hv_series){
      .name = "held out", .x = held_out.x, .y = held_out.y, .count = held_out.count, .colour = 6, .marked = true};
  hv_chart_draw(&chart, out);
done:
  free(raw.x);
  free(held_out.x);
  return status;
}

/* A figure that needs no smoothing. */
static hv_status draw_plain(const hv_run_history *history, const char *title, const char *unit, const char *key,
                            int colour, hv_text *out) {
  points p;
  HV_TRY(collect(history, key, &p));
  hv_chart chart = {.title = title, .unit = unit, .count = 1};
  chart.series[0] = (hv_series){.name = "now", .x = p.x, .y = p.y, .count = p.count, .colour = colour};
  hv_chart_draw(&chart, out);
  free(p.x);
  return HV_OK;
}

static const char *predictor_title(hv_predictor predictor) {
  static const char *const titles[] = {"diffusion", "autoregressive", "ensemble", "always the mean action"};
  return titles[predictor];
}

static hv_status draw_errors(const hv_run_history *history, hv_text *out) {
  static const int colours[] = {2, 3, 1, 0};
  /* The ensemble often equals one of the heads: drawn wide and below them, it is still visible. */
  static const hv_predictor order[] = {HV_PREDICT_MEAN_ACTION, HV_PREDICT_ENSEMBLE, HV_PREDICT_DIFFUSION,
                                       HV_PREDICT_AUTOREGRESSIVE};
  points errors[HV_PREDICTORS] = {0};
  hv_status status = HV_OK;
  hv_chart chart = {.title = "Held-out actions", .unit = "mean absolute error, normalised", .count = HV_PREDICTORS};
  for (int i = 0; i < HV_PREDICTORS; i++) {
    hv_predictor p = order[i];
    char key[64];
    snprintf(key, sizeof key, "error_%s", hv_predictor_name(p));
    HV_CHECK(collect(history, key, &errors[p]));
    chart.series[i] = (hv_series){.name = predictor_title(p),
                                  .x = errors[p].x,
                                  .y = errors[p].y,
                                  .count = errors[p].count,
                                  .colour = colours[p],
                                  .wide = p == HV_PREDICT_ENSEMBLE,
                                  .marked = p == HV_PREDICT_DIFFUSION || p == HV_PREDICT_AUTOREGRESSIVE,
                                  .dashed = p == HV_PREDICT_MEAN_ACTION};
  }
  hv_chart_draw(&chart, out);
done:
  for (int p = 0; p < HV_PREDICTORS; p++) free(errors[p].x);
  return status;
}

static hv_status add_charts(const hv_run_history *history, hv_text *out) {
  hv_text_add(out, "<section class=\"charts\">");
  HV_TRY(draw_errors(history, out));
  HV_TRY(draw_training(history, "Noise head", "squared error of the noise", "loss_diffusion", "held_out_loss_diffusion",
                       2, out));
  HV_TRY(draw_training(history, "Vocabulary head", "cross-entropy of action tokens", "loss_ce", "held_out_loss_ce", 3,
                       out));
  HV_TRY(draw_training(history, "Gradient norm", "before clipping", "grad_norm", NULL, 4, out));
  HV_TRY(draw_plain(history, "Learning rate", "", "learning_rate", 5, out));
  HV_TRY(draw_plain(history, "Throughput", "samples per second, mean since the start", "samples_per_s", 1, out));
  hv_text_add(out, "</section>\n");
  return HV_OK;
}

static void add_tile(const char *name, const char *value, const char *note, hv_text *out) {
  hv_text_add(out, "<div class=\"tile\"><span>%s</span><b>%s</b><em>%s</em></div>", name, value, note);
}

/* The predictor with the smallest held-out error, except the mean action. */
static void add_error_tile(const json_t *held_out, hv_text *out) {
  char value[32], note[128];
  int best = -1;
  double error = INFINITY;
  for (int p = 0; p < HV_PREDICT_MEAN_ACTION; p++) {
    double last = hv_line_number(json_object_get(held_out, hv_predictor_name(p)), "last");
    if (!(last < error)) continue;
    error = last;
    best = p;
  }
  if (best < 0) return;
  double mean = hv_line_number(json_object_get(held_out, hv_predictor_name(HV_PREDICT_MEAN_ACTION)), "last");
  snprintf(value, sizeof value, "%.4f", error);
  snprintf(note, sizeof note, "%s; the mean action %.4f", predictor_title(best), mean);
  add_tile("held-out error", value, note, out);
}

static void add_tiles(const hv_run_history *history, const json_t *now, hv_text *out) {
  char value[64], note[96];
  int64_t step = hv_run_history_step(history), steps = hv_run_history_steps(history);
  hv_text_add(out, "<section class=\"tiles\">");
  snprintf(value, sizeof value, "%lld", (long long)step);
  snprintf(note, sizeof note, "of %lld, %.1f epochs", (long long)steps, hv_line_number(now, "epoch"));
  add_tile("steps", value, note, out);
  add_error_tile(json_object_get(now, "held_out"), out);
  snprintf(value, sizeof value, "%.4g", hv_line_number(now, "loss"));
  snprintf(note, sizeof note, "noise %.4g, tokens %.4g", hv_line_number(now, "loss_diffusion"),
           hv_line_number(now, "loss_ce"));
  add_tile("loss", value, note, out);
  double rate = hv_line_number(now, "samples_per_s"), light = hv_line_number(now, "speed_of_light");
  snprintf(value, sizeof value, "%.4g/s", rate);
  snprintf(note, sizeof note, "over the last session");
  if (isfinite(light)) {
    snprintf(note, sizeof note, "%.3g TFLOP/s, %.0f %% of the speed of light", hv_line_number(now, "model_tflops"),
             100 * light);
  }
  if (isfinite(rate)) add_tile("samples", value, note, out);
  double memory = hv_line_number(now, "memory_bytes");
  snprintf(value, sizeof value, "%.3g GB", 1e-9 * memory);
  if (isfinite(memory)) add_tile("device memory", value, "of the first rank, peak", out);
  double end = hv_line_number(history->card, "end"), start = hv_line_number(history->card, "start");
  if (!isfinite(end)) end = hv_line_number(hv_run_history_last(history, "time"), "time");
  hv_format_duration(end - start, value, sizeof value);
  add_tile("time", value, "of the last session", out);
  snprintf(value, sizeof value, "%lld", (long long)hv_run_history_skipped(history));
  add_tile("skipped steps", value, "that changed nothing", out);
  hv_text_add(out, "</section>\n");
}

/* NAN if it is no number, such as the errors of predictions that are not finite. */
static double number_at(const json_t *list, size_t index) {
  const json_t *value = json_array_get(list, index);
  return json_is_number(value) ? json_number_value(value) : (double)NAN;
}

/* Errors of the newest measurement, dimension by dimension; the smallest of each stands out. */
static void add_dimensions(const hv_run_history *history, hv_text *out) {
  const json_t *line = hv_run_history_last(history, "error_mean_action_dims");
  const json_t *errors[HV_PREDICTORS] = {0};
  if (!line) return;
  size_t dims = json_array_size(json_object_get(line, "error_mean_action_dims"));
  hv_text_add(out, "<h2>Held-out errors by dimension</h2><div class=\"card\"><table><thead><tr><th>step %lld</th>",
              (long long)json_integer_value(json_object_get(line, "step")));
  for (size_t d = 0; d < dims; d++) hv_text_add(out, "<th>%zu</th>", d);
  hv_text_add(out, "<th>mean</th></tr></thead><tbody>");
  for (int p = 0; p < HV_PREDICTORS; p++) {
    char key[64];
    snprintf(key, sizeof key, "error_%s_dims", hv_predictor_name(p));
    errors[p] = json_object_get(line, key);
  }
  for (int p = 0; p < HV_PREDICTORS; p++) {
    char key[64];
    if (!errors[p]) continue;
    hv_text_add(out, "<tr><th>%s</th>", predictor_title(p));
    for (size_t d = 0; d < dims; d++) {
      double own = number_at(errors[p], d);
      bool best = isfinite(own);
      for (int q = 0; q < HV_PREDICTORS; q++) best &= !(number_at(errors[q], d) < own);
      hv_text_add(out, "<td%s>%.4f</td>", best ? " class=\"best\"" : "", own);
    }
    snprintf(key, sizeof key, "error_%s", hv_predictor_name(p));
    hv_text_add(out, "<td>%.4f</td></tr>", hv_line_number(line, key));
  }
  hv_text_add(out, "</tbody></table></div><p class=\"note\">Mean absolute errors in normalised units, where the range "
                   "of an action is 2. The best of each dimension is bold.</p>\n");
}

static void add_skipped(const hv_run_history *history, hv_text *out) {
  enum { MOST_ROWS = 100 };
  int64_t total = hv_run_history_skipped(history);
  size_t index, shown = 0;
  const json_t *line;
  if (total == 0) return;
  hv_text_add(out, "<h2>Skipped steps</h2><div class=\"card\"><table class=\"words\"><thead><tr><th>step</th>"
                   "<th>reason</th><th>rank</th><th>samples</th><th>frames</th></tr></thead><tbody>");
  json_array_foreach(history->lines, index, line) {
    if (!json_object_get(line, "skipped") || shown == MOST_ROWS) continue;
    shown++;
    const json_t *suspect = json_array_get(json_object_get(line, "suspects"), 0);
    const json_t *frames = json_object_get(suspect, "frames");
    double first = hv_line_number(suspect, "first_sample"), count = hv_line_number(suspect, "samples");
    hv_text_add(out, "<tr><td>%lld</td><td>", (long long)json_integer_value(json_object_get(line, "step")));
    hv_html_escape(hv_line_text(line, "skip_reason"), out);
    hv_text_add(out, "</td><td>%lld</td><td>", (long long)json_integer_value(json_object_get(suspect, "rank")));
    if (isfinite(first + count)) hv_text_add(out, "%.0f to %.0f", first, first + count - 1);
    hv_text_add(out, "</td><td>");
    for (size_t f = 0; f < json_array_size(frames); f++) {
      const char *frame = json_string_value(json_array_get(frames, f));
      hv_text_add(out, "%s", f ? ", " : "");
      hv_html_escape(frame ? frame : "?", out);
    }
    hv_text_add(out, "</td></tr>");
  }
  hv_text_add(out, "</tbody></table></div>");
  if (total > MOST_ROWS) hv_text_add(out, "<p class=\"note\">The first %d of %lld.</p>", MOST_ROWS, (long long)total);
}

static void begin_facts(const char *title, hv_text *out) {
  hv_text_add(out, "<div><h2>%s</h2><div class=\"card\"><table class=\"words\"><tbody>", title);
}

static void add_fact(const char *name, const char *value, hv_text *out) {
  if (!value || !*value) return;
  hv_text_add(out, "<tr><th>%s</th><td>", name);
  hv_html_escape(value, out);
  hv_text_add(out, "</td></tr>");
}

static void end_facts(hv_text *out) {
  hv_text_add(out, "</tbody></table></div></div>");
}

/* "435 frames in 10 episodes" */
static void add_split(const char *name, const json_t *split, hv_text *out) {
  char text[96];
  if (!json_is_object(split)) return;
  snprintf(text, sizeof text, "%lld frames in %lld episodes",
           (long long)json_integer_value(json_object_get(split, "frames")),
           (long long)json_integer_value(json_object_get(split, "episodes")));
  add_fact(name, text, out);
}

static void add_list(const char *name, const json_t *list, hv_text *out) {
  hv_text text = {0};
  for (size_t i = 0; i < json_array_size(list); i++) {
    const char *item = json_string_value(json_array_get(list, i));
    hv_text_add(&text, "%s%s", i ? ", " : "", item ? item : "");
  }
  add_fact(name, hv_text_string(&text), out);
  hv_text_free(&text);
}

static void add_data(const hv_run_history *history, hv_text *out) {
  const json_t *data = json_object_get(history->card, "data");
  const json_t *files = json_object_get(json_object_get(history->config, "data"), "files");
  char text[96];
  if (!data) return;
  begin_facts("Data", out);
  add_list("files", files, out);
  add_split("trained on", json_object_get(data, "train"), out);
  add_split("held out", json_object_get(data, "valid"), out);
  add_list("instructions", json_object_get(data, "instructions"), out);
  add_list("cameras", json_object_get(data, "cameras"), out);
  snprintf(text, sizeof text, "%lld, in chunks of %lld",
           (long long)json_integer_value(json_object_get(data, "action_dim")),
           (long long)json_integer_value(json_object_get(data, "action_chunk")));
  add_fact("action dimensions", text, out);
  snprintf(text, sizeof text, "%lld", (long long)json_integer_value(json_object_get(data, "state_dim")));
  add_fact("state dimensions", text, out);
  end_facts(out);
}

static hv_status add_checkpoints(const hv_run_history *history, hv_text *out) {
  int64_t *steps = NULL;
  size_t count = 0;
  hv_text text = {0};
  HV_TRY(hv_checkpoint_steps(history->run, &steps, &count));
  for (size_t i = 0; i < count; i++) hv_text_add(&text, "%sstep %lld", i ? ", " : "", (long long)steps[i]);
  add_fact("checkpoints", count > 0 ? hv_text_string(&text) : "none", out);
  hv_text_free(&text);
  free(steps);
  return HV_OK;
}

static hv_status add_environment(const hv_run_history *history, hv_text *out) {
  const json_t *card = history->card;
  char text[160];
  begin_facts("Run", out);
  if (json_object_get(card, "parameters")) {
    snprintf(text, sizeof text, "%.4g million, %.4g million of them trained", 1e-6 * hv_line_number(card, "parameters"),
             1e-6 * hv_line_number(card, "trainable"));
    add_fact("parameters", text, out);
    long long ranks = (long long)json_integer_value(json_object_get(card, "ranks"));
    snprintf(text, sizeof text, "%lld rank%s on %s, %s, %lld processors", ranks, ranks == 1 ? "" : "s",
             hv_line_text(card, "device"), hv_line_text(card, "dtype"),
             (long long)json_integer_value(json_object_get(card, "processors")));
    add_fact("device", text, out);
    add_fact("host", json_string_value(json_object_get(card, "host")), out);
    add_fact("system", json_string_value(json_object_get(card, "system")), out);
    snprintf(text, sizeof text, "hvla-train %s, commit %s", hv_line_text(card, "version"),
             hv_line_text(card, "commit"));
    add_fact("program", text, out);
  }
  hv_status status = add_checkpoints(history, out);
  end_facts(out);
  return status;
}

static hv_status add_configuration(const hv_run_history *history, hv_text *out) {
  hv_text yaml = {0};
  hv_status status = hv_yaml_format(history->config, &yaml);
  if (!status) {
    hv_text_add(out, "<details><summary>Configuration</summary><pre>");
    hv_html_escape(hv_text_string(&yaml), out);
    hv_text_add(out, "</pre></details>");
  }
  hv_text_free(&yaml);
  return status;
}

static void add_head(const hv_run_history *history, hv_text *out) {
  const char *slash = strrchr(history->run, '/');
  const char *name = slash && slash[1] ? slash + 1 : history->run;
  const char *message = json_string_value(json_object_get(history->card, "message"));
  char when[64] = "";
  static const double latest = 1e12; /* seconds since 1970; a calendar date goes no further */
  double begun = hv_line_number(history->card, "start");
  time_t start = begun > 0 && begun < latest ? (time_t)begun : 0;
  struct tm calendar;
  if (start > 0 && gmtime_r(&start, &calendar)) strftime(when, sizeof when, "%-d %B %Y, %H:%M UTC", &calendar);
  hv_text_add(out, "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" "
                   "content=\"width=device-width,initial-scale=1\"><title>");
  hv_html_escape(name, out);
  hv_text_add(out, "</title><style>%s</style></head><body><main>\n<header><h1>", hv_report_style);
  hv_html_escape(name, out);
  hv_text_add(out, "</h1><span class=\"state %s\">%s</span><p>HybridVLA training run%s%s</p>", history->state,
              history->state, *when ? ", last started " : "", when);
  if (message) {
    hv_text_add(out, "<p>");
    hv_html_escape(message, out);
    hv_text_add(out, "</p>");
  }
  hv_text_add(out, "</header>\n");
}

hv_status hv_report_format(const hv_run_history *history, hv_text *out) {
  json_t *now;
  hv_status status = HV_OK;
  HV_TRY(hv_run_status_make(history, &now));
  add_head(history, out);
  add_tiles(history, now, out);
  hv_text_add(out, "<h2>Curves</h2>");
  HV_CHECK(add_charts(history, out));
  add_dimensions(history, out);
  add_skipped(history, out);
  hv_text_add(out, "<section class=\"pair\">");
  add_data(history, out);
  HV_CHECK(add_environment(history, out));
  hv_text_add(out, "</section>\n");
  HV_CHECK(add_configuration(history, out));
  hv_text_add(out, "</main></body></html>\n");
  if (out->failed) status = hv_error_memory("the report");
done:
  json_decref(now);
  return status;
}

hv_status hv_report_write(const char *run, const char *path) {
  hv_status status = HV_OK;
  hv_run_history history = {0};
  hv_text page = {0};
  char *own = path ? NULL : hv_path_join(run, "report.html");
  if (!path && !own) return hv_error_memory("a path");
  HV_CHECK(hv_run_history_read(run, &history));
  HV_CHECK(hv_report_format(&history, &page));
  status = hv_write_file_atomic(path ? path : own, page.data, page.length);
done:
  hv_text_free(&page);
  hv_run_history_free(&history);
  free(own);
  return status;
}
