/* What the kernel files of the CPU device share. Each is compiled once for every variant: with real = float for calls
 * whose T is F32 or BF16, with real = double (HV_CPU_DOUBLE) for F64, and in float for wider vectors. HV_CPU_VARIANT is
 * the ending of the functions' names. Operands stored as something else than `real` pass through a buffer, so that a
 * kernel is written once, on rows of `real`. */
#ifndef HV_CPU_KERNEL_H
#define HV_CPU_KERNEL_H

#include "core/cpu/parallel.h"
#include "core/cpu/tile_product.h"
#include "core/tensor/ops.h"

#ifdef HV_CPU_DOUBLE
typedef double real;
#define HV_REAL_DTYPE HV_F64
#else
typedef float real;
#define HV_REAL_DTYPE HV_F32
#endif

/* HV_KERNEL(norm) is hv_cpu_norm_f32 and its like. */
#define HV_KERNEL(name) HV_KERNEL_OF(name, HV_CPU_VARIANT)
#define HV_KERNEL_OF(name, variant) HV_KERNEL_NAME(name, variant)
#define HV_KERNEL_NAME(name, variant) hv_cpu_##name##_##variant

#define HV_KERNEL_PROTOTYPE(name) void HV_KERNEL(name)(hv_cpu_pool * pool, const hv_##name##_args *args);
HV_OPS(HV_KERNEL_PROTOTYPE)
#undef HV_KERNEL_PROTOTYPE

/* Elementwise kernels work on pieces of a row of at most so many elements, with buffers on the stack. */
enum { HV_CHUNK = 512 };

static inline int64_t min_i64(int64_t a, int64_t b) {
  return a < b ? a : b;
}
static inline int64_t max_i64(int64_t a, int64_t b) {
  return a > b ? a : b;
}
static inline int64_t chunks_of(int64_t cols) {
  return (cols + HV_CHUNK - 1) / HV_CHUNK;
}

static inline void *element(const hv_tensor *t, int64_t row, int64_t col) {
  return (char *)t->data + (size_t)(row * t->row_stride + col) * hv_dtype_size(t->dtype);
}

/* Converted copies between memory of a dtype and `real`. */
void HV_KERNEL(read)(hv_dtype dtype, const void *from, int64_t count, real *to);
void HV_KERNEL(write)(hv_dtype dtype, const real *from, int64_t count, void *to);

/* `count` elements from (row, col) on: in place where the tensor holds `real`, else converted into the buffer. */
static inline const real *load(const hv_tensor *t, int64_t row, int64_t col, int64_t count, real *buffer) {
  void *at = element(t, row, col);
  if (t->dtype == HV_REAL_DTYPE) return at;
  HV_KERNEL(read)(t->dtype, at, count, buffer);
  return buffer;
}

/* Where to compute elements of a result, to be followed by store: in place, or the buffer. */
static inline real *target(const hv_tensor *t, int64_t row, int64_t col, real *buffer) {
  return t->dtype == HV_REAL_DTYPE ? element(t, row, col) : buffer;
}

/* `values` is what target returned, or any other memory. */
static inline void store(const hv_tensor *t, int64_t row, int64_t col, int64_t count, const real *values) {
  void *at = element(t, row, col);
  if (at != (const void *)values) HV_KERNEL(write)(t->dtype, values, count, at);
}

static inline real load_one(const hv_tensor *t, int64_t row, int64_t col) {
  real value;
  return *load(t, row, col, 1, &value);
}
static inline void store_one(const hv_tensor *t, int64_t row, int64_t col, real value) {
  store(t, row, col, 1, &value);
}

static inline const int32_t *int_list(const hv_tensor *t) {
  return t->data;
}

/* Rotates the pairs (x[j], x[j + half]) by the angles of the `half` cosines and sines that follow each other in
 * `cos_sin`; sign −1: the other way. y may be x. */
static inline void rotate(const real *x, const real *cos_sin, int64_t half, real sign, real *y) {
  const real *cosine = cos_sin, *sine = cos_sin + half;
#pragma omp simd
  for (int64_t j = 0; j < half; j++) {
    real first = x[j], second = x[j + half], c = cosine[j], s = sign * sine[j];
    y[j] = first * c - second * s;
    y[j + half] = second * c + first * s;
  }
}

/* c = alpha a b + beta c in real memory of row stride ldc, where a is m by k (or k by m and transposed) and b likewise;
 * the views carry the sizes. `scratch` holds product_scratch(m, n) elements. */
void HV_KERNEL(product)(real alpha, hv_tensor a, bool transpose_a, hv_tensor b, bool transpose_b, real beta, real *c,
                        int64_t ldc, real *scratch);
#define multiply HV_KERNEL(product)
enum { HV_PRODUCT_DEPTH = 512 };
static inline int64_t product_scratch(int64_t m, int64_t n) {
#ifdef HV_CPU_HAS_TILES
  return max_i64((m + n) * HV_PRODUCT_DEPTH, (int64_t)(hv_tile_product_scratch(m, n) / sizeof(real)));
#else
  return (m + n) * HV_PRODUCT_DEPTH;
#endif
}

/* y = activation(x), and d = d ∘ activation'(pre); results may lie on operands. */
void HV_KERNEL(activate)(hv_activation activation, const real *x, int64_t count, real *y);
void HV_KERNEL(activation_gradient)(hv_activation activation, const real *pre, int64_t count, real *d);

/* sum [1, cols] += what `add` adds to `sum` for each of `rows` rows, at most HV_SUM_STRIP columns at a time. */
enum { HV_SUM_STRIP = 64 };
typedef void add_terms(const void *terms, int64_t row, int64_t col, int64_t cols, real *sum);
void HV_KERNEL(column_sums_of)(hv_cpu_pool *pool, int64_t rows, add_terms *add, const void *terms,
                               const hv_tensor *sum);
/* The same of x ∘ (factor, where not NULL). */
void HV_KERNEL(column_sums)(hv_cpu_pool *pool, const hv_tensor *x, const hv_tensor *factor, const hv_tensor *sum);

#endif
