#include "train/checkpoint/checkpoint_files.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "core/base/directory.h"
#include "core/base/string_list.h"
#include "core/io/json.h"

/* The most that can be counted: ranks exchange numbers as doubles. */
static const int64_t MOST_COUNTED = (int64_t)1 << 53;

enum { FORMAT_WITHOUT_DIGESTS = 1, FILE_PATH = HV_CHECKPOINT_PATH + HV_CHECKPOINT_NAME + 1 };

hv_status hv_checkpoint_path(const char *run, int64_t step, const char *suffix, char path[HV_CHECKPOINT_PATH]) {
  int length = snprintf(path, HV_CHECKPOINT_PATH, "%s/checkpoints/step-%" PRId64 "%s", run, step, suffix);
  if (length >= HV_CHECKPOINT_PATH) return hv_error(HV_ERR_INPUT, "%s: the path is too long", run);
  return HV_OK;
}

void hv_checkpoint_file_name(int32_t rank, int32_t ranks, char name[HV_CHECKPOINT_NAME]) {
  if (ranks == 1) {
    snprintf(name, HV_CHECKPOINT_NAME, "training.safetensors");
  } else {
    snprintf(name, HV_CHECKPOINT_NAME, "training-%05d-of-%05d.safetensors", rank + 1, ranks);
  }
}

hv_status hv_checkpoint_begin(const char *run, int64_t step) {
  char partial[HV_CHECKPOINT_PATH];
  HV_TRY(hv_checkpoint_path(run, step, ".tmp", partial));
  HV_TRY(hv_remove_tree(partial));
  return hv_make_directories(partial);
}

hv_status hv_checkpoint_abandon(const char *run, int64_t step) {
  char partial[HV_CHECKPOINT_PATH];
  HV_TRY(hv_checkpoint_path(run, step, ".tmp", partial));
  return hv_remove_tree(partial);
}

/* [{"name", "bytes", "xxh3"}, …] */
static json_t *format_files(const hv_manifest *manifest) {
  json_t *files = json_array();
  for (int32_t r = 0; files && r < manifest->ranks; r++) {
    char name[HV_CHECKPOINT_NAME], xxh3[17];
    hv_checkpoint_file_name(r, manifest->ranks, name);
    snprintf(xxh3, sizeof xxh3, "%016" PRIx64, manifest->digests[r].xxh3);
    json_t *file =
        json_pack("{s:s, s:I, s:s}", "name", name, "bytes", (json_int_t)manifest->digests[r].size, "xxh3", xxh3);
    if (json_array_append_new(files, file) != 0) {
      json_decref(files);
      return NULL;
    }
  }
  return files;
}

/* {"metric", "step", "figure", "since", "measured"}, null if nothing was measured. */
static json_t *format_best(const hv_best *best) {
  char measured[17];
  if (best->metric[0] == '\0') return json_null();
  snprintf(measured, sizeof measured, "%016" PRIx64, best->measured);
  return json_pack("{s:s, s:I, s:f, s:I, s:s}", "metric", best->metric, "step", (json_int_t)best->step, "figure",
                   best->figure, "since", (json_int_t)best->since, "measured", measured);
}

static hv_status parse_best(const char *path, json_t *object, hv_best *out) {
  const char *metric, *measured = "0"; /* absent in older checkpoints */
  json_int_t step, since;
  *out = (hv_best){.step = -1};
  if (!object || json_is_null(object)) return HV_OK;
  double figure;
  if (json_unpack(object, "{s:s, s:I, s:F, s:I, s?s}", "metric", &metric, "step", &step, "figure", &figure, "since",
                  &since, "measured", &measured) != 0) {
    return hv_error(HV_ERR_INPUT, "%s: best needs metric, step, figure and since", path);
  }
  *out = hv_best_make(metric);
  out->step = step;
  out->figure = figure;
  out->since = since;
  out->measured = strtoull(measured, NULL, 16);
  return HV_OK;
}

/* {"loss", "grad_norm", "steps"}, null if there are none. */
static json_t *format_means(const hv_spike_means *means) {
  if (means->steps == 0 || !isfinite(means->loss)) return json_null();
  return json_pack("{s:f, s:f, s:I}", "loss", means->loss, "grad_norm", means->grad_norm, "steps",
                   (json_int_t)means->steps);
}

/* Absent in older checkpoints. */
static hv_status parse_means(const char *path, json_t *object, hv_spike_means *out) {
  json_int_t steps;
  *out = (hv_spike_means){0};
  if (!object || json_is_null(object)) return HV_OK;
  if (json_unpack(object, "{s:F, s:F, s:I}", "loss", &out->loss, "grad_norm", &out->grad_norm, "steps", &steps) != 0) {
    return hv_error(HV_ERR_INPUT, "%s: means needs loss, grad_norm and steps", path);
  }
  out->steps = steps;
  return HV_OK;
}

/* The manifest's last key is its own checksum, over all bytes of the file before that key. */
static const char own_key[] = "\"xxh3\"";

static hv_status save_manifest(const char *path, const json_t *state) {
  static const char end[] = "\n}\n";
  hv_text text = {0};
  hv_status status = HV_OK;
  HV_CHECK(hv_json_format(state, &text));
  text.length -= strlen(end);
  hv_text_add(&text, ",\n  ");
  hv_text_add(&text, "%s: \"%016" PRIx64 "\"%s", own_key, (uint64_t)XXH3_64bits(text.data, text.length), end);
  status =
      text.failed ? hv_error_memory("a checkpoint's manifest") : hv_write_file_atomic(path, text.data, text.length);
done:
  hv_text_free(&text);
  return status;
}

static hv_status write_manifest(const char *directory, const hv_manifest *manifest) {
  char path[FILE_PATH];
  snprintf(path, sizeof path, "%s/state.json", directory);
  const hv_run_position *position = &manifest->position;
  json_t *state = json_pack(
      "{s:i, s:s, s:I, s:I, s:I, s:I, s:I, s:i, s:s, s:s, s:I, s:o, s:o, s:o}", "format", HV_CHECKPOINT_FORMAT,
      "version", HVLA_VERSION, "step", (json_int_t)position->step, "updates", (json_int_t)position->updates, "samples",
      (json_int_t)position->samples, "skipped_in_row", (json_int_t)position->skipped, "seed",
      (json_int_t)position->seed, "ranks", manifest->ranks, "sharding", manifest->sharding, "dtype",
      hv_dtype_name(manifest->dtype), "parameters", (json_int_t)manifest->parameters, "means",
      format_means(&position->means), "best", format_best(&position->best), "files", format_files(manifest));
  if (!state) return hv_error_memory("a checkpoint's manifest");
  hv_status status = save_manifest(path, state);
  json_decref(state);
  return status;
}

hv_status hv_checkpoint_publish(const char *run, const hv_manifest *manifest) {
  char partial[HV_CHECKPOINT_PATH], final[HV_CHECKPOINT_PATH], parent[HV_CHECKPOINT_PATH + 16];
  HV_TRY(hv_checkpoint_path(run, manifest->position.step, ".tmp", partial));
  HV_TRY(hv_checkpoint_path(run, manifest->position.step, "", final));
  HV_TRY(write_manifest(partial, manifest));
  HV_TRY(hv_sync_directory(partial));
  if (hv_file_exists(final)) return hv_replace_directory(partial, final);
  if (rename(partial, final) != 0) return hv_error_errno(errno, "cannot rename %s to %s", partial, final);
  snprintf(parent, sizeof parent, "%s/checkpoints", run);
  return hv_sync_directory(parent);
}

static bool read_dtype(const char *name, hv_dtype *out) {
  static const hv_dtype dtypes[] = {HV_F32, HV_BF16};
  for (size_t i = 0; i < sizeof dtypes / sizeof dtypes[0]; i++) {
    if (strcmp(name, hv_dtype_name(dtypes[i])) != 0) continue;
    *out = dtypes[i];
    return true;
  }
  return false;
}

/* One entry of `files`, which name the ranks' files in order. */
static hv_status parse_file(const char *path, json_t *file, const char *expected, hv_file_digest *out) {
  const char *name, *xxh3;
  json_int_t bytes;
  char *end;
  if (json_unpack(file, "{s:s, s:I, s:s}", "name", &name, "bytes", &bytes, "xxh3", &xxh3) != 0 || bytes < 0) {
    return hv_error(HV_ERR_INPUT, "%s: an entry of files needs name, bytes and xxh3", path);
  }
  if (strcmp(name, expected) != 0) {
    return hv_error(HV_ERR_INPUT, "%s: files names %s; expected %s", path, name, expected);
  }
  *out = (hv_file_digest){.size = (uint64_t)bytes, .xxh3 = strtoull(xxh3, &end, 16)};
  if (end == xxh3 || *end != '\0')
    return hv_error(HV_ERR_INPUT, "%s: the xxh3 of %s is not a hexadecimal number", path, name);
  return HV_OK;
}

static hv_status parse_files(const char *path, const json_t *files, hv_manifest *out) {
  if (json_array_size(files) != (size_t)out->ranks) {
    return hv_error(HV_ERR_INPUT, "%s: files has %zu entries for %d ranks", path, json_array_size(files), out->ranks);
  }
  out->digests = calloc((size_t)out->ranks, sizeof *out->digests);
  if (!out->digests) return hv_error_memory("a checkpoint's manifest");
  for (int32_t r = 0; r < out->ranks; r++) {
    char expected[HV_CHECKPOINT_NAME];
    hv_checkpoint_file_name(r, out->ranks, expected);
    HV_TRY(parse_file(path, json_array_get(files, (size_t)r), expected, &out->digests[r]));
  }
  return HV_OK;
}

static hv_status refuse_format(const char *path, int64_t format) {
  return hv_error(HV_ERR_INPUT, "%s: the checkpoint has format %lld; this program reads formats 1 to %d", path,
                  (long long)format, HV_CHECKPOINT_FORMAT);
}

static hv_status parse_manifest(const char *path, json_t *state, hv_manifest *out) {
  json_int_t format, step, updates, samples, seed, parameters, ranks = 1, skipped = 0; /* absent in older ones */
  const char *dtype, *sharding = "";
  out->format = json_integer_value(json_object_get(state, "format"));
  if (out->format > HV_CHECKPOINT_FORMAT) return refuse_format(path, out->format);
  if (json_unpack(state, "{s:I, s:I, s:I, s:I, s:I, s:s, s:I, s?I, s?s, s?I}", "format", &format, "step", &step,
                  "updates", &updates, "samples", &samples, "seed", &seed, "dtype", &dtype, "parameters", &parameters,
                  "ranks", &ranks, "sharding", &sharding, "skipped_in_row", &skipped) != 0) {
    return hv_error(HV_ERR_INPUT,
                    "%s: not the state of a run: format, step, updates, samples, seed, dtype and parameters are needed",
                    path);
  }
  if (format != HV_CHECKPOINT_FORMAT && format != FORMAT_WITHOUT_DIGESTS) return refuse_format(path, format);
  if (ranks < 1 || ranks > HV_CHECKPOINT_RANKS) {
    return hv_error(HV_ERR_INPUT, "%s: ranks is not a number from 1 to %d", path, HV_CHECKPOINT_RANKS);
  }
  if (step < 0 || updates < 0 || updates > step || samples < 0 || samples > MOST_COUNTED || parameters < 1 ||
      skipped < 0 || skipped > step - updates) {
    return hv_error(
        HV_ERR_INPUT,
        "%s: impossible values: step %lld, updates %lld, skipped_in_row %lld, samples %lld, parameters %lld", path,
        (long long)step, (long long)updates, (long long)skipped, (long long)samples, (long long)parameters);
  }
  out->position =
      (hv_run_position){.step = step, .updates = updates, .samples = samples, .skipped = skipped, .seed = seed};
  HV_TRY(parse_best(path, json_object_get(state, "best"), &out->position.best));
  HV_TRY(parse_means(path, json_object_get(state, "means"), &out->position.means));
  out->ranks = (int32_t)ranks;
  out->parameters = parameters;
  snprintf(out->sharding, sizeof out->sharding, "%s", sharding);
  if (!read_dtype(dtype, &out->dtype)) return hv_error(HV_ERR_INPUT, "%s: dtype %s is unknown", path, dtype);
  return format == HV_CHECKPOINT_FORMAT ? parse_files(path, json_object_get(state, "files"), out) : HV_OK;
}

/* HV_ERR_INPUT if a file is missing; one that the system refuses to read is not missing. */
static hv_status require_file(const char *path) {
  if (access(path, F_OK) == 0 || (errno != ENOENT && errno != ENOTDIR)) return HV_OK;
  return hv_error(HV_ERR_INPUT, "%s is missing", path);
}

/* Absent in older checkpoints. */
static hv_status check_own_checksum(const char *path, const char *text, const json_t *state) {
  const char *told = json_string_value(json_object_get(state, "xxh3")), *key = NULL;
  char found[17];
  if (!told) return HV_OK;
  for (const char *at = text; (at = strstr(at, own_key)) != NULL; at += strlen(own_key)) key = at;
  size_t before = key ? (size_t)(key - text) : 0;
  snprintf(found, sizeof found, "%016" PRIx64, (uint64_t)XXH3_64bits(text, before));
  if (strcmp(found, told) == 0) return HV_OK;
  return hv_error(HV_ERR_INPUT, "%s is damaged: its checksum is %s, %s was written", path, found, told);
}

hv_status hv_manifest_read(const char *run, int64_t step, hv_manifest *out) {
  char directory[HV_CHECKPOINT_PATH], path[FILE_PATH], *text = NULL;
  json_t *state = NULL;
  size_t length;
  hv_status status = HV_OK;
  *out = (hv_manifest){0};
  HV_TRY(hv_checkpoint_path(run, step, "", directory));
  snprintf(path, sizeof path, "%s/state.json", directory);
  HV_TRY(require_file(path));
  HV_CHECK(hv_read_text(path, HV_JSON_LIMIT, &text, &length));
  HV_CHECK(hv_json_parse(text, length, path, &state));
  HV_CHECK(check_own_checksum(path, text, state));
  HV_CHECK(parse_manifest(path, state, out));
done:
  free(text);
  json_decref(state);
  if (!status && out->position.step != step) {
    status = hv_error(HV_ERR_INPUT, "%s is of step %" PRId64, path, out->position.step);
  }
  return status;
}

void hv_manifest_free(hv_manifest *manifest) {
  free(manifest->digests);
  *manifest = (hv_manifest){0};
}

static hv_status verify_file(const char *path, const hv_file_digest *expected) {
  hv_file_digest found;
  HV_TRY(hv_digest_file(path, &found));
  if (found.size != expected->size) {
    return hv_error(HV_ERR_INPUT, "%s has %" PRIu64 " bytes, %" PRIu64 " were written", path, found.size,
                    expected->size);
  }
  if (found.xxh3 != expected->xxh3) {
    return hv_error(HV_ERR_INPUT, "%s is damaged: its checksum is %016" PRIx64 ", %016" PRIx64 " was written", path,
                    found.xxh3, expected->xxh3);
  }
  return HV_OK;
}

hv_status hv_checkpoint_verify(const char *run, const hv_manifest *manifest, int32_t part, int32_t parts) {
  char directory[HV_CHECKPOINT_PATH], name[HV_CHECKPOINT_NAME], path[FILE_PATH];
  HV_TRY(hv_checkpoint_path(run, manifest->position.step, "", directory));
  for (int32_t r = part; r < manifest->ranks; r += parts) {
    hv_checkpoint_file_name(r, manifest->ranks, name);
    snprintf(path, sizeof path, "%s/%s", directory, name);
    HV_TRY(require_file(path));
    if (manifest->digests) {
      HV_TRY(verify_file(path, &manifest->digests[r]));
    } else {
      hv_safetensors *file; /* a truncated file does not open */
      HV_TRY(hv_safetensors_open(path, &file));
      hv_safetensors_close(file);
    }
  }
  return HV_OK;
}

static hv_status check_length(const char *path, const hv_file_digest *expected) {
  struct stat info;
  if (stat(path, &info) != 0) return hv_error_errno(errno, "cannot examine %s", path);
  if ((uint64_t)info.st_size == expected->size) return HV_OK;
  return hv_error(HV_ERR_INPUT, "%s has %lld bytes, %" PRIu64 " were written", path, (long long)info.st_size,
                  expected->size);
}

static hv_status check_lengths(const char *run, int64_t step) {
  hv_manifest manifest;
  char directory[HV_CHECKPOINT_PATH], name[HV_CHECKPOINT_NAME], path[FILE_PATH];
  HV_TRY(hv_checkpoint_path(run, step, "", directory));
  hv_status status = hv_manifest_read(run, step, &manifest);
  for (int32_t r = 0; !status && manifest.digests && r < manifest.ranks; r++) {
    hv_checkpoint_file_name(r, manifest.ranks, name);
    snprintf(path, sizeof path, "%s/%s", directory, name);
    status = check_length(path, &manifest.digests[r]);
  }
  hv_manifest_free(&manifest);
  return status;
}

hv_status hv_checkpoint_newest(const char *run, int64_t *step, hv_text *damaged) {
  int64_t *steps;
  size_t count;
  *step = -1;
  HV_TRY(hv_checkpoint_steps(run, &steps, &count));
  while (count > 0 && *step < 0) {
    hv_status problem = check_lengths(run, steps[--count]);
    if (!problem) *step = steps[count];
    if (problem) hv_text_add(damaged, "%s\n", hv_status_message(problem));
    hv_status_free(problem);
  }
  free(steps);
  return HV_OK;
}

hv_status hv_checkpoint_open(const char *run, int64_t step, hv_checkpoint_content *out) {
  char directory[HV_CHECKPOINT_PATH], name[HV_CHECKPOINT_NAME], path[FILE_PATH];
  *out = (hv_checkpoint_content){0};
  HV_TRY(hv_checkpoint_path(run, step, "", directory));
  HV_TRY(hv_manifest_read(run, step, &out->manifest));
  out->shards = calloc((size_t)out->manifest.ranks, sizeof(hv_safetensors *));
  if (!out->shards) return hv_error_memory("a checkpoint's files");
  for (int32_t r = 0; r < out->manifest.ranks; r++) {
    hv_checkpoint_file_name(r, out->manifest.ranks, name);
    snprintf(path, sizeof path, "%s/%s", directory, name);
    HV_TRY(hv_safetensors_open(path, &out->shards[r]));
  }
  return HV_OK;
}

void hv_checkpoint_close(hv_checkpoint_content *content) {
  for (int32_t r = 0; content->shards && r < content->manifest.ranks; r++) hv_safetensors_close(content->shards[r]);
  free(content->shards);
  hv_manifest_free(&content->manifest);
  *content = (hv_checkpoint_content){0};
}

/* The steps of the directories called step-N, and the names of unfinished ones. */
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

/* Whether a name is step-N with `suffix` behind it, N written as hv_checkpoint_path writes it. */
static bool step_of(const char *name, const char *suffix, int64_t *step) {
  if (strncmp(name, "step-", 5) != 0 || name[5] < '0' || name[5] > '9') return false;
  if (name[5] == '0' && name[6] >= '0' && name[6] <= '9') return false;
  char *end;
  errno = 0;
  *step = strtoll(name + 5, &end, 10);
  return errno == 0 && *step <= MOST_COUNTED && strcmp(end, suffix) == 0;
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
  hv_string_list names = {0};
  hv_status status = HV_OK;
  char *path = hv_path_join(run, "checkpoints");
  if (!path) return hv_error_memory("a path");
  bool absent = access(path, F_OK) != 0 && errno == ENOENT;
  if (!absent) status = hv_directory_list(path, &names);
  for (size_t i = 0; i < names.count && !status; i++) status = take_entry(out, names.items[i]);
  hv_string_list_free(&names);
  free(path);
  if (status) {
    free_found(out);
    return status;
  }
  if (out->count > 1) qsort(out->steps, out->count, sizeof *out->steps, compare_steps);
  return HV_OK;
}

hv_status hv_checkpoint_steps(const char *run, int64_t **steps, size_t *count) {
  found_checkpoints found;
  *steps = NULL;
  *count = 0;
  HV_TRY(list_checkpoints(run, &found));
  hv_string_list_free(&found.partial);
  *steps = found.steps;
  *count = found.count;
  return HV_OK;
}

static hv_status remove_partial(const char *run, const hv_string_list *names) {
  hv_status status = HV_OK;
  char path[HV_CHECKPOINT_PATH];
  for (size_t i = 0; i < names->count; i++) {
    int length = snprintf(path, sizeof path, "%s/checkpoints/%s", run, names->items[i]);
    bool fits = length < HV_CHECKPOINT_PATH;
    status =
        hv_status_first(status, fits ? hv_remove_tree(path) : hv_error(HV_ERR_INPUT, "%s: the path is too long", run));
  }
  return status;
}

/* Renames it first, so that a half-removed checkpoint does not count as one. */
static hv_status remove_checkpoint(const char *run, int64_t step) {
  char path[HV_CHECKPOINT_PATH], old[HV_CHECKPOINT_PATH];
  HV_TRY(hv_checkpoint_path(run, step, "", path));
  HV_TRY(hv_checkpoint_path(run, step, ".old", old));
  if (rename(path, old) != 0) return hv_error_errno(errno, "cannot rename %s to %s", path, old);
  return hv_remove_tree(old);
}

hv_status hv_checkpoint_prune(const char *run, int64_t newest, hv_retention retention) {
  found_checkpoints found;
  HV_TRY(list_checkpoints(run, &found));
  hv_status status = remove_partial(run, &found.partial);
  size_t older = found.count;
  while (older > 0 && found.steps[older - 1] > newest) older--;
  for (size_t i = 0; i + (size_t)retention.keep < older; i++) {
    if (retention.every > 0 && found.steps[i] % retention.every == 0) continue;
    status = hv_status_first(status, remove_checkpoint(run, found.steps[i]));
  }
  free_found(&found);
  return status;
}
