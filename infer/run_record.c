#include "infer/run_record.h"

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/file.h"
#include "core/io/json.h"
#include "core/io/yaml.h"

/* Whether `whole` has every value of `part`: the configuration of a run with init_from names only the keys of the model
 * that it changes. */
static bool agrees(const json_t *part, const json_t *whole) {
  if (json_is_object(part)) {
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)part, key, value) {
      if (!agrees(value, json_object_get(whole, key))) return false;
    }
    return json_is_object(whole);
  }
  if (json_is_array(part)) {
    bool same = json_is_array(whole) && json_array_size(part) == json_array_size(whole);
    for (size_t i = 0; same && i < json_array_size(part); i++)
      same = agrees(json_array_get(part, i), json_array_get(whole, i));
    return same;
  }
  if (json_is_number(part)) return json_is_number(whole) && json_number_value(part) == json_number_value(whole);
  return json_equal(part, whole);
}

/* Turns an error about the files beside the model into a doubt. Without memory nothing is known about them. */
static hv_status doubt(hv_run_record *record, hv_status status) {
  if (!status || hv_status_code(status) == HV_ERR_MEMORY) return status;
  hv_text_add(&record->doubts, "%s\n", hv_status_message(status));
  hv_status_free(status);
  return HV_OK;
}

static hv_status read_config(const char *path, const json_t *model_config, hv_run_record *record) {
  char *text = NULL;
  json_t *config = NULL;
  hv_status status = HV_OK;
  HV_CHECK(hv_read_text(path, HV_YAML_LIMIT, &text, NULL));
  HV_CHECK(hv_yaml_parse(text, strlen(text), path, &config));
  const json_t *model = json_object_get(config, "model");
  if (model && !json_is_null(model) && !agrees(model, model_config)) {
    status = hv_error(HV_ERR_INPUT, "%s configures another model than this one, so it is not used", path);
    goto done;
  }
  record->config_text = text;
  record->config = json_incref(config);
  text = NULL;
done:
  json_decref(config);
  free(text);
  return status;
}

static void take(json_t **place, json_t *object) {
  json_decref(*place);
  *place = json_incref(object);
}

/* The step of RUN/best/, from RUN/best.json; INT64_MAX for any other model of a run, which is its newest. */
static hv_status last_step_of(const char *model, const char *folder, int64_t *out) {
  hv_status status = HV_OK;
  json_t *best = NULL;
  char *path = NULL;
  *out = INT64_MAX;
  if (strcmp(model, "best") != 0) return HV_OK;
  path = hv_path_join(folder, "best.json");
  if (!path) return hv_error_memory("a path");
  if (hv_file_exists(path)) status = hv_json_load(path, &best);
  const json_t *step = json_object_get(best, "step");
  if (json_is_integer(step)) *out = (int64_t)json_integer_value(step);
  json_decref(best);
  free(path);
  return status;
}

/* Uses the lines up to the step `last`. */
static hv_status read_metrics(const char *path, int64_t last, hv_run_record *record) {
  json_t *lines, *line;
  size_t index;
  HV_TRY(hv_json_load_lines(path, &lines));
  json_array_foreach(lines, index, line) {
    const json_t *step = json_object_get(line, "step");
    if (!json_is_integer(step) || json_integer_value(step) > last) continue;
    take(&record->last, line);
    if (json_is_number(json_object_get(line, "held_out_loss"))) take(&record->held_out, line);
  }
  json_decref(lines);
  return HV_OK;
}

hv_status hv_run_record_load(const char *model, const json_t *model_config, hv_run_record *out) {
  *out = (hv_run_record){0};
  hv_status status = HV_OK;
  char *whole = realpath(model, NULL); /* also for "." and links */
  if (!whole) return hv_error_errno(errno, "cannot find %s", model);
  char *slash = strrchr(whole, '/');
  const char *name = slash + 1, *folder = slash == whole ? "/" : whole;
  int64_t last;
  if (slash != whole) *slash = '\0';
  char *config = hv_path_join(folder, "config.yaml"), *metrics = hv_path_join(folder, "metrics.jsonl");
  if (!config || !metrics) {
    status = hv_error_memory("a path");
    goto done;
  }
  if (!hv_file_exists(config)) goto done;
  HV_CHECK(doubt(out, read_config(config, model_config, out)));
  if (out->config && hv_file_exists(metrics)) {
    hv_status problem = last_step_of(name, folder, &last);
    HV_CHECK(doubt(out, problem ? problem : read_metrics(metrics, last, out)));
  }
done:
  free(config);
  free(metrics);
  free(whole);
  return status;
}

void hv_run_record_free(hv_run_record *record) {
  free(record->config_text);
  json_decref(record->config);
  json_decref(record->last);
  json_decref(record->held_out);
  hv_text_free(&record->doubts);
  *record = (hv_run_record){0};
}
