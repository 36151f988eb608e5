#include "core/io/safetensors_shards.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/file.h"
#include "core/io/json.h"
#include "core/io/safetensors.h"

typedef struct entry {
  char *name; /* owned */
  hv_dtype dtype;
  int32_t rank;
  int64_t shape[HV_FILE_MAX_RANK];
  int64_t size;  /* bytes */
  int32_t shard; /* counted from 0 */
} entry;

struct hv_safetensors_shards {
  char *directory;
  int64_t limit, filled; /* bytes of tensors: at most in a file; in the newest file so far */
  entry *entries;
  size_t count, capacity;
  int32_t num_shards;
  size_t opened;                 /* entries of the files opened so far */
  hv_safetensors_writer *writer; /* of the current file; NULL before the first */
  int64_t left;                  /* bytes of data that it still expects */
};

static void free_shards(hv_safetensors_shards *shards) {
  for (size_t i = 0; i < shards->count; i++) free(shards->entries[i].name);
  free(shards->entries);
  free(shards->directory);
  free(shards);
}

hv_status hv_safetensors_shards_open(const char *directory, int64_t limit, hv_safetensors_shards **out) {
  *out = NULL;
  hv_safetensors_shards *shards = calloc(1, sizeof *shards);
  if (!shards) return hv_error_memory(directory);
  shards->directory = strdup(directory);
  shards->limit = limit > 0 ? limit : INT64_MAX;
  shards->num_shards = 1;
  if (!shards->directory) {
    free_shards(shards);
    return hv_error_memory(directory);
  }
  *out = shards;
  return HV_OK;
}

static hv_status grow(hv_safetensors_shards *shards) {
  if (shards->count < shards->capacity) return HV_OK;
  size_t capacity = shards->capacity ? 2 * shards->capacity : 256;
  entry *entries = realloc(shards->entries, capacity * sizeof *entries);
  if (!entries) return hv_error_memory("a list of tensors");
  shards->entries = entries;
  shards->capacity = capacity;
  return HV_OK;
}

hv_status hv_safetensors_shards_declare(hv_safetensors_shards *shards, const char *name, hv_dtype dtype, int32_t rank,
                                        const int64_t *shape) {
  entry fresh = {.dtype = dtype, .rank = rank, .size = (int64_t)hv_dtype_size(dtype)};
  bool overflow = rank < 0 || rank > HV_FILE_MAX_RANK;
  for (int32_t i = 0; i < rank && !overflow; i++) {
    fresh.shape[i] = shape[i];
    overflow = shape[i] < 0 || __builtin_mul_overflow(fresh.size, shape[i], &fresh.size);
  }
  if (overflow) return hv_error(HV_ERR_INTERNAL, "the shape of tensor %s is out of range", name);
  HV_TRY(grow(shards));
  fresh.name = strdup(name);
  if (!fresh.name) return hv_error_memory("a tensor's name");
  if (shards->filled > 0 && fresh.size > shards->limit - shards->filled) {
    shards->num_shards++;
    shards->filled = 0;
  }
  shards->filled += fresh.size;
  fresh.shard = shards->num_shards - 1;
  shards->entries[shards->count++] = fresh;
  return HV_OK;
}

enum { FILE_NAME_SIZE = 64 };

static void file_name(const hv_safetensors_shards *shards, int32_t shard, char out[FILE_NAME_SIZE]) {
  if (shards->num_shards == 1) {
    snprintf(out, FILE_NAME_SIZE, "model.safetensors");
  } else {
    snprintf(out, FILE_NAME_SIZE, "model-%05" PRId32 "-of-%05" PRId32 ".safetensors", shard + 1, shards->num_shards);
  }
}

/* Closes the current file, which must be complete. */
static hv_status close_file(hv_safetensors_shards *shards) {
  hv_safetensors_writer *writer = shards->writer;
  shards->writer = NULL;
  return writer ? hv_safetensors_writer_commit(writer) : HV_OK;
}

/* Opens the next file and declares all of its tensors. */
static hv_status open_next(hv_safetensors_shards *shards) {
  char name[FILE_NAME_SIZE];
  int32_t shard = shards->opened < shards->count ? shards->entries[shards->opened].shard : 0;
  HV_TRY(close_file(shards));
  file_name(shards, shard, name);
  char *path = hv_path_join(shards->directory, name);
  hv_status status = path ? hv_safetensors_writer_open(path, &shards->writer) : hv_error_memory(name);
  free(path);
  for (; !status && shards->opened < shards->count && shards->entries[shards->opened].shard == shard;
       shards->opened++) {
    const entry *next = &shards->entries[shards->opened];
    status = hv_safetensors_writer_declare(shards->writer, next->name, next->dtype, next->rank, next->shape);
    shards->left += next->size;
  }
  return status;
}

hv_status hv_safetensors_shards_write(hv_safetensors_shards *shards, const void *data, size_t size) {
  const char *from = data;
  while (size > 0) {
    if (shards->left == 0) {
      if (shards->opened == shards->count)
        return hv_error(HV_ERR_INTERNAL, "%s: more data than was declared", shards->directory);
      HV_TRY(open_next(shards));
      continue;
    }
    size_t part = size < (uint64_t)shards->left ? size : (size_t)shards->left;
    HV_TRY(hv_safetensors_writer_write(shards->writer, from, part));
    shards->left -= (int64_t)part;
    from += part;
    size -= part;
  }
  return HV_OK;
}

static hv_status write_index(const hv_safetensors_shards *shards) {
  hv_status status = HV_OK;
  char *path = hv_path_join(shards->directory, "model.safetensors.index.json");
  json_t *map = json_object(), *index = NULL;
  int64_t total = 0;
  bool complete = map != NULL;
  for (size_t i = 0; i < shards->count; i++) {
    char name[FILE_NAME_SIZE];
    const entry *tensor = &shards->entries[i];
    file_name(shards, tensor->shard, name);
    complete &= json_object_set_new(map, tensor->name, json_string(name)) == 0;
    total += tensor->size;
  }
  index = json_pack("{s:{s:I}, s:O}", "metadata", "total_size", (json_int_t)total, "weight_map", map);
  if (!path || !complete || !index) {
    status = hv_error_memory("the index of the tensors");
    goto done;
  }
  status = hv_json_save(path, index);
done:
  json_decref(index);
  json_decref(map);
  free(path);
  return status;
}

hv_status hv_safetensors_shards_commit(hv_safetensors_shards *shards) {
  hv_status status = HV_OK;
  /* Files that get no data: those with only empty tensors, or the only file if there are no tensors. */
  while (!status && shards->left == 0 && (!shards->writer || shards->opened < shards->count))
    status = open_next(shards);
  if (!status) status = close_file(shards); /* an error if data is missing */
  if (!status && shards->num_shards > 1) status = write_index(shards);
  hv_safetensors_writer_abort(shards->writer);
  free_shards(shards);
  return status;
}

void hv_safetensors_shards_abort(hv_safetensors_shards *shards) {
  if (!shards) return;
  hv_safetensors_writer_abort(shards->writer);
  free_shards(shards);
}
