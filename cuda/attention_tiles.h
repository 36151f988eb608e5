/* Building blocks of the attention kernels: loading a tile (rows of one head) into shared memory, and the two products
 * of a warp, scores a bᵀ and weighted sums w b. Both products exist for bf16, on tensor cores, and for float, in plain
 * multiply-adds. Accumulators have the same layout in both, that of hv_mma's d (a lane has rows g and g + 8 of 16 and
 * columns 2t and 2t + 1 of every 8, with g = lane / 4, t = lane % 4), so that a kernel is written once. */
#ifndef HV_CUDA_ATTENTION_TILES_H
#define HV_CUDA_ATTENTION_TILES_H

#include "cuda/attention.h"

/* The stride of a tile's rows of D elements in shared memory: 16 bytes of padding, so that 8 rows at the same column
 * lie in different banks (ldmatrix without bank conflicts). */
template <typename T, int D> static constexpr int hv_tile_stride = D + 16 / (int)sizeof(T);

/* Bytes of a tile in shared memory, a multiple of 16. */
template <typename T, int D> static constexpr size_t hv_tile_bytes(int rows) {
  return (size_t)rows * hv_tile_stride<T, D> * sizeof(T);
}

/* g and 2t: the first row and the first column that a lane has in an accumulator. */
static __device__ __forceinline__ int hv_lane_row() {
  return (int)threadIdx.x % HV_WARP / 4;
}
static __device__ __forceinline__ int hv_lane_col() {
  return (int)threadIdx.x % 4 * 2;
}

/* Loads rows row_of(0) … row_of(ROWS − 1) of one head into shared memory; rows with row_of < 0 and columns from
 * head_dim on become 0. All threads of the block take part. If `wide`, the rows are copied asynchronously, as part of
 * the group that is committed next. */
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

/* sum += a bᵀ over D columns; `a` points at the first of 16 rows, `b` at the first of 8 N rows. On tensor cores. */
template <int D, int N>
static __device__ __forceinline__ void hv_multiply_rows(float (&sum)[N][4], hv_shared<hv_bf16> a,
                                                        hv_shared<hv_bf16> b) {
  static_assert(N % 2 == 0, "one ldmatrix.x4 loads the fragments of two 8-row groups of b");
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

/* The same in float: dot products, four columns at a time. */
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

/* sum += w b, with w [16, 8 K] in registers, as hv_multiply_rows leaves it, and `b` pointing at the first of 8 K rows
 * of D columns. The accumulator layout of w is that of an A fragment, so w needs no shared memory; it is rounded to
 * bf16. */
template <int D, int K>
static __device__ __forceinline__ void hv_multiply_weights(float (&sum)[D / 8][4], const float (&w)[K][4],
                                                           hv_shared<hv_bf16> b) {
  static_assert(K % 2 == 0, "an A fragment has 16 columns");
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

/* The same in float: shuffles fetch the weights of a column from the lane of the same rows that has them. */
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

/* Stores a lane's two columns of one row to `to`; columns from head_dim on are left out. */
template <typename T>
static __device__ __forceinline__ void hv_store_pair(T *to, int col, int head_dim, bool wide, float left, float right) {
  if (wide && col < head_dim) {
    hv_store(to + col, hv_vec<T, 2>{{hv_from_float<T>(left), hv_from_float<T>(right)}});
  } else {
    if (col < head_dim) to[col] = hv_from_float<T>(left);
    if (col + 1 < head_dim) to[col + 1] = hv_from_float<T>(right);
  }
}

/* The keys of a tile of query rows, numbered from 0: first the rows of the prefix, then own rows. */
struct hv_tile_keys {
  int prefix_start, prefix_rows, own_start;
  int total;     /* no row sees keys from here on */
  int all_below; /* every row sees all keys below this number: no mask is needed */
  __device__ __forceinline__ int64_t row_of(int key) const {
    return key >= total ? -1 : key < prefix_rows ? prefix_start + key : own_start + key - prefix_rows;
  }
};

/* What a query row sees, in that numbering: the prefix and keys [low, high). */
struct hv_row_view {
  int low, high;
};

/* How many of its segment's own rows query row `row` of q sees. */
static __device__ __forceinline__ int hv_own_seen(const hv_segment &s, bool causal, int row) {
  return causal ? s.own_rows - s.q_rows + row - s.q_start + 1 : s.own_rows;
}

/* The view of the tile's row i; empty for i >= rows. */
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
