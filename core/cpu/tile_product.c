#include "core/cpu/tile_product.h"

#include <immintrin.h>

#include "core/cpu/tile_pack.h"

/* The operands are packed for DEPTH steps of the summed dimension at a time: the left one as a whole, the right one by
 * panels of WIDTH columns. A block of the result, whose sums fill four registers, is two tiles by two. */
enum { DEPTH = 128, WIDTH = 2 * HV_TILE_LINES };
enum { PANEL_TILES = 2 * DEPTH / HV_TILE_STEPS * HV_TILE_PARTS /* the most tiles of a panel */ };
enum { LEAST_ROWS = 5, LEAST_COLS = 16, LEAST_DEPTH = 32, LEAST_WORK = 1 << 17 };

bool hv_tile_product_suits(const hv_tensor *a, const hv_tensor *b, int64_t m, int64_t n, int64_t k) {
  bool stored = (a->dtype == HV_F32 || a->dtype == HV_BF16) && (b->dtype == HV_F32 || b->dtype == HV_BF16);
  return stored && m >= LEAST_ROWS && n >= LEAST_COLS && k >= LEAST_DEPTH && m * n * k >= LEAST_WORK;
}

/* The sums of a block. */
typedef struct sums {
  _Alignas(64) float values[2][2][16][16];
} sums;

static int64_t tiles_of(int64_t count, int64_t size) {
  return (count + size - 1) / size;
}

static int64_t smaller(int64_t a, int64_t b) {
  return a < b ? a : b;
}

size_t hv_tile_product_scratch(int64_t m, int64_t n) {
  int64_t blocks = tiles_of(m, WIDTH), panels = tiles_of(n, WIDTH);
  return 64 + sizeof(hv_tile) * (size_t)((blocks + 1) * PANEL_TILES) + sizeof(sums) * (size_t)(blocks * panels);
}

/* Eight tile registers of 16 rows of 64 bytes. */
typedef struct tile_configuration {
  uint8_t palette, start_row, reserved[14];
  uint16_t bytes_a_row[16];
  uint8_t rows[16];
} tile_configuration;

static void configure_tiles(void) {
  tile_configuration c = {.palette = 1};
  for (int i = 0; i < 8; i++) {
    c.bytes_a_row[i] = 64;
    c.rows[i] = 16;
  }
  _tile_loadconfig(&c);
}

/* One block: up to two lines of tiles of each operand. */
typedef struct block {
  const hv_tile *a, *b;
  int64_t tiles; /* of 32 steps */
  int a_parts, b_parts;
} block;

enum { ROW_BYTES = 64 };

/* Load part i of a step of the left operand into registers 4 and 5, part j of the right one into 6 and 7. `two`, here
 * and below, is a constant where this is inlined. */
static inline __attribute__((always_inline)) void load_left(const block *t, int64_t step, int i, bool two) {
  const hv_tile *at = t->a + step * t->a_parts + i;
  _tile_loadd(4, at, ROW_BYTES);
  if (two) _tile_loadd(5, at + t->tiles * t->a_parts, ROW_BYTES);
}

static inline __attribute__((always_inline)) void load_right(const block *t, int64_t step, int j, bool two) {
  const hv_tile *at = t->b + step * t->b_parts + j;
  _tile_loadd(6, at, ROW_BYTES);
  if (two) _tile_loadd(7, at + t->tiles * t->b_parts, ROW_BYTES);
}

/* Adds the products of the loaded tiles to registers 0 to 3. */
static inline __attribute__((always_inline)) void add_products(bool two_rows, bool two_cols) {
  _tile_dpbf16ps(0, 4, 6);
  if (two_cols) _tile_dpbf16ps(1, 4, 7);
  if (two_rows) _tile_dpbf16ps(2, 5, 6);
  if (two_rows && two_cols) _tile_dpbf16ps(3, 5, 7);
}

/* Sums a block's products: first those with a smaller part, so that only the sums of the largest parts' products, of 16
 * bits each, are rounded at the size of the result. */
static inline __attribute__((always_inline)) void sum_products(const block *t, bool two_rows, bool two_cols,
                                                               sums *out) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t step = 0; step < t->tiles && t->a_parts + t->b_parts > 2; step++) {
    int held = -1;
    for (int i = t->a_parts - 1; i >= 0; i--) {
      load_left(t, step, i, two_rows);
      for (int j = i == 0; j < t->b_parts && i + j < HV_TILE_PARTS; j++) {
        if (j != held) load_right(t, step, j, two_cols);
        held = j;
        add_products(two_rows, two_cols);
      }
    }
  }
  for (int64_t step = 0; step < t->tiles; step++) {
    load_left(t, step, 0, two_rows);
    load_right(t, step, 0, two_cols);
    add_products(two_rows, two_cols);
  }
  _tile_stored(0, out->values[0][0], ROW_BYTES);
  if (two_cols) _tile_stored(1, out->values[0][1], ROW_BYTES);
  if (two_rows) _tile_stored(2, out->values[1][0], ROW_BYTES);
  if (two_rows && two_cols) _tile_stored(3, out->values[1][1], ROW_BYTES);
}

static void sum_block(const block *t, int64_t rows, int64_t cols, sums *out) {
  bool two_rows = rows > HV_TILE_LINES, two_cols = cols > HV_TILE_LINES;
  if (two_rows && two_cols) {
    sum_products(t, true, true, out);
  } else if (two_rows) {
    sum_products(t, true, false, out);
  } else if (two_cols) {
    sum_products(t, false, true, out);
  } else {
    sum_products(t, false, false, out);
  }
}

static void add_sums(const sums *s, sums *total) {
  const float *from = s->values[0][0][0];
  float *to = total->values[0][0][0];
  for (int i = 0; i < WIDTH * WIDTH; i += 16) {
    _mm512_store_ps(to + i, _mm512_add_ps(_mm512_load_ps(to + i), _mm512_load_ps(from + i)));
  }
}

/* c = alpha sums + beta c */
static void store_block(float alpha, const sums *s, int64_t rows, int64_t cols, float beta, float *c, int64_t ldc) {
  const __m512 factor = _mm512_set1_ps(alpha), old_factor = _mm512_set1_ps(beta);
  for (int64_t right = 0; right * HV_TILE_LINES < cols; right++) {
    int64_t width = cols - right * HV_TILE_LINES;
    __mmask16 mask = width >= 16 ? 0xffff : (__mmask16)((1u << width) - 1);
    for (int64_t i = 0; i < rows; i++) {
      float *to = c + i * ldc + right * HV_TILE_LINES;
      __m512 sum = _mm512_mul_ps(factor, _mm512_load_ps(s->values[i / 16][right][i % 16]));
      if (beta != 0) sum = _mm512_fmadd_ps(old_factor, _mm512_maskz_loadu_ps(mask, to), sum);
      _mm512_mask_storeu_ps(to, mask, sum);
    }
  }
}

/* One product, DEPTH steps of it at a time. */
typedef struct product {
  hv_tile_operand left, right;
  int64_t m, n;
  int64_t step, tiles; /* the first of the DEPTH steps, and how many tiles they are */
  hv_tile *a, *b;      /* packed: all lines of the left operand, a panel of the right one's */
  sums *sums;          /* by panels, then by blocks of rows */
} product;

/* Packs lines [first, last) in whole tiles. */
static void pack_lines(const product *p, const hv_tile_operand *operand, int64_t first, int64_t last, hv_tile *to) {
  int parts = hv_tile_parts(operand->tensor);
  for (int64_t line = first; line < last; line += HV_TILE_LINES) {
    for (int64_t i = 0; i < p->tiles; i++, to += parts) {
      hv_tile_pack(operand, line, p->step + i * HV_TILE_STEPS, to);
    }
  }
}

/* Adds a panel's products to its sums, or sets them at the first step. */
static void multiply_panel(const product *p, int64_t col, sums *total) {
  block t = {.b = p->b, .tiles = p->tiles};
  t.a_parts = hv_tile_parts(p->left.tensor);
  t.b_parts = hv_tile_parts(p->right.tensor);
  pack_lines(p, &p->right, col, smaller(col + WIDTH, p->n), p->b);
  for (int64_t row = 0; row < p->m; row += WIDTH, total++) {
    sums s;
    t.a = p->a + row / HV_TILE_LINES * p->tiles * t.a_parts;
    sum_block(&t, p->m - row, p->n - col, p->step == 0 ? total : &s);
    if (p->step > 0) add_sums(&s, total);
  }
}

void hv_tile_product(float alpha, hv_tensor a, bool transpose_a, hv_tensor b, bool transpose_b, float beta, float *c,
                     int64_t ldc, void *scratch) {
  product p = {.left = {.tensor = &a, .lines_are_columns = transpose_a, .left = true},
               .right = {.tensor = &b, .lines_are_columns = !transpose_b},
               .m = transpose_a ? a.cols : a.rows,
               .n = transpose_b ? b.rows : b.cols};
  int64_t k = transpose_a ? a.rows : a.cols, blocks = tiles_of(p.m, WIDTH);
  p.b = (hv_tile *)(((uintptr_t)scratch + 63) / 64 * 64);
  p.a = p.b + PANEL_TILES;
  p.sums = (sums *)(p.a + blocks * PANEL_TILES);
  configure_tiles();
  for (p.step = 0; p.step < k; p.step += DEPTH) {
    p.tiles = tiles_of(smaller(DEPTH, k - p.step), HV_TILE_STEPS);
    pack_lines(&p, &p.left, 0, p.m, p.a);
    for (int64_t col = 0; col < p.n; col += WIDTH) multiply_panel(&p, col, p.sums + col / WIDTH * blocks);
  }
  _tile_release();
  for (int64_t col = 0; col < p.n; col += WIDTH) {
    for (int64_t row = 0; row < p.m; row += WIDTH) {
      store_block(alpha, p.sums + col / WIDTH * blocks + row / WIDTH, smaller(WIDTH, p.m - row),
                  smaller(WIDTH, p.n - col), beta, c + row * ldc + col, ldc);
    }
  }
}
