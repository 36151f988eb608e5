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

enum { ROWS_AT_ONCE = 64 };

typedef struct column_sums_context {
  int64_t rows;
  add_terms *add;
  const void *terms;
  const hv_tensor *sum;
} column_sums_context;

/* Rows are summed in runs, and then the runs' sums: the error grows with the number of runs, not of rows. */
static void column_strip(const column_sums_context *c, int64_t col, int64_t cols) {
  real total[HV_SUM_STRIP] = {0}, buffer[HV_SUM_STRIP];
  for (int64_t first = 0; first < c->rows; first += ROWS_AT_ONCE) {
    real run[HV_SUM_STRIP] = {0};
    int64_t last = min_i64(c->rows, first + ROWS_AT_ONCE);
    for (int64_t row = first; row < last; row++) c->add(c->terms, row, col, cols, run);
    for (int64_t j = 0; j < cols; j++) total[j] += run[j];
  }
  const real *sum = load(c->sum, 0, col, cols, buffer);
  for (int64_t j = 0; j < cols; j++) total[j] += sum[j];
  store(c->sum, 0, col, cols, total);
}

static void column_strips(const void *context, int64_t first, int64_t last, void *scratch) {
  (void)scratch;
  const column_sums_context *c = context;
  for (int64_t i = first; i < last; i++)
    column_strip(c, i * HV_SUM_STRIP, min_i64(HV_SUM_STRIP, c->sum->cols - i * HV_SUM_STRIP));
}

void HV_KERNEL(column_sums_of)(hv_cpu_pool *pool, int64_t rows, add_terms *add, const void *terms,
                               const hv_tensor *sum) {
  column_sums_context c = {.rows = rows, .add = add, .terms = terms, .sum = sum};
  hv_cpu_for(pool, (sum->cols + HV_SUM_STRIP - 1) / HV_SUM_STRIP, hv_cpu_grain(2 * HV_SUM_STRIP * rows), column_strips,
             &c);
}

typedef struct products {
  const hv_tensor *x, *factor;
} products;

static void add_products(const void *terms, int64_t row, int64_t col, int64_t cols, real *sum) {
  const products *p = terms;
  real x_buffer[HV_SUM_STRIP], factor_buffer[HV_SUM_STRIP];
  const real *x = load(p->x, row, col, cols, x_buffer);
  if (p->factor) {
    const real *factor = load(p->factor, row, col, cols, factor_buffer);
#pragma omp simd
    for (int64_t j = 0; j < cols; j++) sum[j] += x[j] * factor[j];
  } else {
#pragma omp simd
    for (int64_t j = 0; j < cols; j++) sum[j] += x[j];
  }
}

void HV_KERNEL(column_sums)(hv_cpu_pool *pool, const hv_tensor *x, const hv_tensor *factor, const hv_tensor *sum) {
  HV_KERNEL(column_sums_of)(pool, x->rows, add_products, &(products){.x = x, .factor = factor}, sum);
}
