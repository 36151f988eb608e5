#include "train/checkpoint.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/file.h"
#include "core/base/string_list.h"
#include "core/io/json.h"
#include "core/io/model_directory.h"
#include "core/io/safetensors.h"

enum { STAGING_BYTES = 8 << 20, FORMAT = 1, PATH_SIZE = 4096, NAME_SIZE = 256 };

static hv_status checkpoint_path(const char *run, int64_t step, const char *suffix, char path[PATH_SIZE]) {
  int length = snprintf(path, PATH_SIZE, "%s/checkpoints/step-%" PRId64 "%s", run, step, suffix);
  if (length >= PATH_SIZE) return hv_error(HV_ERR_INPUT, "%s: the path is too long", run);
  return HV_OK;
}

/* One run of elements of a group, by the name it has in the file. */
typedef struct state_part {
  char name[NAME_SIZE];
  hv_tensor tensor;
} state_part;

typedef struct state_parts {
  state_part *items;
  int count;
} state_parts;

static void add_part(state_parts *parts, const char *group, const char *what, hv_tensor tensor) {
  if (!hv_present(tensor)) return;
  state_part *part = &parts->items[parts->count++];
  snprintf(part->name, sizeof part->name, "%s.%s", group, what);
  part->tensor = tensor;
}

/* Everything that a checkpoint holds, wider dtypes first. */
static hv_status list_parts(const hv_params *params, const hv_optimizer *optimizer, state_parts *out) {
  int32_t groups = hv_params_group_count(params);
  *out = (state_parts){.items = calloc((size_t)groups * 4 + 1, sizeof *out->items)};
  if (!out->items) return hv_error_memory("the list of parameter groups");
  for (hv_group_id g = 0; g < groups; g++) {
    const hv_optimizer_state state = hv_optimizer_group_state(optimizer, g);
    const char *name = hv_params_group(params, g)->name;
    add_part(out, name, "moment1", state.moment1);
    add_part(out, name, "moment2", state.moment2);
  }
  for (hv_group_id g = 0; g < groups; g++) {
    add_part(out, hv_params_group(params, g)->name, "values", hv_group_values(params, g));
  }
  for (hv_group_id g = 0; g < groups; g++) {
    add_part(out, hv_params_group(params, g)->name, "remainder", hv_optimizer_group_state(optimizer, g).remainder);
  }
  return HV_OK;
}

static hv_status write_part(hv_safetensors_writer *writer, hv_tensor tensor, char *staging, hv_stream *stream) {
  size_t size = (size_t)tensor.cols * hv_dtype_size(tensor.dtype);
  for (size_t at = 0; at < size; at += STAGING_BYTES) {
    size_t piece = size - at < STAGING_BYTES ? size - at : STAGING_BYTES;
    hv_download(stream, staging, (const char *)tensor.data + at, piece);
    HV_TRY(hv_stream_synchronize(stream));
    HV_TRY(hv_safetensors_writer_write(writer, staging, piece));
  }
  return HV_OK;
}

static hv_status write_tensors(const char *directory, const hv_params *params, const hv_optimizer *optimizer,
                               hv_stream *stream) {
  hv_status status = HV_OK;
  hv_device *device = hv_params_device(params);
  char path[PATH_SIZE + 32];
  void *staging = NULL;
  hv_safetensors_writer *writer = NULL;
  state_parts parts = {0};
  snprintf(path, sizeof path, "%s/training.safetensors", directory);
  HV_CHECK(list_parts(params, optimizer, &parts));
  HV_CHECK(hv_device_allocate_host(device, STAGING_BYTES, "a checkpoint's staging", &staging));
  HV_CHECK(hv_safetensors_writer_open(path, &writer));
  for (int i = 0; i < parts.count; i++) {
    hv_tensor tensor = parts.items[i].tensor;
    HV_CHECK(hv_safetensors_writer_declare(writer, parts.items[i].name, tensor.dtype, 1, &tensor.cols));
  }
  for (int i = 0; i < parts.count; i++) HV_CHECK(write_part(writer, parts.items[i].tensor, staging, stream));
  status = hv_safetensors_writer_commit(writer);
  writer = NULL;
done:
  hv_safetensors_writer_abort(writer);
  hv_device_release_host(device, staging);
  free(parts.items);
  return status;
}

static hv_status write_state(const char *directory, const hv_run_position *position, const hv_params *params) {
  char path[PATH_SIZE + 32];
  snprintf(path, sizeof path, "%s/state.json", directory);
  json_t *state =
      json_pack("{s:i, s:I, s:I, s:I, s:I, s:s, s:I, s:s}", "format", FORMAT, "step", (json_int_t)position->step,
                "updates", (json_int_t)position->updates, "samples", (json_int_t)position->samples, "seed",
                (json_int_t)position->seed, "dtype", hv_dtype_name(hv_params_dtype(params)), "parameters",
                (json_int_t)hv_params_total(params), "version", HVLA_VERSION);
  if (!state) return hv_error_memory("a checkpoint's state");
  hv_status status = hv_json_save(path, state);
  json_decref(state);
  return status;
}

/* Puts the whole directory in its place. */
static hv_status publish(const char *run, const char *partial, const char *final) {
  char parent[PATH_SIZE + 32];
  snprintf(parent, sizeof parent, "%s/checkpoints", run);
  HV_TRY(hv_sync_directory(partial));
  if (hv_file_exists(final)) return hv_replace_directory(partial, final);
  if (rename(partial, final) != 0) return hv_error_errno(errno, "cannot rename %s to %s", partial, final);
  return hv_sync_directory(parent);
}

hv_status hv_checkpoint_save(const char *run, const hv_run_position *position, const hv_params *params,
                             const hv_optimizer *optimizer, hv_stream *stream) {
  char partial[PATH_SIZE], final[PATH_SIZE];
  HV_TRY(checkpoint_path(run, position->step, ".tmp", partial));
  HV_TRY(checkpoint_path(run, position->step, "", final));
  HV_TRY(hv_remove_tree(partial));
  hv_status status = hv_make_directories(partial);
  if (!status) status = write_tensors(partial, params, optimizer, stream);
  if (!status) status = write_state(partial, position, params);
  if (!status) status = publish(run, partial, final);
  if (status) status = hv_status_first(status, hv_remove_tree(partial));
  return hv_error_context(status, "checkpoint of step %" PRId64, position->step);
}

/* The steps of the directories called step-N, ascending, and the names of half-written ones. */
typedef struct found_checkpoints {
  int64_t *steps;
  size_t count;
  hv_string_list partial;
} found_checkpoints;

static void free_found(found_checkpoints *found) {
  free(found->steps);
  hv_string_list_free(&found->partial);
}

static int compare_steps(const void *a, const void *b) {
  int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
  return (x > y) - (x < y);
}

/* Whether a name is step-N with `suffix` behind it. */
static bool step_of(const char *name, const char *suffix, int64_t *step) {
  if (strncmp(name, "step-", 5) != 0 || name[5] < '0' || name[5] > '9') return false;
  char *end;
  errno = 0;
  *step = strtoll(name + 5, &end, 10);
  return errno == 0 && strcmp(end, suffix) == 0;
}

static hv_status take_entry(found_checkpoints *found, const char *name) {
  int64_t step;
  if (step_of(name, ".tmp", &step) || step_of(name, ".old", &step)) {
    return hv_string_list_append(&found->partial, name);
  }
  if (!step_of(name, "", &step)) return HV_OK;
  int64_t *grown = realloc(found->steps, (found->count + 1) * sizeof *grown);
  if (!grown) return hv_error_memory("the list of checkpoints");
  found->steps = grown;
  found->steps[found->count++] = step;
  return HV_OK;
}

static hv_status list_checkpoints(const char *run, found_checkpoints *out) {
  *out = (found_checkpoints){0};
  hv_status status = HV_OK;
  char *path = hv_path_join(run, "checkpoints");
  if (!path) return hv_error_memory("a path");
  DIR *directory = opendir(path);
  if (!directory) {
    if (errno != ENOENT) status = hv_error_errno(errno, "cannot read directory %s", path);
    free(path);
    return status;
  }
  const struct dirent *entry;
  while (!status && (entry = readdir(directory)) != NULL) status = take_entry(out, entry->d_name);
  closedir(directory);
  free(path);
  if (status) {
    free_found(out);
    return status;
  }
  if (out->count > 1) qsort(out->steps, out->count, sizeof *out->steps, compare_steps);
  return HV_OK;
}

/* Opens both files; the caller frees what it gets. A file that is cut short does not pass safetensors' checks. */
static hv_status open_checkpoint(const char *run, int64_t step, json_t **state, hv_safetensors **tensors) {
  char directory[PATH_SIZE], path[PATH_SIZE + 32];
  *state = NULL;
  *tensors = NULL;
  HV_TRY(checkpoint_path(run, step, "", directory));
  snprintf(path, sizeof path, "%s/state.json", directory);
  HV_TRY(hv_json_load(path, state));
  snprintf(path, sizeof path, "%s/training.safetensors", directory);
  hv_status status = hv_safetensors_open(path, tensors);
  if (status) {
    json_decref(*state);
    *state = NULL;
  }
  return status;
}

hv_status hv_checkpoint_find(const char *run, int64_t *step, hv_text *damaged) {
  found_checkpoints found;
  *step = -1;
  HV_TRY(list_checkpoints(run, &found));
  for (size_t i = found.count; i-- > 0 && *step < 0;) {
    json_t *state;
    hv_safetensors *tensors;
    hv_status problem = open_checkpoint(run, found.steps[i], &state, &tensors);
    if (!problem) {
      *step = found.steps[i];
      json_decref(state);
      hv_safetensors_close(tensors);
    } else {
      hv_text_add(damaged, "%s\n", hv_status_message(problem));
      hv_status_free(problem);
    }
  }
  free_found(&found);
  return HV_OK;
}

hv_status hv_checkpoint_any(const char *run, bool *out) {
  found_checkpoints found;
  HV_TRY(list_checkpoints(run, &found));
  *out = found.count > 0;
  free_found(&found);
  return HV_OK;
}

static hv_status read_position(const json_t *state, const char *where, const hv_params *params, hv_run_position *out) {
  json_int_t format, step, updates, samples, seed;
  const char *dtype;
  if (json_unpack((json_t *)(uintptr_t)state, "{s:I, s:I, s:I, s:I, s:I, s:s}", "format", &format, "step", &step,
                  "updates", &updates, "samples", &samples, "seed", &seed, "dtype", &dtype) != 0) {
    return hv_error(HV_ERR_INPUT,
                    "%s: not the state of a run: format, step, updates, samples, seed and dtype are needed", where);
  }
  if (format != FORMAT) {
    return hv_error(HV_ERR_INPUT, "%s: format %lld; this program reads format %d", where, (long long)format, FORMAT);
  }
  if (strcmp(dtype, hv_dtype_name(hv_params_dtype(params))) != 0) {
    return hv_error(HV_ERR_INPUT, "%s: the run was made with dtype %s and cannot go on in %s", where, dtype,
                    hv_dtype_name(hv_params_dtype(params)));
  }
  *out = (hv_run_position){.step = step, .updates = updates, .samples = samples, .seed = seed};
  return HV_OK;
}

/* Looks every part up before anything is changed, and lists all that do not fit. */
static hv_status check_parts(const state_parts *parts, const hv_safetensors *tensors, const hv_file_tensor **found) {
  hv_text problems = {0};
  for (int i = 0; i < parts->count; i++) {
    const state_part *part = &parts->items[i];
    found[i] = hv_safetensors_find(tensors, part->name);
    if (!found[i]) {
      hv_text_add(&problems, "\n  %s is missing", part->name);
    } else if (!found[i]->known || found[i]->dtype != part->tensor.dtype || found[i]->count != part->tensor.cols) {
      hv_text_add(&problems, "\n  %s has %lld values of %s, the model %lld of %s", part->name,
                  (long long)found[i]->count, found[i]->dtype_name, (long long)part->tensor.cols,
                  hv_safetensors_dtype_name(part->tensor.dtype));
    }
  }
  hv_status status = HV_OK;
  if (problems.failed) {
    status = hv_error_memory("a list of findings");
  } else if (problems.length > 0) {
    status = hv_error(HV_ERR_INPUT, "%s does not fit the configured model or what it freezes:%s",
                      hv_safetensors_path(tensors), hv_text_string(&problems));
  }
  hv_text_free(&problems);
  return status;
}

static hv_status read_parts(const hv_safetensors *tensors, const hv_params *params, const hv_optimizer *optimizer,
                            hv_stream *stream) {
  hv_status status = HV_OK;
  const hv_file_tensor **found = NULL;
  state_parts parts = {0};
  HV_CHECK(list_parts(params, optimizer, &parts));
  found = calloc((size_t)parts.count + 1, sizeof *found);
  if (!found) {
    status = hv_error_memory("the list of parameter groups");
    goto done;
  }
  HV_CHECK(check_parts(&parts, tensors, found));
  for (int i = 0; i < parts.count; i++) {
    hv_upload(stream, parts.items[i].tensor.data, found[i]->data, found[i]->size);
  }
  status = hv_stream_synchronize(stream);
done:
  free(found);
  free(parts.items);
  return status;
}

hv_status hv_checkpoint_load(const char *run, int64_t step, hv_params *params, hv_optimizer *optimizer,
                             hv_stream *stream, hv_run_position *out) {
  json_t *state;
  hv_safetensors *tensors;
  char where[PATH_SIZE];
  HV_TRY(checkpoint_path(run, step, "", where));
  HV_TRY(open_checkpoint(run, step, &state, &tensors));
  hv_status status = read_position(state, where, params, out);
  if (!status) status = read_parts(tensors, params, optimizer, stream);
  if (!status) hv_optimizer_set_updates(optimizer, out->updates);
  json_decref(state);
  hv_safetensors_close(tensors);
  return status;
}

hv_status hv_checkpoint_prune(const char *run, int64_t keep) {
  found_checkpoints found;
  char path[PATH_SIZE];
  HV_TRY(list_checkpoints(run, &found));
  hv_status status = HV_OK;
  for (size_t i = 0; i < found.partial.count && !status; i++) {
    int length = snprintf(path, sizeof path, "%s/checkpoints/%s", run, found.partial.items[i]);
    status = length < PATH_SIZE ? hv_remove_tree(path) : hv_error(HV_ERR_INPUT, "%s: the path is too long", run);
  }
  for (size_t i = 0; i + (size_t)keep < found.count && !status; i++) {
    status = checkpoint_path(run, found.steps[i], "", path);
    if (!status) status = hv_remove_tree(path);
  }
  free_found(&found);
  return status;
}
