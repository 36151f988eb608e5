#include "train/watch/run_history.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/base/file.h"
#include "core/io/json.h"
#include "core/io/yaml.h"
#include "train/checkpoint/checkpoint_files.h"
#include "train/watch/run_card.h"

/* Reads RUN/name with `load` if it exists. A path that cannot be followed is an error, not a missing file.
 */
static hv_status read_part(const char *run, const char *name, hv_status (*load)(const char *, json_t **),
                           json_t **out) {
  *out = NULL;
  char *path = hv_path_join(run, name);
  if (!path) return hv_error_memory("a path");
  bool absent = access(path, F_OK) != 0 && errno == ENOENT;
  hv_status status = absent ? HV_OK : load(path, out);
  free(path);
  return status;
}

/* run.json is written in place, so one that does not parse may be half written: not an error. */
static void read_card(hv_run_history *history) {
  hv_status status = read_part(history->run, "run.json", hv_json_load, &history->card);
  if (status) hv_text_add(&history->doubt, "%s", hv_status_message(status));
  hv_status_free(status);
}

static const char *find_state(hv_run_history *history) {
  static const char *const ends[] = {"finished", "stopped", "failed"};
  int unknown;
  if (hv_run_card_held(history->run, &unknown)) return "running";
  const char *said = json_string_value(json_object_get(history->card, "state"));
  if (!said && history->doubt.length == 0) hv_text_add(&history->doubt, "there is no run.json with the run's state");
  if (!said) return "unknown";
  for (size_t i = 0; i < sizeof ends / sizeof ends[0]; i++) {
    if (strcmp(said, ends[i]) == 0) return ends[i];
  }
  if (!unknown) return "dead";
  hv_text_add(&history->doubt, "run.json cannot be locked (%s), so it is not known whether the run goes on or is dead",
              strerror(unknown));
  return "unknown";
}

hv_status hv_run_history_read(const char *run, hv_run_history *out) {
  hv_status status = HV_OK;
  *out = (hv_run_history){.run = strdup(run), .checkpoint = -1};
  if (!out->run) return hv_error_memory("the run");
  read_card(out);
  HV_CHECK(read_part(run, "config.yaml", hv_yaml_load, &out->config));
  HV_CHECK(read_part(run, "metrics.jsonl", hv_json_load_lines, &out->lines));
  if (!out->card && out->doubt.length == 0 && !out->config && !out->lines) {
    status = hv_error(HV_ERR_INPUT, "%s holds no run: no config.yaml, metrics.jsonl or run.json is there", run);
    goto done;
  }
  if (!out->card) out->card = json_object();
  if (!out->config) out->config = json_object();
  if (!out->lines) out->lines = json_array();
  HV_CHECK(hv_checkpoint_newest(run, &out->checkpoint, &out->damaged));
  out->state = find_state(out);
done:
  if (status) hv_run_history_free(out);
  return status;
}

void hv_run_history_free(hv_run_history *history) {
  free(history->run);
  json_decref(history->card);
  json_decref(history->config);
  json_decref(history->lines);
  hv_text_free(&history->doubt);
  hv_text_free(&history->damaged);
  *history = (hv_run_history){0};
}

double hv_line_number(const json_t *line, const char *key) {
  static const double most = 1e100;
  const json_t *value = json_object_get(line, key);
  double number = json_is_number(value) ? json_number_value(value) : (double)NAN;
  return fabs(number) <= most ? number : (double)NAN;
}

const char *hv_line_text(const json_t *line, const char *key) {
  const char *text = json_string_value(json_object_get(line, key));
  return text ? text : "?";
}

const json_t *hv_run_history_last(const hv_run_history *history, const char *key) {
  for (size_t i = json_array_size(history->lines); i-- > 0;) {
    const json_t *line = json_array_get(history->lines, i);
    if (json_object_get(line, key)) return line;
  }
  return NULL;
}

int64_t hv_run_history_step(const hv_run_history *history) {
  return (int64_t)json_integer_value(json_object_get(hv_run_history_last(history, "step"), "step"));
}

int64_t hv_run_history_steps(const hv_run_history *history) {
  const json_t *steps = json_object_get(history->card, "steps");
  if (!steps) steps = json_object_get(json_object_get(history->config, "train"), "steps");
  return (int64_t)json_integer_value(steps);
}

int64_t hv_run_history_skipped(const hv_run_history *history) {
  int64_t count = 0;
  size_t index;
  const json_t *line;
  json_array_foreach(history->lines, index, line) count += json_object_get(line, "skipped") != NULL;
  return count;
}

double hv_run_history_seconds_left(const hv_run_history *history) {
  double rate = hv_line_number(hv_run_history_last(history, "samples_per_s"), "samples_per_s");
  double batch = hv_line_number(history->card, "batch_size");
  double left = (double)hv_run_history_steps(history) - (double)hv_run_history_step(history);
  if (left > 0 && strcmp(history->state, "finished") == 0) return (double)NAN; /* patience ended it */
  return rate > 0 && left >= 0 ? left * batch / rate : (double)NAN;
}
