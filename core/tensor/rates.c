#include "core/tensor/rates.h"

#include "core/base/clock.h"
#include "core/tensor/arena.h"
#include "core/tensor/ops.h"

enum { REPEATS = 3, LARGEST_CUBE = 8192, SMALLEST_CUBE = 256, READ_WIDTH = 4096, READ_BYTES = 512 << 20 };

typedef struct product {
  hv_stream *stream;
  hv_arena arena;
  hv_linear_args args;
} product;

static hv_status product_open(hv_device *device, hv_dtype dtype, int64_t rows, int64_t in, int64_t out, product *p) {
  size_t bytes = (size_t)(rows * in + in * out + rows * out) * hv_dtype_size(dtype) + 3 * 256;
  HV_TRY(hv_stream_open(device, &p->stream));
  HV_TRY(hv_arena_open(device, HV_MEMORY_WORKSPACE, bytes, "the operands of a measured product", &p->arena));
  p->args = (hv_linear_args){.x = hv_arena_take(&p->arena, dtype, rows, in),
                             .weight = hv_arena_take(&p->arena, dtype, out, in),
                             .y = hv_arena_take(&p->arena, dtype, rows, out)};
  hv_fill(p->stream, &(hv_fill_args){.dst = p->args.x, .value = 0.5});
  hv_fill(p->stream, &(hv_fill_args){.dst = p->args.weight, .value = 0.25});
  return hv_stream_synchronize(p->stream);
}

static void product_close(product *p) {
  hv_arena_close(&p->arena);
  hv_stream_close(p->stream);
}

static hv_status run_linear(const product *p) {
  hv_linear(p->stream, &p->args);
  return hv_stream_synchronize(p->stream);
}

static hv_status run_sum(const product *p) {
  hv_tensor all = hv_tensor_reshape(p->args.weight, 1, hv_tensor_count(p->args.weight));
  hv_tensor sum = hv_tensor_make(p->args.y.data, HV_F32, 1, 1);
  hv_sum_squares(p->stream, &(hv_sum_squares_args){.x = all, .y = sum});
  return hv_stream_synchronize(p->stream);
}

/* Raises *rate to `work` over the shortest time. */
static hv_status time_best(const product *p, hv_status (*run)(const product *p), double work, double *rate) {
  for (int i = 0; i < REPEATS; i++) {
    double start = hv_clock_seconds();
    HV_TRY(run(p));
    double found = work / (hv_clock_seconds() - start);
    if (found > *rate) *rate = found;
  }
  return HV_OK;
}

/* Raises *rate to that of y [rows, out] = x [rows, in] weightᵀ. */
static hv_status measure_product(hv_device *device, hv_dtype dtype, int64_t rows, int64_t in, int64_t out,
                                 double *rate) {
  product p = {0};
  hv_status status = product_open(device, dtype, rows, in, out, &p);
  if (!status) status = time_best(&p, run_linear, 2.0 * (double)rows * (double)in * (double)out, rate);
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

hv_status hv_measure_products(hv_device *device, hv_dtype dtype, int64_t rows, int64_t width, int64_t inner,
                              double patience, double *rate) {
  *rate = 0;
  HV_TRY(measure_cubes(device, dtype, patience, rate));
  HV_TRY(measure_product(device, dtype, rows, width, 2 * inner, rate));
  return measure_product(device, dtype, rows, inner, width, rate);
}

hv_status hv_measure_read(hv_device *device, hv_dtype dtype, double *rate) {
  product p = {0};
  int64_t out = READ_BYTES / (READ_WIDTH * (int64_t)hv_dtype_size(dtype));
  hv_status status = product_open(device, dtype, 1, READ_WIDTH, out, &p);
  if (!status) status = time_best(&p, run_linear, READ_BYTES, rate);
  if (!status) status = time_best(&p, run_sum, READ_BYTES, rate);
  product_close(&p);
  return status;
}
