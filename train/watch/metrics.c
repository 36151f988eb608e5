#include "train/watch/metrics.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/clock.h"
#include "core/base/file.h"
#include "core/io/json.h"
#include "train/watch/event_file.h"

struct hv_metrics {
  FILE *file;
  char *path;
  hv_event_file *events; /* NULL: none */
};

/* The step of one line; -1 if it is not a line of metrics. */
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
  HV_TRY(hv_read_text(path, HV_JSON_LINES_LIMIT, &text, &length));
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

hv_status hv_metrics_open(const char *run, int64_t step, bool tensorboard, hv_metrics **out) {
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
  if (tensorboard) HV_CHECK(hv_event_file_open(run, step, &metrics->events));
  *out = metrics;
  metrics = NULL;
done:
  hv_metrics_close(metrics);
  return status;
}

void hv_metrics_close(hv_metrics *metrics) {
  if (!metrics) return;
  hv_event_file_close(metrics->events);
  if (metrics->file) fclose(metrics->file);
  free(metrics->path);
  free(metrics);
}

static void add_held_out(json_t *object, const hv_validation *held_out) {
  json_object_set_new(object, "held_out_loss", hv_json_number(held_out->loss));
  json_object_set_new(object, "held_out_loss_diffusion", hv_json_number(held_out->loss_diffusion));
  json_object_set_new(object, "held_out_loss_ce", hv_json_number(held_out->loss_ce));
  for (int p = 0; p < HV_PREDICTORS; p++) {
    char key[64];
    if (!held_out->present[p]) continue;
    snprintf(key, sizeof key, "error_%s", hv_predictor_name(p));
    json_object_set_new(object, key, hv_json_number(held_out->error[p]));
    json_t *dims = json_array();
    for (int32_t d = 0; d < held_out->action_dim; d++)
      json_array_append_new(dims, hv_json_number(held_out->dims[p][d]));
    snprintf(key, sizeof key, "error_%s_dims", hv_predictor_name(p));
    json_object_set_new(object, key, dims);
  }
  if (held_out->present[HV_PREDICT_ENSEMBLE]) {
    json_object_set_new(object, "ensemble_rate", hv_json_number(held_out->ensemble_rate));
  }
}

static void add_pace(json_t *object, const hv_pace *pace) {
  json_object_set_new(object, "step_s", hv_json_number(pace->step));
  json_object_set_new(object, "data_wait_s", hv_json_number(pace->wait));
  json_object_set_new(object, "data_wait_s_max", hv_json_number(pace->wait_max));
  if (pace->ranks == 1) return;
  json_object_set_new(object, "rank_s", hv_json_number(pace->own));
  json_object_set_new(object, "rank_s_max", hv_json_number(pace->own_max));
  json_object_set_new(object, "slowest_rank", json_integer(pace->slowest));
  json_object_set_new(object, "slowest_by", json_string(pace->slow_data ? "data" : "compute"));
}

static json_t *make_object(const hv_metrics_line *line) {
  json_t *object = json_object();
  json_object_set_new(object, "step", json_integer((json_int_t)line->step));
  json_object_set_new(object, "epoch", hv_json_number(line->epoch));
  json_object_set_new(object, "loss", hv_json_number(line->result.loss));
  json_object_set_new(object, "loss_diffusion", hv_json_number(line->result.loss_diffusion));
  json_object_set_new(object, "loss_ce", hv_json_number(line->result.loss_ce));
  json_object_set_new(object, "learning_rate", hv_json_number(line->learning_rate));
  json_object_set_new(object, "grad_norm", hv_json_number(line->result.grad_norm));
  json_object_set_new(object, "samples_per_s", hv_json_number(line->samples_per_s));
  if (line->model_flops > 0) {
    json_object_set_new(object, "model_tflops", hv_json_number(1e-12 * line->model_flops));
    json_object_set_new(object, "speed_of_light", hv_json_number(line->speed_of_light));
  }
  json_object_set_new(object, "memory_bytes", hv_json_number(line->memory_bytes));
  json_object_set_new(object, "time", hv_json_number(hv_wall_seconds()));
  if (line->pace) add_pace(object, line->pace);
  if (line->result.skipped) {
    json_object_set_new(object, "skipped", json_true());
    json_object_set_new(object, "skip_reason", json_string(hv_skip_reason_name(line->result.skipped)));
    if (line->suspects) json_object_set(object, "suspects", line->suspects);
  }
  if (line->held_out) add_held_out(object, line->held_out);
  return object;
}

static hv_status write_line(hv_metrics *metrics, const json_t *object) {
  hv_text text = {0};
  hv_status status = hv_json_format_line(object, &text);
  if (!status) {
    hv_text_add(&text, "\n");
    bool written = !text.failed && fwrite(text.data, 1, text.length, metrics->file) == text.length;
    if (!written || fflush(metrics->file) != 0) status = hv_error_errno(errno, "cannot write %s", metrics->path);
  }
  hv_text_free(&text);
  return status;
}

/* The scalars of an event, and their tags. */
typedef struct scalar_list {
  hv_scalar scalars[HV_PREDICTORS * HV_MAX_ERROR_DIMS + 64];
  char tags[HV_PREDICTORS * HV_MAX_ERROR_DIMS + 64][64];
  size_t count;
} scalar_list;

static void add_scalar(scalar_list *list, const char *key, int index, const json_t *value) {
  if (!json_is_number(value) && !json_is_null(value) && !json_is_true(value)) return;
  if (list->count == sizeof list->scalars / sizeof list->scalars[0]) return;
  bool held_out = strncmp(key, "held_out_", 9) == 0;
  const char *name = held_out ? key + 9 : key;
  const char *group =
      held_out || strncmp(key, "error_", 6) == 0 || strncmp(key, "ensemble_", 9) == 0 ? "held_out" : "train";
  char *tag = list->tags[list->count];
  int length = snprintf(tag, sizeof list->tags[0], "%s/%s", group, name);
  if (index >= 0) snprintf(tag + length, sizeof list->tags[0] - (size_t)length, "/%d", index);
  float number = json_is_number(value) ? (float)json_number_value(value) : (float)json_is_true(value);
  list->scalars[list->count++] = (hv_scalar){.tag = tag, .value = json_is_null(value) ? NAN : number};
}

/* Everything in a line that is a number, or a list of them. */
static hv_status write_events(hv_event_file *events, const json_t *object) {
  const char *key;
  json_t *value, *item;
  size_t index;
  scalar_list *list = calloc(1, sizeof *list);
  if (!list) return hv_error_memory("an event");
  json_object_foreach((json_t *)(uintptr_t)object, key, value) {
    if (strcmp(key, "step") == 0 || strcmp(key, "time") == 0) continue;
    add_scalar(list, key, -1, value);
    json_array_foreach(value, index, item) add_scalar(list, key, (int)index, item);
  }
  int64_t step = json_integer_value(json_object_get(object, "step"));
  double time = json_number_value(json_object_get(object, "time"));
  hv_status status = hv_event_file_write(events, step, time, list->scalars, list->count);
  free(list);
  return status;
}

hv_status hv_metrics_write(hv_metrics *metrics, const hv_metrics_line *line) {
  json_t *object = make_object(line);
  hv_status status = object ? write_line(metrics, object) : hv_error_memory("the metrics");
  if (!status && metrics->events) status = write_events(metrics->events, object);
  json_decref(object);
  return status;
}
