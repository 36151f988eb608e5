/* linear and linear_swiglu for 1 to 16 rows, in one pass over the weights, whose reading is what such a product costs:
 *   y = activation(x weightᵀ + bias) + residual
 *   y = silu(gate) ∘ up, [gate | up] = x weightᵀ
 *
 * A block has 8 C columns of the product, for SwiGLU half of them of the gate and as many of up beside these; its eight
 * warps take turns at the columns of x, and their sums are added in order. A lane copies 16 bytes of a weight row at
 * once, by asynchronous copies that it alone waits for and reads: STAGES × C of them are under way, which registers
 * would not hold (the compiler moves plain loads down to their use). What a lane reads together becomes fragments of
 * two products: the inner index may run in any order as long as both operands agree. 13 rows need no more than 16. What
 * a turn needs of x is read in the turn before, so that nothing is waited for in a turn. The first copies begin before
 * the kernels are over that make x: weights are read while those run.
 *
 * Shared memory: 65,536 bytes with C = 4, 32,768 with C = 2.
 */
#include "cuda/activation.h"
#include "cuda/elementwise.h"
#include "cuda/linear.h"

enum {
  MOST_ROWS = 16,
  WARPS = 8,
  CHUNK = 32, /* of x's columns: 8 for each of a row's four lanes */
  STAGES = 4,
  MANY_COLUMNS = 8 << 10 /* of products: then blocks of 32 fill a card, and x is read less often than with 16 */
};

template <typename Y> struct few_params {
  hv_rows<const hv_bf16> x, weight, residual;
  const hv_bf16 *bias;
  hv_rows<hv_bf16> pre;
  hv_rows<Y> y;
  int64_t in, out;
  int rows;
  hv_activation activation;
};

/* 8 neighbouring elements as pairs, zeros where there are none. */
static __device__ __forceinline__ hv_vec<uint32_t, 4> load_pairs(const hv_bf16 *p, bool valid) {
  return valid ? hv_load<4>(reinterpret_cast<const uint32_t *>(p)) : hv_vec<uint32_t, 4>{};
}

/* What a lane multiplies weights with in a turn. */
struct two_rows {
  hv_vec<uint32_t, 4> top, bottom;
};

template <typename Y>
static __device__ __forceinline__ void finish(const few_params<Y> &p, int row, int64_t col, float sum) {
  if (p.bias) sum += hv_to_float(p.bias[col]);
  if (p.pre.data) *p.pre.at(row, col) = hv_round_bf16(sum);
  sum = hv_activate(p.activation, sum);
  if (p.residual.data) sum += hv_to_float(*p.residual.at(row, col));
  *p.y.at(row, col) = hv_from_float<Y>(sum);
}

/* Columns of y, and how many of them a block has. */
template <bool GATED> static __host__ __device__ __forceinline__ int64_t width_of(int64_t out) {
  return GATED ? out / 2 : out;
}
template <int C, bool GATED> static constexpr int block_cols = GATED ? 4 * C : 8 * C;

/* The weight's row that is column c · 8 + i of the block's products; −1: there is none. */
template <int C, bool GATED>
static __device__ __forceinline__ int64_t weight_row(int64_t out, int64_t first_col, int c, int i) {
  constexpr int EACH = block_cols<C, GATED> / 8;
  int64_t width = width_of<GATED>(out), col = first_col + c % EACH * 8 + i;
  return col < width ? c / EACH * width + col : -1;
}

/* Adds the eight warps' sums in order and finishes the rows. All threads take part, when their copies are over. */
template <typename Y, int C, bool GATED>
static __device__ __forceinline__ void add_warps(const few_params<Y> &p, int64_t first_col, const float (&sum)[C][4]) {
  constexpr int COLS = block_cols<C, GATED>;
  constexpr int STRIDE = 8 * C + 8;               /* pairs of half a warp, of four rows, lie in different banks */
  hv_shared<float> sums = hv_shared_at<float>(0); /* [warp][row][STRIDE], where the ring was */
  int lane = (int)threadIdx.x % HV_WARP, warp = (int)threadIdx.x / HV_WARP;
  __syncthreads();
  HV_UNROLL
  for (int c = 0; c < C; c++) {
    HV_UNROLL
    for (int half = 0; half < 2; half++) {
      int row = warp * MOST_ROWS + lane / 4 + half * 8, col = c * 8 + lane % 4 * 2;
      hv_store(sums + (row * STRIDE + col), hv_vec<float, 2>{{sum[c][2 * half], sum[c][2 * half + 1]}});
    }
  }
  __syncthreads();
  auto total = [&](int row, int col) {
    float all = 0.0f;
    for (int w = 0; w < WARPS; w++) all += sums[(w * MOST_ROWS + row) * STRIDE + col];
    return all;
  };
  for (int i = (int)threadIdx.x; i < p.rows * COLS; i += WARPS * HV_WARP) {
    int row = i / COLS;
    int64_t col = first_col + i % COLS;
    if (col >= width_of<GATED>(p.out)) continue;
    float x = total(row, i % COLS);
    if constexpr (GATED) {
      *p.y.at(row, col) = hv_from_float<Y>(hv_activate(HV_ACT_SILU, x) * total(row, COLS + i % COLS));
    } else {
      finish(p, row, col, x);
    }
  }
}

template <typename Y, int C, bool GATED>
static __global__ void __launch_bounds__(WARPS *HV_WARP) few_rows_kernel(few_params<Y> p) {
  hv_shared<hv_bf16> ring = hv_shared_at<hv_bf16>(0); /* [stage][c][thread][8] */
  int lane = (int)threadIdx.x % HV_WARP, warp = (int)threadIdx.x / HV_WARP, group = lane / 4;
  int64_t first_col = (int64_t)blockIdx.x * block_cols<C, GATED>, first_k = warp * CHUNK + lane % 4 * 8;
  int turns = (int)((p.in + WARPS * CHUNK - 1) / (WARPS * CHUNK));
  auto slot = [&](int turn, int c) {
    return ring + ((turn % STAGES * C + c) * WARPS * HV_WARP + (int)threadIdx.x) * 8;
  };
  auto load_turn = [&](int turn) {
    int64_t k = first_k + (int64_t)turn * WARPS * CHUNK;
    HV_UNROLL
    for (int c = 0; c < C; c++) {
      int64_t row = weight_row<C, GATED>(p.out, first_col, c, group);
      bool valid = turn < turns && k < p.in && row >= 0;
      hv_copy_async(slot(turn, c), valid ? p.weight.at(row, k) : p.weight.data, valid);
    }
    hv_copy_commit();
  };
  auto load_x = [&](int turn) {
    int64_t k = first_k + (int64_t)turn * WARPS * CHUNK;
    return two_rows{load_pairs(p.x.at(group, k), k < p.in && group < p.rows),
                    load_pairs(p.x.at(group + 8, k), k < p.in && group + 8 < p.rows)};
  };
  float sum[C][4] = {};
  hv_let_next_begin();
  for (int turn = 0; turn < STAGES - 1; turn++) load_turn(turn);
  hv_wait_for_previous();
  two_rows next = load_x(0);
  for (int turn = 0; turn < turns; turn++) {
    load_turn(turn + STAGES - 1);
    two_rows x = next;
    next = load_x(turn + 1);
    hv_copy_wait<STAGES - 1>();
    HV_UNROLL
    for (int c = 0; c < C; c++) {
      hv_vec<uint32_t, 4> weight = hv_load<4>(hv_shared_cast<uint32_t>(slot(turn, c)));
      HV_UNROLL
      for (int half = 0; half < 4; half += 2) {
        const uint32_t left[4] = {x.top.at[half], x.bottom.at[half], x.top.at[half + 1], x.bottom.at[half + 1]};
        hv_mma(sum[c], left, {weight.at[half], weight.at[half + 1]});
      }
    }
  }
  hv_copy_wait<0>();
  add_warps<Y, C, GATED>(p, first_col, sum);
}

bool hv_linear_is_few(hv_tensor x, hv_tensor weight) {
  return x.dtype == HV_BF16 && x.rows <= MOST_ROWS && hv_are_wide(x, weight);
}

template <typename Y> static few_params<Y> params_of(hv_tensor x, hv_tensor weight, hv_tensor y) {
  few_params<Y> p = {};
  p.x = hv_rows_of<const hv_bf16>(x);
  p.weight = hv_rows_of<const hv_bf16>(weight);
  p.y = hv_rows_of<Y>(y);
  p.in = x.cols;
  p.out = weight.rows;
  p.rows = (int)x.rows;
  return p;
}

template <typename Y, int C, bool GATED> static void launch(hv_stream *stream, const few_params<Y> &p) {
  hv_ahead weight = {p.weight.data, ((size_t)(p.out - 1) * (size_t)p.weight.stride + (size_t)p.in) * sizeof(hv_bf16)};
  dim3 grid(hv_blocks(width_of<GATED>(p.out), block_cols<C, GATED>));
  HV_LAUNCH_EARLY((few_rows_kernel<Y, C, GATED>), weight, grid, dim3(WARPS * HV_WARP),
                  STAGES * C * WARPS * HV_WARP * 16, stream, p);
}

template <typename Y, bool GATED> static void few_rows(hv_stream *stream, const few_params<Y> &p) {
  if (p.out >= MANY_COLUMNS) {
    launch<Y, 4, GATED>(stream, p);
  } else {
    launch<Y, 2, GATED>(stream, p);
  }
}

template <typename Y> static void linear(hv_stream *stream, const hv_linear_args *a) {
  few_params<Y> p = params_of<Y>(a->x, a->weight, a->y);
  p.residual = hv_rows_of<const hv_bf16>(a->residual);
  p.bias = (const hv_bf16 *)a->bias.data;
  p.pre = hv_rows_of<hv_bf16>(a->pre);
  p.activation = a->activation;
  few_rows<Y, false>(stream, p);
}

void hv_linear_few(hv_stream *stream, const hv_linear_args *args) {
  if (args->y.dtype == HV_F32) {
    linear<float>(stream, args);
  } else {
    linear<hv_bf16>(stream, args);
  }
}

void hv_linear_swiglu_few(hv_stream *stream, const hv_linear_swiglu_args *args) {
  few_rows<hv_bf16, true>(stream, params_of<hv_bf16>(args->x, args->weight, args->y));
}
