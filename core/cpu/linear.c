/* Linear layers and their gradients: tiles of the result, each one single-threaded matrix product, finished (bias,
 * activation, residual) while it lies in the cache. */
#include "core/cpu/kernel.h"

/* The matrix unit is so fast that packing a weight again for each smaller run of rows would cost as much as the
 * products. */
#ifdef HV_CPU_HAS_TILES
enum { TILE = 512, FEWEST_ROWS = TILE, FEWEST_COLS = 256, TILE_UNIT = 32 };
#else
enum { TILE = 512, FEWEST_ROWS = 256, FEWEST_COLS = 256, TILE_UNIT = 16 };
#endif
enum { ENOUGH_TILES = 24 };

/* A result matrix cut into tiles of nearly equal size. */
typedef struct tiling {
  int64_t rows, cols;           /* of the result */
  int64_t tile_rows, tile_cols; /* of a tile; the last one may be smaller */
  int64_t row_tiles, col_tiles;
} tiling;

static void cut(int64_t size, int64_t most, int64_t *tile, int64_t *tiles) {
  int64_t pieces = (size + most - 1) / most;
  int64_t even = (size + pieces - 1) / max_i64(pieces, 1);
  *tile = (even + TILE_UNIT - 1) / TILE_UNIT * TILE_UNIT;
  *tiles = *tile ? (size + *tile - 1) / *tile : 0;
}

/* Larger tiles copy the operands less often, but many threads need many tiles. */
static tiling make_tiling(int64_t rows, int64_t cols) {
  tiling t = {.rows = rows, .cols = cols};
  for (int64_t row_limit = TILE, col_limit = TILE;;) {
    cut(rows, row_limit, &t.tile_rows, &t.row_tiles);
    cut(cols, col_limit, &t.tile_cols, &t.col_tiles);
    if (t.row_tiles * t.col_tiles >= ENOUGH_TILES) return t;
    if (col_limit > FEWEST_COLS) {
      col_limit = FEWEST_COLS;
    } else if (row_limit > FEWEST_ROWS) {
      row_limit = FEWEST_ROWS;
    } else {
      return t;
    }
  }
}

static bool reserve_for(hv_cpu_pool *pool, const tiling *t) {
  int64_t elements = t->tile_rows * t->tile_cols + product_scratch(t->tile_rows, t->tile_cols);
  return hv_cpu_reserve(pool, (size_t)elements * sizeof(real));
}

typedef struct tile {
  int64_t row, rows, col, cols;
} tile;

static tile tile_at(const tiling *t, int64_t index) {
  int64_t row = index / t->col_tiles * t->tile_rows, col = index % t->col_tiles * t->tile_cols;
  return (tile){row, min_i64(t->tile_rows, t->rows - row), col, min_i64(t->tile_cols, t->cols - col)};
}

/* Where to compute a tile: in the result itself, unless its dtype is not `real` or it still holds the summand. */
static real *tile_memory(const hv_tensor *result, const hv_tensor *summand, const tile *t, void *scratch,
                         int64_t *stride) {
  bool in_place = result->dtype == HV_REAL_DTYPE && result->data != summand->data;
  *stride = in_place ? result->row_stride : t->cols;
  return in_place ? element(result, t->row, t->col) : scratch;
}

typedef struct linear_context {
  tiling tiles;
  const hv_linear_args *args;
} linear_context;

static void finish_row(const hv_linear_args *a, int64_t row, int64_t col, int64_t cols, const real *bias, real *c) {
  real buffer[TILE];
  if (bias) {
#pragma omp simd
    for (int64_t j = 0; j < cols; j++) c[j] += bias[j];
  }
  if (hv_present(a->pre)) store(&a->pre, row, col, cols, c);
  if (a->activation != HV_ACT_NONE) HV_KERNEL(activate)(a->activation, c, cols, c);
  if (hv_present(a->residual)) {
    const real *residual = load(&a->residual, row, col, cols, buffer);
#pragma omp simd
    for (int64_t j = 0; j < cols; j++) c[j] += residual[j];
  }
  store(&a->y, row, col, cols, c);
}

static void linear_tiles(const void *context, int64_t first, int64_t last, void *scratch) {
  const linear_context *l = context;
  const hv_linear_args *a = l->args;
  real *rest = (real *)scratch + l->tiles.tile_rows * l->tiles.tile_cols, bias_buffer[TILE];
  for (int64_t i = first; i < last; i++) {
    tile t = tile_at(&l->tiles, i);
    hv_tensor x = hv_tensor_rows(a->x, t.row, t.rows), weight = hv_tensor_rows(a->weight, t.col, t.cols);
    int64_t stride;
    real *c = tile_memory(&a->y, &a->residual, &t, scratch, &stride);
    multiply(1, x, false, weight, true, 0, c, stride, rest);
    const real *bias = hv_present(a->bias) ? load(&a->bias, 0, t.col, t.cols, bias_buffer) : NULL;
    for (int64_t row = 0; row < t.rows; row++) finish_row(a, t.row + row, t.col, t.cols, bias, c + row * stride);
  }
}

void HV_KERNEL(linear)(hv_cpu_pool *pool, const hv_linear_args *args) {
  linear_context l = {.tiles = make_tiling(args->x.rows, args->weight.rows), .args = args};
  if (!reserve_for(pool, &l.tiles)) return;
  int64_t work = l.tiles.tile_rows * l.tiles.tile_cols * (args->x.cols / 8 + 1);
  hv_cpu_for(pool, l.tiles.row_tiles * l.tiles.col_tiles, hv_cpu_grain(work), linear_tiles, &l);
}

typedef struct backward_input_context {
  tiling tiles;
  const hv_linear_backward_input_args *args;
} backward_input_context;

static void finish_input_row(const hv_linear_backward_input_args *a, int64_t row, int64_t col, int64_t cols, real *c) {
  real buffer[TILE];
  if (a->activation != HV_ACT_NONE) {
    HV_KERNEL(activation_gradient)(a->activation, load(&a->pre, row, col, cols, buffer), cols, c);
  }
  if (hv_present(a->add)) {
    const real *add = load(&a->add, row, col, cols, buffer);
#pragma omp simd
    for (int64_t j = 0; j < cols; j++) c[j] += add[j];
  }
  store(&a->dx, row, col, cols, c);
}

static void backward_input_tiles(const void *context, int64_t first, int64_t last, void *scratch) {
  const backward_input_context *l = context;
  const hv_linear_backward_input_args *a = l->args;
  real *rest = (real *)scratch + l->tiles.tile_rows * l->tiles.tile_cols;
  for (int64_t i = first; i < last; i++) {
    tile t = tile_at(&l->tiles, i);
    hv_tensor dy = hv_tensor_rows(a->dy, t.row, t.rows), weight = hv_tensor_cols(a->weight, t.col, t.cols);
    int64_t stride;
    real *c = tile_memory(&a->dx, &a->add, &t, scratch, &stride);
    multiply(1, dy, false, weight, false, 0, c, stride, rest);
    for (int64_t row = 0; row < t.rows; row++) finish_input_row(a, t.row + row, t.col, t.cols, c + row * stride);
  }
}

void HV_KERNEL(linear_backward_input)(hv_cpu_pool *pool, const hv_linear_backward_input_args *args) {
  backward_input_context l = {.tiles = make_tiling(args->dx.rows, args->dx.cols), .args = args};
  if (!reserve_for(pool, &l.tiles)) return;
  int64_t work = l.tiles.tile_rows * l.tiles.tile_cols * (args->dy.cols / 8 + 1);
  hv_cpu_for(pool, l.tiles.row_tiles * l.tiles.col_tiles, hv_cpu_grain(work), backward_input_tiles, &l);
}

typedef struct backward_weight_context {
  tiling tiles;
  const hv_linear_backward_weight_args *args;
} backward_weight_context;

static void add_to_row(const hv_tensor *sum, int64_t row, int64_t col, int64_t cols, real *c) {
  real buffer[TILE];
  const real *old = load(sum, row, col, cols, buffer);
#pragma omp simd
  for (int64_t j = 0; j < cols; j++) c[j] += old[j];
}

static void backward_weight_tiles(const void *context, int64_t first, int64_t last, void *scratch) {
  const backward_weight_context *l = context;
  const hv_linear_backward_weight_args *a = l->args;
  real *c = scratch, *rest = c + l->tiles.tile_rows * l->tiles.tile_cols;
  for (int64_t i = first; i < last; i++) {
    tile t = tile_at(&l->tiles, i);
    hv_tensor dy = hv_tensor_cols(a->dy, t.row, t.rows), x = hv_tensor_cols(a->x, t.col, t.cols);
    if (a->dweight.dtype == HV_REAL_DTYPE) {
      real *sum = element(&a->dweight, t.row, t.col);
      multiply(1, dy, true, x, false, a->set_dweight ? 0 : 1, sum, a->dweight.row_stride, rest);
      continue;
    }
    multiply(1, dy, true, x, false, 0, c, t.cols, rest);
    for (int64_t row = 0; row < t.rows; row++) {
      real *product = c + row * t.cols;
      if (!a->set_dweight) add_to_row(&a->dweight, t.row + row, t.col, t.cols, product);
      store(&a->dweight, t.row + row, t.col, t.cols, product);
    }
  }
}

static void weight_gradient(hv_cpu_pool *pool, const hv_linear_backward_weight_args *args) {
  backward_weight_context l = {.tiles = make_tiling(args->dweight.rows, args->dweight.cols), .args = args};
  if (!reserve_for(pool, &l.tiles)) return;
  int64_t work = l.tiles.tile_rows * l.tiles.tile_cols * (args->dy.rows / 8 + 1);
  hv_cpu_for(pool, l.tiles.row_tiles * l.tiles.col_tiles, hv_cpu_grain(work), backward_weight_tiles, &l);
}

void HV_KERNEL(linear_backward_weight)(hv_cpu_pool *pool, const hv_linear_backward_weight_args *args) {
  if (args->dy.rows == 0) return;
  if (hv_present(args->dweight)) weight_gradient(pool, args);
  if (hv_present(args->dbias)) HV_KERNEL(column_sums)(pool, &args->dy, NULL, &args->dbias);
}
