#include "train/checkpoint.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/directory.h"
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

/* The file of one rank of those that wrote the checkpoint. */
static void shard_path(const char *directory, int32_t rank, int32_t ranks, char path[PATH_SIZE + 64]) {
  if (ranks == 1) {
    snprintf(path, PATH_SIZE + 64, "%s/training.safetensors", directory);
  } else {
    snprintf(path, PATH_SIZE + 64, "%s/training-%05d-of-%05d.safetensors", directory, rank + 1, ranks);
  }
}

/* Elements [first, end). */
typedef struct element_range {
  int64_t first, end;
} element_range;

/* What the file of one rank holds of a run of `total` elements. */
static element_range shard_range(int64_t total, int32_t rank, int32_t ranks) {
  return (element_range){.first = total * rank / ranks, .end = total * (rank + 1) / ranks};
}

/* One run of elements of a group, by the name it has in the files, and what lies on this rank's device. */
typedef struct state_part {
  char name[NAME_SIZE];
  hv_tensor tensor;
  int64_t first, total; /* the tensor holds elements from `first` on, of so many in the group */
} state_part;

typedef struct state_parts {
  state_part *items;
  int count;
} state_parts;

static void add_part(state_parts *parts, const hv_group *group, const char *what, hv_tensor tensor, int64_t first) {
  if (!hv_present(tensor)) return;
  state_part *part = &parts->items[parts->count++];
  snprintf(part->name, sizeof part->name, "%s.%s", group->name, what);
  part->tensor = tensor;
  part->first = first;
  part->total = group->count;
}

/* The values of a group that are on this rank: all, or where values are sharded its share. */
static void add_values(state_parts *parts, const hv_params *params, hv_group_id group) {
  hv_owned owned = hv_group_owned(params, group);
  bool whole = hv_params_sharding(params) != HV_SHARD_PARAMETERS;
  hv_tensor values = whole ? hv_group_values(params, group) : owned.values;
  add_part(parts, hv_params_group(params, group), "values", values, whole ? 0 : owned.first);
}

/* Everything that a checkpoint holds, wider dtypes first. */
static hv_status list_parts(const hv_params *params, const hv_optimizer *optimizer, state_parts *out) {
  int32_t groups = hv_params_group_count(params);
  *out = (state_parts){.items = calloc((size_t)groups * 4 + 1, sizeof *out->items)};
  if (!out->items) return hv_error_memory("the list of parameter groups");
  for (hv_group_id g = 0; g < groups; g++) {
    const hv_optimizer_state state = hv_optimizer_group_state(optimizer, g);
    const hv_group *group = hv_params_group(params, g);
    add_part(out, group, "moment1", state.moment1, hv_group_owned(params, g).first);
    add_part(out, group, "moment2", state.moment2, hv_group_owned(params, g).first);
  }
  for (hv_group_id g = 0; g < groups; g++) add_values(out, params, g);
  for (hv_group_id g = 0; g < groups; g++) {
    hv_tensor remainder = hv_optimizer_group_state(optimizer, g).remainder;
    add_part(out, hv_params_group(params, g), "remainder", remainder, hv_group_owned(params, g).first);
  }
  return HV_OK;
}

static int32_t rank_of(const hv_params *params) {
  const hv_comm *comm = hv_params_comm(params);
  return comm ? comm->rank : 0;
}

static int32_t ranks_of(const hv_params *params) {
  const hv_comm *comm = hv_params_comm(params);
  return comm ? comm->size : 1;
}

/* The outcome of what all ranks did, on all of them. */
static hv_status together(const hv_params *params, const char *what, hv_status own) {
  hv_comm *comm = hv_params_comm(params);
  return comm ? hv_comm_agree(comm, what, own) : own;
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

/* What this rank writes of a part. */
static hv_tensor part_to_write(const state_part *part, int32_t rank, int32_t ranks) {
  element_range range = shard_range(part->total, rank, ranks);
  return hv_tensor_cols(part->tensor, range.first - part->first, range.end - range.first);
}

static hv_status write_tensors(const char *directory, const hv_params *params, const hv_optimizer *optimizer,
                               hv_stream *stream) {
  hv_status status = HV_OK;
  hv_device *device = hv_params_device(params);
  int32_t rank = rank_of(params), ranks = ranks_of(params);
  char path[PATH_SIZE + 64];
  void *staging = NULL;
  hv_safetensors_writer *writer = NULL;
  state_parts parts = {0};
  shard_path(directory, rank, ranks, path);
  HV_CHECK(list_parts(params, optimizer, &parts));
  HV_CHECK(hv_device_allocate_host(device, STAGING_BYTES, "a checkpoint's staging", &staging));
  HV_CHECK(hv_safetensors_writer_open(path, &writer));
  for (int i = 0; i < parts.count; i++) {
    hv_tensor tensor = part_to_write(&parts.items[i], rank, ranks);
    HV_CHECK(hv_safetensors_writer_declare(writer, parts.items[i].name, tensor.dtype, 1, &tensor.cols));
  }
  for (int i = 0; i < parts.count; i++) {
    HV_CHECK(write_part(writer, part_to_write(&parts.items[i], rank, ranks), staging, stream));
  }
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
  json_t *state = json_pack("{s:i, s:i, s:I, s:I, s:I, s:I, s:s, s:I, s:s}", "format", FORMAT, "ranks",
                            ranks_of(params), "step", (json_int_t)position->step, "updates",
                            (json_int_t)position->updates, "samples", (json_int_t)position->samples, "seed",
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
  bool leader = rank_of(params) == 0;
  hv_status status = HV_OK;
  if (leader) status = hv_remove_tree(partial);
  if (leader && !status) status = hv_make_directories(partial);
  status = together(params, "making the checkpoint's folder", status);
  if (!status) status = together(params, "writing the checkpoint", write_tensors(partial, params, optimizer, stream));
  if (!status) {
    if (leader) status = write_state(partial, position, params);
    if (leader && !status) status = publish(run, partial, final);
    status = together(params, "completing the checkpoint", status);
  }
  if (status && leader) status = hv_status_first(status, hv_remove_tree(partial));
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

/* A checkpoint's files. */
typedef struct open_files {
  json_t *state;
  int32_t ranks;
  hv_safetensors **shards; /* [ranks] */
} open_files;

static void close_files(open_files *files) {
  for (int32_t r = 0; files->shards && r < files->ranks; r++) hv_safetensors_close(files->shards[r]);
  free(files->shards);
  json_decref(files->state);
}

/* How many ranks wrote the checkpoint. */
static hv_status read_ranks(const char *path, const json_t *state, int32_t *out) {
  const json_t *ranks = json_object_get(state, "ranks");
  json_int_t count = ranks ? json_integer_value(ranks) : 1;
  if (count < 1 || count > HV_GROUP_ALIGNMENT) {
    return hv_error(HV_ERR_INPUT, "%s: ranks is not a number from 1 to %d", path, HV_GROUP_ALIGNMENT);
  }
  *out = (int32_t)count;
  return HV_OK;
}

/* Opens all files; the caller closes them, also after an error. A file that is cut short does not pass safetensors'
 * checks. */
static hv_status open_checkpoint(const char *run, int64_t step, open_files *files) {
  char directory[PATH_SIZE], path[PATH_SIZE + 64];
  *files = (open_files){0};
  HV_TRY(checkpoint_path(run, step, "", directory));
  snprintf(path, sizeof path, "%s/state.json", directory);
  HV_TRY(hv_json_load(path, &files->state));
  HV_TRY(read_ranks(path, files->state, &files->ranks));
  files->shards = calloc((size_t)files->ranks, sizeof(hv_safetensors *));
  if (!files->shards) return hv_error_memory("a checkpoint's files");
  for (int32_t r = 0; r < files->ranks; r++) {
    shard_path(directory, r, files->ranks, path);
    HV_TRY(hv_safetensors_open(path, &files->shards[r]));
  }
  return HV_OK;
}

hv_status hv_checkpoint_find(const char *run, int64_t *step, hv_text *damaged) {
  found_checkpoints found;
  *step = -1;
  HV_TRY(list_checkpoints(run, &found));
  for (size_t i = found.count; i-- > 0 && *step < 0;) {
    open_files files;
    hv_status problem = open_checkpoint(run, found.steps[i], &files);
    close_files(&files);
    if (!problem) {
      *step = found.steps[i];
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

/* Looks every part up in every file before anything is changed, and lists all that do not fit. */
static hv_status check_parts(const state_parts *parts, const open_files *files) {
  hv_text problems = {0};
  for (int i = 0; i < parts->count * files->ranks; i++) {
    const state_part *part = &parts->items[i / files->ranks];
    int32_t shard = i % files->ranks;
    const hv_file_tensor *found = hv_safetensors_find(files->shards[shard], part->name);
    element_range range = shard_range(part->total, shard, files->ranks);
    if (!found) {
      hv_text_add(&problems, "\n  %s is missing", part->name);
    } else if (!found->known || found->dtype != part->tensor.dtype || found->count != range.end - range.first) {
      hv_text_add(&problems, "\n  %s has %lld values of %s, the model %lld of %s", part->name, (long long)found->count,
                  found->dtype_name, (long long)range.end - (long long)range.first,
                  hv_safetensors_dtype_name(part->tensor.dtype));
    }
  }
  hv_status status = HV_OK;
  if (problems.failed) {
    status = hv_error_memory("a list of findings");
  } else if (problems.length > 0) {
    status = hv_error(HV_ERR_INPUT, "%s does not fit the configured model or what it freezes:%s",
                      hv_safetensors_path(files->shards[0]), hv_text_string(&problems));
  }
  hv_text_free(&problems);
  return status;
}

/* What one file holds of what this rank needs. */
static void read_piece(const state_part *part, const open_files *files, int32_t shard, hv_stream *stream) {
  element_range file = shard_range(part->total, shard, files->ranks);
  int64_t first = part->first > file.first ? part->first : file.first, end = part->first + part->tensor.cols;
  if (end > file.end) end = file.end;
  if (first >= end) return;
  size_t width = hv_dtype_size(part->tensor.dtype);
  const char *data = hv_safetensors_find(files->shards[shard], part->name)->data;
  hv_tensor to = hv_tensor_cols(part->tensor, first - part->first, end - first);
  hv_upload(stream, to.data, data + (size_t)(first - file.first) * width, (size_t)to.cols * width);
}

static hv_status read_parts(const open_files *files, const hv_params *params, const hv_optimizer *optimizer,
                            hv_stream *stream) {
  hv_status status = HV_OK;
  state_parts parts = {0};
  HV_CHECK(list_parts(params, optimizer, &parts));
  HV_CHECK(check_parts(&parts, files));
  for (int i = 0; i < parts.count; i++) {
    for (int32_t shard = 0; shard < files->ranks; shard++) read_piece(&parts.items[i], files, shard, stream);
  }
  status = hv_stream_synchronize(stream);
done:
  free(parts.items);
  return status;
}

hv_status hv_checkpoint_load(const char *run, int64_t step, hv_params *params, hv_optimizer *optimizer,
                             hv_stream *stream, hv_run_position *out) {
  open_files files;
  char where[PATH_SIZE];
  HV_TRY(checkpoint_path(run, step, "", where));
  hv_status status = open_checkpoint(run, step, &files);
  if (!status) status = read_position(files.state, where, params, out);
  if (!status) status = read_parts(&files, params, optimizer, stream);
  close_files(&files);
  HV_TRY(together(params, "reading the checkpoint", status));
  hv_optimizer_set_updates(optimizer, out->updates);
  hv_params_publish(params, stream);
  return hv_stream_synchronize(stream);
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
