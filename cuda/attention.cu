/* attention: out = softmax(scale · q kᵀ) v over a table of segments, and log Σ exp for the backward pass. q and out are
 * [nq, heads · head_dim], k and v [nk, key heads · head_dim], bf16 or float; head_dim up to 128 is padded to D = 64,
 * 80, 96 or 128 columns.
 *
 * A block of four warps takes one tile of query rows of one head; the grid is (tiles, heads, splits). It goes over the
 * keys that any of its rows sees, KEYS at a time, with online softmax (a running maximum and sum for each row). The
 * tile of q stays in shared memory; k and v have two stages there, so that cp.async loads the next step's while this
 * one is computed. Scores and accumulators stay in registers. There are two shapes:
 * - 64 rows: each warp has 16 of them and all keys. For training, vision towers, prefill. Short branches of one prefix
 *   share a tile.
 * - 16 rows: each warp has all of them and a quarter of each step's keys; the warps' results are merged in shared
 *   memory at the end. For few queries over many keys, as in decoding, where 64-row tiles would leave most warps idle.
 *   If there are too few blocks to fill a card, keys are also split over blocks (split-K), whose results a second
 *   kernel merges.
 * Merging goes in the order of keys, and the split depends on shapes alone, so results are reproducible.
 *
 * Shared memory: the rows of q and 4 KEYS rows of k and v, each D elements and 16 bytes of padding. With 64 keys of 128
 * columns of bf16, 87,040 bytes for 64 rows and 73,984 for 16 (HV_SHARED_LIMIT is 101,376). */
#include "cuda/attention_library.h"
#include "cuda/attention_tiles.h"
#include "cuda/kernels.h"

enum {
  WARPS = HV_ATTENTION_THREADS / HV_WARP,
  DECODE_ROWS = 16,
  DECODE_SEGMENTS = 16, /* with more segments, branches that share tiles of 64 rows are faster */
  SPLIT_KEYS = 128,     /* keys of a split, at least */
  MOST_SPLITS = 8,
  SPLIT_BLOCKS = 256 /* with more blocks than this, a card is full without splitting */
};

static constexpr float LOG2_E = 1.44269504088896340736f, LN_2 = 0.693147180559945309417f;

/* Keys of a step: fewer in float, for shared memory. */
template <typename T, int KEY_WARPS> static constexpr int keys_at_once = sizeof(T) == 2 ? 64 : KEY_WARPS > 1 ? 32 : 16;

template <typename T> struct attention_params {
  hv_rows<const T> q, k, v;
  hv_rows<const int32_t> segments;
  const hv_attention_tile *tiles; /* NULL: each segment is one tile */
  int heads_per_key_head, head_dim;
  float scale; /* times log2 e */
  bool causal, wide;
  hv_rows<T> out;
  hv_rows<float> lse; /* data NULL: not wanted */
  int splits;
  float *parts; /* [split][tile][head][row], each: weighted sum of v (head_dim), maximum, sum of weights */
};

template <typename T>
static __device__ __forceinline__ hv_attention_tile tile_of(const attention_params<T> &p, int index) {
  if (p.tiles) return p.tiles[index];
  hv_segment s = hv_segment_at(p.segments, index);
  return {index, 1, s.q_start, s.q_rows};
}

/* Where a split stores its part of a row. */
template <typename T>
static __device__ __forceinline__ float *part_of(const attention_params<T> &p, int split, int row) {
  int64_t place = ((int64_t)split * gridDim.x + blockIdx.x) * gridDim.y + blockIdx.y;
  return p.parts + (place * DECODE_ROWS + row) * (p.head_dim + 2);
}

/* The running state of a warp's 16 rows, in accumulator layout: a lane has two rows, and two of every eight columns.
 * Maxima are of scores times log2 e, for exp2. */
template <int D> struct running {
  float maximum[2], total[2]; /* total: over this lane's keys only, until finish_totals */
  float sum[D / 8][4];
};

template <int D> static __device__ __forceinline__ void start(running<D> &r) {
  HV_UNROLL
  for (int i = 0; i < 2; i++) {
    r.maximum[i] = -INFINITY;
    r.total[i] = 0.0f;
  }
  HV_UNROLL
  for (int n = 0; n < D / 8; n++) {
    HV_UNROLL
    for (int i = 0; i < 4; i++) r.sum[n][i] = 0.0f;
  }
}

/* The maximum, and the sum, over the four lanes that share a row. */
static __device__ __forceinline__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(HV_FULL_MASK, x, 1));
  return fmaxf(x, __shfl_xor_sync(HV_FULL_MASK, x, 2));
}
static __device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(HV_FULL_MASK, x, 1);
  return x + __shfl_xor_sync(HV_FULL_MASK, x, 2);
}

template <int D> static __device__ __forceinline__ void finish_totals(running<D> &r) {
  r.total[0] = quad_sum(r.total[0]);
  r.total[1] = quad_sum(r.total[1]);
}

/* Turns products q·k into scores times log2 e; −∞ for keys that a row does not see. */
template <int N>
static __device__ __forceinline__ void mask_scores(float (&score)[N][4], const hv_tile_keys &keys,
                                                   const hv_row_view (&view)[2], int first_key, float scale) {
  bool all = first_key + 8 * N <= keys.all_below;
  HV_UNROLL
  for (int n = 0; n < N; n++) {
    HV_UNROLL
    for (int i = 0; i < 4; i++) {
      int key = first_key + n * 8 + hv_lane_col() + i % 2;
      score[n][i] = all || hv_sees(keys, view[i / 2], key) ? score[n][i] * scale : -INFINITY;
    }
  }
}

/* One step of online softmax: updates the running maximum, turns scores into weights relative to it, and rescales the
 * earlier sums. */
template <int D, int N> static __device__ __forceinline__ void soften(running<D> &r, float (&score)[N][4]) {
  HV_UNROLL
  for (int row = 0; row < 2; row++) {
    float top = r.maximum[row];
    HV_UNROLL
    for (int n = 0; n < N; n++) top = fmaxf(top, fmaxf(score[n][2 * row], score[n][2 * row + 1]));
    top = quad_max(top);
    float base = top == -INFINITY ? 0.0f : top; /* no key seen yet */
    float factor = hv_exp2_fast(r.maximum[row] - base), total = 0.0f;
    HV_UNROLL
    for (int n = 0; n < N; n++) {
      HV_UNROLL
      for (int i = 2 * row; i < 2 * row + 2; i++) {
        score[n][i] = hv_exp2_fast(score[n][i] - base);
        total += score[n][i];
      }
    }
    r.maximum[row] = top;
    r.total[row] = r.total[row] * factor + total;
    HV_UNROLL
    for (int n = 0; n < D / 8; n++) {
      r.sum[n][2 * row] *= factor;
      r.sum[n][2 * row + 1] *= factor;
    }
  }
}

/* Issues the copies of a step's keys and values to one of the two stages. */
template <typename T, int D, int KEYS>
static __device__ __forceinline__ void load_step(const attention_params<T> &p, const hv_tile_keys &keys, int step,
                                                 hv_shared<T> k, hv_shared<T> v) {
  constexpr int STAGE = KEYS * hv_tile_stride<T, D>;
  int64_t col = (int64_t)(blockIdx.y / (unsigned)p.heads_per_key_head) * p.head_dim;
  auto row_of = [&](int i) { return keys.row_of(step * KEYS + i); };
  hv_load_tile<D, KEYS>(k + step % 2 * STAGE, p.k, col, p.head_dim, p.wide, row_of);
  hv_load_tile<D, KEYS>(v + step % 2 * STAGE, p.v, col, p.head_dim, p.wide, row_of);
}

/* Stores the rows of a warp, which has seen all their keys. */
template <typename T, int D>
static __device__ void store_rows(const attention_params<T> &p, const hv_attention_tile &tile, int first,
                                  const running<D> &r) {
  HV_UNROLL
  for (int i = 0; i < 2; i++) {
    int row = first + hv_lane_row() + i * 8;
    if (row >= tile.rows) continue;
    float factor = 1.0f / r.total[i];
    T *to = p.out.at(tile.row + row, (int64_t)blockIdx.y * p.head_dim);
    HV_UNROLL
    for (int n = 0; n < D / 8; n++) {
      hv_store_pair(to, n * 8 + hv_lane_col(), p.head_dim, p.wide, r.sum[n][2 * i] * factor,
                    r.sum[n][2 * i + 1] * factor);
    }
    if (p.lse.data && hv_lane_col() == 0) {
      *p.lse.at(tile.row + row, blockIdx.y) = (r.maximum[i] + log2f(r.total[i])) * LN_2;
    }
  }
}

/* A row merged from its parts: what its columns share, and one column's sum. */
struct merged {
  float maximum, total, value;
};

/* The factors that bring the parts of a row to their common maximum. There are `count` parts, at most MOST, in the
 * order of their keys; part(i) reads one. */
template <int MOST> struct merge_factors { float maximum, total, of[MOST]; };
template <int MOST, typename Part>
static __device__ __forceinline__ merge_factors<MOST> factors_of(int count, Part part) {
  merge_factors<MOST> f = {-INFINITY, 0.0f, {}};
  HV_UNROLL
  for (int i = 0; i < MOST; i++) {
    if (i < count) f.maximum = fmaxf(f.maximum, part(i).maximum());
  }
  float base = f.maximum == -INFINITY ? 0.0f : f.maximum;
  HV_UNROLL
  for (int i = 0; i < MOST; i++) {
    if (i >= count) continue;
    f.of[i] = hv_exp2_fast(part(i).maximum() - base);
    f.total += f.of[i] * part(i).total();
  }
  return f;
}
template <int MOST, typename Part>
static __device__ __forceinline__ merged merge_column(const merge_factors<MOST> &f, int count, int col, Part part) {
  merged m = {f.maximum, f.total, 0.0f};
  HV_UNROLL
  for (int i = 0; i < MOST; i++) {
    if (i < count) m.value += f.of[i] * part(i).sum(col);
  }
  return m;
}

/* Layout of the warps' rows in shared memory for merging; it overlays q, k and v. Rows are padded by 8 floats, so that
 * the pairs that half a warp stores, four rows of them, have no bank conflicts. */
template <int D> struct parts_layout {
  static constexpr int ROWS = WARPS * DECODE_ROWS, STRIDE = D + 8, MAXIMA = ROWS * STRIDE, TOTALS = MAXIMA + ROWS;
};

/* A warp's part of one row, in shared memory. */
template <int D> struct shared_part {
  hv_shared<float> base;
  int row; /* among the rows of all warps */
  __device__ __forceinline__ float sum(int col) const {
    return base[row * parts_layout<D>::STRIDE + col];
  }
  __device__ __forceinline__ float maximum() const {
    return base[parts_layout<D>::MAXIMA + row];
  }
  __device__ __forceinline__ float total() const {
    return base[parts_layout<D>::TOTALS + row];
  }
};

/* A split's part of one row, in device memory. */
struct stored_part {
  const float *at;
  int head_dim;
  __device__ __forceinline__ float sum(int col) const {
    return at[col];
  }
  __device__ __forceinline__ float maximum() const {
    return at[head_dim];
  }
  __device__ __forceinline__ float total() const {
    return at[head_dim + 1];
  }
};

/* Stores one column of a finished row. */
template <typename T>
static __device__ __forceinline__ void store_merged(const attention_params<T> &p, int64_t row, int col, merged m) {
  *p.out.at(row, (int64_t)blockIdx.y * p.head_dim + col) = hv_from_float<T>(m.value / m.total);
  if (p.lse.data && col == 0) *p.lse.at(row, blockIdx.y) = (m.maximum + log2f(m.total)) * LN_2;
}

/* Stores one column of a row that the warps of a block merged: finished, or one split's part. */
template <typename T>
static __device__ __forceinline__ void store_of_warps(const attention_params<T> &p, int64_t first_row, int row, int col,
                                                      merged m) {
  if (p.splits == 1) {
    store_merged(p, first_row + row, col, m);
    return;
  }
  float *part = part_of(p, (int)blockIdx.z, row);
  part[col] = m.value;
  if (col == 0) {
    part[p.head_dim] = m.maximum;
    part[p.head_dim + 1] = m.total;
  }
}

/* Merges the four warps' parts of the same 16 rows; each warp merges every fourth row. */
template <typename T, int D>
static __device__ void merge_warps(const attention_params<T> &p, const hv_attention_tile &tile, const running<D> &r) {
  using layout = parts_layout<D>;
  hv_shared<float> base = hv_shared_at<float>(0);
  int warp = (int)threadIdx.x / HV_WARP, lane = (int)threadIdx.x % HV_WARP;
  HV_UNROLL
  for (int i = 0; i < 2; i++) {
    int row = warp * DECODE_ROWS + hv_lane_row() + i * 8;
    HV_UNROLL
    for (int n = 0; n < D / 8; n++) {
      hv_store(base + (row * layout::STRIDE + n * 8 + hv_lane_col()),
               hv_vec<float, 2>{{r.sum[n][2 * i], r.sum[n][2 * i + 1]}});
    }
    if (hv_lane_col() == 0) {
      base[layout::MAXIMA + row] = r.maximum[i];
      base[layout::TOTALS + row] = r.total[i];
    }
  }
  __syncthreads();
  constexpr int COLS = (D + HV_WARP - 1) / HV_WARP; /* of a lane */
  for (int row = warp; row < tile.rows; row += WARPS) {
    auto part_at = [&](int part) { return shared_part<D>{base, part * DECODE_ROWS + row}; };
    merge_factors<WARPS> factors = factors_of<WARPS>(WARPS, part_at);
    merged m[COLS]; /* all are read before any is stored, so that loads overlap */
    HV_UNROLL
    for (int i = 0; i < COLS; i++) {
      m[i] = merge_column<WARPS>(factors, WARPS, min(i * HV_WARP + lane, D - 1), part_at);
    }
    HV_UNROLL
    for (int i = 0; i < COLS; i++) {
      int col = i * HV_WARP + lane;
      if (col < p.head_dim) store_of_warps(p, tile.row, row, col, m[i]);
    }
  }
}

template <typename T, int D, int KEY_WARPS>
static __global__ void __launch_bounds__(HV_ATTENTION_THREADS) attention_kernel(attention_params<T> p) {
  constexpr int ROWS = HV_ATTENTION_ROWS / KEY_WARPS, KEYS = keys_at_once<T, KEY_WARPS>, WARP_KEYS = KEYS / KEY_WARPS;
  constexpr int STRIDE = hv_tile_stride<T, D>, STAGE = KEYS * STRIDE;
  hv_let_next_begin();
  hv_wait_for_previous();
  hv_attention_tile tile = tile_of(p, (int)blockIdx.x);
  if (tile.rows == 0) return;
  hv_tile_keys keys = hv_keys_of(p.segments, tile, p.causal);
  int warp = (int)threadIdx.x / HV_WARP, first_row = warp / KEY_WARPS * 16, first_key = warp % KEY_WARPS * WARP_KEYS;
  hv_row_view view[2];
  HV_UNROLL
  for (int i = 0; i < 2; i++) view[i] = hv_view_of(p.segments, tile, p.causal, first_row + hv_lane_row() + i * 8);

  hv_shared<T> q = hv_shared_at<T>(0), k = q + ROWS * STRIDE, v = k + 2 * STAGE;
  int steps = (keys.total + KEYS - 1) / KEYS, each = (steps + p.splits - 1) / p.splits;
  int step = (int)blockIdx.z * each, end = min(steps, step + each);
  hv_load_tile<D, ROWS>(q, p.q, (int64_t)blockIdx.y * p.head_dim, p.head_dim, p.wide,
                        [&](int i) { return i < tile.rows ? (int64_t)tile.row + i : -1; });
  if (step < end) load_step<T, D, KEYS>(p, keys, step, k, v);
  hv_copy_commit();
  running<D> r;
  start(r);
  for (; step < end; step++) {
    if (step + 1 < end) load_step<T, D, KEYS>(p, keys, step + 1, k, v);
    hv_copy_commit();
    hv_copy_wait<1>();
    __syncthreads();
    int stage = step % 2 * STAGE + first_key * STRIDE;
    float score[WARP_KEYS / 8][4] = {};
    hv_multiply_rows<D>(score, q + first_row * STRIDE, k + stage);
    mask_scores(score, keys, view, step * KEYS + first_key, p.scale);
    soften<D>(r, score);
    hv_multiply_weights<D>(r.sum, score, v + stage);
    __syncthreads();
  }
  hv_copy_wait<0>(); /* the last group is empty, or there was no step */
  finish_totals(r);
  if (KEY_WARPS == 1) {
    store_rows(p, tile, first_row, r);
  } else {
    __syncthreads();
    merge_warps(p, tile, r);
  }
}

/* A block merges one row, since rows merged one after the other by one block would each wait for device memory in turn.
 */
template <typename T>
static __global__ void __launch_bounds__(HV_ATTENTION_THREADS) merge_splits_kernel(attention_params<T> p) {
  hv_let_next_begin();
  hv_wait_for_previous();
  hv_attention_tile tile = tile_of(p, (int)blockIdx.x);
  int row = (int)blockIdx.z;
  if (row >= tile.rows) return;
  auto part_at = [&](int split) { return stored_part{part_of(p, split, row), p.head_dim}; };
  merge_factors<MOST_SPLITS> factors = factors_of<MOST_SPLITS>(p.splits, part_at);
  for (int col = (int)threadIdx.x; col < p.head_dim; col += HV_ATTENTION_THREADS) {
    store_merged(p, tile.row + row, col, merge_column<MOST_SPLITS>(factors, p.splits, col, part_at));
  }
}

template <typename T> static attention_params<T> params_of(const hv_attention_args *a) {
  attention_params<T> p = {};
  p.q = hv_rows_of<const T>(a->q);
  p.k = hv_rows_of<const T>(a->k);
  p.v = hv_rows_of<const T>(a->v);
  p.segments = hv_rows_of<const int32_t>(a->segments);
  p.heads_per_key_head = a->num_heads / a->num_kv_heads;
  p.head_dim = a->head_dim;
  p.scale = (float)a->scale * LOG2_E;
  p.causal = a->causal;
  p.wide = hv_attention_is_wide(a->head_dim, a->q, a->k, a->v, a->out);
  p.out = hv_rows_of<T>(a->out);
  p.lse = hv_rows_of<float>(a->lse);
  p.splits = 1;
  return p;
}

template <typename T, int D, int KEY_WARPS>
static void launch(hv_stream *stream, const attention_params<T> &p, int64_t tiles, int heads) {
  size_t bytes = hv_tile_bytes<T, D>(HV_ATTENTION_ROWS / KEY_WARPS + 4 * keys_at_once<T, KEY_WARPS>);
  HV_LAUNCH_EARLY((attention_kernel<T, D, KEY_WARPS>), hv_ahead{},
                  dim3((unsigned)tiles, (unsigned)heads, (unsigned)p.splits), dim3(HV_ATTENTION_THREADS), bytes, stream,
                  p);
}

template <typename T, int D> static void attend_many(hv_stream *stream, const hv_attention_args *a) {
  attention_params<T> p = params_of<T>(a);
  int64_t tiles = hv_attention_tile_count(a->segments.rows, a->q.rows, a->max_q_rows);
  hv_attention_tile *list = (hv_attention_tile *)hv_stream_scratch(stream, (size_t)tiles * sizeof *list);
  if (!list) return;
  hv_attention_plan_queries(stream, a->segments, tiles, list);
  p.tiles = list;
  launch<T, D, 1>(stream, p, tiles, a->num_heads);
}

static int split_count(const hv_attention_args *a) {
  if (a->segments.rows * a->num_heads > SPLIT_BLOCKS) return 1;
  return (int)min((int64_t)MOST_SPLITS, max((int64_t)1, (int64_t)a->max_key_rows / SPLIT_KEYS));
}

template <typename T, int D> static void attend_few(hv_stream *stream, const hv_attention_args *a) {
  attention_params<T> p = params_of<T>(a);
  unsigned tiles = (unsigned)a->segments.rows, heads = (unsigned)a->num_heads;
  p.splits = split_count(a);
  if (p.splits > 1) {
    size_t rows = (size_t)p.splits * tiles * heads * DECODE_ROWS;
    p.parts = (float *)hv_stream_scratch(stream, rows * (size_t)(a->head_dim + 2) * sizeof(float));
    if (!p.parts) return;
  }
  launch<T, D, 4>(stream, p, tiles, a->num_heads);
  if (p.splits == 1) return;
  HV_LAUNCH_EARLY(merge_splits_kernel<T>, hv_ahead{}, dim3(tiles, heads, DECODE_ROWS), dim3(HV_ATTENTION_THREADS), 0,
                  stream, p);
}

void hv_cuda_attention(hv_stream *stream, const hv_attention_args *args) {
  if (args->max_q_rows == 0 || args->segments.rows == 0) return;
  if (hv_attention_library_run(hv_stream_attention_library(stream), stream, args)) return;
  bool few = args->max_q_rows <= DECODE_ROWS && args->segments.rows <= DECODE_SEGMENTS;
  hv_with_type(stream, args->q.dtype, [&](auto type) {
    hv_with_head_columns(stream, args->head_dim, [&](auto columns) {
      using T = decltype(type);
      if (few) {
        attend_few<T, decltype(columns)::value>(stream, args);
      } else {
        attend_many<T, decltype(columns)::value>(stream, args);
      }
    });
  });
}
