#include "infer/torch_pickle.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "infer/pickle.h"

enum { KEY_SIZE = 24 };

static const char *storage_class(hv_dtype dtype) {
  static const char *const names[] = {
      [HV_F32] = "FloatStorage", [HV_BF16] = "BFloat16Storage", [HV_F64] = "DoubleStorage", [HV_F16] = "HalfStorage",
      [HV_I16] = "ShortStorage", [HV_I32] = "IntStorage",       [HV_I64] = "LongStorage",   [HV_U8] = "ByteStorage",
      [HV_I8] = "CharStorage",   [HV_BOOL] = "BoolStorage"};
  return names[dtype];
}

/* Length of the module's name, which ends before the first dot. */
static size_t module_length(const char *name) {
  return strcspn(name, ".");
}

static bool same_module(const char *a, const char *b) {
  size_t length = module_length(a);
  return length == module_length(b) && memcmp(a, b, length) == 0;
}

static const char *inner_name(const char *name) {
  return name + module_length(name) + (name[module_length(name)] == '.');
}

static void add_integers(hv_text *out, const int64_t *values, int32_t count) {
  hv_pickle_add(out, count > 0 ? HV_PICKLE_MARK : HV_PICKLE_EMPTY_TUPLE);
  if (count == 0) return;
  for (int32_t i = 0; i < count; i++) hv_pickle_add_integer(out, values[i]);
  hv_pickle_add(out, HV_PICKLE_TUPLE);
}

/* Strides in elements. */
static void contiguous_strides(const hv_file_tensor *tensor, int64_t out[HV_FILE_MAX_RANK]) {
  int64_t stride = 1;
  for (int32_t i = tensor->rank - 1; i >= 0; i--) {
    out[i] = stride;
    stride *= tensor->shape[i] > 0 ? tensor->shape[i] : 1;
  }
}

static void add_tensor(hv_text *out, const hv_torch_tensor *tensor, size_t index) {
  char key[KEY_SIZE];
  int64_t strides[HV_FILE_MAX_RANK];
  snprintf(key, sizeof key, "%zu", index);
  contiguous_strides(tensor->source, strides);
  hv_pickle_add_global(out, "torch._utils", "_rebuild_tensor_v2");
  hv_pickle_add(out, HV_PICKLE_MARK);
  hv_pickle_add(out, HV_PICKLE_MARK);
  hv_pickle_add_string(out, "storage");
  hv_pickle_add_global(out, "torch", storage_class(tensor->dtype));
  hv_pickle_add_string(out, key);
  hv_pickle_add_string(out, "cpu");
  hv_pickle_add_integer(out, tensor->source->count);
  hv_pickle_add(out, HV_PICKLE_TUPLE);
  hv_pickle_add(out, HV_PICKLE_BINPERSID);
  hv_pickle_add_integer(out, 0);
  add_integers(out, tensor->source->shape, tensor->source->rank);
  add_integers(out, strides, tensor->source->rank);
  hv_pickle_add(out, HV_PICKLE_NEWFALSE);
  hv_pickle_add_global(out, "collections", "OrderedDict");
  hv_pickle_add(out, HV_PICKLE_EMPTY_TUPLE);
  hv_pickle_add(out, HV_PICKLE_REDUCE);
  hv_pickle_add(out, HV_PICKLE_TUPLE);
  hv_pickle_add(out, HV_PICKLE_REDUCE);
}

static void begin_dict(hv_text *out) {
  hv_pickle_add(out, HV_PICKLE_EMPTY_DICT);
  hv_pickle_add(out, HV_PICKLE_MARK);
}

static hv_status add_module_name(hv_text *out, const char *name) {
  char *module = strndup(name, module_length(name));
  if (!module) return hv_error_memory("a module's name");
  hv_pickle_add_string(out, module);
  free(module);
  return HV_OK;
}

hv_status hv_torch_pickle_make(const hv_torch_tensor *tensors, size_t count, hv_text *out) {
  hv_pickle_begin(out);
  begin_dict(out);
  hv_pickle_add_string(out, "model");
  begin_dict(out);
  for (size_t i = 0; i < count; i++) {
    if (i == 0 || !same_module(tensors[i].name, tensors[i - 1].name)) {
      if (i > 0) hv_pickle_add(out, HV_PICKLE_SETITEMS);
      HV_TRY(add_module_name(out, tensors[i].name));
      begin_dict(out);
    }
    hv_pickle_add_string(out, inner_name(tensors[i].name));
    add_tensor(out, &tensors[i], i);
  }
  if (count > 0) hv_pickle_add(out, HV_PICKLE_SETITEMS);
  hv_pickle_add(out, HV_PICKLE_SETITEMS);
  hv_pickle_add(out, HV_PICKLE_SETITEMS);
  hv_pickle_add(out, HV_PICKLE_STOP);
  return out->failed ? hv_error_memory("the pickle") : HV_OK;
}

static hv_status expect_integers(hv_pickle_reader *pickle, const int64_t *values, int32_t count) {
  if (count == 0) return hv_pickle_read(pickle, HV_PICKLE_EMPTY_TUPLE);
  HV_TRY(hv_pickle_read(pickle, HV_PICKLE_MARK));
  for (int32_t i = 0; i < count; i++) {
    int64_t found;
    HV_TRY(hv_pickle_read_integer(pickle, &found));
    if (found != values[i])
      return hv_error(HV_ERR_NO, "has %" PRId64 " in its shape or strides, not %" PRId64, found, values[i]);
  }
  return hv_pickle_read(pickle, HV_PICKLE_TUPLE);
}

/* Reads what add_tensor writes; only the key of the storage may be another. */
static hv_status expect_tensor(hv_pickle_reader *pickle, const hv_torch_tensor *tensor, char **key) {
  int64_t strides[HV_FILE_MAX_RANK], count = tensor->source->count, found[2];
  contiguous_strides(tensor->source, strides);
  HV_TRY(hv_pickle_expect_global(pickle, "torch._utils", "_rebuild_tensor_v2"));
  HV_TRY(hv_pickle_read(pickle, HV_PICKLE_MARK));
  HV_TRY(hv_pickle_read(pickle, HV_PICKLE_MARK));
  HV_TRY(hv_pickle_expect_string(pickle, "storage"));
  HV_TRY(hv_pickle_expect_global(pickle, "torch", storage_class(tensor->dtype)));
  HV_TRY(hv_pickle_read_string(pickle, key));
  HV_TRY(hv_pickle_expect_string(pickle, "cpu"));
  HV_TRY(hv_pickle_read_integer(pickle, &found[0]));
  HV_TRY(hv_pickle_read(pickle, HV_PICKLE_TUPLE));
  HV_TRY(hv_pickle_read(pickle, HV_PICKLE_BINPERSID));
  HV_TRY(hv_pickle_read_integer(pickle, &found[1]));
  if (found[0] != count || found[1] != 0)
    return hv_error(HV_ERR_NO,
                    "has %" PRId64 " elements from offset %" PRId64 "; %" PRId64 " from offset 0 are expected",
                    found[0], found[1], count);
  HV_TRY(expect_integers(pickle, tensor->source->shape, tensor->source->rank));
  HV_TRY(expect_integers(pickle, strides, tensor->source->rank));
  HV_TRY(hv_pickle_read(pickle, HV_PICKLE_NEWFALSE));
  HV_TRY(hv_pickle_expect_global(pickle, "collections", "OrderedDict"));
  HV_TRY(hv_pickle_read(pickle, HV_PICKLE_EMPTY_TUPLE));
  HV_TRY(hv_pickle_read(pickle, HV_PICKLE_REDUCE));
  HV_TRY(hv_pickle_read(pickle, HV_PICKLE_TUPLE));
  return hv_pickle_read(pickle, HV_PICKLE_REDUCE);
}

static hv_status read_dict(hv_pickle_reader *pickle) {
  HV_TRY(hv_pickle_read(pickle, HV_PICKLE_EMPTY_DICT));
  return hv_pickle_read(pickle, HV_PICKLE_MARK);
}

static hv_status expect_module(hv_pickle_reader *pickle, const char *name) {
  char *module = strndup(name, module_length(name));
  if (!module) return hv_error_memory("a module's name");
  hv_status status = hv_pickle_expect_string(pickle, module);
  free(module);
  return status ? status : read_dict(pickle);
}

hv_status hv_torch_pickle_check(const uint8_t *data, size_t size, const hv_torch_tensor *tensors, size_t count,
                                char **keys) {
  hv_pickle_reader pickle = {.data = data, .size = size};
  HV_TRY(hv_pickle_read_begin(&pickle));
  HV_TRY(read_dict(&pickle));
  HV_TRY(hv_pickle_expect_string(&pickle, "model"));
  HV_TRY(read_dict(&pickle));
  for (size_t i = 0; i < count; i++) {
    if (i == 0 || !same_module(tensors[i].name, tensors[i - 1].name)) {
      if (i > 0) HV_TRY(hv_pickle_read(&pickle, HV_PICKLE_SETITEMS));
      HV_TRY(expect_module(&pickle, tensors[i].name));
    }
    HV_TRY(hv_pickle_expect_string(&pickle, inner_name(tensors[i].name)));
    hv_status status = expect_tensor(&pickle, &tensors[i], &keys[i]);
    if (status) return hv_error_context(status, "tensor %s", tensors[i].name);
  }
  if (count > 0) HV_TRY(hv_pickle_read(&pickle, HV_PICKLE_SETITEMS));
  HV_TRY(hv_pickle_read(&pickle, HV_PICKLE_SETITEMS));
  HV_TRY(hv_pickle_read(&pickle, HV_PICKLE_SETITEMS));
  return hv_pickle_read(&pickle, HV_PICKLE_STOP);
}
