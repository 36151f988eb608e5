/* sum_squares, clip_factor, adamw, average and exchange, over the parameters of a group as one array [1, count]. Shared
 * memory is used for block sums only.
 *
 * - sum_squares: a block of 256 threads per 4096 elements, at most 1024 blocks; each block's sum goes to scratch, and
 *   one block adds these up. The order depends on count and alignment alone.
 * - adamw: a thread updates N neighbouring elements. Learning rate and weight decay come from a table of ranges, found
 *   by binary search; elements in no range are left alone. With moments in 8 bits a warp updates one block of 256
 *   elements: the block's new scales are maxima over the warp.
 * - average and exchange: a thread has N neighbouring elements; in a tail shorter than N it takes them one at a time.
 */
#include "core/tensor/moments.h"
#include "cuda/elementwise.h"
#include "cuda/kernels.h"

enum { SUM_THREADS = 256, SUM_RUN = 16, MOST_SUMS = 1024 };

/* A grid-stride loop; one sum for each block. */
template <typename T, int N> static __global__ void sum_squares_kernel(const T *x, int64_t count, float *sums) {
  float sum = 0;
  int64_t step = (int64_t)gridDim.x * blockDim.x * N;
  for (int64_t i = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * N; i < count; i += step) {
    hv_floats<N> values = hv_read<N>(x + i);
    float part = 0;
    HV_UNROLL
    for (int j = 0; j < N; j++) part += values.at[j] * values.at[j];
    sum += part;
  }
  sum = hv_block_sum(sum, hv_shared_at<float>(0));
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

static __global__ void add_sums_kernel(const float *sums, int count, float *y) {
  float sum = 0;
  for (int i = (int)threadIdx.x; i < count; i += (int)blockDim.x) sum += sums[i];
  sum = hv_block_sum(sum, hv_shared_at<float>(0));
  if (threadIdx.x == 0) *y += sum;
}

void hv_cuda_sum_squares(hv_stream *stream, const hv_sum_squares_args *args) {
  int64_t count = args->x.cols;
  if (count == 0) return;
  float *sums = (float *)hv_stream_scratch(stream, MOST_SUMS * sizeof(float));
  if (!sums) return;
  unsigned blocks = hv_blocks(count, SUM_THREADS * SUM_RUN);
  if (blocks > MOST_SUMS) blocks = MOST_SUMS;
  hv_with_type(stream, args->x.dtype, [&](auto type) {
    hv_with_width(hv_are_wide(args->x), [&](auto width) {
      using T = decltype(type);
      constexpr int N = decltype(width)::value;
      HV_LAUNCH((sum_squares_kernel<T, N>), dim3(blocks), dim3(SUM_THREADS), HV_WARP * sizeof(float), stream,
                (const T *)args->x.data, count, sums);
    });
  });
  HV_LAUNCH(add_sums_kernel, dim3(1), dim3(SUM_THREADS), HV_WARP * sizeof(float), stream, (const float *)sums,
            (int)blocks, (float *)args->y.data);
}

static __global__ void clip_factor_kernel(const float *sum_squares, float max_norm, float *norm_out, float *dynamic) {
  if (threadIdx.x != 0) return;
  float norm = sqrtf(*sum_squares), factor = 1.0f;
  if (max_norm > 0.0f) factor = fminf(1.0f, max_norm / (norm + 1e-6f));
  if (!isfinite(norm)) factor = -1.0f;
  *norm_out = norm;
  dynamic[3] = factor;
}

void hv_cuda_clip_factor(hv_stream *stream, const hv_clip_factor_args *args) {
  HV_LAUNCH(clip_factor_kernel, dim3(1), dim3(HV_WARP), 0, stream, (const float *)args->sum_squares.data,
            (float)args->max_norm, (float *)args->norm.data, (float *)args->dynamic.data);
}

template <typename T, typename G> struct adamw_operands {
  T *param;
  int16_t *remainder;
  const G *grad;
  float *moment1, *moment2;
  const hv_adamw_range *ranges;
  int64_t range_count, count;
  const float *dynamic;
  float beta1, beta2, eps, weight_decay;
  float rest1, rest2; /* 1 − β1, 1 − β2, subtracted in double */
};

/* The index of the range that holds `element`, or of the first one behind it; `count` if there is none. */
static __device__ __forceinline__ int64_t find_range(const hv_adamw_range *ranges, int64_t count, int64_t element) {
  int64_t low = 0, high = count;
  while (low < high) {
    int64_t middle = (low + high) / 2;
    if (ranges[middle].end <= element) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

/* Learning rate and weight decay of a range. */
struct adamw_rates {
  float lr, decay;
};

template <typename T, typename G>
static __device__ __forceinline__ adamw_rates rates_of(const adamw_operands<T, G> &a, const hv_adamw_range &range) {
  return {range.rate * a.dynamic[0], range.decay ? a.weight_decay : 0.0f};
}

/* What an update reads and writes of one element. */
struct adamw_element {
  float value, moment1, moment2;
};

template <typename T, typename G>
static __device__ __forceinline__ adamw_element updated(const adamw_operands<T, G> &a, adamw_element e, float gradient,
                                                        adamw_rates rates) {
  float g = a.dynamic[3] * gradient;
  e.moment1 = a.beta1 * e.moment1 + a.rest1 * g;
  e.moment2 = a.beta2 * e.moment2 + a.rest2 * g * g;
  float step = rates.lr * (e.moment1 / a.dynamic[1]) / (sqrtf(e.moment2 / a.dynamic[2]) + a.eps);
  e.value = e.value * (1.0f - rates.lr * rates.decay) - step;
  return e;
}

/* The master value (fp32) from the bf16 parameter and its remainder. The parameter is the master rounded to bf16, to
 * nearest with halves away from zero; the remainder is the signed difference of the bits. */
static __device__ __forceinline__ float joined(hv_bf16 param, int16_t remainder) {
  return __uint_as_float(((uint32_t)param.bits << 16) + (uint32_t)(int32_t)remainder);
}

static __device__ __forceinline__ void split(float value, hv_bf16 *param, int16_t *remainder) {
  uint32_t bits = __float_as_uint(value);
  param->bits = (uint16_t)((bits + 0x8000u) >> 16);
  *remainder = (int16_t)(uint16_t)bits;
}

/* Master values of N neighbouring elements. */
template <int N> static __device__ __forceinline__ hv_floats<N> read_masters(const float *param, const int16_t *) {
  return hv_read<N>(param);
}
template <int N>
static __device__ __forceinline__ hv_floats<N> read_masters(const hv_bf16 *param, const int16_t *remainder) {
  hv_vec<hv_bf16, N> high = hv_load<N>(param);
  hv_vec<int16_t, N> low = hv_load<N>(remainder);
  hv_floats<N> p;
  HV_UNROLL
  for (int j = 0; j < N; j++) p.at[j] = joined(high.at[j], low.at[j]);
  return p;
}
template <int N> static __device__ __forceinline__ void write_masters(float *param, int16_t *, hv_floats<N> p) {
  hv_write(param, p);
}
template <int N>
static __device__ __forceinline__ void write_masters(hv_bf16 *param, int16_t *remainder, hv_floats<N> p) {
  hv_vec<hv_bf16, N> high;
  hv_vec<int16_t, N> low;
  HV_UNROLL
  for (int j = 0; j < N; j++) split(p.at[j], &high.at[j], &low.at[j]);
  hv_store(param, high);
  hv_store(remainder, low);
}

/* N neighbouring elements, all in one range. */
template <int N, typename T, typename G>
static __device__ __forceinline__ void update(const adamw_operands<T, G> &a, int64_t at, adamw_rates rates) {
  hv_floats<N> p = read_masters<N>(a.param + at, a.remainder + at), g = hv_read<N>(a.grad + at);
  hv_floats<N> m = hv_read<N>(a.moment1 + at), v = hv_read<N>(a.moment2 + at);
  HV_UNROLL
  for (int j = 0; j < N; j++) {
    adamw_element e = updated(a, {p.at[j], m.at[j], v.at[j]}, g.at[j], rates);
    p.at[j] = e.value, m.at[j] = e.moment1, v.at[j] = e.moment2;
  }
  write_masters(a.param + at, a.remainder + at, p);
  hv_write(a.moment1 + at, m);
  hv_write(a.moment2 + at, v);
}

template <typename T, typename G, int N> static __global__ void adamw_kernel(adamw_operands<T, G> a) {
  int64_t first = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * N;
  if (first >= a.count || a.dynamic[3] < 0.0f) return;
  int64_t range = find_range(a.ranges, a.range_count, first);
  if (range == a.range_count) return;
  if (a.ranges[range].first <= first && first + N <= a.ranges[range].end) {
    update<N>(a, first, rates_of(a, a.ranges[range]));
    return;
  }
  for (int64_t at = first; at < first + N && at < a.count; at++) {
    while (range < a.range_count && a.ranges[range].end <= at) range++;
    if (range == a.range_count) return;
    if (a.ranges[range].first <= at) update<1>(a, at, rates_of(a, a.ranges[range]));
  }
}

/* Moments in 8 bits. */
struct moment_codes {
  int8_t *code1;
  uint8_t *code2;
  float *scale1, *scale2;
};

/* Updates N neighbouring elements of a block of moments. If `whole`, the block lies within `range`; else `range` is the
 * first one that ends in the block or behind it, and elements in no range keep their values (their moments are 0). */
template <int N, typename T, typename G>
static __device__ __forceinline__ void update_coded(const adamw_operands<T, G> &a, int64_t at, int64_t range,
                                                    bool whole, hv_floats<N> &m, hv_floats<N> &v) {
  hv_floats<N> p = read_masters<N>(a.param + at, a.remainder + at), g = hv_read<N>(a.grad + at);
  adamw_rates rates = rates_of(a, a.ranges[range]);
  HV_UNROLL
  for (int j = 0; j < N; j++) {
    if (!whole) {
      while (range < a.range_count && a.ranges[range].end <= at + j) range++;
      if (range == a.range_count || a.ranges[range].first > at + j) continue;
      rates = rates_of(a, a.ranges[range]);
    }
    adamw_element e = updated(a, {p.at[j], m.at[j], v.at[j]}, g.at[j], rates);
    p.at[j] = e.value, m.at[j] = e.moment1, v.at[j] = e.moment2;
  }
  write_masters(a.param + at, a.remainder + at, p);
}

/* A warp updates one block of 256 moments; a lane has N neighbouring elements in each of PIECES pieces, which it keeps
 * in registers until the block's new scales are known. */
template <typename T, typename G, int N>
static __global__ void adamw_coded_kernel(adamw_operands<T, G> a, moment_codes codes) {
  constexpr int PIECES = HV_MOMENT_BLOCK / HV_WARP / N;
  int lane = (int)threadIdx.x % HV_WARP;
  int64_t block = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) / HV_WARP, first = block * HV_MOMENT_BLOCK;
  if (first >= a.count || a.dynamic[3] < 0.0f) return;
  int64_t range = find_range(a.ranges, a.range_count, first);
  if (range == a.range_count || a.ranges[range].first >= first + HV_MOMENT_BLOCK) return;
  bool whole = a.ranges[range].first <= first && first + HV_MOMENT_BLOCK <= a.ranges[range].end;
  float scale1 = codes.scale1[block], scale2 = codes.scale2[block], largest1 = 0.0f, largest2 = 0.0f;
  hv_floats<N> m[PIECES], v[PIECES];
  HV_UNROLL
  for (int i = 0; i < PIECES; i++) {
    int64_t at = first + (i * HV_WARP + lane) * N;
    hv_vec<int8_t, N> code1 = hv_load<N>(codes.code1 + at);
    hv_vec<uint8_t, N> code2 = hv_load<N>(codes.code2 + at);
    HV_UNROLL
    for (int j = 0; j < N; j++) {
      float root = hv_moment2_decode(code2.at[j], scale2);
      m[i].at[j] = hv_moment1_decode(code1.at[j], scale1);
      v[i].at[j] = root * root;
    }
    update_coded<N>(a, at, range, whole, m[i], v[i]);
    HV_UNROLL
    for (int j = 0; j < N; j++) {
      v[i].at[j] = sqrtf(v[i].at[j]);
      largest1 = fmaxf(largest1, fabsf(m[i].at[j]));
      largest2 = fmaxf(largest2, v[i].at[j]);
    }
  }
  scale1 = hv_warp_max(largest1);
  scale2 = hv_warp_max(largest2);
  HV_UNROLL
  for (int i = 0; i < PIECES; i++) {
    int in_block = (i * HV_WARP + lane) * N;
    hv_vec<int8_t, N> code1;
    hv_vec<uint8_t, N> code2;
    HV_UNROLL
    for (int j = 0; j < N; j++) {
      float dither = hv_moment_dither((uint32_t)a.dynamic[4], (uint32_t)(in_block + j));
      code1.at[j] = hv_moment1_encode(m[i].at[j], scale1, dither);
      code2.at[j] = hv_moment2_encode(v[i].at[j], scale2, dither);
    }
    hv_store(codes.code1 + first + in_block, code1);
    hv_store(codes.code2 + first + in_block, code2);
  }
  if (lane == 0) codes.scale1[block] = scale1, codes.scale2[block] = scale2;
}

void hv_cuda_adamw(hv_stream *stream, const hv_adamw_args *args) {
  bool wide = hv_are_wide(args->param, args->remainder, args->grad, args->moment1, args->moment2);
  hv_with_type(stream, args->param.dtype, [&](auto type) {
    hv_with_type(stream, args->grad.dtype, [&](auto gradient_type) {
      hv_with_width(wide, [&](auto width) {
        using T = decltype(type);
        using G = decltype(gradient_type);
        constexpr int N = decltype(width)::value;
        adamw_operands<T, G> a = {(T *)args->param.data,
                                  (int16_t *)args->remainder.data,
                                  (const G *)args->grad.data,
                                  (float *)args->moment1.data,
                                  (float *)args->moment2.data,
                                  (const hv_adamw_range *)args->ranges.data,
                                  args->ranges.rows,
                                  args->param.cols,
                                  (const float *)args->dynamic.data,
                                  (float)args->beta1,
                                  (float)args->beta2,
                                  (float)args->eps,
                                  (float)args->weight_decay,
                                  (float)(1 - args->beta1),
                                  (float)(1 - args->beta2)};
        if (!hv_present(args->moment1_scale)) {
          HV_LAUNCH((adamw_kernel<T, G, N>), dim3(hv_blocks(a.count, 128 * N)), dim3(128), 0, stream, a);
          return;
        }
        moment_codes codes = {(int8_t *)args->moment1.data, (uint8_t *)args->moment2.data,
                              (float *)args->moment1_scale.data, (float *)args->moment2_scale.data};
        HV_LAUNCH((adamw_coded_kernel<T, G, N>), dim3(hv_blocks(a.count, 4 * HV_MOMENT_BLOCK)), dim3(4 * HV_WARP), 0,
                  stream, a, codes);
      });
    });
  });
}

template <typename T> struct average_operands {
  T *param;
  int16_t *remainder;
  float *average;
  int64_t count;
};

template <int N, typename T>
static __device__ __forceinline__ void move_average(const average_operands<T> &a, int64_t at, float weight) {
  hv_floats<N> p = read_masters<N>(a.param + at, a.remainder + at), average = hv_read<N>(a.average + at);
  HV_UNROLL
  for (int j = 0; j < N; j++) average.at[j] += weight * (p.at[j] - average.at[j]);
  hv_write(a.average + at, average);
}

template <typename T, int N>
static __global__ void average_kernel(average_operands<T> a, const float *weight, const float *factor) {
  int64_t first = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * N;
  if (first >= a.count || *factor < 0.0f) return;
  if (first + N <= a.count) {
    move_average<N>(a, first, *weight);
    return;
  }
  for (int64_t at = first; at < a.count; at++) move_average<1>(a, at, *weight);
}

template <int N, typename T>
static __device__ __forceinline__ void exchange_at(const average_operands<T> &a, int64_t at) {
  hv_floats<N> p = read_masters<N>(a.param + at, a.remainder + at), average = hv_read<N>(a.average + at);
  write_masters(a.param + at, a.remainder + at, average);
  hv_write(a.average + at, p);
}

template <typename T, int N> static __global__ void exchange_kernel(average_operands<T> a) {
  int64_t first = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * N;
  if (first >= a.count) return;
  if (first + N <= a.count) {
    exchange_at<N>(a, first);
    return;
  }
  for (int64_t at = first; at < a.count; at++) exchange_at<1>(a, at);
}

/* Calls f with a value of T, the operands, and hv_width<N> for the widest N that all operands allow. */
template <typename F>
static void with_average(hv_stream *stream, hv_tensor param, hv_tensor remainder, hv_tensor average, F f) {
  hv_with_type(stream, param.dtype, [&](auto type) {
    using T = decltype(type);
    average_operands<T> a = {(T *)param.data, (int16_t *)remainder.data, (float *)average.data, param.cols};
    hv_with_width(hv_are_wide(param, remainder, average), [&](auto width) { f(type, a, width); });
  });
}

void hv_cuda_average(hv_stream *stream, const hv_average_args *args) {
  with_average(stream, args->param, args->remainder, args->average, [&](auto type, auto a, auto width) {
    using T = decltype(type);
    constexpr int N = decltype(width)::value;
    HV_LAUNCH((average_kernel<T, N>), dim3(hv_blocks(a.count, 128 * N)), dim3(128), 0, stream, a,
              (const float *)args->weight.data, (const float *)args->factor.data);
  });
}

void hv_cuda_exchange(hv_stream *stream, const hv_exchange_args *args) {
  with_average(stream, args->param, args->remainder, args->average, [&](auto type, auto a, auto width) {
    using T = decltype(type);
    constexpr int N = decltype(width)::value;
    HV_LAUNCH((exchange_kernel<T, N>), dim3(hv_blocks(a.count, 128 * N)), dim3(128), 0, stream, a);
  });
}
