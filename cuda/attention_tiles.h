/* What the attention kernels are made of: rows of one head moved into shared memory, and the two products of a warp.
 * Both products exist for bf16 on tensor cores and for float in plain multiply-adds, with the sums laid out alike
 * (hv_mma's d: a lane has rows g and g + 8 of 16, columns 2t and 2t + 1 of each 8), so that a kernel is written once.
 */
#ifndef HV_CUDA_ATTENTION_TILES_H
#define HV_CUDA_ATTENTION_TILES_H

#include "cuda/attention.h"

/* A row of D elements in shared memory takes 16 bytes more: then 8 rows at the same column lie in different banks. */
template <typename T, int D> static constexpr int hv_tile_stride = D + 16 / (int)sizeof(T);

/* Bytes of a tile, a multiple of 16. */
template <typename T, int D> static constexpr size_t hv_tile_bytes(int rows) {
  return (size_t)rows * hv_tile_stride<T, D> * sizeof(T);
}

/* g and 2t: a lane has the sums of rows g and g + 8 of 16, and of columns 2t and 2t + 1 of each 8. */
static __device__ __forceinline__ int hv_lane_row() {
  return (int)threadIdx.x % HV_WARP / 4;
}
static __device__ __forceinline__ int hv_lane_col() {
  return (int)threadIdx.x % 4 * 2;
}

/* Rows row_of(0) … row_of(ROWS − 1) of a head go to shared memory, zeros for rows below 0 and columns from head_dim on.
 * All threads take part; where the rows are `wide`, they arrive with the copies that are waited for next. */
template <int D, int ROWS, typename T, typename RowOf>
static __device__ __forceinline__ void hv_load_tile(hv_shared<T> to, hv_rows<const T> from, int64_t first_col,
                                                    int head_dim, bool wide, RowOf row_of) {
  constexpr int N = 16 / (int)sizeof(T), CHUNKS = D / N;
  for (int i = (int)threadIdx.x; i < ROWS * CHUNKS; i += HV_ATTENTION_THREADS) {
    int row = i / CHUNKS, col = i % CHUNKS * N;
    int64_t source = row_of(row);
    hv_shared<T> target = to + (row * hv_tile_stride<T, D> + col);
    const T *p = from.at(source < 0 ? 0 : source, first_col + col);
    if (wide) {
      bool valid = source >= 0 && col < head_dim;
      hv_copy_async(hv_shared_cast<hv_bf16>(target), reinterpret_cast<const hv_bf16 *>(valid ? p : from.data), valid);
      continue;
    }
    hv_vec<T, N> v;
    HV_UNROLL
    for (int j = 0; j < N; j++) v.at[j] = source >= 0 && col + j < head_dim ? p[j] : hv_from_float<T>(0.0f);
    hv_store(target, v);
  }
}

/* The first of the 16 rows of `a` and of the 8 N rows of `b`: sum += a bᵀ, over D columns. */
template <int D, int N>
static __device__ __forceinline__ void hv_multiply_rows(float (&sum)[N][4], hv_shared<hv_bf16> a,
                                                        hv_shared<hv_bf16> b) {
  static_assert(N % 2 == 0, "two columns of matrices are loaded at once");
  constexpr int STRIDE = hv_tile_stride<hv_bf16, D>;
  int lane = (int)threadIdx.x % HV_WARP;
  hv_shared<hv_bf16> a_row = a + (lane % 16 * STRIDE + lane / 16 * 8);
  hv_shared<hv_bf16> b_row = b + ((lane / 16 * 8 + lane % 8) * STRIDE + lane / 8 % 2 * 8);
  HV_UNROLL
  for (int k = 0; k < D; k += 16) {
    uint32_t left[4], right[4];
    hv_ldmatrix_x4(left, a_row + k);
    HV_UNROLL
    for (int n = 0; n < N; n += 2) {
      hv_ldmatrix_x4(right, b_row + (n * 8 * STRIDE + k));
      hv_mma(sum[n], left, {right[0], right[1]});
      hv_mma(sum[n + 1], left, {right[2], right[3]});
    }
  }
}

/* Dot products of four columns at a time. */
template <int D, int N>
static __device__ __forceinline__ void hv_multiply_rows(float (&sum)[N][4], hv_shared<float> a, hv_shared<float> b) {
  constexpr int STRIDE = hv_tile_stride<float, D>;
  hv_shared<float> a_row = a + hv_lane_row() * STRIDE, b_row = b + hv_lane_col() * STRIDE;
  for (int k = 0; k < D; k += 4) {
    hv_vec<float, 4> top = hv_load<4>(a_row + k), bottom = hv_load<4>(a_row + (8 * STRIDE + k));
    HV_UNROLL
    for (int n = 0; n < N; n++) {
      hv_vec<float, 4> left = hv_load<4>(b_row + (n * 8 * STRIDE + k));
      hv_vec<float, 4> right = hv_load<4>(b_row + ((n * 8 + 1) * STRIDE + k));
      HV_UNROLL
      for (int i = 0; i < 4; i++) {
        sum[n][0] += top.at[i] * left.at[i];
        sum[n][1] += top.at[i] * right.at[i];
        sum[n][2] += bottom.at[i] * left.at[i];
        sum[n][3] += bottom.at[i] * right.at[i];
      }
    }
  }
}

/* sum += w b, w being sums of hv_multiply_rows (16 by 8 K) and `b` the first of 8 K rows of D columns. For tensor cores
 * w is rounded to bf16. */
template <int D, int K>
static __device__ __forceinline__ void hv_multiply_weights(float (&sum)[D / 8][4], const float (&w)[K][4],
                                                           hv_shared<hv_bf16> b) {
  static_assert(K % 2 == 0, "a fragment has 16 columns");
  constexpr int STRIDE = hv_tile_stride<hv_bf16, D>;
  int lane = (int)threadIdx.x % HV_WARP;
  hv_shared<hv_bf16> b_row = b + (lane % 16 * STRIDE + lane / 16 * 8);
  HV_UNROLL
  for (int k = 0; k < K; k += 2) {
    const uint32_t left[4] = {hv_pack_bf16(w[k][0], w[k][1]), hv_pack_bf16(w[k][2], w[k][3]),
                              hv_pack_bf16(w[k + 1][0], w[k + 1][1]), hv_pack_bf16(w[k + 1][2], w[k + 1][3])};
    HV_UNROLL
    for (int n = 0; n < D / 8; n += 2) {
      uint32_t right[4];
      hv_ldmatrix_x4_trans(right, b_row + (k * 8 * STRIDE + n * 8));
      hv_mma(sum[n], left, {right[0], right[1]});
      hv_mma(sum[n + 1], left, {right[2], right[3]});
    }
  }
}

/* The weights of one column come from the lane of the same rows that has them. */
template <int D, int K>
static __device__ __forceinline__ void hv_multiply_weights(float (&sum)[D / 8][4], const float (&w)[K][4],
                                                           hv_shared<float> b) {
  constexpr int STRIDE = hv_tile_stride<float, D>;
  int quad = (int)threadIdx.x % HV_WARP / 4 * 4;
  hv_shared<float> b_col = b + hv_lane_col();
  HV_UNROLL
  for (int k = 0; k < K; k++) {
    for (int i = 0; i < 4; i++) {
      HV_UNROLL
      for (int odd = 0; odd < 2; odd++) {
        float top = __shfl_sync(HV_FULL_MASK, w[k][odd], quad + i);
        float bottom = __shfl_sync(HV_FULL_MASK, w[k][odd + 2], quad + i);
        hv_shared<float> row = b_col + (k * 8 + i * 2 + odd) * STRIDE;
        HV_UNROLL
        for (int n = 0; n < D / 8; n++) {
          hv_vec<float, 2> right = hv_load<2>(row + n * 8);
          sum[n][0] += top * right.at[0];
          sum[n][1] += top * right.at[1];
          sum[n][2] += bottom * right.at[0];
          sum[n][3] += bottom * right.at[1];
        }
      }
    }
  }
}

/* A lane's two columns of one row, of which those before head_dim exist, go to row `to`. */
template <typename T>
static __device__ __forceinline__ void hv_store_pair(T *to, int col, int head_dim, bool wide, float left, float right) {
  if (wide && col < head_dim) {
    hv_store(to + col, hv_vec<T, 2>{{hv_from_float<T>(left), hv_from_float<T>(right)}});
  } else {
    if (col < head_dim) to[col] = hv_from_float<T>(left);
    if (col + 1 < head_dim) to[col + 1] = hv_from_float<T>(right);
  }
}

/* The keys of a tile of query rows, numbered one behind the other: the prefix, then own rows. */
struct hv_tile_keys {
  int prefix_start, prefix_rows, own_start;
  int total;     /* as far as any row sees */
  int all_below; /* every row sees the keys below this number */
  __device__ __forceinline__ int64_t row_of(int key) const {
    return key >= total ? -1 : key < prefix_rows ? prefix_start + key : own_start + key - prefix_rows;
  }
};

/* What a query row sees, in that numbering: the prefix and the keys in [low, high). */
struct hv_row_view {
  int low, high;
};

/* How many of its segment's own rows query row `row` of q sees. */
static __device__ __forceinline__ int hv_own_seen(const hv_segment &s, bool causal, int row) {
  return causal ? s.own_rows - s.q_rows + row - s.q_start + 1 : s.own_rows;
}

/* The view of the tile's row i; nothing for i >= rows. */
static __device__ __forceinline__ hv_row_view hv_view_of(hv_rows<const int32_t> segments, const hv_attention_tile &tile,
                                                         bool causal, int i) {
  if (i >= tile.rows) return {0, 0};
  int index = tile.first_segment, row = tile.row + i, first_own = 0;
  hv_segment s = hv_segment_at(segments, index);
  first_own = s.own_start;
  while (row >= s.q_start + s.q_rows) s = hv_segment_at(segments, ++index);
  int low = s.prefix_rows + s.own_start - first_own;
  return {low, low + hv_own_seen(s, causal, row)};
}

static __device__ __forceinline__ hv_tile_keys hv_keys_of(hv_rows<const int32_t> segments,
                                                          const hv_attention_tile &tile, bool causal) {
  hv_segment s = hv_segment_at(segments, tile.first_segment);
  int all_below = tile.segment_count == 1 ? hv_view_of(segments, tile, causal, 0).high : s.prefix_rows;
  return {s.prefix_start, s.prefix_rows, s.own_start, hv_view_of(segments, tile, causal, tile.rows - 1).high,
          all_below};
}

/* Whether a row sees a key, both in the tile's numbering. */
static __device__ __forceinline__ bool hv_sees(const hv_tile_keys &keys, const hv_row_view &view, int key) {
  return key < keys.prefix_rows || (key >= view.low && key < view.high);
}

#endif
