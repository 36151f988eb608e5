/* norm with the residual sum before it, its gradient, and residual sums without a norm. Rows are [rows, d]; a block of
 * up to 256 threads makes one row, with up to HV_WIDE neighbouring elements per thread and step.
 *
 * Forward: three passes over the row (mean, variance, result). The first reads it from device memory, and each thread
 * keeps its own elements as floats in shared memory (128 + 4 d bytes), not in registers: how many they are is not known
 * at compile time.
 *
 * Backward: the gradient of the weight is a sum over rows. If it is wanted, a block goes over a chunk of rows and keeps
 * its sums in shared memory (128 + 4 d bytes), which saves a second pass over dy and x; the chunks' sums are then added
 * as in column_sums.h.
 *
 * With at most 16 rows (a step of a prediction) there are too few warps to hide the latency of loading the weight,
 * which the weights of matrix products have evicted from the L2 cache since the last step. So it is prefetched to
 * shared memory (d elements of T more) before hv_wait_for_previous(), while earlier kernels still run. */
#include "cuda/column_sums.h"
#include "cuda/kernels.h"

enum { REDUCTION_BYTES = HV_WARP * sizeof(float) /* scratch of hv_block_sum, at the start of shared memory */ };
enum { FEW_ROWS = 16 /* a step of a prediction */ };

template <typename T> struct norm_operands {
  hv_norm_kind kind;
  float eps;
  hv_rows<const T> x, delta;
  const T *delta_scale, *weight, *bias;
  hv_rows<T> sum, y;
  hv_rows<float> stats;
  int64_t cols;
  bool ahead; /* the weight is prefetched before hv_wait_for_previous; vectors of HV_WIDE only */
};

/* The elements [col, col + N) of the row that is normalised: x, or the residual sum, rounded as it is stored. SUMS is a
 * template parameter so that loads of x and delta are issued together, without a branch between. */
template <typename T, int N, bool SUMS>
static __device__ __forceinline__ hv_floats<N> normalised_row(const norm_operands<T> &a, int64_t row, int64_t col) {
  hv_floats<N> x = hv_read<N>(a.x.at(row, col));
  if constexpr (SUMS) {
    hv_floats<N> delta = hv_read<N>(a.delta.at(row, col));
    if (a.delta_scale) {
      hv_floats<N> scale = hv_read<N>(a.delta_scale + col);
      HV_UNROLL
      for (int j = 0; j < N; j++) delta.at[j] *= scale.at[j];
    }
    HV_UNROLL
    for (int j = 0; j < N; j++) x.at[j] = hv_to_float(hv_from_float<T>(x.at[j] + delta.at[j]));
    hv_write(a.sum.at(row, col), x);
  }
  return x;
}

template <int N, typename T> static __device__ __forceinline__ hv_floats<N> kept_at(hv_shared<T> kept, int64_t col) {
  hv_vec<T, N> v = hv_load<N>(kept + col);
  hv_floats<N> x;
  HV_UNROLL
  for (int j = 0; j < N; j++) x.at[j] = hv_to_float(v.at[j]);
  return x;
}

/* Issues asynchronous copies of N elements, a multiple of 16 bytes. */
template <int N, typename T> static __device__ __forceinline__ void copy_ahead(hv_shared<T> to, const T *from) {
  constexpr int AT_ONCE = 16 / (int)sizeof(T);
  HV_UNROLL
  for (int j = 0; j < N; j += AT_ONCE) {
    hv_copy_async(hv_shared_cast<hv_bf16>(to + j), reinterpret_cast<const hv_bf16 *>(from + j), true);
  }
}

template <typename T, int N, bool SUMS> static __global__ void norm_kernel(norm_operands<T> a) {
  hv_shared<float> reduction = hv_shared_at<float>(0), kept = hv_shared_at<float>(REDUCTION_BYTES);
  hv_shared<T> weights = hv_shared_at<T>(REDUCTION_BYTES + (size_t)a.cols * sizeof(float));
  int64_t row = blockIdx.x, first = (int64_t)threadIdx.x * N, step = (int64_t)blockDim.x * N;
  hv_let_next_begin();
  if (N == HV_WIDE && a.ahead) {
    for (int64_t col = first; col < a.cols; col += step) copy_ahead<N>(weights + col, a.weight + col);
    hv_copy_commit();
  }
  hv_wait_for_previous();
  /* A thread reads back only the elements that it stored: no barrier is needed for them. */
  float total = 0;
  for (int64_t col = first; col < a.cols; col += step) {
    hv_floats<N> x = normalised_row<T, N, SUMS>(a, row, col);
    hv_vec<float, N> v;
    HV_UNROLL
    for (int j = 0; j < N; j++) {
      v.at[j] = x.at[j];
      total += x.at[j];
    }
    hv_store(kept + col, v);
  }
  float mean = a.kind == HV_NORM_RMS ? 0.0f : hv_block_sum(total, reduction) / (float)a.cols;
  float squares = 0;
  for (int64_t col = first; col < a.cols; col += step) {
    hv_floats<N> x = kept_at<N>(kept, col);
    HV_UNROLL
    for (int j = 0; j < N; j++) squares += (x.at[j] - mean) * (x.at[j] - mean);
  }
  float divisor = (float)(a.kind == HV_NORM_VARIANCE ? a.cols - 1 : a.cols);
  float scale = 1.0f / sqrtf(hv_block_sum(squares, reduction) / divisor + a.eps);
  float centre = a.kind == HV_NORM_LAYER ? mean : 0.0f;
  hv_copy_wait<0>(); /* a thread reads only what it copied itself: no barrier */
  for (int64_t col = first; col < a.cols; col += step) {
    hv_floats<N> x = kept_at<N>(kept, col);
    hv_floats<N> weight = N == HV_WIDE && a.ahead ? kept_at<N>(weights, col) : hv_read<N>(a.weight + col);
    HV_UNROLL
    for (int j = 0; j < N; j++) x.at[j] = (x.at[j] - centre) * scale * weight.at[j];
    if (a.bias) {
      hv_floats<N> bias = hv_read<N>(a.bias + col);
      HV_UNROLL
      for (int j = 0; j < N; j++) x.at[j] += bias.at[j];
    }
    hv_write(a.y.at(row, col), x);
  }
  if (a.stats.data && threadIdx.x == 0) {
    *a.stats.at(row, 0) = mean;
    *a.stats.at(row, 1) = scale;
  }
}

void hv_cuda_norm(hv_stream *stream, const hv_norm_args *args) {
  size_t shared = REDUCTION_BYTES + (size_t)args->x.cols * sizeof(float);
  if (shared > HV_SHARED_LIMIT) {
    hv_stream_fail(stream,
                   hv_error(HV_ERR_DEVICE, "norm over rows of %lld elements: this device takes at most %d",
                            (long long)args->x.cols, (int)((HV_SHARED_LIMIT - REDUCTION_BYTES) / sizeof(float))));
    return;
  }
  bool wide = hv_are_wide(args->x, args->delta, args->delta_scale, args->sum, args->weight, args->bias, args->y);
  hv_with_type(stream, args->x.dtype, [&](auto type) {
    hv_with_width(wide, [&](auto width) {
      using T = decltype(type);
      constexpr int N = decltype(width)::value;
      norm_operands<T> a = {args->kind,
                            (float)args->eps,
                            hv_rows_of<const T>(args->x),
                            hv_rows_of<const T>(args->delta),
                            (const T *)args->delta_scale.data,
                            (const T *)args->weight.data,
                            (const T *)args->bias.data,
                            hv_rows_of<T>(args->sum),
                            hv_rows_of<T>(args->y),
                            hv_rows_of<float>(args->stats),
                            args->x.cols,
                            false};
      dim3 grid((unsigned)args->x.rows), block = hv_cover_of(1, args->x.cols, N).block;
      hv_ahead weight = {a.weight, (size_t)a.cols * sizeof(T)};
      a.ahead = wide && args->x.rows <= FEW_ROWS && shared + weight.bytes <= HV_SHARED_LIMIT;
      if (!a.ahead) weight = hv_ahead{};
      if (hv_present(args->delta)) {
        HV_LAUNCH_EARLY((norm_kernel<T, N, true>), weight, grid, block, shared + weight.bytes, stream, a);
      } else {
        HV_LAUNCH_EARLY((norm_kernel<T, N, false>), weight, grid, block, shared + weight.bytes, stream, a);
      }
    });
  });
}

template <typename T> struct norm_backward_operands {
  hv_norm_kind kind;
  hv_rows<const T> dy, x, dresidual;
  const T *weight, *delta_scale;
  hv_rows<const float> stats;
  hv_rows<T> dx, ddelta;
  int64_t rows, cols;
  int64_t chunk_rows; /* rows of a block */
  float *dweight;     /* [blocks, cols], each row the sum of dy ∘ x̂ over a block's rows; NULL: not wanted */
};

/* Adds dy ∘ x̂ to the thread's own sums in shared memory; the chunk's first row (`begins`) sets them. */
template <int N>
static __device__ __forceinline__ void add_weight_terms(const hv_floats<N> &dy, const hv_floats<N> &x, float centre,
                                                        float scale, bool begins, hv_shared<float> sums) {
  hv_vec<float, N> sum = {};
  if (!begins) sum = hv_load<N>(sums);
  HV_UNROLL
  for (int j = 0; j < N; j++) sum.at[j] += dy.at[j] * ((x.at[j] - centre) * scale);
  hv_store(sums, sum);
}

/* With g = dy ∘ weight, r = 1 / sqrt(… + eps), and sums over the d elements of the row:
 *   layer:    dx = r (g − Σ g / d − x̂ Σ g x̂ / d), x̂ = (x − mean) r
 *   rms:      the same with mean = 0 and without the term Σ g / d
 *   variance: dx = r g − r³ (x − mean) Σ g x / (d − 1) */
template <typename T, int N>
static __device__ __forceinline__ void norm_backward_row(const norm_backward_operands<T> &a, int64_t row, bool begins,
                                                         hv_shared<float> reduction, hv_shared<float> dweight) {
  int64_t first = (int64_t)threadIdx.x * N, step = (int64_t)blockDim.x * N;
  float mean = *a.stats.at(row, 0), scale = *a.stats.at(row, 1);
  float centre = a.kind == HV_NORM_VARIANCE ? 0.0f : mean;
  float sum_g = 0, sum_gx = 0;
  for (int64_t col = first; col < a.cols; col += step) {
    hv_floats<N> g = hv_read<N>(a.dy.at(row, col)), x = hv_read<N>(a.x.at(row, col)), w = hv_read<N>(a.weight + col);
    HV_UNROLL
    for (int j = 0; j < N; j++) {
      g.at[j] *= w.at[j];
      sum_g += g.at[j];
      sum_gx += g.at[j] * (x.at[j] - centre);
    }
  }
  sum_g = hv_block_sum(sum_g, reduction);
  sum_gx = hv_block_sum(sum_gx, reduction);
  float divisor = (float)(a.kind == HV_NORM_VARIANCE ? a.cols - 1 : a.cols);
  float constant = a.kind == HV_NORM_LAYER ? sum_g / divisor : 0.0f, slope = sum_gx * scale * scale / divisor;
  for (int64_t col = first; col < a.cols; col += step) {
    hv_floats<N> g = hv_read<N>(a.dy.at(row, col)), x = hv_read<N>(a.x.at(row, col)), w = hv_read<N>(a.weight + col);
    if (a.dweight) add_weight_terms<N>(g, x, centre, scale, begins, dweight + col);
    HV_UNROLL
    for (int j = 0; j < N; j++) x.at[j] = scale * (g.at[j] * w.at[j] - constant - (x.at[j] - mean) * slope);
    if (a.dresidual.data) {
      hv_floats<N> residual = hv_read<N>(a.dresidual.at(row, col));
      HV_UNROLL
      for (int j = 0; j < N; j++) x.at[j] += residual.at[j];
    }
    hv_write(a.dx.at(row, col), x);
    if (!a.ddelta.data) continue;
    hv_floats<N> delta_scale = hv_read<N>(a.delta_scale + col);
    HV_UNROLL
    for (int j = 0; j < N; j++) x.at[j] *= delta_scale.at[j];
    hv_write(a.ddelta.at(row, col), x);
  }
}

/* Threads that can be resident on a multiprocessor. nvcc rejects a __launch_bounds__ that asks for more. */
#if defined(__CUDA_ARCH__) && (__CUDA_ARCH__ == 800 || __CUDA_ARCH__ == 900 || __CUDA_ARCH__ / 100 == 10)
enum { RESIDENT_THREADS = 2048 };
#else
enum { RESIDENT_THREADS = 1536 };
#endif

enum { BACKWARD_THREADS = 256 };

/* Blocks per multiprocessor for __launch_bounds__, which limits registers so that so many can be resident: bf16 at full
 * occupancy, so that on an H100 all of 1024 chunks run at once (132 × 8 = 1056 blocks); float needs more registers.
 * Only nvcc reads it. */
template <typename T>
[[maybe_unused]] static constexpr int backward_blocks = sizeof(T) == 2 ? RESIDENT_THREADS / BACKWARD_THREADS : 5;

template <typename T, int N>
static __global__ void __launch_bounds__(BACKWARD_THREADS, backward_blocks<T>)
    norm_backward_kernel(norm_backward_operands<T> a) {
  hv_shared<float> reduction = hv_shared_at<float>(0), dweight = hv_shared_at<float>(REDUCTION_BYTES);
  int64_t first = blockIdx.x * a.chunk_rows, end = min(first + a.chunk_rows, a.rows);
  for (int64_t row = first; row < end; row++) norm_backward_row<T, N>(a, row, row == first, reduction, dweight);
  if (!a.dweight) return;
  for (int64_t col = (int64_t)threadIdx.x * N; col < a.cols; col += (int64_t)blockDim.x * N) {
    hv_write(a.dweight + blockIdx.x * a.cols + col, kept_at<N>(dweight, col));
  }
}

/* One row per block, or a chunk of rows if the weight's gradient is wanted: that then needs no pass of its own over dy
 * and x. */
template <typename T, int N> static void norm_backward(hv_stream *stream, const hv_norm_backward_args *args) {
  enum { LEAST_ROWS = 4, MOST_CHUNKS = 1024 /* their sums stay in an H100's L2 cache: 16 MB at d = 4096 */ };
  int64_t rows = args->x.rows, cols = args->x.cols;
  norm_backward_operands<T> a = {args->kind,
                                 hv_rows_of<const T>(args->dy),
                                 hv_rows_of<const T>(args->x),
                                 hv_rows_of<const T>(args->dresidual),
                                 (const T *)args->weight.data,
                                 (const T *)args->delta_scale.data,
                                 hv_rows_of<const float>(args->stats),
                                 hv_rows_of<T>(args->dx),
                                 hv_rows_of<T>(args->ddelta),
                                 rows,
                                 cols,
                                 1,
                                 nullptr};
  hv_chunks chunks = {rows, 1};
  size_t shared = REDUCTION_BYTES;
  if (hv_present(args->dweight) && rows > 0) {
    chunks = hv_chunks_of(rows, LEAST_ROWS, MOST_CHUNKS);
    shared += (size_t)cols * sizeof(float);
    a.chunk_rows = chunks.rows;
    a.dweight = (float *)hv_stream_scratch(stream, (size_t)(chunks.count * cols) * sizeof(float));
    if (!a.dweight) return;
  }
  dim3 block = hv_cover_of(1, cols, N).block;
  HV_LAUNCH((norm_backward_kernel<T, N>), dim3((unsigned)chunks.count), block, shared, stream, a);
  if (a.dweight) hv_add_chunks(stream, a.dweight, chunks.count, args->dweight);
}

void hv_cuda_norm_backward(hv_stream *stream, const hv_norm_backward_args *args) {
  bool wide = hv_are_wide(args->dy, args->x, args->weight, args->dresidual, args->dx, args->ddelta, args->delta_scale);
  hv_with_type(stream, args->x.dtype, [&](auto type) {
    hv_with_width(wide, [&](auto width) { norm_backward<decltype(type), decltype(width)::value>(stream, args); });
  });
  if (hv_present(args->dbias)) hv_add_column_sums(stream, args->dy, hv_tensor{}, args->dbias);
  if (hv_present(args->ddelta_scale)) hv_add_column_sums(stream, args->dx, args->delta, args->ddelta_scale);
}

/* y = x + scale ∘ delta; without x, y = scale ∘ delta. */
template <typename T, int N>
static __global__ void scaled_sum_kernel(hv_rows<const T> x, hv_rows<const T> delta, const T *scale, hv_rows<T> y,
                                         int64_t cols, unsigned pieces) {
  hv_place at = hv_place_here<N>(pieces);
  if (at.col >= cols) return;
  hv_floats<N> sum = hv_read<N>(delta.at(at.row, at.col));
  if (scale) {
    hv_floats<N> factor = hv_read<N>(scale + at.col);
    HV_UNROLL
    for (int j = 0; j < N; j++) sum.at[j] *= factor.at[j];
  }
  if (x.data) {
    hv_floats<N> base = hv_read<N>(x.at(at.row, at.col));
    HV_UNROLL
    for (int j = 0; j < N; j++) sum.at[j] += base.at[j];
  }
  hv_write(y.at(at.row, at.col), sum);
}

static void scaled_sum(hv_stream *stream, hv_tensor x, hv_tensor delta, hv_tensor scale, hv_tensor y) {
  hv_with_type(stream, y.dtype, [&](auto type) {
    hv_with_width(hv_are_wide(x, delta, scale, y), [&](auto width) {
      using T = decltype(type);
      constexpr int N = decltype(width)::value;
      hv_cover c = hv_cover_of(y.rows, y.cols, N);
      HV_LAUNCH((scaled_sum_kernel<T, N>), c.grid, c.block, 0, stream, hv_rows_of<const T>(x),
                hv_rows_of<const T>(delta), (const T *)scale.data, hv_rows_of<T>(y), c.cols, c.pieces);
    });
  });
}

void hv_cuda_residual_add(hv_stream *stream, const hv_residual_add_args *args) {
  scaled_sum(stream, args->x, args->delta, args->scale, args->y);
}

void hv_cuda_residual_scale_backward(hv_stream *stream, const hv_residual_scale_backward_args *args) {
  scaled_sum(stream, hv_tensor{}, args->dy, args->scale, args->ddelta);
  if (hv_present(args->dscale)) hv_add_column_sums(stream, args->dy, args->delta, args->dscale);
}
