#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "core/io/json.h"
#include "data/commands.h"
#include "data/statistics.h"

typedef struct stats_options {
  hv_string_list files;
  char *key, *out, *split;   /* NULL: not given */
  hv_string_list state_keys; /* each may hold several, with commas between; empty: the layout's choice */
  hv_int_list gripper;       /* empty: the default rule of hv_statistics_compute */
} stats_options;

static const hv_option options[] = {
    {.key = "key",
     .type = HV_OPTION_STRING,
     .offset = offsetof(stats_options, key),
     .fallback = "null",
     .unit = "NAME",
     .doc = "Make one entry of all files together, with this name. Without it each file gets an entry, named after "
            "the file without folder and extension."},
    {.key = "out",
     .type = HV_OPTION_PATH,
     .offset = offsetof(stats_options, out),
     .fallback = "null",
     .unit = "FILE",
     .doc = "Write to this file, not to standard output. Entries of other keys in an existing file are kept."},
    {.key = "state-keys",
     .type = HV_OPTION_STRING_LIST,
     .offset = offsetof(stats_options, state_keys),
     .fallback = "[]",
     .unit = "A,B,...",
     .doc = "Observations that make up the robot's state, in this order. By default each robot's eef_pos, eef_quat and "
            "gripper_qpos, as far as the file has them."},
    {.key = "split",
     .type = HV_OPTION_STRING,
     .offset = offsetof(stats_options, split),
     .fallback = "null",
     .unit = "NAME",
     .doc = "Only the episodes of this split (robomimic: a filter under /mask). By default all episodes."},
    {.key = "gripper",
     .type = HV_OPTION_INT_LIST,
     .offset = offsetof(stats_options, gripper),
     .fallback = "[]",
     .max = 4095,
     .unit = "[I,...]",
     .doc = "Action dimensions that are not scaled (mask false). By default dimension 6, and 13 for two arms, if its "
            "values are 0 and 1 and nothing else."},
};

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

/* Computes one entry, named `key`, over all of these files. */
static hv_status compute(const stats_options *given, const hv_string_list *state_keys, char *const *files,
                         size_t num_files, const char *key, hv_dataset_statistics *out) {
  hv_demonstrations_options wanted = {
      .files = (const char *const *)files,
      .num_files = num_files,
      .split = given->split,
      .state_keys = (const char *const *)state_keys->items,
      .num_state_keys = state_keys->count,
      .default_state = state_keys->count == 0,
      .action_dim = -1,
      .state_dim = -1,
  };
  int32_t gripper[4096];
  int32_t num_gripper = given->gripper.count > 0 ? 0 : -1;
  for (size_t i = 0; i < given->gripper.count && i < sizeof gripper / sizeof *gripper; i++) {
    gripper[num_gripper++] = (int32_t)given->gripper.items[i];
  }
  hv_demonstrations *demonstrations;
  HV_TRY(hv_demonstrations_open(&wanted, &demonstrations));
  hv_status status = hv_statistics_compute(demonstrations, key, gripper, num_gripper, out);
  hv_demonstrations_close(demonstrations);
  return status;
}

static hv_status format_entries(const hv_dataset_statistics *entries, size_t count, hv_text *out) {
  json_t *document = json_object(), *entry = NULL;
  hv_status status = document ? HV_OK : hv_error_memory("statistics");
  for (size_t i = 0; i < count && !status; i++) {
    HV_CHECK(hv_dataset_statistics_to_json(&entries[i], &entry));
    int failed = json_object_update(document, entry);
    json_decref(entry);
    if (failed) status = hv_error_memory("statistics");
  }
  if (!status) status = hv_json_format(document, out);
done:
  json_decref(document);
  return status;
}

static hv_status save_entries(const char *path, const hv_dataset_statistics *entries, size_t count) {
  for (size_t i = 0; i < count; i++) HV_TRY(hv_dataset_statistics_save(path, &entries[i]));
  return HV_OK;
}

static hv_status check_different(const hv_dataset_statistics *entries, size_t count, const char *file) {
  for (size_t i = 0; i + 1 < count; i++) {
    if (strcmp(entries[i].key, entries[count - 1].key) != 0) continue;
    return hv_error(HV_ERR_INPUT, "%s: another file has the same key %s; --key NAME makes one entry of all files", file,
                    entries[i].key);
  }
  return HV_OK;
}

static hv_status work(const void *values, hv_command_result *out) {
  const stats_options *given = values;
  hv_string_list keys = {0};
  char *stem = NULL;
  size_t count = 0;
  hv_dataset_statistics *entries = calloc(given->files.count, sizeof *entries);
  if (!entries) return hv_error_memory("statistics");
  hv_status status = HV_OK;
  HV_CHECK(hv_split_state_keys(&given->state_keys, &keys));
  if (given->key) {
    HV_CHECK(compute(given, &keys, given->files.items, given->files.count, given->key, &entries[count++]));
  } else {
    for (size_t i = 0; i < given->files.count; i++) {
      free(stem);
      stem = stem_of(given->files.items[i]);
      if (!stem) {
        status = hv_error_memory("a key");
        goto done;
      }
      HV_CHECK(compute(given, &keys, &given->files.items[i], 1, stem, &entries[count++]));
      HV_CHECK(check_different(entries, count, given->files.items[i]));
    }
  }
  status = given->out ? save_entries(given->out, entries, count) : format_entries(entries, count, &out->text);
done:
  for (size_t i = 0; i < count; i++) hv_dataset_statistics_free(&entries[i]);
  free(entries);
  free(stem);
  hv_string_list_free(&keys);
  return status;
}

const hv_command hv_command_stats = {
    .name = "stats",
    .summary = "Compute the statistics of actions and state by which training and prediction scale them.",
    .help = "Prints dataset_statistics.json: for `action` and `proprio` (the robot's state) the mean, standard\n"
            "deviation, minimum, maximum and the 1 % and 99 % quantiles of every dimension, over all frames.\n"
            "hvla-train computes its own from its training split; these are for inspection and for other programs.\n"
            "\n"
            "  hvla-data stats data/demos/lift.hdf5\n"
            "  hvla-data stats --key lift --split train --out stats.json data/demos/lift.hdf5\n"
            "  hvla-data stats --state-keys robot0_eef_pos,robot0_gripper_qpos data/demos/*.hdf5\n",
    .options = options,
    .num_options = sizeof options / sizeof *options,
    .operands = "FILE…",
    .operands_offset = offsetof(stats_options, files),
    .min_operands = 1,
    .values_size = sizeof(stats_options),
    .work = work,
};
