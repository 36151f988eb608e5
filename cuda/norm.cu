/* norm fused with the residual sum, and its gradient; residual sums that no norm follows. A block owns a row, or a
 * chunk of rows one after the other where the weight's gradient is summed over them in the same pass.
 *
 * In a prediction's steps of few rows nothing hides how long a norm waits for its weight, which the weights of products
 * have driven out of the cache by then: it is copied to shared memory while the launches before are not yet over. */
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
  bool ahead; /* whole vectors of the weight are copied before the launches before are waited for */
};

/* The elements [col, col + N) of the row that is normalised: x, or the residual sum, rounded as it is stored. Which of
 * them the compiler knows: x and delta are then on their way together. */
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

/* Queues the copy of N elements, a multiple of 16 bytes. */
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
  /* A thread keeps its own elements in shared memory between the passes: mean, squares, result. */
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
  hv_copy_wait<0>(); /* a thread reads what it has copied itself */
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
                   hv_error(HV_ERR_DEVICE, "norm of %lld elements: this device takes up to %d", (long long)args->x.cols,
                            (int)((HV_SHARED_LIMIT - REDUCTION_BYTES) / sizeof(float))));
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
  int64_t chunk_rows; /* of a block */
  float *dweight;     /* [block, cols]: dy ∘ x̂ summed over the block's rows; NULL: not wanted */
};

/* Adds dy ∘ x̂ to a thread's own sums in shared memory, which the first row sets. */
template <int N>
static __device__ __forceinline__ void add_weight_terms(const hv_floats<N> &dy, const hv_floats<N> &x, float centre,
                                                        float scale, bool begins, hv_shared<float> sums) {
  hv_vec<float, N> sum = {};
  if (!begins) sum = hv_load<N>(sums);
  HV_UNROLL
  for (int j = 0; j < N; j++) sum.at[j] += dy.at[j] * ((x.at[j] - centre) * scale);
  hv_store(sums, sum);
}

/* With g = dy ∘ weight, r = 1 / sqrt(… + eps), and sums over the row of d elements:
 *   layer:    dx = r (g − Σ g / d − x̂ Σ g x̂ / d), x̂ = (x − mean) r
 *   rms:      the same without the means
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

/* Threads that a multiprocessor has room for. nvcc takes no kernel that asks for more. */
#if defined(__CUDA_ARCH__) && (__CUDA_ARCH__ == 800 || __CUDA_ARCH__ == 900 || __CUDA_ARCH__ / 100 == 10)
enum { RESIDENT_THREADS = 2048 };
#else
enum { RESIDENT_THREADS = 1536 };
#endif

enum { BACKWARD_THREADS = 256 };

/* Blocks of a multiprocessor that registers are kept free for, on an H100 so that no chunk of 1024 waits for another;
 * nvcc alone reads it. */
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

/* In chunks of rows, so that the weight's gradient takes no pass of its own over dy and x. */
template <typename T, int N> static void norm_backward(hv_stream *stream, const hv_norm_backward_args *args) {
  enum { LEAST_ROWS = 4, MOST_CHUNKS = 1024 /* an H100 has room for 1056; their sums stay in its cache */ };
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
