/* linear and linear_swiglu for 1 to 16 rows of bf16 (the steps of a prediction), in one pass over the weights: reading
 * them from device memory is nearly all that such a product costs.
 *   y = activation(x weightᵀ + bias) + residual
 *   y = silu(gate) ∘ up, [gate | up] = x weightᵀ
 * x [rows, in], weight [out, in]; y [rows, out], for SwiGLU [rows, out / 2].
 *
 * Grid and block: a block of eight warps makes all rows of 8 C columns of the product; for SwiGLU half of these are of
 * the gate, the other half the matching columns of up. K (`in`) is split over the warps: in each turn a warp takes 32
 * of 256 columns of x. At the end the eight partial sums are added in shared memory, in the order of warps, and the
 * epilogue is applied. C is 4 from 8192 columns on, else 2, so that there are enough blocks to fill a card.
 *
 * Loads: a lane copies 16 bytes of one weight row at a time with cp.async; the four lanes of a row read 64 contiguous
 * bytes. It reads back only what it copied itself, so the loop has no barrier. Up to STAGES × C copies of a lane are in
 * flight; as many plain loads would need too many registers, and the compiler would move them down to their use. The x
 * of a turn is loaded one turn ahead. The first weight copies are issued before hv_wait_for_previous(): weights stream
 * in while the kernels that make x still run.
 *
 * Products: the 8 elements that a lane copies are its B fragments of two m16n8k16 products. They are not the positions
 * of k that the fragment layout gives to the lane, but x is permuted alike, and the order of k changes nothing else. M
 * of the instruction is 16, so fewer rows cost the same.
 *
 * Shared memory: the ring of STAGES × C × 256 × 16 bytes is 65,536 bytes with C = 4 and 32,768 with C = 2; the partial
 * sums reuse it. */
#include "cuda/activation.h"
#include "cuda/elementwise.h"
#include "cuda/linear.h"

enum {
  MOST_ROWS = 16,
  WARPS = 8,
  CHUNK = 32, /* columns of x that a warp takes in a turn: 8 for each of the four lanes of a row */
  STAGES = 4,
  MANY_COLUMNS = 8 << 10 /* from here on blocks of 32 columns fill a card, and read x less often than 16 */
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

/* 8 neighbouring elements as packed pairs; zeros if not `valid`. */
static __device__ __forceinline__ hv_vec<uint32_t, 4> load_pairs(const hv_bf16 *p, bool valid) {
  return valid ? hv_load<4>(reinterpret_cast<const uint32_t *>(p)) : hv_vec<uint32_t, 4>{};
}

/* A lane's elements of x in a turn, for its A fragments: rows lane / 4 and lane / 4 + 8. */
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

/* The number of columns of y, and how many of them a block makes. */
template <bool GATED> static __host__ __device__ __forceinline__ int64_t width_of(int64_t out) {
  return GATED ? out / 2 : out;
}
template <int C, bool GATED> static constexpr int block_cols = GATED ? 4 * C : 8 * C;

/* The row of weight that gives column c · 8 + i of the block's products; −1: none. */
template <int C, bool GATED>
static __device__ __forceinline__ int64_t weight_row(int64_t out, int64_t first_col, int c, int i) {
  constexpr int EACH = block_cols<C, GATED> / 8;
  int64_t width = width_of<GATED>(out), col = first_col + c % EACH * 8 + i;
  return col < width ? c / EACH * width + col : -1;
}

/* Adds the eight warps' sums in order and applies the epilogue. All threads take part, after their copies have landed.
 */
template <typename Y, int C, bool GATED>
static __device__ __forceinline__ void add_warps(const few_params<Y> &p, int64_t first_col, const float (&sum)[C][4]) {
  constexpr int COLS = block_cols<C, GATED>;
  constexpr int STRIDE = 8 * C + 8; /* the pairs that half a warp stores, four rows of them, have no bank conflicts */
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
