/* Matrix products too small for OpenBLAS: its kernels for small matrices allocate memory at every call on some
 * processors, and it packs a weight matrix anew for the few rows of a prediction. */
#ifndef HV_CPU_SMALL_PRODUCT_H
#define HV_CPU_SMALL_PRODUCT_H

#include "core/cpu/kernel.h"

/* Operands and the result as rows of `real`, `stride` apart. */
typedef struct hv_matrix {
  const real *data;
  int64_t stride;
  bool transposed;
} hv_matrix;

static inline bool is_small_product(int64_t m, int64_t n, int64_t k) {
  return m <= 6 || (double)m * (double)n * (double)k <= 1e6;
}

/* c = alpha a b + beta c; c is not read where beta is 0. */
void HV_KERNEL(small_product)(real alpha, hv_matrix a, hv_matrix b, int64_t m, int64_t n, int64_t k, real beta, real *c,
                              int64_t ldc);

#endif
