/* Sums down the columns of something that is computed for each element, added to a gradient: the gradients of biases,
 * norm weights and scales. Rows are cut into chunks by their number alone; each chunk is summed row by row, then the
 * chunks in order. */
#ifndef HV_CUDA_COLUMN_SUMS_H
#define HV_CUDA_COLUMN_SUMS_H

#include "cuda/elementwise.h"

enum { HV_CHUNK_ROWS = 32, HV_MOST_CHUNKS = 128 };

/* Terms is a small struct with
 *   template <int N> __device__ hv_floats<N> terms(int64_t row, int64_t col) const */
template <typename Terms, int N>
static __global__ void column_chunks_kernel(Terms source, int64_t rows, int64_t cols, int64_t chunk_rows,
                                            float *partial, unsigned pieces) {
  hv_place at = hv_place_here<N>(pieces); /* the row is the chunk's number */
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

/* So few threads must have many loads under way each. */
template <typename G>
static __global__ void add_chunks_kernel(const float *partial, int64_t chunks, int64_t cols, G *result) {
  constexpr int AT_ONCE = 16;
  int64_t col = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  if (col >= cols) return;
  float sum = 0;
  for (int64_t first = 0; first < chunks; first += AT_ONCE) {
    float part[AT_ONCE];
    HV_UNROLL
    for (int i = 0; i < AT_ONCE; i++) part[i] = first + i < chunks ? partial[(first + i) * cols + col] : 0.0f;
    HV_UNROLL
    for (int i = 0; i < AT_ONCE; i++) sum += part[i];
  }
  result[col] = hv_from_float<G>(hv_to_float(result[col]) + sum);
}

/* result [1, cols] += column sums over `rows` rows; `wide` says whether the operands of `source` are. Uses the stream's
 * scratch. */
template <typename Terms>
static inline void hv_column_sums(hv_stream *stream, Terms source, int64_t rows, bool wide, hv_tensor result) {
  int64_t cols = result.cols, chunk_rows = (rows + HV_MOST_CHUNKS - 1) / HV_MOST_CHUNKS;
  if (rows == 0 || cols == 0) return;
  if (chunk_rows < HV_CHUNK_ROWS) chunk_rows = HV_CHUNK_ROWS;
  int64_t chunks = (rows + chunk_rows - 1) / chunk_rows;
  float *partial = (float *)hv_stream_scratch(stream, (size_t)(chunks * cols) * sizeof(float));
  if (!partial) return;
  hv_with_width(wide && cols % HV_WIDE == 0, [&](auto width) {
    constexpr int N = decltype(width)::value;
    hv_cover c = hv_cover_of(chunks, cols, N);
    HV_LAUNCH((column_chunks_kernel<Terms, N>), c.grid, c.block, 0, stream, source, rows, cols, chunk_rows, partial,
              c.pieces);
  });
  hv_with_type(stream, result.dtype, [&](auto type) {
    using G = decltype(type);
    HV_LAUNCH((add_chunks_kernel<G>), dim3(hv_blocks(cols, 128)), dim3(128), 0, stream, (const float *)partial, chunks,
              cols, (G *)result.data);
  });
}

/* The elements of a tensor; or its products with another's, where factor.data is not NULL. */
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

/* result += column sums of x, or of x ∘ factor where factor is present. */
static inline void hv_add_column_sums(hv_stream *stream, hv_tensor x, hv_tensor factor, hv_tensor result) {
  hv_with_type(stream, x.dtype, [&](auto type) {
    using T = decltype(type);
    hv_product_terms<T> source = {hv_rows_of<const T>(x), hv_rows_of<const T>(factor)};
    hv_column_sums(stream, source, x.rows, hv_are_wide(x, factor), result);
  });
}

#endif
