#include "core/io/safetensors.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "core/base/file.h"
#include "core/base/text.h"
#include "core/io/json.h"

enum { LENGTH_SIZE = 8, HEADER_LIMIT = 100 << 20 };

static const struct {
  const char *name;
  hv_dtype dtype;
} known_dtypes[] = {{"F32", HV_F32}, {"BF16", HV_BF16}, {"F16", HV_F16}, {"F64", HV_F64}, {"I64", HV_I64},
                    {"I32", HV_I32}, {"I16", HV_I16},   {"I8", HV_I8},   {"U8", HV_U8},   {"BOOL", HV_BOOL}};

/* One of the files. The header stays parsed, since tensors point at its strings. */
typedef struct shard {
  char *path;
  hv_mapping mapping; /* empty for memory of the caller */
  json_t *header;
} shard;

struct hv_safetensors {
  char *path;
  shard *shards;
  size_t num_shards;
  hv_file_tensor *tensors; /* by name */
  size_t count, capacity;
};

const char *hv_safetensors_dtype_name(hv_dtype dtype) {
  for (size_t i = 0; i < sizeof known_dtypes / sizeof *known_dtypes; i++) {
    if (known_dtypes[i].dtype == dtype) return known_dtypes[i].name;
  }
  return "?";
}

void hv_format_shape(const char *dtype_name, const int64_t *shape, int32_t rank, char *out, size_t size) {
  int used = snprintf(out, size, "%s [", dtype_name);
  for (int32_t i = 0; i < rank && used >= 0 && (size_t)used < size; i++) {
    used += snprintf(out + used, size - (size_t)used, "%s%" PRId64, i ? ", " : "", shape[i]);
  }
  if (used >= 0 && (size_t)used < size) snprintf(out + used, size - (size_t)used, "]");
}

static hv_status read_shape(const json_t *shape, hv_file_tensor *tensor) {
  if (!json_is_array(shape)) return hv_error(HV_ERR_INPUT, "\"shape\" must be a list of integers");
  size_t rank = json_array_size(shape);
  if (rank > HV_FILE_MAX_RANK) {
    return hv_error(HV_ERR_INPUT, "has %zu dimensions; at most %d are supported", rank, HV_FILE_MAX_RANK);
  }
  tensor->rank = (int32_t)rank;
  tensor->count = 1;
  for (size_t i = 0; i < rank; i++) {
    const json_t *extent = json_array_get(shape, i);
    if (!json_is_integer(extent) || json_integer_value(extent) < 0) {
      return hv_error(HV_ERR_INPUT, "\"shape\" must hold integers that are not negative");
    }
    tensor->shape[i] = json_integer_value(extent);
    if (__builtin_mul_overflow(tensor->count, tensor->shape[i], &tensor->count)) {
      return hv_error(HV_ERR_INPUT, "\"shape\" multiplies to more elements than 64 bits can count");
    }
  }
  return HV_OK;
}

static hv_status read_dtype(const json_t *dtype, hv_file_tensor *tensor) {
  if (!json_is_string(dtype)) return hv_error(HV_ERR_INPUT, "\"dtype\" must be a string such as \"F32\"");
  tensor->dtype_name = json_string_value(dtype);
  for (size_t i = 0; i < sizeof known_dtypes / sizeof *known_dtypes; i++) {
    if (strcmp(known_dtypes[i].name, tensor->dtype_name) != 0) continue;
    tensor->known = true;
    tensor->dtype = known_dtypes[i].dtype;
  }
  return HV_OK;
}

/* Reads data_offsets and checks them against the file's data section and the shape. */
static hv_status read_offsets(const json_t *offsets, const uint8_t *data, size_t data_size, hv_file_tensor *tensor) {
  const json_t *first = json_array_get(offsets, 0), *last = json_array_get(offsets, 1);
  if (json_array_size(offsets) != 2 || !json_is_integer(first) || !json_is_integer(last)) {
    return hv_error(HV_ERR_INPUT, "\"data_offsets\" must be a list of two integers");
  }
  int64_t begin = json_integer_value(first), end = json_integer_value(last);
  if (begin < 0 || end < begin || (uint64_t)end > data_size) {
    return hv_error(HV_ERR_INPUT,
                    "\"data_offsets\" [%" PRId64 ", %" PRId64 "] lie outside the file's %zu bytes of data", begin, end,
                    data_size);
  }
  tensor->data = data + begin;
  tensor->size = (size_t)(end - begin);
  if (!tensor->known) return HV_OK;
  int64_t expected;
  bool overflow = __builtin_mul_overflow(tensor->count, (int64_t)hv_dtype_size(tensor->dtype), &expected);
  if (!overflow && expected == end - begin) return HV_OK;
  char shape[160];
  hv_format_shape(tensor->dtype_name, tensor->shape, tensor->rank, shape, sizeof shape);
  if (overflow) return hv_error(HV_ERR_INPUT, "%s needs more bytes than 64 bits can count", shape);
  return hv_error(HV_ERR_INPUT,
                  "\"data_offsets\" [%" PRId64 ", %" PRId64 "] hold %" PRId64 " bytes, but %s needs %" PRId64, begin,
                  end, end - begin, shape, expected);
}

static hv_status read_entry(const char *name, const json_t *entry, const uint8_t *data, size_t data_size,
                            hv_file_tensor *tensor) {
  tensor->name = name;
  if (!json_is_object(entry)) return hv_error(HV_ERR_INPUT, "must be a mapping, not %s", hv_json_kind(entry));
  HV_TRY(read_dtype(json_object_get(entry, "dtype"), tensor));
  HV_TRY(read_shape(json_object_get(entry, "shape"), tensor));
  return read_offsets(json_object_get(entry, "data_offsets"), data, data_size, tensor);
}

static int compare_data(const void *a, const void *b) {
  const hv_file_tensor *const *x = a, *const *y = b;
  if ((*x)->data != (*y)->data) return (*x)->data < (*y)->data ? -1 : 1;
  /* An empty tensor may begin where the next one does. */
  if ((*x)->size != (*y)->size) return (*x)->size < (*y)->size ? -1 : 1;
  return strcmp((*x)->name, (*y)->name);
}

/* Checks that every byte of the data section belongs to exactly one tensor. */
static hv_status check_layout(const hv_file_tensor *tensors, size_t count, const uint8_t *data, size_t data_size) {
  const hv_file_tensor **order = malloc((count + 1) * sizeof(*order));
  if (!order) return hv_error_memory("a list of tensors");
  for (size_t i = 0; i < count; i++) order[i] = &tensors[i];
  qsort(order, count, sizeof(*order), compare_data);
  hv_status status = HV_OK;
  const uint8_t *end = data;
  for (size_t i = 0; i < count && !status; i++) {
    const uint8_t *begin = order[i]->data;
    if (begin < end) {
      status = hv_error(HV_ERR_INPUT, "tensors %s and %s overlap", order[i - 1]->name, order[i]->name);
    } else if (begin > end) {
      status =
          hv_error(HV_ERR_INPUT, "%td bytes in front of tensor %s belong to no tensor", begin - end, order[i]->name);
    }
    end = begin + order[i]->size;
  }
  if (!status && end != data + data_size) {
    status = hv_error(HV_ERR_INPUT, "%td bytes at the end belong to no tensor", data + data_size - end);
  }
  free(order);
  return status;
}

static hv_status parse_header(const uint8_t *bytes, size_t size, const char *where, json_t **header,
                              size_t *data_begin) {
  *header = NULL;
  HV_TRY(hv_check_download(where, "safetensors", bytes, size));
  if (size < LENGTH_SIZE) {
    return hv_error(HV_ERR_INPUT, "%s has %zu bytes, too few for a safetensors file (truncated?)", where, size);
  }
  uint64_t length = 0;
  for (int i = 0; i < LENGTH_SIZE; i++) length |= (uint64_t)bytes[i] << (8 * i);
  if (length > HEADER_LIMIT || length > size - LENGTH_SIZE) {
    return hv_error(HV_ERR_INPUT,
                    "%s: the first 8 bytes announce a header of %" PRIu64
                    " bytes, but the file has %zu: it is truncated or not a safetensors file",
                    where, length, size);
  }
  if (length == 0 || bytes[LENGTH_SIZE] != '{') {
    return hv_error(HV_ERR_INPUT, "%s: the header must begin with '{': this is not a safetensors file", where);
  }
  *data_begin = LENGTH_SIZE + (size_t)length;
  return hv_error_context(hv_json_parse((const char *)bytes + LENGTH_SIZE, (size_t)length, "the header", header), "%s",
                          where);
}

static hv_status grow(hv_safetensors *file, size_t more) {
  if (file->tensors && file->count + more <= file->capacity) return HV_OK;
  size_t capacity = file->count + more;
  hv_file_tensor *tensors = realloc(file->tensors, capacity * sizeof *tensors);
  if (!tensors) return hv_error_memory("a list of tensors");
  file->tensors = tensors;
  file->capacity = capacity;
  return HV_OK;
}

/* Appends one file's tensors; the shard keeps the header alive. */
static hv_status add_tensors(hv_safetensors *file, shard *part, const uint8_t *bytes, size_t size) {
  size_t data_begin = 0;
  HV_TRY(parse_header(bytes, size, part->path, &part->header, &data_begin));
  HV_TRY(grow(file, json_object_size(part->header) + 1));
  const uint8_t *data = bytes + data_begin;
  size_t data_size = size - data_begin, first = file->count;
  const char *name;
  json_t *entry;
  json_object_foreach(part->header, name, entry) {
    if (strcmp(name, "__metadata__") == 0) {
      if (!json_is_object(entry)) {
        return hv_error(HV_ERR_INPUT, "%s: __metadata__ must be a mapping, not %s", part->path, hv_json_kind(entry));
      }
      continue;
    }
    hv_file_tensor tensor = {.file = part->path};
    hv_status status = read_entry(name, entry, data, data_size, &tensor);
    if (status) return hv_error_context(status, "%s: tensor %s", part->path, name);
    file->tensors[file->count++] = tensor;
  }
  return hv_error_context(check_layout(file->tensors + first, file->count - first, data, data_size), "%s", part->path);
}

static int compare_names(const void *a, const void *b) {
  return strcmp(((const hv_file_tensor *)a)->name, ((const hv_file_tensor *)b)->name);
}

static hv_status sort_by_name(hv_safetensors *file) {
  if (file->count > 0) qsort(file->tensors, file->count, sizeof *file->tensors, compare_names);
  for (size_t i = 1; i < file->count; i++) {
    const hv_file_tensor *a = &file->tensors[i - 1], *b = &file->tensors[i];
    if (strcmp(a->name, b->name) == 0) {
      return hv_error(HV_ERR_INPUT, "tensor %s is in both %s and %s", a->name, a->file, b->file);
    }
  }
  return HV_OK;
}

static hv_status new_handle(const char *path, size_t num_shards, hv_safetensors **out) {
  hv_safetensors *file = calloc(1, sizeof *file);
  if (!file) return hv_error_memory(path);
  *out = file;
  file->path = strdup(path);
  file->shards = calloc(num_shards, sizeof *file->shards);
  return file->path && file->shards ? HV_OK : hv_error_memory(path);
}

/* Takes ownership of `path`. */
static hv_status open_shard(hv_safetensors *file, char *path) {
  if (!path) return hv_error_memory("a file name");
  shard *part = &file->shards[file->num_shards++];
  part->path = path;
  HV_TRY(hv_map_file(path, &part->mapping));
  return add_tensors(file, part, part->mapping.data, part->mapping.size);
}

static hv_status open_single(const char *path, hv_safetensors **out) {
  HV_TRY(new_handle(path, 1, out));
  HV_TRY(open_shard(*out, strdup(path)));
  return sort_by_name(*out);
}

/* The distinct shard names of a weight map, as keys of *shards. */
static hv_status list_shards(const json_t *map, json_t *shards) {
  if (!json_is_object(map) || json_object_size(map) == 0) {
    return hv_error(HV_ERR_INPUT, "\"weight_map\" must map tensor names to files");
  }
  const char *name;
  json_t *value;
  json_object_foreach((json_t *)(uintptr_t)map, name, value) {
    const char *shard_name = json_string_value(value);
    if (!shard_name || !*shard_name || strchr(shard_name, '/') || strcmp(shard_name, "..") == 0) {
      return hv_error(HV_ERR_INPUT, "\"weight_map\": %s must name a file in the same directory", name);
    }
    if (json_object_set_new(shards, shard_name, json_true()) != 0) return hv_error_memory("a list of shards");
  }
  return HV_OK;
}

static hv_status check_shards_exist(const char *directory, const json_t *shards) {
  hv_text missing = {0};
  const char *name;
  json_t *value;
  size_t count = 0;
  json_object_foreach((json_t *)(uintptr_t)shards, name, value) {
    char *path = hv_path_join(directory, name);
    if (!path) {
      hv_text_free(&missing);
      return hv_error_memory("a file name");
    }
    if (!hv_file_exists(path)) hv_text_add(&missing, "%s%s", count++ ? ", " : "", name);
    free(path);
  }
  hv_status status = HV_OK;
  if (count > 0) {
    status = hv_error(HV_ERR_INPUT, "%s: %zu of %zu files that the index names are missing: %s", directory, count,
                      json_object_size(shards), hv_text_string(&missing));
  }
  hv_text_free(&missing);
  return status;
}

/* Checks that every tensor of the weight map is in the shard that the map names. */
static hv_status check_weight_map(const hv_safetensors *file, const json_t *map) {
  hv_text wrong = {0};
  size_t count = 0;
  const char *name;
  json_t *value;
  json_object_foreach((json_t *)(uintptr_t)map, name, value) {
    const hv_file_tensor *tensor = hv_safetensors_find(file, name);
    const char *base = tensor ? strrchr(tensor->file, '/') : NULL;
    if (tensor && strcmp(base ? base + 1 : tensor->file, json_string_value(value)) == 0) continue;
    if (count++ < 20) hv_text_add(&wrong, "\n  %s should be in %s", name, json_string_value(value));
  }
  hv_status status = HV_OK;
  if (count > 0) {
    if (count > 20) hv_text_add(&wrong, "\n  and %zu more", count - 20);
    status = hv_error(HV_ERR_INPUT, "%zu tensors are not where the index says:%s", count, hv_text_string(&wrong));
  }
  hv_text_free(&wrong);
  return status;
}

static hv_status open_sharded(const char *directory, const char *index_path, hv_safetensors **out) {
  json_t *index = NULL, *shards = json_object();
  hv_status status = shards ? HV_OK : hv_error_memory("a list of shards");
  if (status) goto done;
  HV_CHECK(hv_json_load(index_path, &index));
  const json_t *map = json_object_get(index, "weight_map");
  HV_CHECK(hv_error_context(list_shards(map, shards), "%s", index_path));
  HV_CHECK(check_shards_exist(directory, shards));
  HV_CHECK(new_handle(directory, json_object_size(shards), out));
  const char *name;
  json_t *value;
  json_object_foreach(shards, name, value) HV_CHECK(open_shard(*out, hv_path_join(directory, name)));
  HV_CHECK(sort_by_name(*out));
  status = hv_error_context(check_weight_map(*out, map), "%s", index_path);
done:
  json_decref(index);
  json_decref(shards);
  return status;
}

static hv_status open_directory(const char *directory, hv_safetensors **out) {
  char *single = hv_path_join(directory, "model.safetensors");
  char *index = hv_path_join(directory, "model.safetensors.index.json");
  hv_status status;
  if (!single || !index) {
    status = hv_error_memory("a file name");
  } else if (hv_file_exists(single)) {
    status = open_single(single, out);
  } else if (hv_file_exists(index)) {
    status = open_sharded(directory, index, out);
  } else {
    status = hv_error(HV_ERR_INPUT, "%s holds neither model.safetensors nor model.safetensors.index.json", directory);
  }
  free(single);
  free(index);
  return status;
}

hv_status hv_safetensors_open(const char *path, hv_safetensors **out) {
  *out = NULL;
  struct stat info;
  bool is_directory = stat(path, &info) == 0 && S_ISDIR(info.st_mode);
  hv_status status = is_directory ? open_directory(path, out) : open_single(path, out);
  if (status) {
    hv_safetensors_close(*out);
    *out = NULL;
  }
  return status;
}

hv_status hv_safetensors_open_memory(const void *data, size_t size, const char *where, hv_safetensors **out) {
  *out = NULL;
  hv_status status = new_handle(where, 1, out);
  if (!status) {
    shard *part = &(*out)->shards[(*out)->num_shards++];
    part->path = strdup(where);
    status = part->path ? add_tensors(*out, part, data, size) : hv_error_memory(where);
  }
  if (!status) status = sort_by_name(*out);
  if (status) {
    hv_safetensors_close(*out);
    *out = NULL;
  }
  return status;
}

void hv_safetensors_close(hv_safetensors *file) {
  if (!file) return;
  for (size_t i = 0; i < file->num_shards; i++) {
    free(file->shards[i].path);
    hv_unmap(&file->shards[i].mapping);
    json_decref(file->shards[i].header);
  }
  free(file->shards);
  free(file->tensors);
  free(file->path);
  free(file);
}

int32_t hv_safetensors_count(const hv_safetensors *file) {
  return (int32_t)file->count;
}

const hv_file_tensor *hv_safetensors_get(const hv_safetensors *file, int32_t index) {
  return &file->tensors[index];
}

const hv_file_tensor *hv_safetensors_find(const hv_safetensors *file, const char *name) {
  if (file->count == 0) return NULL;
  hv_file_tensor key = {.name = name};
  return bsearch(&key, file->tensors, file->count, sizeof key, compare_names);
}

const char *hv_safetensors_path(const hv_safetensors *file) {
  return file->path;
}

hv_status hv_safetensors_require(const hv_safetensors *file, const char *name, const hv_file_tensor **out) {
  *out = hv_safetensors_find(file, name);
  if (!*out) return hv_error(HV_ERR_INPUT, "%s: there is no tensor %s", file->path, name);
  if (!(*out)->known) {
    return hv_error(HV_ERR_INPUT, "%s: tensor %s has dtype %s, which is not supported", (*out)->file, name,
                    (*out)->dtype_name);
  }
  return HV_OK;
}
