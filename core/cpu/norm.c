/* Normalisation fused with the residual sum, and the residual sums that no norm follows. */
#include "core/cpu/kernel.h"
#include "core/cpu/vector_math.h"

static real sum_of(const real *x, int64_t count) {
  real sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < count; i++) sum += x[i];
  return sum;
}

static real sum_of_squares(const real *x, real centre, int64_t count) {
  real sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < count; i++) sum += (x[i] - centre) * (x[i] - centre);
  return sum;
}

static void statistics(hv_norm_kind kind, real eps, const real *x, int64_t d, real *mean, real *rstd) {
  *mean = kind == HV_NORM_RMS ? 0 : sum_of(x, d) / (real)d;
  real divisor = (real)(kind == HV_NORM_VARIANCE ? d - 1 : d);
  *rstd = 1 / real_sqrt(sum_of_squares(x, *mean, d) / divisor + eps);
}

/* The row to be normalised, rounded as it is stored. `values` and `other` hold d elements each. */
static const real *residual_sum(const hv_norm_args *a, int64_t row, real *values, real *other) {
  int64_t d = a->x.cols;
  const real *x = load(&a->x, row, 0, d, values);
  if (!hv_present(a->delta)) return x;
  const real *delta = load(&a->delta, row, 0, d, other);
  real *sum = target(&a->sum, row, 0, values);
  if (hv_present(a->delta_scale)) {
    real buffer[HV_CHUNK];
    for (int64_t col = 0; col < d; col += HV_CHUNK) {
      int64_t count = min_i64(HV_CHUNK, d - col);
      const real *scale = load(&a->delta_scale, 0, col, count, buffer);
#pragma omp simd
      for (int64_t j = 0; j < count; j++) sum[col + j] = x[col + j] + scale[j] * delta[col + j];
    }
  } else {
#pragma omp simd
    for (int64_t j = 0; j < d; j++) sum[j] = x[j] + delta[j];
  }
  store(&a->sum, row, 0, d, sum);
  return load(&a->sum, row, 0, d, values);
}

typedef struct norm_context {
  const hv_norm_args *args;
  const real *weight, *bias; /* bias may be NULL */
} norm_context;

static void norm_rows(const void *context, int64_t first, int64_t last, void *scratch) {
  const norm_context *n = context;
  const hv_norm_args *a = n->args;
  int64_t d = a->x.cols;
  real *values = scratch, *other = values + d;
  const real *weight = n->weight, *bias = n->bias;
  for (int64_t row = first; row < last; row++) {
    const real *x = residual_sum(a, row, values, other);
    real mean, rstd;
    statistics(a->kind, (real)a->eps, x, d, &mean, &rstd);
    real centre = a->kind == HV_NORM_LAYER ? mean : 0;
    real *y = target(&a->y, row, 0, other);
    if (bias) {
#pragma omp simd
      for (int64_t j = 0; j < d; j++) y[j] = (x[j] - centre) * rstd * weight[j] + bias[j];
    } else {
#pragma omp simd
      for (int64_t j = 0; j < d; j++) y[j] = (x[j] - centre) * rstd * weight[j];
    }
    store(&a->y, row, 0, d, y);
    if (hv_present(a->stats)) {
      store_one(&a->stats, row, 0, mean);
      store_one(&a->stats, row, 1, rstd);
    }
  }
}

void HV_KERNEL(norm)(hv_cpu_pool *pool, const hv_norm_args *args) {
  int64_t d = args->x.cols;
  if (!hv_cpu_reserve(pool, (size_t)(2 * d) * sizeof(real))) return;
  if (!hv_cpu_reserve_list(pool, (size_t)(2 * d) * sizeof(real))) return;
  real *list = pool->list;
  norm_context n = {.args = args, .weight = load(&args->weight, 0, 0, d, list)};
  if (hv_present(args->bias)) n.bias = load(&args->bias, 0, 0, d, list + d);
  hv_cpu_for(pool, args->x.rows, hv_cpu_grain(2 * d), norm_rows, &n);
}

typedef struct norm_backward_context {
  const hv_norm_backward_args *args;
  const real *weight, *scale; /* scale may be NULL */
} norm_backward_context;

/* With g = dy ∘ weight, r = rstd, and means over the row:
 *   layer:    r (g − mean(g) − x̂ mean(g x̂)), x̂ = (x − mean) r;   rms: the same with neither mean
 *   variance: r g − r³ (x − mean) Σ g x / (d − 1) */
static void norm_gradient(hv_norm_kind kind, const real *dy, const real *x, const real *weight, real mean, real rstd,
                          int64_t d, real *dn) {
  real sum_g = 0, sum_gx = 0, shift = kind == HV_NORM_VARIANCE ? 0 : mean;
#pragma omp simd reduction(+ : sum_g, sum_gx)
  for (int64_t j = 0; j < d; j++) {
    real g = dy[j] * weight[j];
    sum_g += g;
    sum_gx += g * (x[j] - shift);
  }
  real divisor = (real)(kind == HV_NORM_VARIANCE ? d - 1 : d);
  real constant = kind == HV_NORM_LAYER ? sum_g / divisor : 0, slope = sum_gx * rstd * rstd / divisor;
#pragma omp simd
  for (int64_t j = 0; j < d; j++) dn[j] = rstd * (dy[j] * weight[j] - constant - (x[j] - mean) * slope);
}

static void norm_backward_rows(const void *context, int64_t first, int64_t last, void *scratch) {
  const norm_backward_context *n = context;
  const hv_norm_backward_args *a = n->args;
  int64_t d = a->x.cols;
  real *dy_buffer = scratch, *x_buffer = dy_buffer + d, *dn = x_buffer + d, *buffer = dn + d;
  const real *scale = n->scale;
  for (int64_t row = first; row < last; row++) {
    const real *dy = load(&a->dy, row, 0, d, dy_buffer), *x = load(&a->x, row, 0, d, x_buffer);
    norm_gradient(a->kind, dy, x, n->weight, load_one(&a->stats, row, 0), load_one(&a->stats, row, 1), d, dn);
    if (hv_present(a->dresidual)) {
      const real *residual = load(&a->dresidual, row, 0, d, buffer);
#pragma omp simd
      for (int64_t j = 0; j < d; j++) dn[j] += residual[j];
    }
    store(&a->dx, row, 0, d, dn);
    if (scale) {
      real *ddelta = target(&a->ddelta, row, 0, buffer);
#pragma omp simd
      for (int64_t j = 0; j < d; j++) ddelta[j] = scale[j] * dn[j];
      store(&a->ddelta, row, 0, d, ddelta);
    }
  }
}

/* The terms of dweight: dy ∘ x̂ */
static void add_weight_terms(const void *terms, int64_t row, int64_t col, int64_t cols, real *sum) {
  const hv_norm_backward_args *a = terms;
  real dy_buffer[HV_SUM_STRIP], x_buffer[HV_SUM_STRIP];
  const real *dy = load(&a->dy, row, col, cols, dy_buffer), *x = load(&a->x, row, col, cols, x_buffer);
  real centre = a->kind == HV_NORM_LAYER ? load_one(&a->stats, row, 0) : 0, rstd = load_one(&a->stats, row, 1);
#pragma omp simd
  for (int64_t j = 0; j < cols; j++) sum[j] += dy[j] * ((x[j] - centre) * rstd);
}

void HV_KERNEL(norm_backward)(hv_cpu_pool *pool, const hv_norm_backward_args *args) {
  int64_t d = args->x.cols;
  if (!hv_cpu_reserve(pool, (size_t)(4 * d) * sizeof(real))) return;
  if (!hv_cpu_reserve_list(pool, (size_t)(2 * d) * sizeof(real))) return;
  real *list = pool->list;
  norm_backward_context n = {.args = args, .weight = load(&args->weight, 0, 0, d, list)};
  if (hv_present(args->ddelta)) n.scale = load(&args->delta_scale, 0, 0, d, list + d);
  hv_cpu_for(pool, args->x.rows, hv_cpu_grain(3 * d), norm_backward_rows, &n);
  if (hv_present(args->dweight)) HV_KERNEL(column_sums_of)(pool, args->x.rows, add_weight_terms, args, &args->dweight);
  if (hv_present(args->dbias)) HV_KERNEL(column_sums)(pool, &args->dy, NULL, &args->dbias);
  if (hv_present(args->ddelta_scale)) HV_KERNEL(column_sums)(pool, &args->dx, &args->delta, &args->ddelta_scale);
}

static void residual_add_chunks(const void *context, int64_t first, int64_t last, void *scratch) {
  (void)scratch;
  const hv_residual_add_args *a = context;
  int64_t chunks = chunks_of(a->x.cols);
  real x_buffer[HV_CHUNK], delta_buffer[HV_CHUNK], scale_buffer[HV_CHUNK], buffer[HV_CHUNK];
  for (int64_t i = first; i < last; i++) {
    int64_t row = i / chunks, col = i % chunks * HV_CHUNK, count = min_i64(HV_CHUNK, a->x.cols - col);
    const real *x = load(&a->x, row, col, count, x_buffer), *delta = load(&a->delta, row, col, count, delta_buffer);
    real *y = target(&a->y, row, col, buffer);
    if (hv_present(a->scale)) {
      const real *scale = load(&a->scale, 0, col, count, scale_buffer);
#pragma omp simd
      for (int64_t j = 0; j < count; j++) y[j] = x[j] + scale[j] * delta[j];
    } else {
#pragma omp simd
      for (int64_t j = 0; j < count; j++) y[j] = x[j] + delta[j];
    }
    store(&a->y, row, col, count, y);
  }
}

void HV_KERNEL(residual_add)(hv_cpu_pool *pool, const hv_residual_add_args *args) {
  int64_t count = args->x.rows * chunks_of(args->x.cols);
  hv_cpu_for(pool, count, hv_cpu_grain(HV_CHUNK), residual_add_chunks, args);
}

static void residual_scale_chunks(const void *context, int64_t first, int64_t last, void *scratch) {
  (void)scratch;
  const hv_residual_scale_backward_args *a = context;
  int64_t chunks = chunks_of(a->dy.cols);
  real dy_buffer[HV_CHUNK], scale_buffer[HV_CHUNK], buffer[HV_CHUNK];
  for (int64_t i = first; i < last; i++) {
    int64_t row = i / chunks, col = i % chunks * HV_CHUNK, count = min_i64(HV_CHUNK, a->dy.cols - col);
    const real *dy = load(&a->dy, row, col, count, dy_buffer), *scale = load(&a->scale, 0, col, count, scale_buffer);
    real *ddelta = target(&a->ddelta, row, col, buffer);
#pragma omp simd
    for (int64_t j = 0; j < count; j++) ddelta[j] = scale[j] * dy[j];
    store(&a->ddelta, row, col, count, ddelta);
  }
}

void HV_KERNEL(residual_scale_backward)(hv_cpu_pool *pool, const hv_residual_scale_backward_args *args) {
  int64_t count = args->dy.rows * chunks_of(args->dy.cols);
  hv_cpu_for(pool, count, hv_cpu_grain(HV_CHUNK), residual_scale_chunks, args);
  if (hv_present(args->dscale)) HV_KERNEL(column_sums)(pool, &args->dy, &args->delta, &args->dscale);
}
