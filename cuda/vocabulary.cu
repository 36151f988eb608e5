/* The softmax over the vocabulary: cross_entropy with its gradient, and best_of_range (the most probable of a range of
 * ids). logits are [rows, vocabulary].
 *
 * One block of 256 threads per row. It reads the row once for maximum and sum together (online softmax: each thread has
 * a running maximum and a sum relative to it, which are then joined over the warp by shuffles and over the block
 * through shared memory, two floats per warp), and once more for the gradient. Losses of rows go to scratch, and one
 * block adds them up in a fixed order. */
#include <float.h>

#include "cuda/elementwise.h"
#include "cuda/kernels.h"

enum { ROW_THREADS = 256 };

/* The maximum `top` of the elements so far, −FLT_MAX at least, and Σ exp(x − top) over them. A NaN among them makes the
 * sum one. */
struct softmax_sum {
  float top, sum;
};

static __device__ __forceinline__ softmax_sum join(softmax_sum a, softmax_sum b) {
  float top = fmaxf(a.top, b.top);
  return {top, a.sum * expf(a.top - top) + b.sum * expf(b.top - top)};
}

static __device__ __forceinline__ softmax_sum join_warp(softmax_sum s) {
  for (int offset = HV_WARP / 2; offset > 0; offset /= 2) {
    float top = __shfl_xor_sync(HV_FULL_MASK, s.top, offset), sum = __shfl_xor_sync(HV_FULL_MASK, s.sum, offset);
    /* Both lanes of a pair must join in the same order to get the same bits. */
    softmax_sum other = {top, sum};
    s = threadIdx.x & (unsigned)offset ? join(other, s) : join(s, other);
  }
  return s;
}

/* The softmax_sum of a whole row; every thread gets it. `scratch` holds two floats for each warp. */
template <typename L, int N>
static __device__ __forceinline__ softmax_sum sum_row(const L *logits, int64_t count, hv_shared<float> scratch) {
  softmax_sum s = {-FLT_MAX, 0.0f};
  for (int64_t col = (int64_t)threadIdx.x * N; col < count; col += (int64_t)blockDim.x * N) {
    hv_floats<N> x = hv_read<N>(logits + col);
    float top = s.top;
    HV_UNROLL
    for (int j = 0; j < N; j++) top = fmaxf(top, x.at[j]);
    s.sum *= expf(s.top - top);
    HV_UNROLL
    for (int j = 0; j < N; j++) s.sum += expf(x.at[j] - top);
    s.top = top;
  }
  s = join_warp(s);
  int lane = (int)threadIdx.x % HV_WARP, warp = (int)threadIdx.x / HV_WARP, warps = (int)blockDim.x / HV_WARP;
  if (lane == 0) {
    scratch[2 * warp] = s.top;
    scratch[2 * warp + 1] = s.sum;
  }
  __syncthreads();
  s = {-FLT_MAX, 0.0f};
  if (lane < warps) s = {scratch[2 * lane], scratch[2 * lane + 1]};
  return join_warp(s);
}

enum { SUM_BYTES = 2 * HV_WARP * sizeof(float) };

template <typename L, typename T, int N>
static __global__ void cross_entropy_kernel(hv_rows<const L> logits, const int32_t *labels, const float *divisor,
                                            float weight, float *row_losses, hv_rows<T> dlogits, int64_t cols) {
  int64_t row = blockIdx.x, label = labels[row];
  const L *x = logits.at(row, 0);
  /* Read before anything is written, since dlogits may be logits; the barrier in sum_row lies between. */
  float label_logit = hv_to_float(x[label]);
  softmax_sum s = sum_row<L, N>(x, cols, hv_shared_at<float>(0));
  if (threadIdx.x == 0) row_losses[row] = logf(s.sum) + (s.top - label_logit);
  if (!dlogits.data) return;
  float factor = weight / *divisor, scale = factor / s.sum;
  for (int64_t col = (int64_t)threadIdx.x * N; col < cols; col += (int64_t)blockDim.x * N) {
    hv_floats<N> d = hv_read<N>(x + col);
    HV_UNROLL
    for (int j = 0; j < N; j++) d.at[j] = expf(d.at[j] - s.top) * scale - (col + j == label ? factor : 0.0f);
    hv_write(dlogits.at(row, col), d);
  }
}

/* loss += Σ row_losses / divisor, in one block. */
static __global__ void add_losses_kernel(const float *row_losses, int64_t rows, const float *divisor, float *loss) {
  float sum = 0;
  for (int64_t row = threadIdx.x; row < rows; row += blockDim.x) sum += row_losses[row];
  sum = hv_block_sum(sum, hv_shared_at<float>(0));
  if (threadIdx.x == 0) *loss += sum / *divisor;
}

void hv_cuda_cross_entropy(hv_stream *stream, const hv_cross_entropy_args *args) {
  int64_t rows = args->logits.rows;
  if (rows == 0) return;
  float *row_losses = (float *)hv_stream_scratch(stream, (size_t)rows * sizeof(float));
  if (!row_losses) return;
  const float *divisor = (const float *)args->divisor.data;
  hv_dtype gradient = hv_present(args->dlogits) ? args->dlogits.dtype : args->logits.dtype;
  hv_with_type(stream, args->logits.dtype, [&](auto logits_type) {
    hv_with_type(stream, gradient, [&](auto type) {
      hv_with_width(hv_are_wide(args->logits, args->dlogits), [&](auto width) {
        using L = decltype(logits_type);
        using T = decltype(type);
        constexpr int N = decltype(width)::value;
        HV_LAUNCH((cross_entropy_kernel<L, T, N>), dim3((unsigned)rows), dim3(ROW_THREADS), SUM_BYTES, stream,
                  hv_rows_of<const L>(args->logits), hv_list_of(args->labels), divisor, (float)args->weight, row_losses,
                  hv_rows_of<T>(args->dlogits), args->logits.cols);
      });
    });
  });
  HV_LAUNCH(add_losses_kernel, dim3(1), dim3(ROW_THREADS), HV_WARP * sizeof(float), stream, (const float *)row_losses,
            rows, divisor, (float *)args->loss.data);
}

struct best_so_far {
  float value;
  int id;
};

/* The larger value; between equals, the lower id. */
static __device__ __forceinline__ best_so_far better(best_so_far a, best_so_far b) {
  return b.value > a.value || (b.value == a.value && b.id < a.id) ? b : a;
}

static __device__ __forceinline__ best_so_far best_of_warp(best_so_far best) {
  for (int offset = HV_WARP / 2; offset > 0; offset /= 2) {
    float value = __shfl_xor_sync(HV_FULL_MASK, best.value, offset);
    int id = __shfl_xor_sync(HV_FULL_MASK, best.id, offset);
    best = better(best, {value, id});
  }
  return best;
}

template <typename L, int N>
static __global__ void best_of_range_kernel(hv_rows<const L> logits, int first, int count, int32_t *ids,
                                            float *probability, int64_t cols) {
  const L *x = logits.at(blockIdx.x, 0);
  softmax_sum s = sum_row<L, N>(x, cols, hv_shared_at<float>(0));
  best_so_far best = {-INFINITY, first + count};
  for (int id = first + (int)threadIdx.x; id < first + count; id += (int)blockDim.x) {
    best = better(best, {hv_to_float(x[id]), id});
  }
  best = best_of_warp(best);
  hv_shared<float> values = hv_shared_at<float>(SUM_BYTES);
  hv_shared<int> found = hv_shared_at<int>(SUM_BYTES + HV_WARP * sizeof(float));
  int lane = (int)threadIdx.x % HV_WARP, warp = (int)threadIdx.x / HV_WARP, warps = (int)blockDim.x / HV_WARP;
  if (lane == 0) {
    values[warp] = best.value;
    found[warp] = best.id;
  }
  __syncthreads();
  if (warp != 0) return;
  best = {-INFINITY, first + count};
  if (lane < warps) best = {values[lane], found[lane]};
  best = best_of_warp(best);
  if (lane == 0) {
    ids[blockIdx.x] = best.id < first + count ? best.id : first; /* all were NaN: no comparison held */
    probability[blockIdx.x] = expf(best.value - s.top) / s.sum;
  }
}

void hv_cuda_best_of_range(hv_stream *stream, const hv_best_of_range_args *args) {
  hv_with_type(stream, args->logits.dtype, [&](auto type) {
    hv_with_width(hv_are_wide(args->logits), [&](auto width) {
      using L = decltype(type);
      constexpr int N = decltype(width)::value;
      HV_LAUNCH((best_of_range_kernel<L, N>), dim3((unsigned)args->logits.rows), dim3(ROW_THREADS), 2 * SUM_BYTES,
                stream, hv_rows_of<const L>(args->logits), args->first, args->count, (int32_t *)args->ids.data,
                (float *)args->probability.data, args->logits.cols);
    });
  });
}
