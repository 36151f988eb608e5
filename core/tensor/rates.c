#include "core/tensor/rates.h"

#include <stdlib.h>

#include "core/base/clock.h"
#include "core/base/random.h"
#include "core/tensor/arena.h"
#include "core/tensor/ops.h"

enum { REPEATS = 3, MOST_QUEUED = 64, RANDOM_VALUES = 1 << 16, ENOUGH_ROWS = 256 };
enum { LARGEST_CUBE = 8192, SMALLEST_CUBE = 256, READ_WIDTH = 4096, READ_BYTES = 512 << 20 };

/* In anything shorter, the wait for the device would count beside its work. */
static const double shortest_seconds = 5e-3;

typedef struct product {
  hv_stream *stream;
  hv_arena arena;
  hv_linear_args args;
} product;

/* Fills `t` with random normals, the same block over and over. Equal numbers would take less power to multiply, and a
 * card at its power limit would look faster than it is. */
static hv_status fill_random(hv_stream *stream, hv_tensor t) {
  int64_t count = hv_tensor_count(t), filled = count < RANDOM_VALUES ? count : RANDOM_VALUES;
  hv_tensor all = hv_tensor_reshape(t, 1, count);
  float *values = malloc(RANDOM_VALUES * sizeof *values);
  void *converted = malloc(RANDOM_VALUES * hv_dtype_size(t.dtype));
  hv_status status = values && converted ? HV_OK : hv_error_memory("the operands of a measured product");
  if (!status) {
    uint64_t key = hv_random_key(0, HV_RANDOM_INIT, 0);
    for (uint32_t i = 0; i < RANDOM_VALUES / 4; i++) hv_random_normals(key, 0, 0, i, &values[4 * i]);
    hv_dtype_convert(t.dtype, converted, HV_F32, values, RANDOM_VALUES);
    hv_upload(stream, t.data, converted, (size_t)filled * hv_dtype_size(t.dtype));
    while (filled < count) { /* copied on the device from what is filled already */
      int64_t more = count - filled < filled ? count - filled : filled;
      hv_convert(stream,
                 &(hv_convert_args){.src = hv_tensor_cols(all, 0, more), .dst = hv_tensor_cols(all, filled, more)});
      filled += more;
    }
    status = hv_stream_synchronize(stream);
  }
  free(values);
  free(converted);
  return status;
}

static hv_status product_open(hv_device *device, hv_dtype dtype, int64_t rows, int64_t in, int64_t out, product *p) {
  size_t bytes = (size_t)(rows * in + in * out + rows * out) * hv_dtype_size(dtype) + 3 * 256;
  HV_TRY(hv_stream_open(device, &p->stream));
  HV_TRY(hv_arena_open(device, HV_MEMORY_WORKSPACE, bytes, "the operands of a measured product", &p->arena));
  p->args = (hv_linear_args){.x = hv_arena_take(&p->arena, dtype, rows, in),
                             .weight = hv_arena_take(&p->arena, dtype, out, in),
                             .y = hv_arena_take(&p->arena, dtype, rows, out)};
  HV_TRY(fill_random(p->stream, p->args.x));
  return fill_random(p->stream, p->args.weight);
}

static void product_close(product *p) {
  hv_arena_close(&p->arena);
  hv_stream_close(p->stream);
}

static void queue_linear(const product *p) {
  hv_linear(p->stream, &p->args);
}

static void queue_sum(const product *p) {
  hv_tensor all = hv_tensor_reshape(p->args.weight, 1, hv_tensor_count(p->args.weight));
  hv_tensor sum = hv_tensor_make(p->args.y.data, HV_F32, 1, 1);
  hv_sum_squares(p->stream, &(hv_sum_squares_args){.x = all, .y = sum});
}

/* Raises *rate to `work` over the shortest time. Short work is queued several times before it is waited for. */
static hv_status time_best(const product *p, void (*queue)(const product *p), double work, double *rate) {
  int queued = 1, repeats = 0;
  while (repeats < REPEATS) {
    double start = hv_clock_seconds();
    for (int i = 0; i < queued; i++) queue(p);
    HV_TRY(hv_stream_synchronize(p->stream));
    double seconds = hv_clock_seconds() - start, found = queued * work / seconds;
    if (found > *rate) *rate = found;
    if (seconds < shortest_seconds && queued < MOST_QUEUED) {
      queued *= 2;
    } else {
      repeats++;
    }
  }
  return HV_OK;
}

/* Raises *rate to that of y [rows, out] = x [rows, in] weightᵀ. */
static hv_status measure_product(hv_device *device, hv_dtype dtype, int64_t rows, int64_t in, int64_t out,
                                 double *rate) {
  product p = {0};
  hv_status status = product_open(device, dtype, rows, in, out, &p);
  if (!status) status = time_best(&p, queue_linear, 2.0 * (double)rows * (double)in * (double)out, rate);
  product_close(&p);
  return status;
}

static hv_status measure_cubes(hv_device *device, hv_dtype dtype, double patience, double *rate) {
  for (int64_t side = SMALLEST_CUBE; side <= LARGEST_CUBE; side *= 2) {
    double work = 2.0 * (double)side * (double)side * (double)side;
    if (*rate > 0 && work / *rate > patience) break;
    HV_TRY(measure_product(device, dtype, side, side, side, rate));
  }
  return HV_OK;
}

/* Raises *rate to that of one of the step's own products, with as many of its rows as take no longer than `patience`,
 * but at least ENOUGH_ROWS of them. */
static hv_status measure_rows(hv_device *device, hv_dtype dtype, int64_t rows, int64_t in, int64_t out, double patience,
                              double *rate) {
  double fitting = patience * *rate / (2.0 * (double)in * (double)out);
  int64_t measured = fitting < ENOUGH_ROWS ? ENOUGH_ROWS : fitting < (double)rows ? (int64_t)fitting : rows;
  return measure_product(device, dtype, measured < rows ? measured : rows, in, out, rate);
}

hv_status hv_measure_products(hv_device *device, hv_dtype dtype, int64_t rows, int64_t width, int64_t inner,
                              double patience, double *rate) {
  *rate = 0;
  HV_TRY(measure_cubes(device, dtype, patience, rate));
  HV_TRY(measure_rows(device, dtype, rows, width, 2 * inner, patience, rate));
  return measure_rows(device, dtype, rows, inner, width, patience, rate);
}

hv_status hv_measure_read(hv_device *device, hv_dtype dtype, double *rate) {
  product p = {0};
  *rate = 0;
  int64_t out = READ_BYTES / (READ_WIDTH * (int64_t)hv_dtype_size(dtype));
  hv_status status = product_open(device, dtype, 1, READ_WIDTH, out, &p);
  if (!status) status = time_best(&p, queue_linear, READ_BYTES, rate);
  if (!status) status = time_best(&p, queue_sum, READ_BYTES, rate);
  product_close(&p);
  return status;
}
