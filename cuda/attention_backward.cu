/* attention_backward, from log Σ exp of the forward pass: with w = exp(scale · q·k − lse) and row_dot = out·dout,
 *   dv = wᵀ dout,  s = scale · w ∘ (dout vᵀ − row_dot),  dq = s k,  dk = sᵀ q.
 *
 * Scores are computed again rather than stored. Three kernels, so that each sum is made in one place and in one order,
 * without atomics (the price: scores are computed twice):
 * - row_dot: a warp for each row and head.
 * - dq: grid (query tiles, heads); a block of four warps takes a tile of 64 query rows, 16 rows a warp, and goes over
 *   the keys that any of them sees.
 * - dk and dv: grid (key tiles, key heads); a block takes a tile of 64 key rows (of one group, or of several short
 *   ones), 16 keys a warp, and goes over the query rows of all segments that see any of them, for each query head of
 *   the key head. Products are transposed, k qᵀ and v doutᵀ, so that keys are the rows of the accumulators.
 * The tile's own two operands stay in shared memory, the other two stream through it in two stages (bf16) or one
 * (float); accumulators stay in registers. If q and k were rotated, dq and dk are rotated back in registers before they
 * are stored: both elements of a pair belong to one lane, unless the head is padded.
 *
 * Shared memory at 128 columns: of bf16 69,632 bytes for dq and 72,320 for dk and dv, of float 84,480 and 85,824. The
 * most in bf16 is dq at 96 columns, where a step has 64 keys: 79,872. HV_SHARED_LIMIT is 101,376. */
#include "cuda/attention_tiles.h"
#include "cuda/kernels.h"

static constexpr float LOG2_E = 1.44269504088896340736f;

/* Keys per step of dq; queries per step of dk and dv; how many steps' operands fit in shared memory at once (stages).
 */
template <typename T, int D> static constexpr int dq_keys = sizeof(T) == 4 ? 16 : D > 96 ? 32 : 64;
template <typename T> static constexpr int dk_queries = sizeof(T) == 4 ? 16 : 32;
template <typename T> static constexpr int stages = sizeof(T) == 4 ? 1 : 2;

template <typename T> struct backward_params {
  hv_rows<const T> q, k, v, out, dout;
  hv_rows<const float> lse;
  hv_rows<const int32_t> segments;
  const hv_attention_tile *tiles;
  int heads_per_key_head, head_dim;
  float scale;
  bool causal, wide;
  hv_rows<float> row_dot;
  hv_rows<T> dq, dk, dv;
  hv_rows<const float> cos_sin; /* NULL: no rotation in these kernels */
  const int32_t *q_positions, *k_positions;
};

template <typename T>
static __global__ void __launch_bounds__(HV_ATTENTION_THREADS)
    row_dot_kernel(backward_params<T> p, int64_t rows, int heads) {
  int lane = (int)threadIdx.x % HV_WARP;
  int64_t i = (int64_t)blockIdx.x * (HV_ATTENTION_THREADS / HV_WARP) + threadIdx.x / HV_WARP;
  if (i >= rows * heads) return;
  int64_t row = i / heads, head = i % heads;
  const T *out = p.out.at(row, head * p.head_dim), *dout = p.dout.at(row, head * p.head_dim);
  float sum = 0.0f;
  if (p.wide) {
    for (int col = lane * 2; col < p.head_dim; col += HV_WARP * 2) {
      hv_floats<2> x = hv_read<2>(out + col), dx = hv_read<2>(dout + col);
      sum += x.at[0] * dx.at[0] + x.at[1] * dx.at[1];
    }
  } else {
    for (int col = lane; col < p.head_dim; col += HV_WARP) sum += hv_to_float(out[col]) * hv_to_float(dout[col]);
  }
  sum = hv_warp_sum(sum);
  if (lane == 0) *p.row_dot.at(row, head) = sum;
}

/* A query row's scalars. */
struct query_state {
  float lse; /* times log2 e */
  float dot;
};

template <typename T>
static __device__ __forceinline__ query_state state_of(const backward_params<T> &p, int64_t row, int head) {
  if (row < 0) return {0.0f, 0.0f};
  return {*p.lse.at(row, head) * LOG2_E, *p.row_dot.at(row, head)};
}

/* Turns the products q·k (`weight`) and dout·v (`slope`) into the softmax weight and the gradient of the score. */
static __device__ __forceinline__ void score_gradient(bool seen, float scale, const query_state &query, float &weight,
                                                      float &slope) {
  weight = seen ? hv_exp2_fast(weight * (scale * LOG2_E) - query.lse) : 0.0f;
  slope = seen ? weight * (slope - query.dot) * scale : 0.0f;
}

template <int N> static __device__ __forceinline__ void clear(float (&sum)[N][4]) {
  HV_UNROLL
  for (int n = 0; n < N; n++) {
    HV_UNROLL
    for (int i = 0; i < 4; i++) sum[n][i] = 0.0f;
  }
}

/* Stores a warp's 16 accumulator rows, which are the rows from `first` on of the tile. */
template <typename T, int N>
static __device__ __forceinline__ void store_rows(hv_rows<T> to, const hv_attention_tile &tile, int first, int64_t col,
                                                  int head_dim, bool wide, const float (&sum)[N][4]) {
  HV_UNROLL
  for (int i = 0; i < 2; i++) {
    int row = first + hv_lane_row() + i * 8;
    if (row >= tile.rows) continue;
    T *at = to.at(tile.row + row, col);
    HV_UNROLL
    for (int n = 0; n < N; n++) {
      hv_store_pair(at, n * 8 + hv_lane_col(), head_dim, wide, sum[n][2 * i], sum[n][2 * i + 1]);
    }
  }
}

/* Applies the inverse rotation to a warp's 16 rows of D columns; columns j and j + D / 2 are a pair. */
template <int D>
static __device__ __forceinline__ void rotate_back(hv_rows<const float> cos_sin, const int32_t *positions,
                                                   const hv_attention_tile &tile, int first, float (&sum)[D / 8][4]) {
  constexpr int HALF = D / 2;
  HV_UNROLL
  for (int i = 0; i < 2; i++) {
    int row = first + hv_lane_row() + i * 8;
    if (row >= tile.rows) continue;
    const float *cosines = cos_sin.at(positions[tile.row + row], hv_lane_col());
    HV_UNROLL
    for (int n = 0; n < HALF / 8; n++) {
      hv_floats<2> cosine = hv_read<2>(cosines + n * 8), sine = hv_read<2>(cosines + HALF + n * 8);
      HV_UNROLL
      for (int j = 0; j < 2; j++) {
        float x = sum[n][2 * i + j], y = sum[n + HALF / 8][2 * i + j];
        sum[n][2 * i + j] = x * cosine.at[j] + y * sine.at[j];
        sum[n + HALF / 8][2 * i + j] = y * cosine.at[j] - x * sine.at[j];
      }
    }
  }
}

/* Blocks per multiprocessor for __launch_bounds__, which limits registers accordingly; 0: as nvcc decides. For float it
 * would spill some registers to make room for one more block. Only nvcc reads it. */
template <typename T> [[maybe_unused]] static constexpr int dq_blocks = sizeof(T) == 4 ? 2 : 0;

template <typename T, int D>
static __global__ void __launch_bounds__(HV_ATTENTION_THREADS, dq_blocks<T>) dq_kernel(backward_params<T> p) {
  constexpr int KEYS = dq_keys<T, D>, STRIDE = hv_tile_stride<T, D>, STAGE = KEYS * STRIDE, N = KEYS / 8;
  hv_attention_tile tile = p.tiles[blockIdx.x];
  if (tile.rows == 0) return;
  hv_tile_keys keys = hv_keys_of(p.segments, tile, p.causal);
  int head = (int)blockIdx.y, first_row = (int)threadIdx.x / HV_WARP * 16;
  int64_t q_col = (int64_t)head * p.head_dim, key_col = (int64_t)(head / p.heads_per_key_head) * p.head_dim;
  hv_row_view view[2];
  query_state state[2];
  HV_UNROLL
  for (int i = 0; i < 2; i++) {
    int row = first_row + hv_lane_row() + i * 8;
    view[i] = hv_view_of(p.segments, tile, p.causal, row);
    state[i] = state_of(p, row < tile.rows ? (int64_t)tile.row + row : -1, head);
  }

  hv_shared<T> q = hv_shared_at<T>(0), dout = q + HV_ATTENTION_ROWS * STRIDE;
  hv_shared<T> k = dout + HV_ATTENTION_ROWS * STRIDE, v = k + stages<T> * STAGE;
  auto row_of = [&](int i) { return i < tile.rows ? (int64_t)tile.row + i : -1; };
  hv_load_tile<D, HV_ATTENTION_ROWS>(q, p.q, q_col, p.head_dim, p.wide, row_of);
  hv_load_tile<D, HV_ATTENTION_ROWS>(dout, p.dout, q_col, p.head_dim, p.wide, row_of);
  auto load_step = [&](int step) {
    auto key_of = [&](int i) { return keys.row_of(step * KEYS + i); };
    hv_load_tile<D, KEYS>(k + step % stages<T> * STAGE, p.k, key_col, p.head_dim, p.wide, key_of);
    hv_load_tile<D, KEYS>(v + step % stages<T> * STAGE, p.v, key_col, p.head_dim, p.wide, key_of);
  };
  int steps = (keys.total + KEYS - 1) / KEYS;
  if (stages<T> == 2 && steps > 0) load_step(0);
  hv_copy_commit();
  float dq[D / 8][4];
  clear(dq);
  for (int step = 0; step < steps; step++) {
    if (step + stages<T> - 1 < steps) load_step(step + stages<T> - 1);
    hv_copy_commit();
    hv_copy_wait<stages<T> - 1>();
    __syncthreads();
    int stage = step % stages<T> * STAGE;
    float weight[N][4] = {}, slope[N][4] = {};
    hv_multiply_rows<D>(weight, q + first_row * STRIDE, k + stage);
    hv_multiply_rows<D>(slope, dout + first_row * STRIDE, v + stage);
    bool all = (step + 1) * KEYS <= keys.all_below;
    HV_UNROLL
    for (int n = 0; n < N; n++) {
      HV_UNROLL
      for (int i = 0; i < 4; i++) {
        int key = step * KEYS + n * 8 + hv_lane_col() + i % 2;
        score_gradient(all || hv_sees(keys, view[i / 2], key), p.scale, state[i / 2], weight[n][i], slope[n][i]);
      }
    }
    hv_multiply_weights<D>(dq, slope, k + stage);
    __syncthreads();
  }
  hv_copy_wait<0>();
  if (p.cos_sin.data) rotate_back<D>(p.cos_sin, p.q_positions, tile, first_row, dq);
  store_rows(p.dq, tile, first_row, q_col, p.head_dim, p.wide, dq);
}

/* A query row of a step; it sees rows of k and v in [prefix, prefix_end) and [own, own_end). */
struct query_row {
  int row; /* of q; −1: none */
  int prefix, prefix_end, own, own_end;
  query_state state;
};

/* A position in the query rows of a tile's segments, which are numbered from 0, one segment after the other. Each
 * thread walks on to its row of the next step. */
struct query_walk {
  int segment, before; /* the current segment, and the number of rows of the segments before it */
};

template <typename T>
static __device__ query_row next_query(const backward_params<T> &p, const hv_attention_tile &tile, query_walk &walk,
                                       int number, int head) {
  int end = tile.first_segment + tile.segment_count;
  for (; walk.segment < end; walk.segment++) {
    hv_segment s = hv_segment_at(p.segments, walk.segment);
    if (number < walk.before + s.q_rows) {
      int row = s.q_start + number - walk.before;
      return {row,
              s.prefix_start,
              s.prefix_start + s.prefix_rows,
              s.own_start,
              s.own_start + hv_own_seen(s, p.causal, row),
              state_of(p, row, head)};
    }
    walk.before += s.q_rows;
  }
  return {-1, 0, 0, 0, 0, state_of(p, -1, head)};
}

/* The query rows that a tile of keys has to visit: numbers [first, total). Rows before `first` see none of the keys. */
struct query_range {
  int first, total;
};

template <typename T>
static __device__ query_range queries_of(const backward_params<T> &p, const hv_attention_tile &tile) {
  query_range range = {0, 0};
  for (int i = 0; i < tile.segment_count; i++) {
    hv_segment s = hv_segment_at(p.segments, tile.first_segment + i);
    bool own = tile.row >= s.own_start && tile.row < s.own_start + s.own_rows;
    if (i == 0 && own && p.causal) {
      int blind = tile.row - s.own_start - (s.own_rows - s.q_rows);
      range.first = max(0, min(blind, s.q_rows));
    }
    range.total += s.q_rows;
  }
  return range;
}

/* The query rows of three steps in shared memory: of the step being computed, of the one whose operands are being
 * copied, and of the one being looked up. */
template <int QUERIES> struct query_table {
  hv_shared<int> rows, bounds;
  hv_shared<float> states;
  static constexpr size_t BYTES = 3 * QUERIES * (5 * sizeof(int) + 2 * sizeof(float));

  __device__ __forceinline__ explicit query_table(size_t offset)
      : rows(hv_shared_at<int>(offset)), bounds(rows + 3 * QUERIES),
        states(hv_shared_at<float>(offset + 15 * QUERIES * sizeof(int))) {}
  __device__ __forceinline__ int place(int step, int i) const {
    return step % 3 * QUERIES + i;
  }
  __device__ __forceinline__ void put(int at, const query_row &query) const {
    rows[at] = query.row;
    bounds[4 * at] = query.prefix;
    bounds[4 * at + 1] = query.prefix_end;
    bounds[4 * at + 2] = query.own;
    bounds[4 * at + 3] = query.own_end;
    states[2 * at] = query.state.lse;
    states[2 * at + 1] = query.state.dot;
  }
  __device__ __forceinline__ bool sees(int at, int key) const {
    return (key >= bounds[4 * at] && key < bounds[4 * at + 1]) ||
           (key >= bounds[4 * at + 2] && key < bounds[4 * at + 3]);
  }
  __device__ __forceinline__ query_state state(int at) const {
    return {states[2 * at], states[2 * at + 1]};
  }
};

/* Applies score_gradient to the products of a warp's 16 keys, from first_key on, with a step's queries. */
template <int QUERIES, int N>
static __device__ __forceinline__ void score_keys(const query_table<QUERIES> &table, int step, int first_key,
                                                  float scale, float (&weight)[N][4], float (&slope)[N][4]) {
  HV_UNROLL
  for (int n = 0; n < N; n++) {
    HV_UNROLL
    for (int i = 0; i < 4; i++) {
      int at = table.place(step, n * 8 + hv_lane_col() + i % 2), key = first_key + hv_lane_row() + i / 2 * 8;
      score_gradient(table.sees(at, key), scale, table.state(at), weight[n][i], slope[n][i]);
    }
  }
}

/* Layout of shared memory: k, v, stages of q, stages of dout, the query table. */
template <typename T, int D> struct dk_layout {
  static constexpr int STAGE = dk_queries<T> * hv_tile_stride<T, D>;
  static constexpr size_t KEY_BYTES = HV_ATTENTION_ROWS * hv_tile_stride<T, D> * sizeof(T);
  static constexpr size_t STAGE_BYTES = STAGE * sizeof(T), Q = 2 * KEY_BYTES, DOUT = Q + stages<T> * STAGE_BYTES;
  static constexpr size_t TABLE = DOUT + stages<T> * STAGE_BYTES, BYTES = TABLE + query_table<dk_queries<T>>::BYTES;
};

/* As dq_blocks. */
template <typename T, int D> [[maybe_unused]] static constexpr int dk_blocks = sizeof(T) == 2 && D <= 80 ? 3 : 2;

template <typename T, int D>
static __global__ void __launch_bounds__(HV_ATTENTION_THREADS, dk_blocks<T, D>) dk_dv_kernel(backward_params<T> p) {
  using layout = dk_layout<T, D>;
  constexpr int QUERIES = dk_queries<T>, STRIDE = hv_tile_stride<T, D>, STAGE = layout::STAGE, N = QUERIES / 8;
  hv_attention_tile tile = p.tiles[blockIdx.x];
  if (tile.rows == 0) return;
  int thread = (int)threadIdx.x, first_row = thread / HV_WARP * 16, first_head = (int)blockIdx.y * p.heads_per_key_head;
  int64_t key_col = (int64_t)blockIdx.y * p.head_dim;
  query_range range = queries_of(p, tile);
  int head_steps = (range.total - range.first + QUERIES - 1) / QUERIES, steps = head_steps * p.heads_per_key_head;

  hv_shared<T> k = hv_shared_at<T>(0), v = hv_shared_at<T>(layout::KEY_BYTES);
  hv_shared<T> q = hv_shared_at<T>(layout::Q), dout = hv_shared_at<T>(layout::DOUT);
  query_table<QUERIES> table(layout::TABLE);
  auto key_of = [&](int i) { return i < tile.rows ? (int64_t)tile.row + i : -1; };
  hv_load_tile<D, HV_ATTENTION_ROWS>(k, p.k, key_col, p.head_dim, p.wide, key_of);
  hv_load_tile<D, HV_ATTENTION_ROWS>(v, p.v, key_col, p.head_dim, p.wide, key_of);
  query_walk walk = {tile.first_segment, 0};
  /* Looks up this thread's query row of a step; called in the order of steps. */
  auto look_up = [&](int step) {
    if (thread >= QUERIES || step >= steps) return;
    if (step % head_steps == 0) walk = {tile.first_segment, 0};
    int number = range.first + step % head_steps * QUERIES + thread;
    table.put(table.place(step, thread), next_query(p, tile, walk, number, first_head + step / head_steps));
  };
  auto load_step = [&](int step) {
    int64_t col = (int64_t)(first_head + step / head_steps) * p.head_dim;
    auto row_of = [&](int i) { return (int64_t)table.rows[table.place(step, i)]; };
    hv_load_tile<D, QUERIES>(q + step % stages<T> * STAGE, p.q, col, p.head_dim, p.wide, row_of);
    hv_load_tile<D, QUERIES>(dout + step % stages<T> * STAGE, p.dout, col, p.head_dim, p.wide, row_of);
  };
  look_up(0);
  look_up(1);
  __syncthreads();
  if (stages<T> == 2 && steps > 0) load_step(0);
  hv_copy_commit();
  float dk[D / 8][4], dv[D / 8][4];
  clear(dk);
  clear(dv);
  for (int step = 0; step < steps; step++) {
    if (step + stages<T> - 1 < steps) load_step(step + stages<T> - 1);
    hv_copy_commit();
    hv_copy_wait<stages<T> - 1>();
    __syncthreads();
    look_up(step + 2);
    int stage = step % stages<T> * STAGE;
    float weight[N][4] = {}, slope[N][4] = {};
    hv_multiply_rows<D>(weight, k + first_row * STRIDE, q + stage);
    hv_multiply_rows<D>(slope, v + first_row * STRIDE, dout + stage);
    score_keys(table, step, tile.row + first_row, p.scale, weight, slope);
    hv_multiply_weights<D>(dv, weight, dout + stage);
    hv_multiply_weights<D>(dk, slope, q + stage);
    __syncthreads();
  }
  hv_copy_wait<0>();
  if (p.cos_sin.data) rotate_back<D>(p.cos_sin, p.k_positions, tile, first_row, dk);
  store_rows(p.dk, tile, first_row, key_col, p.head_dim, p.wide, dk);
  store_rows(p.dv, tile, first_row, key_col, p.head_dim, p.wide, dv);
}

template <typename T> static backward_params<T> params_of(const hv_attention_backward_args *a) {
  backward_params<T> p = {};
  p.q = hv_rows_of<const T>(a->q);
  p.k = hv_rows_of<const T>(a->k);
  p.v = hv_rows_of<const T>(a->v);
  p.out = hv_rows_of<const T>(a->out);
  p.dout = hv_rows_of<const T>(a->dout);
  p.lse = hv_rows_of<const float>(a->lse);
  p.segments = hv_rows_of<const int32_t>(a->segments);
  p.heads_per_key_head = a->num_heads / a->num_kv_heads;
  p.head_dim = a->head_dim;
  p.scale = (float)a->scale;
  p.causal = a->causal;
  p.wide = hv_attention_is_wide(a->head_dim, a->q, a->k, a->v, a->out, a->dout, a->dq, a->dk, a->dv);
  p.row_dot = hv_rows_of<float>(a->row_dot);
  p.dq = hv_rows_of<T>(a->dq);
  p.dk = hv_rows_of<T>(a->dk);
  p.dv = hv_rows_of<T>(a->dv);
  return p;
}

/* For padded heads, whose pairs are not in one lane: rotates dq and dk back with a kernel of its own. */
static void rotate_after(hv_stream *stream, const hv_attention_backward_args *a) {
  hv_rotary_args rotary = {};
  rotary.cos_sin = a->cos_sin;
  rotary.head_dim = a->head_dim;
  rotary.inverse = true;
  rotary.positions = a->q_positions;
  rotary.q = rotary.q_out = a->dq;
  hv_cuda_rotary(stream, &rotary);
  rotary.positions = a->k_positions;
  rotary.q = rotary.q_out = a->dk;
  hv_cuda_rotary(stream, &rotary);
}

template <typename T, int D> static void gradients(hv_stream *stream, const hv_attention_backward_args *a) {
  int64_t query_tiles = hv_attention_tile_count(a->segments.rows, a->q.rows, a->max_q_rows);
  int64_t key_tiles = hv_attention_tile_count(a->key_groups.rows, a->k.rows, a->max_group_rows);
  hv_attention_tile *tiles =
      (hv_attention_tile *)hv_stream_scratch(stream, (size_t)(query_tiles + key_tiles) * sizeof *tiles);
  if (!tiles) return;
  hv_attention_plan_queries(stream, a->segments, query_tiles, tiles);
  hv_attention_plan_keys(stream, a->key_groups, key_tiles, tiles + query_tiles);

  backward_params<T> p = params_of<T>(a);
  bool rotates = hv_present(a->cos_sin) && a->head_dim == D && hv_are_wide(a->cos_sin);
  if (rotates) {
    p.cos_sin = hv_rows_of<const float>(a->cos_sin);
    p.q_positions = hv_list_of(a->q_positions);
    p.k_positions = hv_list_of(a->k_positions);
  }
  dim3 block(HV_ATTENTION_THREADS);
  unsigned dots = hv_blocks(a->q.rows * a->num_heads, HV_ATTENTION_THREADS / HV_WARP);
  HV_LAUNCH(row_dot_kernel<T>, dim3(dots), block, 0, stream, p, a->q.rows, a->num_heads);
  p.tiles = tiles;
  size_t dq_bytes = hv_tile_bytes<T, D>(2 * HV_ATTENTION_ROWS + 2 * stages<T> * dq_keys<T, D>);
  HV_LAUNCH((dq_kernel<T, D>), dim3((unsigned)query_tiles, (unsigned)a->num_heads), block, dq_bytes, stream, p);
  p.tiles = tiles + query_tiles;
  size_t dk_bytes = dk_layout<T, D>::BYTES;
  HV_LAUNCH((dk_dv_kernel<T, D>), dim3((unsigned)key_tiles, (unsigned)a->num_kv_heads), block, dk_bytes, stream, p);
  if (hv_present(a->cos_sin) && !rotates) rotate_after(stream, a);
}

void hv_cuda_attention_backward(hv_stream *stream, const hv_attention_backward_args *args) {
  hv_with_type(stream, args->q.dtype, [&](auto type) {
    hv_with_head_columns(stream, args->head_dim,
                         [&](auto columns) { gradients<decltype(type), decltype(columns)::value>(stream, args); });
  });
}
