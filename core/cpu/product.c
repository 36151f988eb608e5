#include <cblas.h>

#include "core/cpu/small_product.h"

static void gemm(real alpha, const real *a, int64_t lda, bool transpose_a, const real *b, int64_t ldb, bool transpose_b,
                 int64_t m, int64_t n, int64_t k, real beta, real *c, int64_t ldc) {
  if (is_small_product(m, n, k)) {
    HV_KERNEL(small_product)
    (alpha, (hv_matrix){a, lda, transpose_a}, (hv_matrix){b, ldb, transpose_b}, m, n, k, beta, c, ldc);
    return;
  }
  enum CBLAS_TRANSPOSE ta = transpose_a ? CblasTrans : CblasNoTrans, tb = transpose_b ? CblasTrans : CblasNoTrans;
#ifdef HV_CPU_DOUBLE
  cblas_dgemm(CblasRowMajor, ta, tb, (blasint)m, (blasint)n, (blasint)k, alpha, a, (blasint)lda, b, (blasint)ldb, beta,
              c, (blasint)ldc);
#else
  cblas_sgemm(CblasRowMajor, ta, tb, (blasint)m, (blasint)n, (blasint)k, alpha, a, (blasint)lda, b, (blasint)ldb, beta,
              c, (blasint)ldc);
#endif
}

/* Copies the part of a view that covers [first, first + depth) of the summed dimension into the buffer, as `real`. */
static void pack(const hv_tensor *t, bool depth_is_rows, int64_t first, int64_t depth, real *buffer) {
  int64_t rows = depth_is_rows ? depth : t->rows, cols = depth_is_rows ? t->cols : depth;
  for (int64_t i = 0; i < rows; i++) {
    int64_t row = depth_is_rows ? first + i : i, col = depth_is_rows ? 0 : first;
    HV_KERNEL(read)(t->dtype, element(t, row, col), cols, buffer + i * cols);
  }
}

void HV_KERNEL(product)(real alpha, hv_tensor a, bool transpose_a, hv_tensor b, bool transpose_b, real beta, real *c,
                        int64_t ldc, real *scratch) {
  int64_t m = transpose_a ? a.cols : a.rows, k = transpose_a ? a.rows : a.cols, n = transpose_b ? b.rows : b.cols;
#ifdef HV_CPU_HAS_TILES
  if (hv_tile_product_suits(&a, &b, m, n, k)) {
    hv_tile_product(alpha, a, transpose_a, b, transpose_b, beta, c, ldc, scratch);
    return;
  }
#endif
  if (a.dtype == HV_REAL_DTYPE && b.dtype == HV_REAL_DTYPE) {
    gemm(alpha, a.data, a.row_stride, transpose_a, b.data, b.row_stride, transpose_b, m, n, k, beta, c, ldc);
    return;
  }
  real *a_part = scratch, *b_part = scratch + m * HV_PRODUCT_DEPTH;
  for (int64_t first = 0; first < k; first += HV_PRODUCT_DEPTH) {
    int64_t depth = min_i64(k - first, HV_PRODUCT_DEPTH);
    pack(&a, transpose_a, first, depth, a_part);
    pack(&b, !transpose_b, first, depth, b_part);
    gemm(alpha, a_part, transpose_a ? m : depth, transpose_a, b_part, transpose_b ? depth : n, transpose_b, m, n, depth,
         first == 0 ? beta : 1, c, ldc);
  }
}
