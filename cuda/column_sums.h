/* Column sums of a term that is computed for each element, added to a gradient: the gradients of biases, norm weights
 * and scales. One thread per column would leave most of a card idle, so rows are split into chunks:
 * column_chunks_kernel sums each chunk, one row after the other, into scratch (float [chunks, cols]); add_chunks_kernel
 * adds up the chunks. The split depends on the number of rows alone, so the order of additions, and hence the result,
 * is fixed without atomics. */
#ifndef HV_CUDA_COLUMN_SUMS_H
#define HV_CUDA_COLUMN_SUMS_H

#include "cuda/elementwise.h"

/* A partition of rows into chunks. */
struct hv_chunks {
  int64_t count, rows; /* rows: of each chunk; the last may have fewer */
};

/* At most `most` chunks, of at least `least` rows if there are as many rows. */
static inline hv_chunks hv_chunks_of(int64_t rows, int64_t least, int64_t most) {
  int64_t each = (rows + most - 1) / most;
  if (each < least) each = least;
  return {(rows + each - 1) / each, each};
}

/* Terms is a small struct with
 *   template <int N> __device__ hv_floats<N> terms(int64_t row, int64_t col) const */
template <typename Terms, int N>
static __global__ void column_chunks_kernel(Terms source, int64_t rows, int64_t cols, int64_t chunk_rows,
                                            float *partial, unsigned pieces) {
  hv_place at = hv_place_here<N>(pieces); /* at.row is the chunk */
  if (at.col >= cols) return;
  int64_t first = at.row * chunk_rows, end = min(first + chunk_rows, rows);
  hv_floats<N> sum = {};
  for (int64_t row = first; row < end; row++) {
    hv_floats<N> x = source.template terms<N>(row, at.col);
    HV_UNROLL
    for (int j = 0; j < N; j++) sum.at[j] += x.at[j];
  }
  hv_write(partial + at.row * cols + at.col, sum);
}

enum { HV_ADD_COLS = HV_WARP, HV_ADD_PARTS = 8 };

/* A block of 8 warps adds up 32 columns: a warp has an eighth of the chunks, a lane one column of it (coalesced), and
 * the warps' sums meet in shared memory (1024 bytes). These are few threads, so each loads 16 terms before it adds
 * them, to keep many loads in flight. */
template <typename G>
static __global__ void add_chunks_kernel(const float *partial, int64_t chunks, int64_t cols, G *result) {
  constexpr int AT_ONCE = 16;
  hv_shared<float> sums = hv_shared_at<float>(0); /* [part][column] */
  int lane = (int)threadIdx.x % HV_ADD_COLS, part = (int)threadIdx.x / HV_ADD_COLS;
  int64_t col = (int64_t)blockIdx.x * HV_ADD_COLS + lane, each = (chunks + HV_ADD_PARTS - 1) / HV_ADD_PARTS;
  int64_t end = col < cols ? min((part + 1) * each, chunks) : 0;
  float sum = 0;
  for (int64_t first = part * each; first < end; first += AT_ONCE) {
    float terms[AT_ONCE];
    HV_UNROLL
    for (int i = 0; i < AT_ONCE; i++) terms[i] = first + i < end ? partial[(first + i) * cols + col] : 0.0f;
    HV_UNROLL
    for (int i = 0; i < AT_ONCE; i++) sum += terms[i];
  }
  sums[part * HV_ADD_COLS + lane] = sum;
  __syncthreads();
  if (part > 0 || col >= cols) return;
  for (int i = 1; i < HV_ADD_PARTS; i++) sum += sums[i * HV_ADD_COLS + lane];
  result[col] = hv_from_float<G>(hv_to_float(result[col]) + sum);
}

/* result [1, cols] += column sums of partial [chunks, cols]. */
static inline void hv_add_chunks(hv_stream *stream, const float *partial, int64_t chunks, hv_tensor result) {
  hv_with_type(stream, result.dtype, [&](auto type) {
    using G = decltype(type);
    HV_LAUNCH((add_chunks_kernel<G>), dim3(hv_blocks(result.cols, HV_ADD_COLS)), dim3(HV_ADD_COLS * HV_ADD_PARTS),
              HV_ADD_COLS * HV_ADD_PARTS * sizeof(float), stream, partial, chunks, result.cols, (G *)result.data);
  });
}

/* result [1, cols] += column sums of source.terms over `rows` rows; `wide`: the operands of `source` are (hv_are_wide).
 * Uses the stream's scratch. */
template <typename Terms>
static inline void hv_column_sums(hv_stream *stream, Terms source, int64_t rows, bool wide, hv_tensor result) {
  enum { LEAST_ROWS = 32, MOST_CHUNKS = 128 };
  int64_t cols = result.cols;
  if (rows == 0 || cols == 0) return;
  hv_chunks chunks = hv_chunks_of(rows, LEAST_ROWS, MOST_CHUNKS);
  float *partial = (float *)hv_stream_scratch(stream, (size_t)(chunks.count * cols) * sizeof(float));
  if (!partial) return;
  hv_with_width(wide && cols % HV_WIDE == 0, [&](auto width) {
    constexpr int N = decltype(width)::value;
    hv_cover c = hv_cover_of(chunks.count, cols, N);
    HV_LAUNCH((column_chunks_kernel<Terms, N>), c.grid, c.block, 0, stream, source, rows, cols, chunks.rows, partial,
              c.pieces);
  });
  hv_add_chunks(stream, partial, chunks.count, result);
}

/* The elements of x, multiplied with those of factor if factor.data is not NULL. */
template <typename T> struct hv_product_terms {
  hv_rows<const T> x, factor;
  template <int N> __device__ hv_floats<N> terms(int64_t row, int64_t col) const {
    hv_floats<N> out = hv_read<N>(x.at(row, col));
    if (factor.data) {
      hv_floats<N> f = hv_read<N>(factor.at(row, col));
      HV_UNROLL
      for (int j = 0; j < N; j++) out.at[j] *= f.at[j];
    }
    return out;
  }
};

/* result += column sums of x, or of x ∘ factor if factor is present. */
static inline void hv_add_column_sums(hv_stream *stream, hv_tensor x, hv_tensor factor, hv_tensor result) {
  hv_with_type(stream, x.dtype, [&](auto type) {
    using T = decltype(type);
    hv_product_terms<T> source = {hv_rows_of<const T>(x), hv_rows_of<const T>(factor)};
    hv_column_sums(stream, source, x.rows, hv_are_wide(x, factor), result);
  });
}

#endif
