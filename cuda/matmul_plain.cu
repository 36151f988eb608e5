/* hv_matmul's products in plain multiply-adds, for layouts for which the library has no algorithm (bf16 rows at odd
 * addresses, say). Correct for every shape, and slow; no layer of a model uses it.
 *
 * A block of 256 threads makes a tile of 16 × 16 elements of d, one per thread, and goes over k in steps of 16: it
 * loads a 16 × 16 tile of op(a) and one of op(b) into shared memory, as floats with rows of 17 against bank conflicts
 * (2176 bytes). */
#include "cuda/activation.h"
#include "cuda/elementwise.h"
#include "cuda/matmul.h"

enum { SIDE = 16, STRIDE = SIDE + 1 };

/* op(x) as floats: element (row, col), 0 outside. */
template <typename T> struct operand {
  hv_rows<const T> stored;
  int64_t rows, cols; /* of op(x) */
  bool transpose;
  __device__ __forceinline__ float at(int64_t row, int64_t col) const {
    if (row >= rows || col >= cols) return 0.0f;
    return hv_to_float(transpose ? *stored.at(col, row) : *stored.at(row, col));
  }
};

template <typename T, typename D> struct plain_params {
  operand<T> a, b;
  hv_rows<const D> c;
  const T *bias;
  bool gelu_tanh;
  hv_rows<D> d;
};

template <typename T, typename D>
static __global__ void __launch_bounds__(SIDE *SIDE) plain_kernel(plain_params<T, D> p) {
  hv_shared<float> left = hv_shared_at<float>(0), right = hv_shared_at<float>(SIDE * STRIDE * sizeof(float));
  int x = (int)threadIdx.x % SIDE, y = (int)threadIdx.x / SIDE;
  int64_t row = (int64_t)blockIdx.x * SIDE + y, col = (int64_t)blockIdx.y * SIDE + x;
  float sum = 0.0f;
  for (int64_t k = 0; k < p.a.cols; k += SIDE) {
    left[y * STRIDE + x] = p.a.at(row, k + x);
    right[y * STRIDE + x] = p.b.at(k + y, col);
    __syncthreads();
    for (int i = 0; i < SIDE; i++) sum += left[y * STRIDE + i] * right[i * STRIDE + x];
    __syncthreads();
  }
  if (row >= p.a.rows || col >= p.b.cols) return;
  if (p.c.data) sum += hv_to_float(*p.c.at(row, col));
  if (p.bias) sum += hv_to_float(p.bias[col]);
  if (p.gelu_tanh) sum = hv_activate(HV_ACT_GELU_TANH, sum);
  *p.d.at(row, col) = hv_from_float<D>(sum);
}

template <typename T> static operand<T> operand_of(hv_tensor t, bool transpose) {
  return {hv_rows_of<const T>(t), transpose ? t.cols : t.rows, transpose ? t.rows : t.cols, transpose};
}

void hv_matmul_plain(hv_stream *stream, const hv_matmul_args *args) {
  hv_with_type(stream, args->a.dtype, [&](auto type) {
    hv_with_type(stream, args->d.dtype, [&](auto result) {
      using T = decltype(type);
      using D = decltype(result);
      plain_params<T, D> p = {operand_of<T>(args->a, args->transpose_a),
                              operand_of<T>(args->b, args->transpose_b),
                              hv_rows_of<const D>(args->c),
                              (const T *)args->bias.data,
                              args->gelu_tanh,
                              hv_rows_of<D>(args->d)};
      dim3 grid(hv_blocks(args->d.rows, SIDE), hv_blocks(args->d.cols, SIDE));
      HV_LAUNCH((plain_kernel<T, D>), grid, dim3(SIDE * SIDE), 2 * SIDE * STRIDE * sizeof(float), stream, p);
    });
  });
}
