/* activation_backward; swiglu and its gradient. Elementwise over [rows, cols]: one thread per HV_WIDE neighbouring
 * elements (hv_cover_of), no shared memory. */
#include "cuda/activation.h"

#include "cuda/elementwise.h"
#include "cuda/kernels.h"

template <typename T, int N>
static __global__ void activation_backward_kernel(hv_activation activation, hv_rows<const T> pre, hv_rows<const T> dy,
                                                  hv_rows<T> dpre, int64_t cols, unsigned pieces) {
  hv_place at = hv_place_here<N>(pieces);
  if (at.col >= cols) return;
  hv_floats<N> x = hv_read<N>(pre.at(at.row, at.col)), d = hv_read<N>(dy.at(at.row, at.col));
  HV_UNROLL
  for (int j = 0; j < N; j++) d.at[j] *= hv_activation_slope(activation, x.at[j]);
  hv_write(dpre.at(at.row, at.col), d);
}

void hv_cuda_activation_backward(hv_stream *stream, const hv_activation_backward_args *args) {
  hv_with_type(stream, args->pre.dtype, [&](auto type) {
    hv_with_width(hv_are_wide(args->pre, args->dy, args->dpre), [&](auto width) {
      using T = decltype(type);
      constexpr int N = decltype(width)::value;
      hv_cover c = hv_cover_of(args->pre.rows, args->pre.cols, N);
      HV_LAUNCH((activation_backward_kernel<T, N>), c.grid, c.block, 0, stream, args->activation,
                hv_rows_of<const T>(args->pre), hv_rows_of<const T>(args->dy), hv_rows_of<T>(args->dpre), c.cols,
                c.pieces);
    });
  });
}

/* cols is the width of y; in a row of gate_up, up begins `cols` elements after gate. */
template <typename T, int N>
static __global__ void swiglu_kernel(hv_rows<const T> gate_up, hv_rows<T> y, int64_t cols, unsigned pieces) {
  hv_let_next_begin();
  hv_wait_for_previous();
  hv_place at = hv_place_here<N>(pieces);
  if (at.col >= cols) return;
  hv_floats<N> gate = hv_read<N>(gate_up.at(at.row, at.col)), up = hv_read<N>(gate_up.at(at.row, cols + at.col));
  HV_UNROLL
  for (int j = 0; j < N; j++) up.at[j] *= gate.at[j] * hv_sigmoid(gate.at[j]);
  hv_write(y.at(at.row, at.col), up);
}

void hv_cuda_swiglu(hv_stream *stream, const hv_swiglu_args *args) {
  hv_with_type(stream, args->y.dtype, [&](auto type) {
    hv_with_width(hv_are_wide(args->gate_up, args->y), [&](auto width) {
      using T = decltype(type);
      constexpr int N = decltype(width)::value;
      hv_cover c = hv_cover_of(args->y.rows, args->y.cols, N);
      HV_LAUNCH_EARLY((swiglu_kernel<T, N>), hv_ahead{}, c.grid, c.block, 0, stream, hv_rows_of<const T>(args->gate_up),
                      hv_rows_of<T>(args->y), c.cols, c.pieces);
    });
  });
}

/* dgate_up may be gate_up, and y dy: a thread reads its elements before it writes them. */
template <typename T, int N>
static __global__ void swiglu_backward_kernel(hv_rows<T> gate_up, hv_rows<T> dy, hv_rows<T> dgate_up, hv_rows<T> y,
                                              int64_t cols, unsigned pieces) {
  hv_place at = hv_place_here<N>(pieces);
  if (at.col >= cols) return;
  hv_floats<N> gate = hv_read<N>(gate_up.at(at.row, at.col)), up = hv_read<N>(gate_up.at(at.row, cols + at.col));
  hv_floats<N> d = hv_read<N>(dy.at(at.row, at.col)), dgate, dup, product;
  HV_UNROLL
  for (int j = 0; j < N; j++) {
    float g = gate.at[j], s = hv_sigmoid(g);
    product.at[j] = up.at[j] * (g * s);
    dup.at[j] = d.at[j] * g * s;
    dgate.at[j] = d.at[j] * up.at[j] * (s + g * s * (1.0f - s));
  }
  hv_write(dgate_up.at(at.row, at.col), dgate);
  hv_write(dgate_up.at(at.row, cols + at.col), dup);
  if (y.data) hv_write(y.at(at.row, at.col), product);
}

void hv_cuda_swiglu_backward(hv_stream *stream, const hv_swiglu_backward_args *args) {
  hv_with_type(stream, args->dy.dtype, [&](auto type) {
    hv_with_width(hv_are_wide(args->gate_up, args->dy, args->dgate_up, args->y), [&](auto width) {
      using T = decltype(type);
      constexpr int N = decltype(width)::value;
      hv_cover c = hv_cover_of(args->dy.rows, args->dy.cols, N);
      HV_LAUNCH((swiglu_backward_kernel<T, N>), c.grid, c.block, 0, stream, hv_rows_of<T>(args->gate_up),
                hv_rows_of<T>(args->dy), hv_rows_of<T>(args->dgate_up), hv_rows_of<T>(args->y), c.cols, c.pieces);
    });
  });
}
