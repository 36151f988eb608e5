/* Rows moved, summed and converted: gather_rows, scatter_add_rows, convert, fill. Elementwise over [rows, cols]: one
 * thread per HV_WIDE neighbouring elements (hv_cover_of), no shared memory. */
#include "cuda/elementwise.h"
#include "cuda/kernels.h"

/* Entry `index` of a list of rows; an absent list is 0, 1, 2, … */
static __device__ __forceinline__ int64_t listed(const int32_t *list, int64_t index) {
  return list ? list[index] : index;
}

template <typename From, typename To, int N>
static __global__ void gather_kernel(hv_rows<From> src, const int32_t *src_rows, hv_rows<To> dst,
                                     const int32_t *dst_rows, int64_t cols, unsigned pieces) {
  hv_place at = hv_place_here<N>(pieces);
  if (at.col >= cols) return;
  hv_floats<N> x = hv_read<N>(src.at(listed(src_rows, at.row), at.col));
  hv_write(dst.at(listed(dst_rows, at.row), at.col), x);
}

static void gather(hv_stream *stream, hv_tensor src, hv_tensor src_rows, hv_tensor dst, hv_tensor dst_rows,
                   int64_t count) {
  hv_with_type(stream, src.dtype, [&](auto from) {
    hv_with_type(stream, dst.dtype, [&](auto to) {
      hv_with_width(hv_are_wide(src, dst), [&](auto width) {
        using From = decltype(from);
        using To = decltype(to);
        hv_cover c = hv_cover_of(count, src.cols, width.value);
        HV_LAUNCH((gather_kernel<From, To, width.value>), c.grid, c.block, 0, stream, hv_rows_of<From>(src),
                  hv_list_of(src_rows), hv_rows_of<To>(dst), hv_list_of(dst_rows), c.cols, c.pieces);
      });
    });
  });
}

void hv_cuda_gather_rows(hv_stream *stream, const hv_gather_rows_args *args) {
  gather(stream, args->src, args->src_rows, args->dst, args->dst_rows, args->count);
}

void hv_cuda_convert(hv_stream *stream, const hv_convert_args *args) {
  gather(stream, args->src, hv_tensor{}, args->dst, hv_tensor{}, args->src.rows);
}

/* A thread owns its columns of a destination row and adds the source rows in the order of the list, so no atomics are
 * needed and the order is fixed. */
template <typename T, typename To, int N>
static __global__ void scatter_add_kernel(hv_rows<T> src, const int32_t *src_rows, const int32_t *offsets,
                                          const int32_t *dst_rows, hv_rows<To> dst, int64_t cols, unsigned pieces) {
  hv_place at = hv_place_here<N>(pieces);
  if (at.col >= cols) return;
  hv_floats<N> sum = {};
  for (int32_t i = offsets[at.row]; i < offsets[at.row + 1]; i++) {
    hv_floats<N> x = hv_read<N>(src.at(src_rows[i], at.col));
    HV_UNROLL
    for (int j = 0; j < N; j++) sum.at[j] += x.at[j];
  }
  To *out = dst.at(dst_rows[at.row], at.col);
  hv_floats<N> old = hv_read<N>(out);
  HV_UNROLL
  for (int j = 0; j < N; j++) sum.at[j] += old.at[j];
  hv_write(out, sum);
}

void hv_cuda_scatter_add_rows(hv_stream *stream, const hv_scatter_add_rows_args *args) {
  hv_with_type(stream, args->src.dtype, [&](auto type) {
    hv_with_type(stream, args->dst.dtype, [&](auto to) {
      hv_with_width(hv_are_wide(args->src, args->dst), [&](auto width) {
        using T = decltype(type);
        using To = decltype(to);
        hv_cover c = hv_cover_of(args->dst_rows.cols, args->src.cols, width.value);
        HV_LAUNCH((scatter_add_kernel<T, To, width.value>), c.grid, c.block, 0, stream, hv_rows_of<T>(args->src),
                  hv_list_of(args->src_rows), hv_list_of(args->offsets), hv_list_of(args->dst_rows),
                  hv_rows_of<To>(args->dst), c.cols, c.pieces);
      });
    });
  });
}

template <typename Bits, int N>
static __global__ void fill_kernel(hv_rows<Bits> dst, Bits value, int64_t cols, unsigned pieces) {
  hv_place at = hv_place_here<N>(pieces);
  if (at.col >= cols) return;
  if constexpr (sizeof(Bits) == 2 && N == HV_WIDE) {
    uint32_t pair = (uint32_t)value | (uint32_t)value << 16;
    hv_store_whole(reinterpret_cast<uint32_t *>(dst.at(at.row, at.col)), {{pair, pair, pair, pair}});
  } else {
    hv_vec<Bits, N> values;
    HV_UNROLL
    for (int i = 0; i < N; i++) values.at[i] = value;
    hv_store(dst.at(at.row, at.col), values);
  }
}

/* The value as `dtype` stores it, in the low bytes. */
static uint64_t encode(hv_dtype dtype, double value) {
  float f = (float)value;
  uint32_t word;
  uint64_t bits = 0;
  memcpy(&word, &f, sizeof word);
  switch (dtype) {
  case HV_F32: return word;
  case HV_BF16: return hv_bf16_from_float(f);
  case HV_F16: return hv_f16_from_float(f);
  case HV_F64: memcpy(&bits, &value, sizeof bits); return bits;
  default: return (uint64_t)(int64_t)value;
  }
}

template <typename Bits> static void fill(hv_stream *stream, hv_tensor dst, uint64_t value) {
  hv_with_width(hv_are_wide(dst), [&](auto width) {
    hv_cover c = hv_cover_of(dst.rows, dst.cols, width.value);
    HV_LAUNCH((fill_kernel<Bits, width.value>), c.grid, c.block, 0, stream, hv_rows_of<Bits>(dst), (Bits)value, c.cols,
              c.pieces);
  });
}

void hv_cuda_fill(hv_stream *stream, const hv_fill_args *args) {
  uint64_t value = encode(args->dst.dtype, args->value);
  switch (hv_dtype_size(args->dst.dtype)) {
  case 1: fill<uint8_t>(stream, args->dst, value); break;
  case 2: fill<uint16_t>(stream, args->dst, value); break;
  case 4: fill<uint32_t>(stream, args->dst, value); break;
  default: fill<uint64_t>(stream, args->dst, value); break;
  }
}
