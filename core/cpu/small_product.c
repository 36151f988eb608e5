#include "core/cpu/small_product.h"

/* The widest vector of the instruction set that this file is compiled for; it may have any address. */
#if defined(__AVX512F__)
enum { VECTOR_BYTES = 64, ROWS = 8 };
#elif defined(__AVX__)
enum { VECTOR_BYTES = 32, ROWS = 6 };
#else
enum { VECTOR_BYTES = 16, ROWS = 4 };
#endif
typedef real vector __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(real)), may_alias));

/* A block is ROWS rows by two vectors: its sums, the vectors of b and one of a fit the registers. */
enum {
  LANES = VECTOR_BYTES / sizeof(real),
  WIDTH = 2 * LANES,
  DEPTH = 256,  /* of a packed panel of b, WIDTH wide */
  DOT_ROWS = 4, /* up to so many rows of a are multiplied as dot products with rows of b, DOT_COLS at a time */
  DOT_COLS = 2,
  AHEAD = 16384 / sizeof(real), /* elements are prefetched so far ahead of their use */
};

/* Copies rows [first, first + depth) of columns [col, col + WIDTH) of b, one after the other, with zeros beyond n. */
static void pack_panel(hv_matrix b, int64_t first, int64_t depth, int64_t col, int64_t n, real *panel) {
  int64_t cols = min_i64(WIDTH, n - col);
  if (cols < WIDTH) memset(panel, 0, (size_t)(depth * WIDTH) * sizeof *panel);
  if (!b.transposed) {
    for (int64_t p = 0; p < depth; p++) {
      const real *from = b.data + (first + p) * b.stride + col;
      if (cols == WIDTH) {
        memcpy(panel + p * WIDTH, from, WIDTH * sizeof *panel);
      } else {
        memcpy(panel + p * WIDTH, from, (size_t)cols * sizeof *panel);
      }
    }
    return;
  }
  for (int64_t j = 0; j < cols; j++) {
    const real *from = b.data + (col + j) * b.stride + first;
    for (int64_t p = 0; p < depth; p++) panel[p * WIDTH + j] = from[p];
  }
}

/* What one block works on. */
typedef struct block_args {
  const real *a;
  int64_t a_row, a_step; /* from one row, and from one step of the summed dimension, to the next */
  const real *panel;
  int64_t depth;
  real alpha, beta;
  int64_t cols;
  real *c;
  int64_t ldc;
} block_args;

static void store_part(const block_args *b, const vector sum[2], real *c) {
  real values[WIDTH];
  memcpy(values, sum, sizeof values);
  for (int64_t j = 0; j < b->cols; j++) c[j] = b->alpha * values[j] + (b->beta == 0 ? 0 : b->beta * c[j]);
}

/* `rows` is a constant where this is inlined: then the sums stay in registers. */
static inline __attribute__((always_inline)) void block(const block_args *b, int64_t row, int rows) {
  vector sum[ROWS][2];
  const real *a = b->a + row * b->a_row, *panel = b->panel;
  int64_t a_row = b->a_row;
  for (int r = 0; r < rows; r++) sum[r][0] = sum[r][1] = (vector){0};
  for (int64_t p = 0; p < b->depth; p++, a += b->a_step, panel += WIDTH) {
    vector low = *(const vector *)panel, high = *(const vector *)(panel + LANES);
    for (int r = 0; r < rows; r++) {
      real value = a[r * a_row];
      sum[r][0] += value * low;
      sum[r][1] += value * high;
    }
  }
  for (int r = 0; r < rows; r++) {
    real *c = b->c + (row + r) * b->ldc;
    if (b->cols < WIDTH) {
      store_part(b, sum[r], c);
      continue;
    }
    vector low = b->alpha * sum[r][0], high = b->alpha * sum[r][1];
    if (b->beta != 0) {
      low += b->beta * *(const vector *)c;
      high += b->beta * *(const vector *)(c + LANES);
    }
    *(vector *)c = low;
    *(vector *)(c + LANES) = high;
  }
}

static void blocks(const block_args *b, int64_t m) {
  int64_t row = 0;
  for (; m - row >= ROWS; row += ROWS) block(b, row, ROWS);
  for (; m - row >= 4; row += 4) block(b, row, 4);
  for (; m - row >= 2; row += 2) block(b, row, 2);
  if (row < m) block(b, row, 1);
}

static void panel_product(real alpha, hv_matrix a, hv_matrix b, int64_t m, int64_t n, int64_t k, real beta, real *c,
                          int64_t ldc) {
  real panel[DEPTH * WIDTH];
  block_args args = {.a_row = a.transposed ? 1 : a.stride, .a_step = a.transposed ? a.stride : 1, .panel = panel};
  args.alpha = alpha;
  args.ldc = ldc;
  for (int64_t first = 0; first < k; first += DEPTH) {
    args.a = a.data + first * args.a_step;
    args.depth = min_i64(DEPTH, k - first);
    args.beta = first == 0 ? beta : 1;
    for (int64_t col = 0; col < n; col += WIDTH) {
      pack_panel(b, first, args.depth, col, n, panel);
      args.cols = min_i64(WIDTH, n - col);
      args.c = c + col;
      blocks(&args, m);
    }
  }
}

/* Adds halves, which is faster than lane after lane. */
static real sum_of_vector(vector x) {
  real values[LANES];
  memcpy(values, &x, sizeof values);
  for (int half = LANES / 2; half > 0; half /= 2) {
    for (int j = 0; j < half; j++) values[j] += values[j + half];
  }
  return values[0];
}

/* What a few rows of a are multiplied with: rows of b, `stride` apart. */
typedef struct dot_args {
  const real *a, *b;
  int64_t lda, stride, k;
  real alpha, beta;
  real *c;
  int64_t ldc;
} dot_args;

/* `rows` and `cols` are constants where this is inlined. Each sum is the same for any of them. */
static inline __attribute__((always_inline)) void dots(const dot_args *d, int rows, int cols) {
  vector sum[DOT_ROWS][DOT_COLS];
  int64_t whole = d->k / LANES * LANES;
  for (int r = 0; r < rows; r++) {
    for (int j = 0; j < cols; j++) sum[r][j] = (vector){0};
  }
  for (int64_t p = 0; p < whole; p += LANES) {
    for (int j = 0; j < cols; j++) {
      const real *at = d->b + j * d->stride + p;
      vector b = *(const vector *)at;
      __builtin_prefetch(at + AHEAD, 0, 2); /* into the L2 cache: L1 is too small for all that is under way */
      for (int r = 0; r < rows; r++) sum[r][j] += *(const vector *)(d->a + r * d->lda + p) * b;
    }
  }
  for (int r = 0; r < rows; r++) {
    for (int j = 0; j < cols; j++) {
      const real *a = d->a + r * d->lda, *b = d->b + j * d->stride;
      real *c = d->c + r * d->ldc + j, total = sum_of_vector(sum[r][j]);
      for (int64_t p = whole; p < d->k; p++) total += a[p] * b[p];
      *c = d->alpha * total + (d->beta == 0 ? 0 : d->beta * *c);
    }
  }
}

static inline __attribute__((always_inline)) void dots_of_rows(dot_args d, int rows, int64_t n) {
  int64_t j = 0;
  for (; n - j >= DOT_COLS; j += DOT_COLS, d.b += DOT_COLS * d.stride, d.c += DOT_COLS) dots(&d, rows, DOT_COLS);
  for (; j < n; j++, d.b += d.stride, d.c++) dots(&d, rows, 1);
}

/* A few rows of a against rows of b: b is read once, without packing, several rows at a time. */
static void dot_product(const dot_args *d, int64_t m, int64_t n) {
  switch (m) {
  case 1: dots_of_rows(*d, 1, n); break;
  case 2: dots_of_rows(*d, 2, n); break;
  case 3: dots_of_rows(*d, 3, n); break;
  default: dots_of_rows(*d, DOT_ROWS, n); break;
  }
}

void HV_KERNEL(small_product)(real alpha, hv_matrix a, hv_matrix b, int64_t m, int64_t n, int64_t k, real beta, real *c,
                              int64_t ldc) {
  if (m <= DOT_ROWS && !a.transposed && b.transposed) {
    dot_args d = {.a = a.data, .b = b.data, .lda = a.stride, .stride = b.stride, .k = k};
    d.alpha = alpha;
    d.beta = beta;
    d.c = c;
    d.ldc = ldc;
    dot_product(&d, m, n);
  } else {
    panel_product(alpha, a, b, m, n, k, beta, c, ldc);
  }
}
