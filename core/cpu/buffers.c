#include "core/cpu/kernel.h"

static void read_f32(const float *restrict from, int64_t count, real *restrict to) {
#pragma omp simd
  for (int64_t i = 0; i < count; i++) to[i] = from[i];
}

static void read_f64(const double *restrict from, int64_t count, real *restrict to) {
#pragma omp simd
  for (int64_t i = 0; i < count; i++) to[i] = (real)from[i];
}

static void read_bf16(const uint16_t *restrict from, int64_t count, real *restrict to) {
#pragma omp simd
  for (int64_t i = 0; i < count; i++) to[i] = hv_bf16_to_float(from[i]);
}

void HV_KERNEL(read)(hv_dtype dtype, const void *from, int64_t count, real *to) {
  if (dtype == HV_BF16) {
    read_bf16(from, count, to);
  } else if (dtype == HV_F32) {
    read_f32(from, count, to);
  } else {
    read_f64(from, count, to);
  }
}

static void write_f32(const real *restrict from, int64_t count, float *restrict to) {
#pragma omp simd
  for (int64_t i = 0; i < count; i++) to[i] = (float)from[i];
}

static void write_f64(const real *restrict from, int64_t count, double *restrict to) {
#pragma omp simd
  for (int64_t i = 0; i < count; i++) to[i] = from[i];
}

static void write_bf16(const real *restrict from, int64_t count, uint16_t *restrict to) {
#pragma omp simd
  for (int64_t i = 0; i < count; i++) to[i] = hv_bf16_from_float((float)from[i]);
}

void HV_KERNEL(write)(hv_dtype dtype, const real *from, int64_t count, void *to) {
  if (dtype == HV_BF16) {
    write_bf16(from, count, to);
  } else if (dtype == HV_F32) {
    write_f32(from, count, to);
  } else {
    write_f64(from, count, to);
  }
}

enum { STRIP = 64, ROWS_AT_ONCE = 64 };

typedef struct column_sums_context {
  const hv_tensor *dy, *factor, *sum;
} column_sums_context;

/* Rows are summed in runs whose sums are then added: the error grows with the number of runs, not of rows. */
static void column_strip(const column_sums_context *c, int64_t col, int64_t cols) {
  real total[STRIP] = {0}, dy_buffer[STRIP], factor_buffer[STRIP];
  for (int64_t first = 0; first < c->dy->rows; first += ROWS_AT_ONCE) {
    real run[STRIP] = {0};
    int64_t last = min_i64(c->dy->rows, first + ROWS_AT_ONCE);
    for (int64_t row = first; row < last; row++) {
      const real *dy = load(c->dy, row, col, cols, dy_buffer);
      if (c->factor) {
        const real *factor = load(c->factor, row, col, cols, factor_buffer);
#pragma omp simd
        for (int64_t j = 0; j < cols; j++) run[j] += dy[j] * factor[j];
      } else {
#pragma omp simd
        for (int64_t j = 0; j < cols; j++) run[j] += dy[j];
      }
    }
    for (int64_t j = 0; j < cols; j++) total[j] += run[j];
  }
  const real *sum = load(c->sum, 0, col, cols, dy_buffer);
  for (int64_t j = 0; j < cols; j++) total[j] += sum[j];
  store(c->sum, 0, col, cols, total);
}

static void column_strips(const void *context, int64_t first, int64_t last, void *scratch) {
  (void)scratch;
  const column_sums_context *c = context;
  for (int64_t i = first; i < last; i++) column_strip(c, i * STRIP, min_i64(STRIP, c->dy->cols - i * STRIP));
}

void HV_KERNEL(column_sums)(hv_cpu_pool *pool, const hv_tensor *dy, const hv_tensor *factor, const hv_tensor *sum) {
  column_sums_context c = {.dy = dy, .factor = factor, .sum = sum};
  int64_t strips = (dy->cols + STRIP - 1) / STRIP;
  hv_cpu_for(pool, strips, hv_cpu_grain(STRIP * dy->rows), column_strips, &c);
}
