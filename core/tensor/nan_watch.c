#include "core/tensor/nan_watch.h"

#include <math.h>
#include <stdlib.h>

#include "core/tensor/op_check.h"

struct hv_nan_watch {
  hv_device *device;
  const hv_op_table *ops; /* the device's own, and its methods */
  const hv_device_methods *own_methods;
  hv_device_methods methods; /* without recordings */
  const char *layer, *pass;
  void *before[HV_OP_MAX_OPERANDS]; /* what results held before the operation */
  hv_status finding;                /* the first */
};

/* Bytes from a tensor's first element to its last. */
static size_t span(const hv_tensor *t) {
  if (hv_tensor_count(*t) == 0) return 0;
  return (size_t)((t->rows - 1) * t->row_stride + t->cols) * hv_dtype_size(t->dtype);
}

static void *read_back(hv_nan_watch *watch, hv_stream *stream, const hv_tensor *t) {
  void *copy = malloc(span(t) + 1);
  if (!copy) {
    watch->finding = hv_error_memory("the results of an operation");
    return NULL;
  }
  hv_download(stream, copy, t->data, span(t));
  watch->finding = hv_stream_synchronize(stream);
  return copy;
}

static double value_at(const hv_tensor *t, const char *at) {
  double value;
  hv_dtype_convert(HV_F64, &value, t->dtype, at, 1);
  return value;
}

static void report(hv_nan_watch *watch, const char *op, const char *name, const hv_tensor *t, int64_t row, int64_t col,
                   double value) {
  watch->finding =
      hv_error(HV_ERR_INPUT,
               "the first value that is not finite came up %s%s, %s: %s, %s [%lld, %lld] in %s, has %g at row %lld, "
               "column %lld",
               watch->layer ? "in " : "outside the layers", watch->layer ? watch->layer : "",
               watch->pass ? watch->pass : "outside the model", op, name, (long long)t->rows, (long long)t->cols,
               hv_dtype_name(t->dtype), value, (long long)row, (long long)col);
}

/* A value whose bytes did not change was not written by the operation: a row of no segment, or unused memory. */
static void look(hv_nan_watch *watch, const char *op, const char *name, const hv_tensor *t, const char *before,
                 const char *after) {
  size_t size = hv_dtype_size(t->dtype);
  for (int64_t row = 0; row < t->rows; row++) {
    for (int64_t col = 0; col < t->cols; col++) {
      size_t at = (size_t)(row * t->row_stride + col) * size;
      double value = value_at(t, after + at);
      if (isfinite(value) || memcmp(before + at, after + at, size) == 0) continue;
      report(watch, op, name, t, row, col, value);
      return;
    }
  }
}

static void look_before(hv_nan_watch *watch, hv_stream *stream, const hv_op_results *results) {
  for (int i = 0; i < results->count && !watch->finding; i++) {
    watch->before[i] = read_back(watch, stream, &results->items[i].tensor);
  }
}

static void look_after(hv_nan_watch *watch, hv_stream *stream, const char *op, const hv_op_results *results) {
  for (int i = 0; i < results->count; i++) {
    const hv_tensor *t = &results->items[i].tensor;
    char *after = watch->finding ? NULL : read_back(watch, stream, t);
    if (after && !watch->finding) look(watch, op, results->items[i].name, t, watch->before[i], after);
    free(after);
    free(watch->before[i]);
    watch->before[i] = NULL;
  }
}

#define WATCH(name)                                                                                                    \
  static void watch_##name(hv_stream *stream, const hv_##name##_args *args) {                                          \
    hv_nan_watch *watch = stream->device->nan_watch;                                                                   \
    hv_op_results results;                                                                                             \
    hv_results_##name(args, &results);                                                                                 \
    look_before(watch, stream, &results);                                                                              \
    watch->ops->name(stream, args);                                                                                    \
    look_after(watch, stream, #name, &results);                                                                        \
  }
HV_OPS(WATCH)

#define ENTRY(name) .name = watch_##name,
static const hv_op_table operations = {HV_OPS(ENTRY)};

hv_status hv_nan_watch_open(hv_device *device, hv_nan_watch **out) {
  *out = NULL;
  hv_nan_watch *watch = calloc(1, sizeof *watch);
  if (!watch) return hv_error_memory("a watch");
  watch->device = device;
  watch->ops = device->ops;
  watch->own_methods = device->methods;
  watch->methods = *device->methods;
  watch->methods.record_begin = NULL;
  device->ops = &operations;
  device->methods = &watch->methods;
  device->nan_watch = watch;
  *out = watch;
  return HV_OK;
}

void hv_nan_watch_close(hv_nan_watch *watch) {
  if (!watch) return;
  watch->device->ops = watch->ops;
  watch->device->methods = watch->own_methods;
  watch->device->nan_watch = NULL;
  hv_status_free(watch->finding);
  free(watch);
}

void hv_nan_watch_layer(const hv_device *device, const char *layer) {
  if (device->nan_watch) device->nan_watch->layer = layer;
}

void hv_nan_watch_pass(const hv_device *device, const char *pass) {
  if (device->nan_watch) device->nan_watch->pass = pass;
}

hv_status hv_nan_watch_status(const hv_device *device) {
  if (!device->nan_watch || !device->nan_watch->finding) return HV_OK;
  hv_status finding = device->nan_watch->finding;
  return hv_error(hv_status_code(finding), "%s", hv_status_message(finding));
}
