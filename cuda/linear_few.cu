/* linear for 1 to 16 rows: y = activation(x weightᵀ + bias) + residual with all rows in one pass over the weights,
 * whose reading is what such a product costs.
 *
 * A block has 8 C columns of y; its eight warps take turns at the columns of x, and their sums are added in order. A
 * lane reads 16 bytes of one weight row at once, several before the first is used, straight into the layout that the
 * tensor cores want: the product's inner index may run in any order as long as both operands agree, so what a lane
 * reads together becomes fragments of two products. 13 rows need no more than 16.
 */
#include "cuda/activation.h"
#include "cuda/elementwise.h"
#include "cuda/linear.h"

enum {
  MOST_ROWS = 16,
  WARPS = 8,
  CHUNK = 32,            /* of x's columns: 8 for each of a row's four lanes */
  LOADS = 8,             /* of 16 bytes of weights, in flight for each lane */
  MANY_COLUMNS = 8 << 10 /* of y: then blocks of 32 columns fill a card, and x is read less often than with 16 */
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

/* 8 neighbouring elements, zeros where there are none. */
struct eight {
  uint32_t pair[4];
};
static __device__ __forceinline__ eight load_eight(const hv_bf16 *p, bool valid) {
  eight e = {};
  if (valid) {
    hv_vec<uint32_t, 4> v = hv_load<4>(reinterpret_cast<const uint32_t *>(p));
    HV_UNROLL
    for (int i = 0; i < 4; i++) e.pair[i] = v.at[i];
  }
  return e;
}

template <typename Y>
static __device__ __forceinline__ void finish(const few_params<Y> &p, int row, int64_t col, float sum) {
  if (p.bias) sum += hv_to_float(p.bias[col]);
  if (p.pre.data) *p.pre.at(row, col) = hv_round_bf16(sum);
  sum = hv_activate(p.activation, sum);
  if (p.residual.data) sum += hv_to_float(*p.residual.at(row, col));
  *p.y.at(row, col) = hv_from_float<Y>(sum);
}

template <typename Y, int C> static __global__ void __launch_bounds__(WARPS *HV_WARP) few_rows_kernel(few_params<Y> p) {
  constexpr int CHUNKS = LOADS / C, COLS = 8 * C;
  hv_shared<float> sums = hv_shared_at<float>(0); /* [warp][row][column] */
  int lane = (int)threadIdx.x % HV_WARP, warp = (int)threadIdx.x / HV_WARP, group = lane / 4;
  int64_t first_col = (int64_t)blockIdx.x * COLS;
  float sum[C][4] = {};
  for (int64_t first = (int64_t)warp * CHUNKS * CHUNK; first < p.in; first += WARPS * CHUNKS * CHUNK) {
    eight weight[CHUNKS][C], top[CHUNKS], bottom[CHUNKS];
    HV_UNROLL
    for (int i = 0; i < CHUNKS; i++) {
      int64_t k = first + i * CHUNK + lane % 4 * 8;
      HV_UNROLL
      for (int c = 0; c < C; c++) {
        int64_t col = first_col + c * 8 + group;
        weight[i][c] = load_eight(p.weight.at(col, k), k < p.in && col < p.out);
      }
      top[i] = load_eight(p.x.at(group, k), k < p.in && group < p.rows);
      bottom[i] = load_eight(p.x.at(group + 8, k), k < p.in && group + 8 < p.rows);
    }
    HV_UNROLL
    for (int i = 0; i < CHUNKS; i++) {
      HV_UNROLL
      for (int half = 0; half < 4; half += 2) {
        const uint32_t left[4] = {top[i].pair[half], bottom[i].pair[half], top[i].pair[half + 1],
                                  bottom[i].pair[half + 1]};
        HV_UNROLL
        for (int c = 0; c < C; c++) hv_mma(sum[c], left, {weight[i][c].pair[half], weight[i][c].pair[half + 1]});
      }
    }
  }
  HV_UNROLL
  for (int c = 0; c < C; c++) {
    HV_UNROLL
    for (int i = 0; i < 4; i++) {
      sums[(warp * MOST_ROWS + group + i / 2 * 8) * COLS + c * 8 + lane % 4 * 2 + i % 2] = sum[c][i];
    }
  }
  __syncthreads();
  for (int i = (int)threadIdx.x; i < p.rows * COLS; i += WARPS * HV_WARP) {
    int64_t col = first_col + i % COLS;
    if (col >= p.out) continue;
    float total = 0.0f;
    for (int w = 0; w < WARPS; w++) total += sums[w * MOST_ROWS * COLS + i];
    finish(p, i / COLS, col, total);
  }
}

bool hv_linear_is_few(const hv_linear_args *args) {
  return args->x.dtype == HV_BF16 && args->x.rows <= MOST_ROWS && hv_are_wide(args->x, args->weight);
}

template <typename Y, int C> static void launch(hv_stream *stream, const few_params<Y> &p) {
  HV_LAUNCH((few_rows_kernel<Y, C>), dim3(hv_blocks(p.out, 8 * C)), dim3(WARPS * HV_WARP),
            WARPS * MOST_ROWS * 8 * C * sizeof(float), stream, p);
}

template <typename Y> static void few_rows(hv_stream *stream, const hv_linear_args *a) {
  few_params<Y> p = {};
  p.x = hv_rows_of<const hv_bf16>(a->x);
  p.weight = hv_rows_of<const hv_bf16>(a->weight);
  p.residual = hv_rows_of<const hv_bf16>(a->residual);
  p.bias = (const hv_bf16 *)a->bias.data;
  p.pre = hv_rows_of<hv_bf16>(a->pre);
  p.y = hv_rows_of<Y>(a->y);
  p.in = a->x.cols;
  p.out = a->weight.rows;
  p.rows = (int)a->x.rows;
  p.activation = a->activation;
  if (p.out >= MANY_COLUMNS) {
    launch<Y, 4>(stream, p);
  } else {
    launch<Y, 2>(stream, p);
  }
}

void hv_linear_few(hv_stream *stream, const hv_linear_args *args) {
  if (args->y.dtype == HV_F32) {
    few_rows<float>(stream, args);
  } else {
    few_rows<hv_bf16>(stream, args);
  }
}
