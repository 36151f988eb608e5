/* Linear layers and their gradients: products by hv_matmul, and what its epilogues cannot do in one pass over the
 * result:
 *   linear                  y = activation(z) + residual, z = x weightᵀ + bias
 *   linear_backward_input   dx = (dy weight) ∘ activation'(pre) + add
 *   linear_backward_weight  dweight += dyᵀ x, dbias += column sums of dy
 * The library adds biases, residuals (a product is added to them) and the tanh GELU; it has no exact GELU, SiLU or
 * quick GELU. Where a second pass is needed, z is kept meanwhile in y's dtype: in `pre`, in y, or, where y is also the
 * residual, in scratch. Few rows of bf16 go to linear_few.cu.
 */
#include "cuda/linear.h"

#include "cuda/activation.h"
#include "cuda/column_sums.h"
#include "cuda/kernels.h"
#include "cuda/matmul.h"

/* Queues a product; `kept` is scratch beside the library's own. */
struct linear_scratch {
  void *workspace, *kept;
};

static linear_scratch take_scratch(hv_stream *stream, size_t kept_bytes) {
  size_t workspace = hv_matmul_workspace(hv_stream_matmul(stream));
  char *memory = (char *)hv_stream_scratch(stream, workspace + kept_bytes);
  return {memory, memory ? memory + workspace : nullptr};
}

static void multiply(hv_stream *stream, const hv_matmul_args *args, const linear_scratch *scratch) {
  if (!hv_matmul_takes(hv_stream_matmul(stream), args)) {
    hv_matmul_plain(stream, args);
    return;
  }
  hv_stream_fail(stream, hv_matmul_run(hv_stream_matmul(stream), hv_stream_queue(stream), args, scratch->workspace));
}

/* A matrix in scratch, of rows that begin at multiples of 16 bytes. */
static int64_t kept_stride(int64_t cols) {
  return (cols + HV_WIDE - 1) / HV_WIDE * HV_WIDE;
}
static size_t kept_bytes(hv_tensor like) {
  return (size_t)(like.rows * kept_stride(like.cols)) * hv_dtype_size(like.dtype);
}
static hv_tensor kept_tensor(hv_tensor like, void *data) {
  hv_tensor t = like;
  t.data = data;
  t.row_stride = kept_stride(like.cols);
  return t;
}

/* y = activation(z + bias) + residual, pre = z + bias, of which bias, residual and pre may be absent; z may be y. */
template <typename T, typename Y> struct finish_params {
  hv_rows<const Y> z;
  const T *bias;
  hv_rows<const T> residual;
  hv_rows<T> pre;
  hv_rows<Y> y;
  hv_activation activation;
};

template <typename T, typename Y, int N>
static __global__ void finish_kernel(finish_params<T, Y> p, int64_t cols, unsigned pieces) {
  hv_place at = hv_place_here<N>(pieces);
  if (at.col >= cols) return;
  hv_floats<N> x = hv_read<N>(p.z.at(at.row, at.col)), other = {};
  if (p.bias) {
    other = hv_read<N>(p.bias + at.col);
    HV_UNROLL
    for (int i = 0; i < N; i++) x.at[i] += other.at[i];
  }
  if (p.pre.data) hv_write(p.pre.at(at.row, at.col), x);
  HV_UNROLL
  for (int i = 0; i < N; i++) x.at[i] = hv_activate(p.activation, x.at[i]);
  if (p.residual.data) {
    other = hv_read<N>(p.residual.at(at.row, at.col));
    HV_UNROLL
    for (int i = 0; i < N; i++) x.at[i] += other.at[i];
  }
  hv_write(p.y.at(at.row, at.col), x);
}

static void finish(hv_stream *stream, const hv_linear_args *a, hv_tensor z, hv_tensor bias, hv_tensor pre) {
  hv_with_type(stream, a->x.dtype, [&](auto type) {
    hv_with_type(stream, a->y.dtype, [&](auto result) {
      hv_with_width(hv_are_wide(z, bias, pre, a->residual, a->y), [&](auto width) {
        using T = decltype(type);
        using Y = decltype(result);
        constexpr int N = decltype(width)::value;
        finish_params<T, Y> p = {hv_rows_of<const Y>(z), (const T *)bias.data, hv_rows_of<const T>(a->residual),
                                 hv_rows_of<T>(pre),     hv_rows_of<Y>(a->y),  a->activation};
        hv_cover c = hv_cover_of(a->y.rows, a->y.cols, N);
        HV_LAUNCH((finish_kernel<T, Y, N>), c.grid, c.block, 0, stream, p, c.cols, c.pieces);
      });
    });
  });
}

/* Whether the library may add the bias and apply an activation: it has kernels that do for whole vectors of d's dtype.
 */
static bool takes_epilogue(const hv_linear_args *a, hv_tensor d) {
  return a->y.dtype == a->x.dtype && hv_are_wide(a->bias, d);
}

/* Whether the library can do it all; then its arguments are completed. */
static bool in_one_pass(const hv_linear_args *a, hv_matmul_args *product) {
  bool plain = a->activation == HV_ACT_NONE;
  if (hv_present(a->pre)) return false;
  if (!takes_epilogue(a, a->y)) {
    product->c = a->residual;
    return plain && !hv_present(a->bias) && (!hv_present(a->residual) || a->y.dtype == a->x.dtype);
  }
  product->bias = a->bias;
  product->c = a->residual;
  product->gelu_tanh = a->activation == HV_ACT_GELU_TANH;
  return plain || (product->gelu_tanh && !hv_present(a->residual));
}

static void linear_in_two_passes(hv_stream *stream, const hv_linear_args *a, hv_matmul_args product) {
  bool same = a->y.dtype == a->x.dtype, keep = same && hv_present(a->pre);
  bool taken = !keep && hv_present(a->residual) && a->residual.data == a->y.data;
  linear_scratch scratch = take_scratch(stream, taken ? kept_bytes(a->y) : 0);
  if (!scratch.workspace) return;
  hv_tensor z = keep ? a->pre : taken ? kept_tensor(a->y, scratch.kept) : a->y, none = {};
  bool biased = takes_epilogue(a, z);
  product.d = z;
  product.c = none;
  product.gelu_tanh = false;
  product.bias = biased ? a->bias : none;
  multiply(stream, &product, &scratch);
  finish(stream, a, z, biased ? none : a->bias, keep && biased ? none : a->pre);
}

void hv_cuda_linear(hv_stream *stream, const hv_linear_args *args) {
  if (args->x.rows == 0) return;
  if (hv_linear_is_few(args)) {
    hv_linear_few(stream, args);
    return;
  }
  hv_matmul_args product = {};
  product.a = args->x;
  product.b = args->weight;
  product.transpose_b = true;
  product.d = args->y;
  if (!in_one_pass(args, &product)) {
    linear_in_two_passes(stream, args, product);
    return;
  }
  linear_scratch scratch = take_scratch(stream, 0);
  if (scratch.workspace) multiply(stream, &product, &scratch);
}

/* dx = dz ∘ activation'(pre) + add, add optional; dz may be dx. */
template <typename T, int N>
static __global__ void slope_kernel(hv_activation activation, hv_rows<const T> dz, hv_rows<const T> pre,
                                    hv_rows<const T> add, hv_rows<T> dx, int64_t cols, unsigned pieces) {
  hv_place at = hv_place_here<N>(pieces);
  if (at.col >= cols) return;
  hv_floats<N> d = hv_read<N>(dz.at(at.row, at.col)), x = hv_read<N>(pre.at(at.row, at.col));
  HV_UNROLL
  for (int i = 0; i < N; i++) d.at[i] *= hv_activation_slope(activation, x.at[i]);
  if (add.data) {
    hv_floats<N> other = hv_read<N>(add.at(at.row, at.col));
    HV_UNROLL
    for (int i = 0; i < N; i++) d.at[i] += other.at[i];
  }
  hv_write(dx.at(at.row, at.col), d);
}

static void apply_slope(hv_stream *stream, const hv_linear_backward_input_args *a, hv_tensor dz) {
  hv_with_type(stream, a->dx.dtype, [&](auto type) {
    hv_with_width(hv_are_wide(dz, a->pre, a->add, a->dx), [&](auto width) {
      using T = decltype(type);
      constexpr int N = decltype(width)::value;
      hv_cover c = hv_cover_of(a->dx.rows, a->dx.cols, N);
      HV_LAUNCH((slope_kernel<T, N>), c.grid, c.block, 0, stream, a->activation, hv_rows_of<const T>(dz),
                hv_rows_of<const T>(a->pre), hv_rows_of<const T>(a->add), hv_rows_of<T>(a->dx), c.cols, c.pieces);
    });
  });
}

void hv_cuda_linear_backward_input(hv_stream *stream, const hv_linear_backward_input_args *args) {
  if (args->dy.rows == 0) return;
  bool plain = args->activation == HV_ACT_NONE;
  bool taken = !plain && hv_present(args->add) && args->add.data == args->dx.data;
  linear_scratch scratch = take_scratch(stream, taken ? kept_bytes(args->dx) : 0);
  if (!scratch.workspace) return;
  hv_matmul_args product = {};
  product.a = args->dy;
  product.b = args->weight;
  if (plain) product.c = args->add;
  product.d = taken ? kept_tensor(args->dx, scratch.kept) : args->dx;
  multiply(stream, &product, &scratch);
  if (!plain) apply_slope(stream, args, product.d);
}

void hv_cuda_linear_backward_weight(hv_stream *stream, const hv_linear_backward_weight_args *args) {
  if (args->dy.rows == 0) return;
  if (hv_present(args->dbias)) hv_add_column_sums(stream, args->dy, hv_tensor{}, args->dbias);
  if (!hv_present(args->dweight)) return;
  linear_scratch scratch = take_scratch(stream, 0);
  if (!scratch.workspace) return;
  hv_matmul_args product = {};
  product.a = args->dy;
  product.transpose_a = true;
  product.b = args->x;
  product.c = product.d = args->dweight;
  multiply(stream, &product, &scratch);
}
