#include "train/run/run_changes.h"

#include <stdlib.h>
#include <string.h>

#include "core/base/file.h"
#include "core/base/log.h"
#include "core/io/json.h"
#include "core/io/yaml.h"

/* Adds a value on one line, short enough for a message. */
static void add_value(const json_t *value, hv_text *out) {
  enum { MOST = 60 };
  char *text = value ? json_dumps(value, JSON_ENCODE_ANY | JSON_REAL_PRECISION(9)) : NULL;
  bool fits = text && strlen(text) <= MOST;
  hv_text_add(out, "%s", !value ? "nothing" : fits ? text : "a longer value");
  free(text);
}

static void add_changes_of(const json_t *before, const json_t *now, const char *path, const char *key, hv_text *out);

/* Adds a line for each key below `path` whose value has changed. */
static void add_changes(const json_t *before, const json_t *now, const char *path, hv_text *out) {
  if (json_equal(before, now)) return;
  if (!json_is_object(before) || !json_is_object(now)) {
    hv_text_add(out, "\n  %s: ", path);
    add_value(before, out);
    hv_text_add(out, " -> ");
    add_value(now, out);
    return;
  }
  const char *key;
  json_t *value;
  json_object_foreach((json_t *)(uintptr_t)now, key, value) {
    add_changes_of(json_object_get(before, key), value, path, key, out);
  }
  json_object_foreach((json_t *)(uintptr_t)before, key, value) {
    if (!json_object_get(now, key)) add_changes_of(value, NULL, path, key, out);
  }
}

static void add_changes_of(const json_t *before, const json_t *now, const char *path, const char *key, hv_text *out) {
  hv_text below = {0};
  hv_text_add(&below, "%s%s%s", path, *path ? "." : "", key);
  add_changes(before, now, hv_text_string(&below), out);
  hv_text_free(&below);
}

hv_status hv_run_report_changes(const hv_train_config *config) {
  hv_status status = HV_OK;
  json_t *before = NULL, *now = NULL;
  hv_text changes = {0};
  char *path = hv_path_join(config->output, "config.yaml");
  if (!path) return hv_error_memory("a path");
  if (!hv_file_exists(path)) goto done;
  HV_CHECK(hv_yaml_load(path, &before));
  HV_CHECK(hv_train_config_resolve(config, &now));
  add_changes(before, now, "", &changes);
  if (changes.length > 0) hv_log_warning("the configuration of this run has changed:%s", hv_text_string(&changes));
done:
  hv_text_free(&changes);
  json_decref(before);
  json_decref(now);
  free(path);
  return status;
}

hv_status hv_run_report_model_changes(const hv_model_config *before, const hv_model_config *now) {
  static const char *const adapted[] = {"action_dim", "action_chunk", "state_dim", "cameras", "objective"};
  json_t *old = NULL, *new = NULL;
  hv_text changes = {0};
  hv_status status = HV_OK;
  HV_CHECK(hv_model_config_to_json(before, &old));
  HV_CHECK(hv_model_config_to_json(now, &new));
  for (size_t i = 0; i < sizeof adapted / sizeof *adapted; i++) {
    json_object_del(old, adapted[i]);
    json_object_del(new, adapted[i]);
  }
  add_changes(old, new, "model", &changes);
  if (changes.length > 0) {
    hv_log_warning(
        "the model in init_from was trained with other values of these keys and may not work well with the new ones:%s",
        hv_text_string(&changes));
  }
done:
  hv_text_free(&changes);
  json_decref(old);
  json_decref(new);
  return status;
}
