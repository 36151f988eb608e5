/* Linear layers and their gradients. Weights are [out, in], activations [rows, features], in T:
 *   linear                  y = activation(z) + residual, z = x weightᵀ + bias
 *   linear_swiglu           y = silu(gate) ∘ up, [gate | up] = x weightᵀ
 *   linear_backward_input   dx = (dy weight) ∘ activation'(pre) + add
 *   linear_backward_weight  dweight += (or =) dyᵀ x, dbias += column sums of dy
 *
 * The products are hv_matmul's (cuBLASLt). Its epilogues add bias and residual and apply the tanh GELU; exact GELU,
 * SiLU, quick GELU and derivatives need a second, elementwise kernel over the product. The product then stays in float
 * until that kernel has run, so that a result is rounded once; for a large product both kernels go over pieces of rows
 * whose floats fit in the L2 cache. At most 16 rows of bf16 go to linear_few.cu. */
#include "cuda/linear.h"

#include "cuda/activation.h"
#include "cuda/column_sums.h"
#include "cuda/kernels.h"
#include "cuda/matmul.h"

/* A product's scratch memory: the library's workspace, and behind it `kept`. Both NULL if memory is short. */
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

/* Where a product lies between the two kernels, in float: in the result if that is float and is not an addend as well,
 * else in scratch, for so many rows at a time that they stay in the L2 cache. */
enum { BETWEEN_BYTES = 16 << 20, BETWEEN_ROWS = 128 /* rows at a time are a multiple of this */ };

struct between {
  linear_scratch scratch;
  hv_tensor whole; /* the result, holding all of the product; absent: it lies in scratch */
  int64_t rows;    /* at a time */
  int64_t stride;
};

static between between_of(hv_stream *stream, hv_tensor result, hv_tensor summand) {
  between b = {};
  if (result.dtype == HV_F32 && result.data != summand.data) {
    b.scratch = take_scratch(stream, 0);
    b.whole = result;
    b.rows = result.rows;
    return b;
  }
  b.stride = (result.cols + HV_WIDE - 1) / HV_WIDE * HV_WIDE; /* rows begin at multiples of 16 bytes, or more */
  size_t row_bytes = (size_t)b.stride * sizeof(float);
  int64_t most = (int64_t)(BETWEEN_BYTES / row_bytes) / BETWEEN_ROWS * BETWEEN_ROWS;
  if (most < BETWEEN_ROWS) most = BETWEEN_ROWS;
  b.rows = most < result.rows ? most : result.rows;
  b.scratch = take_scratch(stream, (size_t)b.rows * row_bytes);
  return b;
}

static hv_tensor between_rows(const between &b, int64_t first, int64_t rows, int64_t cols) {
  if (hv_present(b.whole)) return hv_tensor_rows(b.whole, first, rows);
  hv_tensor t = hv_tensor_make(b.scratch.kept, HV_F32, rows, cols);
  t.row_stride = b.stride;
  return t;
}

/* The same rows of an optional operand. */
static hv_tensor some_rows(hv_tensor t, int64_t first, int64_t rows) {
  return hv_present(t) ? hv_tensor_rows(t, first, rows) : t;
}

/* y = activation(z + bias) + residual, pre = z + bias, of which bias, residual and pre may be absent; z may be y. */
template <typename T, typename Y> struct finish_params {
  hv_rows<const float> z;
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

static void finish(hv_stream *stream, const hv_linear_args *a, hv_tensor z) {
  hv_with_type(stream, a->x.dtype, [&](auto type) {
    hv_with_type(stream, a->y.dtype, [&](auto result) {
      hv_with_width(hv_are_wide(z, a->bias, a->pre, a->residual, a->y), [&](auto width) {
        using T = decltype(type);
        using Y = decltype(result);
        constexpr int N = decltype(width)::value;
        finish_params<T, Y> p = {hv_rows_of<const float>(z), (const T *)a->bias.data, hv_rows_of<const T>(a->residual),
                                 hv_rows_of<T>(a->pre),      hv_rows_of<Y>(a->y),     a->activation};
        hv_cover c = hv_cover_of(a->y.rows, a->y.cols, N);
        HV_LAUNCH((finish_kernel<T, Y, N>), c.grid, c.block, 0, stream, p, c.cols, c.pieces);
      });
    });
  });
}

/* Whether the library's epilogue may add the bias and apply an activation: its kernels for that need whole 16-byte
 * vectors of d's dtype. */
static bool takes_epilogue(const hv_linear_args *a, hv_tensor d) {
  return a->y.dtype == a->x.dtype && hv_are_wide(a->bias, d);
}

/* Whether one product with an epilogue does it all; then its arguments are completed. */
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

static void linear_in_two_passes(hv_stream *stream, const hv_linear_args *args) {
  between b = between_of(stream, args->y, args->residual);
  if (!b.scratch.workspace) return;
  for (int64_t first = 0; first < args->y.rows; first += b.rows) {
    int64_t rows = args->y.rows - first < b.rows ? args->y.rows - first : b.rows;
    hv_linear_args a = *args;
    a.x = hv_tensor_rows(args->x, first, rows);
    a.residual = some_rows(args->residual, first, rows);
    a.pre = some_rows(args->pre, first, rows);
    a.y = hv_tensor_rows(args->y, first, rows);
    hv_matmul_args product = {};
    product.a = a.x;
    product.b = a.weight;
    product.transpose_b = true;
    product.d = between_rows(b, first, rows, a.y.cols);
    multiply(stream, &product, &b.scratch);
    finish(stream, &a, product.d);
  }
}

void hv_cuda_linear(hv_stream *stream, const hv_linear_args *args) {
  if (args->x.rows == 0) return;
  if (hv_linear_is_few(args->x, args->weight)) {
    hv_linear_few(stream, args);
    return;
  }
  hv_matmul_args product = {};
  product.a = args->x;
  product.b = args->weight;
  product.transpose_b = true;
  product.d = args->y;
  if (!in_one_pass(args, &product)) {
    linear_in_two_passes(stream, args);
    return;
  }
  linear_scratch scratch = take_scratch(stream, 0);
  if (scratch.workspace) multiply(stream, &product, &scratch);
}

void hv_cuda_linear_swiglu(hv_stream *stream, const hv_linear_swiglu_args *args) {
  if (!args->keep && hv_linear_is_few(args->x, args->weight)) {
    hv_linear_swiglu_few(stream, args);
    return;
  }
  hv_linear_args linear = {};
  linear.x = args->x;
  linear.weight = args->weight;
  linear.y = args->gate_up;
  hv_cuda_linear(stream, &linear);
  hv_swiglu_args swiglu = {args->gate_up, args->y};
  hv_cuda_swiglu(stream, &swiglu);
}

/* dx = dz ∘ activation'(pre) + add, add optional; dz may be dx. */
template <typename T, int N>
static __global__ void slope_kernel(hv_activation activation, hv_rows<const float> dz, hv_rows<const T> pre,
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
      HV_LAUNCH((slope_kernel<T, N>), c.grid, c.block, 0, stream, a->activation, hv_rows_of<const float>(dz),
                hv_rows_of<const T>(a->pre), hv_rows_of<const T>(a->add), hv_rows_of<T>(a->dx), c.cols, c.pieces);
    });
  });
}

static void backward_input_in_two_passes(hv_stream *stream, const hv_linear_backward_input_args *args) {
  between b = between_of(stream, args->dx, args->add);
  if (!b.scratch.workspace) return;
  for (int64_t first = 0; first < args->dx.rows; first += b.rows) {
    int64_t rows = args->dx.rows - first < b.rows ? args->dx.rows - first : b.rows;
    hv_linear_backward_input_args a = *args;
    a.dy = hv_tensor_rows(args->dy, first, rows);
    a.pre = hv_tensor_rows(args->pre, first, rows);
    a.add = some_rows(args->add, first, rows);
    a.dx = hv_tensor_rows(args->dx, first, rows);
    hv_matmul_args product = {};
    product.a = a.dy;
    product.b = a.weight;
    product.d = between_rows(b, first, rows, a.dx.cols);
    multiply(stream, &product, &b.scratch);
    apply_slope(stream, &a, product.d);
  }
}

void hv_cuda_linear_backward_input(hv_stream *stream, const hv_linear_backward_input_args *args) {
  if (args->dy.rows == 0) return;
  if (args->activation != HV_ACT_NONE) {
    backward_input_in_two_passes(stream, args);
    return;
  }
  linear_scratch scratch = take_scratch(stream, 0);
  if (!scratch.workspace) return;
  hv_matmul_args product = {};
  product.a = args->dy;
  product.b = args->weight;
  product.c = args->add;
  product.d = args->dx;
  multiply(stream, &product, &scratch);
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
  product.d = args->dweight;
  if (!args->set_dweight) product.c = args->dweight;
  multiply(stream, &product, &scratch);
}
