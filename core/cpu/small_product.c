#include "core/cpu/small_product.h"

/* One cache line of numbers, at any address: two AVX2 registers, or one of AVX-512. */
typedef real line __attribute__((vector_size(64), aligned(sizeof(real)), may_alias));

enum {
  LANES = 64 / sizeof(real),
  ROWS = 6,     /* rows of a block: its sums and one line of b fill the sixteen AVX2 registers */
  DEPTH = 256,  /* of a packed panel of b */
  DOT_ROWS = 4, /* at most so many rows are taken as dot products with the rows of b */
};

/* Rows [first, first + depth) of columns [col, col + LANES) of b, one line behind the other, zeros beyond n. */
static void pack_panel(hv_matrix b, int64_t first, int64_t depth, int64_t col, int64_t n, real *panel) {
  int64_t cols = min_i64(LANES, n - col);
  if (cols < LANES) memset(panel, 0, (size_t)(depth * LANES) * sizeof *panel);
  if (!b.transposed) {
    for (int64_t p = 0; p < depth; p++) {
      memcpy(panel + p * LANES, b.data + (first + p) * b.stride + col, (size_t)cols * sizeof *panel);
    }
    return;
  }
  for (int64_t j = 0; j < cols; j++) {
    const real *from = b.data + (col + j) * b.stride + first;
    for (int64_t p = 0; p < depth; p++) panel[p * LANES + j] = from[p];
  }
}

static void finish_row(real alpha, line sum, real beta, int64_t cols, real *c) {
  for (int64_t j = 0; j < cols; j++) c[j] = alpha * sum[j] + (beta == 0 ? 0 : beta * c[j]);
}

/* `rows` is a constant where this is inlined: then the sums stay in registers. */
static inline __attribute__((always_inline)) void block(int64_t rows, const real *a, int64_t a_row, int64_t a_step,
                                                        const real *panel, int64_t depth, real alpha, real beta,
                                                        int64_t cols, real *c, int64_t ldc) {
  line sum[ROWS];
  for (int64_t r = 0; r < rows; r++) sum[r] = (line){0};
  for (int64_t p = 0; p < depth; p++) {
    line b = *(const line *)(panel + p * LANES);
    for (int64_t r = 0; r < rows; r++) sum[r] += a[r * a_row + p * a_step] * b;
  }
  for (int64_t r = 0; r < rows; r++) {
    real *to = c + r * ldc;
    if (cols < LANES) {
      finish_row(alpha, sum[r], beta, cols, to);
    } else {
      line value = alpha * sum[r];
      if (beta != 0) value += beta * *(const line *)to;
      *(line *)to = value;
    }
  }
}

static void block_of(int64_t rows, const real *a, int64_t a_row, int64_t a_step, const real *panel, int64_t depth,
                     real alpha, real beta, int64_t cols, real *c, int64_t ldc) {
  switch (rows) {
  case 1: block(1, a, a_row, a_step, panel, depth, alpha, beta, cols, c, ldc); break;
  case 2: block(2, a, a_row, a_step, panel, depth, alpha, beta, cols, c, ldc); break;
  case 3: block(3, a, a_row, a_step, panel, depth, alpha, beta, cols, c, ldc); break;
  case 4: block(4, a, a_row, a_step, panel, depth, alpha, beta, cols, c, ldc); break;
  case 5: block(5, a, a_row, a_step, panel, depth, alpha, beta, cols, c, ldc); break;
  default: block(ROWS, a, a_row, a_step, panel, depth, alpha, beta, cols, c, ldc); break;
  }
}

static void panel_product(real alpha, hv_matrix a, hv_matrix b, int64_t m, int64_t n, int64_t k, real beta, real *c,
                          int64_t ldc) {
  real panel[DEPTH * LANES];
  int64_t a_row = a.transposed ? 1 : a.stride, a_step = a.transposed ? a.stride : 1;
  for (int64_t first = 0; first < k; first += DEPTH) {
    int64_t depth = min_i64(DEPTH, k - first);
    for (int64_t col = 0; col < n; col += LANES) {
      pack_panel(b, first, depth, col, n, panel);
      for (int64_t row = 0; row < m; row += ROWS) {
        block_of(min_i64(ROWS, m - row), a.data + row * a_row + first * a_step, a_row, a_step, panel, depth, alpha,
                 first == 0 ? beta : 1, min_i64(LANES, n - col), c + row * ldc + col, ldc);
      }
    }
  }
}

static real sum_of_line(line x) {
  real sum = 0;
  for (int j = 0; j < LANES; j++) sum += x[j];
  return sum;
}

static inline __attribute__((always_inline)) void dots(int64_t rows, const real *a, int64_t lda, const real *b,
                                                       int64_t k, real alpha, real beta, real *c, int64_t ldc) {
  line sum[DOT_ROWS];
  int64_t whole = k / LANES * LANES;
  for (int64_t r = 0; r < rows; r++) sum[r] = (line){0};
  for (int64_t p = 0; p < whole; p += LANES) {
    line values = *(const line *)(b + p);
    for (int64_t r = 0; r < rows; r++) sum[r] += *(const line *)(a + r * lda + p) * values;
  }
  for (int64_t r = 0; r < rows; r++) {
    real total = sum_of_line(sum[r]);
    for (int64_t p = whole; p < k; p++) total += a[r * lda + p] * b[p];
    c[r * ldc] = alpha * total + (beta == 0 ? 0 : beta * c[r * ldc]);
  }
}

/* A few rows against rows of b: b is read once, as it lies. */
static void dot_product(real alpha, hv_matrix a, hv_matrix b, int64_t m, int64_t n, int64_t k, real beta, real *c,
                        int64_t ldc) {
  for (int64_t j = 0; j < n; j++) {
    const real *row = b.data + j * b.stride;
    switch (m) {
    case 1: dots(1, a.data, a.stride, row, k, alpha, beta, c + j, ldc); break;
    case 2: dots(2, a.data, a.stride, row, k, alpha, beta, c + j, ldc); break;
    case 3: dots(3, a.data, a.stride, row, k, alpha, beta, c + j, ldc); break;
    default: dots(DOT_ROWS, a.data, a.stride, row, k, alpha, beta, c + j, ldc); break;
    }
  }
}

void HV_KERNEL(small_product)(real alpha, hv_matrix a, hv_matrix b, int64_t m, int64_t n, int64_t k, real beta, real *c,
                              int64_t ldc) {
  if (m <= DOT_ROWS && !a.transposed && b.transposed) {
    dot_product(alpha, a, b, m, n, k, beta, c, ldc);
  } else {
    panel_product(alpha, a, b, m, n, k, beta, c, ldc);
  }
}
