#include "train/metrics.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/base/file.h"
#include "core/io/json.h"

struct hv_metrics {
  FILE *file;
  char *path;
};

enum { METRICS_LIMIT = 1 << 30 /* bytes */ };

/* The step of one line, -1 where it is no line of metrics. */
static int64_t line_step(const char *line, size_t length) {
  json_t *object = json_loadb(line, length, 0, NULL);
  const json_t *step = json_object_get(object, "step");
  int64_t value = json_is_integer(step) ? (int64_t)json_integer_value(step) : -1;
  json_decref(object);
  return value;
}

/* Rewrites the file with the lines up to `step`. */
static hv_status drop_later_lines(const char *path, int64_t step) {
  char *text = NULL;
  size_t length;
  hv_text kept = {0};
  HV_TRY(hv_read_text(path, METRICS_LIMIT, &text, &length));
  for (const char *line = text, *end; (end = memchr(line, '\n', length - (size_t)(line - text))) != NULL;
       line = end + 1) {
    int64_t at = line_step(line, (size_t)(end - line));
    if (at >= 0 && at <= step) hv_text_add_bytes(&kept, line, (size_t)(end - line) + 1);
  }
  hv_status status = kept.failed ? hv_error_memory("the metrics") : HV_OK;
  if (!status && kept.length != length) status = hv_write_file_atomic(path, hv_text_string(&kept), kept.length);
  hv_text_free(&kept);
  free(text);
  return status;
}

hv_status hv_metrics_open(const char *run, int64_t step, hv_metrics **out) {
  hv_status status = HV_OK;
  *out = NULL;
  hv_metrics *metrics = calloc(1, sizeof *metrics);
  if (!metrics) return hv_error_memory("the metrics");
  metrics->path = hv_path_join(run, "metrics.jsonl");
  if (!metrics->path) {
    status = hv_error_memory("the metrics");
    goto done;
  }
  if (step > 0 && hv_file_exists(metrics->path)) HV_CHECK(drop_later_lines(metrics->path, step));
  metrics->file = fopen(metrics->path, step > 0 ? "ae" : "we");
  if (!metrics->file) {
    status = hv_error_errno(errno, "cannot open %s", metrics->path);
    goto done;
  }
  *out = metrics;
  metrics = NULL;
done:
  hv_metrics_close(metrics);
  return status;
}

void hv_metrics_close(hv_metrics *metrics) {
  if (!metrics) return;
  if (metrics->file) fclose(metrics->file);
  free(metrics->path);
  free(metrics);
}

static json_t *number(double value) {
  return isfinite(value) ? json_real(value) : json_null();
}

static void add_held_out(json_t *object, const hv_validation *held_out) {
  json_object_set_new(object, "held_out_loss", number(held_out->loss));
  json_object_set_new(object, "held_out_loss_diffusion", number(held_out->loss_diffusion));
  json_object_set_new(object, "held_out_loss_ce", number(held_out->loss_ce));
  for (int p = 0; p < HV_PREDICTORS; p++) {
    char key[64];
    if (!held_out->present[p]) continue;
    snprintf(key, sizeof key, "error_%s", hv_predictor_name(p));
    json_object_set_new(object, key, number(held_out->error[p]));
    json_t *dims = json_array();
    for (int32_t d = 0; d < held_out->action_dim; d++) json_array_append_new(dims, number(held_out->dims[p][d]));
    snprintf(key, sizeof key, "error_%s_dims", hv_predictor_name(p));
    json_object_set_new(object, key, dims);
  }
  if (held_out->present[HV_PREDICT_ENSEMBLE]) {
    json_object_set_new(object, "ensemble_rate", number(held_out->ensemble_rate));
  }
}

static json_t *make_object(const hv_metrics_line *line) {
  json_t *object = json_object();
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  json_object_set_new(object, "step", json_integer((json_int_t)line->step));
  json_object_set_new(object, "epoch", number(line->epoch));
  json_object_set_new(object, "loss", number(line->result.loss));
  json_object_set_new(object, "loss_diffusion", number(line->result.loss_diffusion));
  json_object_set_new(object, "loss_ce", number(line->result.loss_ce));
  json_object_set_new(object, "learning_rate", number(line->learning_rate));
  json_object_set_new(object, "grad_norm", number(line->result.grad_norm));
  json_object_set_new(object, "samples_per_s", number(line->samples_per_s));
  json_object_set_new(object, "time", number((double)now.tv_sec + 1e-9 * (double)now.tv_nsec));
  if (line->result.skipped) json_object_set_new(object, "skipped", json_true());
  if (line->held_out) add_held_out(object, line->held_out);
  return object;
}

hv_status hv_metrics_write(hv_metrics *metrics, const hv_metrics_line *line) {
  hv_text text = {0};
  json_t *object = make_object(line);
  hv_status status = object ? hv_json_format_line(object, &text) : hv_error_memory("the metrics");
  if (!status) {
    hv_text_add(&text, "\n");
    bool written = !text.failed && fwrite(text.data, 1, text.length, metrics->file) == text.length;
    if (!written || fflush(metrics->file) != 0) status = hv_error_errno(errno, "cannot write %s", metrics->path);
  }
  json_decref(object);
  hv_text_free(&text);
  return status;
}
