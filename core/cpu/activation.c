/* The activations of linear layers, and SwiGLU. */
#include "core/cpu/kernel.h"
#include "core/cpu/vector_math.h"

/* The tanh approximation of GELU is x σ(2 u), u = sqrt(2 / π) (x + 0.044715 x³), since 1 + tanh u = 2 σ(2 u). */
static const real TANH_LINEAR = (real)1.59576912160573071, TANH_CUBIC = (real)0.07135481627159961;
static const real QUICK = (real)1.702;

void HV_KERNEL(activate)(hv_activation activation, const real *x, int64_t count, real *y) {
  switch (activation) {
  case HV_ACT_NONE:
    if (y != x) memcpy(y, x, (size_t)count * sizeof *y);
    break;
  case HV_ACT_GELU:
#pragma omp simd
    for (int64_t i = 0; i < count; i++) y[i] = x[i] * real_normal_cdf(x[i]);
    break;
  case HV_ACT_GELU_TANH:
#pragma omp simd
    for (int64_t i = 0; i < count; i++) y[i] = x[i] * real_sigmoid(x[i] * (TANH_LINEAR + TANH_CUBIC * x[i] * x[i]));
    break;
  case HV_ACT_QUICK_GELU:
#pragma omp simd
    for (int64_t i = 0; i < count; i++) y[i] = x[i] * real_sigmoid(QUICK * x[i]);
    break;
  case HV_ACT_SILU:
#pragma omp simd
    for (int64_t i = 0; i < count; i++) y[i] = x[i] * real_sigmoid(x[i]);
    break;
  }
}

void HV_KERNEL(activation_gradient)(hv_activation activation, const real *pre, int64_t count, real *d) {
  switch (activation) {
  case HV_ACT_NONE: break;
  case HV_ACT_GELU:
#pragma omp simd
    for (int64_t i = 0; i < count; i++) {
      real x = pre[i];
      d[i] *= real_normal_cdf(x) + x * real_normal_density(x);
    }
    break;
  case HV_ACT_GELU_TANH:
#pragma omp simd
    for (int64_t i = 0; i < count; i++) {
      real x = pre[i], s = real_sigmoid(x * (TANH_LINEAR + TANH_CUBIC * x * x));
      d[i] *= s + x * s * (1 - s) * (TANH_LINEAR + 3 * TANH_CUBIC * x * x);
    }
    break;
  case HV_ACT_QUICK_GELU:
#pragma omp simd
    for (int64_t i = 0; i < count; i++) {
      real x = pre[i], s = real_sigmoid(QUICK * x);
      d[i] *= s + QUICK * x * s * (1 - s);
    }
    break;
  case HV_ACT_SILU:
#pragma omp simd
    for (int64_t i = 0; i < count; i++) {
      real x = pre[i], s = real_sigmoid(x);
      d[i] *= s + x * s * (1 - s);
    }
    break;
  }
}

static void activation_backward_chunks(const void *context, int64_t first, int64_t last, void *scratch) {
  (void)scratch;
  const hv_activation_backward_args *a = context;
  int64_t chunks = chunks_of(a->pre.cols);
  real pre_buffer[HV_CHUNK], dy_buffer[HV_CHUNK], buffer[HV_CHUNK];
  for (int64_t i = first; i < last; i++) {
    int64_t row = i / chunks, col = i % chunks * HV_CHUNK, count = min_i64(HV_CHUNK, a->pre.cols - col);
    const real *pre = load(&a->pre, row, col, count, pre_buffer), *dy = load(&a->dy, row, col, count, dy_buffer);
    real *dpre = target(&a->dpre, row, col, buffer);
    if (dpre != dy) memcpy(dpre, dy, (size_t)count * sizeof *dpre);
    HV_KERNEL(activation_gradient)(a->activation, pre, count, dpre);
    store(&a->dpre, row, col, count, dpre);
  }
}

void HV_KERNEL(activation_backward)(hv_cpu_pool *pool, const hv_activation_backward_args *args) {
  int64_t count = args->pre.rows * chunks_of(args->pre.cols);
  hv_cpu_for(pool, count, hv_cpu_grain(4 * HV_CHUNK), activation_backward_chunks, args);
}

static void swiglu_chunks(const void *context, int64_t first, int64_t last, void *scratch) {
  (void)scratch;
  const hv_swiglu_args *a = context;
  int64_t width = a->y.cols, chunks = chunks_of(width);
  real gate_buffer[HV_CHUNK], up_buffer[HV_CHUNK], buffer[HV_CHUNK];
  for (int64_t i = first; i < last; i++) {
    int64_t row = i / chunks, col = i % chunks * HV_CHUNK, count = min_i64(HV_CHUNK, width - col);
    const real *gate = load(&a->gate_up, row, col, count, gate_buffer);
    const real *up = load(&a->gate_up, row, width + col, count, up_buffer);
    real *y = target(&a->y, row, col, buffer);
#pragma omp simd
    for (int64_t j = 0; j < count; j++) y[j] = gate[j] * real_sigmoid(gate[j]) * up[j];
    store(&a->y, row, col, count, y);
  }
}

void HV_KERNEL(swiglu)(hv_cpu_pool *pool, const hv_swiglu_args *args) {
  int64_t count = args->y.rows * chunks_of(args->y.cols);
  hv_cpu_for(pool, count, hv_cpu_grain(4 * HV_CHUNK), swiglu_chunks, args);
}

void HV_KERNEL(linear_swiglu)(hv_cpu_pool *pool, const hv_linear_swiglu_args *args) {
  HV_KERNEL(linear)(pool, &(hv_linear_args){.x = args->x, .weight = args->weight, .y = args->gate_up});
  HV_KERNEL(swiglu)(pool, &(hv_swiglu_args){.gate_up = args->gate_up, .y = args->y});
}

static void swiglu_backward_chunks(const void *context, int64_t first, int64_t last, void *scratch) {
  (void)scratch;
  const hv_swiglu_backward_args *a = context;
  int64_t width = a->dy.cols, chunks = chunks_of(width);
  real gate_buffer[HV_CHUNK], up_buffer[HV_CHUNK], dy_buffer[HV_CHUNK], dgate_buffer[HV_CHUNK], dup_buffer[HV_CHUNK];
  real y_buffer[HV_CHUNK];
  for (int64_t i = first; i < last; i++) {
    int64_t row = i / chunks, col = i % chunks * HV_CHUNK, count = min_i64(HV_CHUNK, width - col);
    const real *gate = load(&a->gate_up, row, col, count, gate_buffer);
    const real *up = load(&a->gate_up, row, width + col, count, up_buffer);
    const real *dy = load(&a->dy, row, col, count, dy_buffer);
    real *dgate = target(&a->dgate_up, row, col, dgate_buffer);
    real *dup = target(&a->dgate_up, row, width + col, dup_buffer);
    real *y = hv_present(a->y) ? target(&a->y, row, col, y_buffer) : y_buffer;
#pragma omp simd
    for (int64_t j = 0; j < count; j++) {
      real g = gate[j], s = real_sigmoid(g), d = dy[j], u = up[j];
      y[j] = g * s * u;
      dup[j] = d * g * s;
      dgate[j] = d * u * (s + g * s * (1 - s));
    }
    store(&a->dgate_up, row, col, count, dgate);
    store(&a->dgate_up, row, width + col, count, dup);
    if (hv_present(a->y)) store(&a->y, row, col, count, y);
  }
}

void HV_KERNEL(swiglu_backward)(hv_cpu_pool *pool, const hv_swiglu_backward_args *args) {
  int64_t count = args->dy.rows * chunks_of(args->dy.cols);
  hv_cpu_for(pool, count, hv_cpu_grain(5 * HV_CHUNK), swiglu_backward_chunks, args);
}
