/* Shared by kernels that go over the rows of tensors, a few neighbouring elements per thread. */
#ifndef HV_CUDA_ELEMENTWISE_H
#define HV_CUDA_ELEMENTWISE_H

#include <type_traits>

#include "core/tensor/tensor.h"
#include "cuda/device.h"

/* A tensor as kernels see it; data is NULL if it is absent. `stride` counts elements from one row to the next. */
template <typename T> struct hv_rows {
  T *data;
  int64_t stride;
  __device__ __forceinline__ T *at(int64_t row, int64_t col) const {
    return data + row * stride + col;
  }
};

template <typename T> static inline hv_rows<T> hv_rows_of(hv_tensor t) {
  return {(T *)t.data, t.row_stride};
}
static inline const int32_t *hv_list_of(hv_tensor t) {
  return (const int32_t *)t.data;
}

/* Elements that a thread handles at once if size and alignment of all operands allow it (16 bytes of bf16); else one.
 */
enum { HV_WIDE = 8 };

static inline bool hv_is_wide(hv_tensor t) {
  if (!hv_present(t)) return true;
  return t.cols % HV_WIDE == 0 && (uintptr_t)t.data % 16 == 0 && (t.rows <= 1 || t.row_stride % HV_WIDE == 0);
}
template <typename... Tensors> static inline bool hv_are_wide(Tensors... tensors) {
  return (hv_is_wide(tensors) && ...);
}

/* Calls f with a value of the storage type, float or hv_bf16; another dtype is the stream's error. */
template <typename F> static inline void hv_with_type(hv_stream *stream, hv_dtype dtype, F f) {
  switch (dtype) {
  case HV_F32: f(float{}); break;
  case HV_BF16: f(hv_bf16{}); break;
  default:
    hv_stream_fail(stream, hv_error(HV_ERR_DEVICE, "%s runs on the CPU device only; this device takes fp32 and bf16",
                                    hv_dtype_name(dtype)));
  }
}

template <int N> struct hv_width { static constexpr int value = N; };

/* Calls f with hv_width<HV_WIDE> or hv_width<1>. */
template <typename F> static inline void hv_with_width(bool wide, F f) {
  if (wide) {
    f(hv_width<HV_WIDE>{});
  } else {
    f(hv_width<1>{});
  }
}

/* N elements as floats, for arithmetic. */
template <int N> struct hv_floats { float at[N]; };

template <int N, typename T> static __device__ __forceinline__ hv_floats<N> hv_read(const T *p) {
  hv_vec<T, N> stored = hv_load<N>(p);
  hv_floats<N> x;
  HV_UNROLL
  for (int i = 0; i < N; i++) x.at[i] = hv_to_float(stored.at[i]);
  return x;
}
template <int N, typename T> static __device__ __forceinline__ void hv_write(T *p, hv_floats<N> x) {
  if constexpr (std::is_same<T, hv_bf16>::value && N == HV_WIDE) {
    hv_vec<uint32_t, N / 2> pairs;
    HV_UNROLL
    for (int i = 0; i < N / 2; i++) pairs.at[i] = hv_pack_bf16(x.at[2 * i], x.at[2 * i + 1]);
    hv_store_whole(reinterpret_cast<uint32_t *>(p), pairs);
  } else {
    hv_vec<T, N> stored;
    HV_UNROLL
    for (int i = 0; i < N; i++) stored.at[i] = hv_from_float<T>(x.at[i]);
    hv_store(p, stored);
  }
}

/* A launch over [rows, cols]: a thread handles `width` neighbouring elements of one row; neighbouring threads have
 * neighbouring elements, so accesses are coalesced. A block of up to 256 threads has one piece of one row; the grid is
 * one-dimensional, [row][piece]. */
struct hv_cover {
  dim3 grid, block;
  int64_t cols;
  unsigned pieces; /* blocks for each row */
};

static inline hv_cover hv_cover_of(int64_t rows, int64_t cols, int width) {
  int64_t vectors = (cols + width - 1) / width;
  unsigned threads = vectors < 256 ? hv_blocks(vectors, HV_WARP) * HV_WARP : 256;
  if (threads == 0) threads = HV_WARP;
  hv_cover c = {dim3(0), dim3(threads), cols, hv_blocks(vectors, threads)};
  c.grid = dim3((unsigned)(rows * c.pieces));
  return c;
}

/* The running thread's elements begin at (row, col); none where col >= cols. */
struct hv_place {
  int64_t row, col;
};

template <int N> static __device__ __forceinline__ hv_place hv_place_here(unsigned pieces) {
  return {(int64_t)(blockIdx.x / pieces), ((int64_t)(blockIdx.x % pieces) * blockDim.x + threadIdx.x) * N};
}

#endif
