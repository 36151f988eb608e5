#include <stdlib.h>
#include <string.h>

#include "core/io/json.h"
#include "data/commands.h"
#include "data/statistics.h"

/* A file's name without folder and ending, on the heap; NULL without memory. */
static char *stem_of(const char *path) {
  const char *slash = strrchr(path, '/');
  const char *name = slash ? slash + 1 : path;
  const char *dot = strrchr(name, '.');
  return dot && dot > name ? strndup(name, (size_t)(dot - name)) : strdup(name);
}

hv_status hv_split_state_keys(const hv_string_list *given, hv_string_list *out) {
  for (size_t i = 0; i < given->count; i++) {
    char *copy = strdup(given->items[i]), *rest = copy;
    if (!copy) return hv_error_memory("state keys");
    hv_status status = HV_OK;
    for (char *key = strsep(&rest, ","); key && !status; key = strsep(&rest, ",")) {
      status = *key ? hv_string_list_append(out, key)
                    : hv_error(HV_ERR_INPUT, "--state-keys %s: an empty name", given->items[i]);
    }
    free(copy);
    HV_TRY(status);
  }
  return HV_OK;
}

/* The entry of some files, taken together, under `key`. */
static hv_status compute(const hv_stats_options *options, const hv_string_list *state_keys, char *const *files,
                         size_t num_files, const char *key, hv_dataset_statistics *out) {
  hv_demonstrations_options wanted = {
      .files = (const char *const *)files,
      .num_files = num_files,
      .split = options->split,
      .state_keys = (const char *const *)state_keys->items,
      .num_state_keys = state_keys->count,
      .default_state = state_keys->count == 0,
      .action_dim = -1,
      .state_dim = -1,
  };
  int32_t gripper[4096];
  int32_t num_gripper = options->gripper.count > 0 ? 0 : -1;
  for (size_t i = 0; i < options->gripper.count && i < sizeof gripper / sizeof *gripper; i++) {
    gripper[num_gripper++] = (int32_t)options->gripper.items[i];
  }
  hv_demonstrations *demonstrations;
  HV_TRY(hv_demonstrations_open(&wanted, &demonstrations));
  hv_status status = hv_statistics_compute(demonstrations, key, gripper, num_gripper, out);
  hv_demonstrations_close(demonstrations);
  return status;
}

static hv_status print_entries(const hv_dataset_statistics *entries, size_t count) {
  hv_text text = {0};
  json_t *document = json_object(), *entry = NULL;
  hv_status status = document ? HV_OK : hv_error_memory("statistics");
  for (size_t i = 0; i < count && !status; i++) {
    HV_CHECK(hv_dataset_statistics_to_json(&entries[i], &entry));
    int failed = json_object_update(document, entry);
    json_decref(entry);
    if (failed) status = hv_error_memory("statistics");
  }
  if (!status) status = hv_json_format(document, &text);
  if (!status) status = hv_print(text.data, text.length);
done:
  json_decref(document);
  hv_text_free(&text);
  return status;
}

static hv_status save_entries(const char *path, const hv_dataset_statistics *entries, size_t count) {
  for (size_t i = 0; i < count; i++) HV_TRY(hv_dataset_statistics_save(path, &entries[i]));
  return HV_OK;
}

static hv_status check_different(const hv_dataset_statistics *entries, size_t count, const char *file) {
  for (size_t i = 0; i + 1 < count; i++) {
    if (strcmp(entries[i].key, entries[count - 1].key) != 0) continue;
    return hv_error(HV_ERR_INPUT, "%s: another file gives the key %s, too; --key NAME makes one entry of all files",
                    file, entries[i].key);
  }
  return HV_OK;
}

hv_status hv_command_stats(const hv_stats_options *options) {
  hv_string_list keys = {0};
  char *stem = NULL;
  size_t count = 0;
  hv_dataset_statistics *entries = calloc(options->files.count, sizeof *entries);
  if (!entries) return hv_error_memory("statistics");
  hv_status status = HV_OK;
  HV_CHECK(hv_split_state_keys(&options->state_keys, &keys));
  if (options->key) {
    HV_CHECK(compute(options, &keys, options->files.items, options->files.count, options->key, &entries[count++]));
  } else {
    for (size_t i = 0; i < options->files.count; i++) {
      free(stem);
      stem = stem_of(options->files.items[i]);
      if (!stem) {
        status = hv_error_memory("a key");
        goto done;
      }
      HV_CHECK(compute(options, &keys, &options->files.items[i], 1, stem, &entries[count++]));
      HV_CHECK(check_different(entries, count, options->files.items[i]));
    }
  }
  status = options->out ? save_entries(options->out, entries, count) : print_entries(entries, count);
done:
  for (size_t i = 0; i < count; i++) hv_dataset_statistics_free(&entries[i]);
  free(entries);
  free(stem);
  hv_string_list_free(&keys);
  return status;
}
