/* rotary: rotates queries and keys (element j of a head pairs with j + half) and writes keys and values to their rows
 * of the key-value cache, all in one launch. Rows are tokens. A thread has one unit of a row: a pair of runs of N
 * elements that rotate into each other, or a run that is copied. Threads of a row run over the units of q, then of k,
 * then of v; accesses of neighbouring threads are coalesced. No shared memory. */
#include "cuda/elementwise.h"
#include "cuda/kernels.h"

/* What is the same for all rows. Units are runs of N elements. */
struct rotary_shape {
  int head_dim, half; /* half: number of rotating pairs of elements in a head */
  int pairs, copies;  /* units of a head: pairs of runs that rotate; runs that are copied */
  int q_units, k_units, v_units;
  float sign; /* of the sine */
};

template <typename T> struct rotary_operands {
  rotary_shape shape;
  hv_rows<const T> q, k, v;
  hv_rows<T> q_out, k_out, v_out;
  const int32_t *positions, *kv_rows;
  hv_rows<const float> cos_sin;
};

/* One unit of a row of heads. */
template <typename T, int N>
static __device__ __forceinline__ void rotate_unit(const rotary_shape &s, const T *from, T *to, const float *cosines,
                                                   int unit) {
  int head = unit / (s.pairs + s.copies), part = unit % (s.pairs + s.copies);
  from += head * s.head_dim;
  to += head * s.head_dim;
  if (part >= s.pairs) {
    int col = 2 * s.half + (part - s.pairs) * N;
    if (from != to) hv_store(to + col, hv_load<N>(from + col));
    return;
  }
  int col = part * N;
  hv_floats<N> x = hv_read<N>(from + col), y = hv_read<N>(from + col + s.half), x_out, y_out;
  hv_floats<N> cosine = hv_read<N>(cosines + col), sine = hv_read<N>(cosines + s.half + col);
  HV_UNROLL
  for (int j = 0; j < N; j++) {
    float turn = s.sign * sine.at[j];
    x_out.at[j] = x.at[j] * cosine.at[j] - y.at[j] * turn;
    y_out.at[j] = y.at[j] * cosine.at[j] + x.at[j] * turn;
  }
  hv_write(to + col, x_out);
  hv_write(to + col + s.half, y_out);
}

template <typename T, int N> static __global__ void rotary_kernel(rotary_operands<T> a, unsigned pieces) {
  hv_let_next_begin();
  hv_wait_for_previous();
  hv_place at = hv_place_here<1>(pieces);
  const rotary_shape &s = a.shape;
  int unit = (int)at.col;
  const float *cosines = a.cos_sin.at(a.positions[at.row], 0);
  int64_t kv_row = a.kv_rows ? a.kv_rows[at.row] : at.row;
  if (unit < s.q_units) {
    rotate_unit<T, N>(s, a.q.at(at.row, 0), a.q_out.at(at.row, 0), cosines, unit);
  } else if (unit < s.q_units + s.k_units) {
    rotate_unit<T, N>(s, a.k.at(at.row, 0), a.k_out.at(kv_row, 0), cosines, unit - s.q_units);
  } else if (unit < s.q_units + s.k_units + s.v_units) {
    int col = (unit - s.q_units - s.k_units) * N;
    hv_store(a.v_out.at(kv_row, col), hv_load<N>(a.v.at(at.row, col)));
  }
}

static rotary_shape shape_of(const hv_rotary_args *args, int n) {
  rotary_shape s = {};
  s.head_dim = args->head_dim;
  s.half = (int)args->cos_sin.cols / 2;
  s.pairs = s.half / n;
  s.copies = (s.head_dim - 2 * s.half) / n;
  int units = s.pairs + s.copies;
  if (hv_present(args->q)) s.q_units = (int)(args->q.cols / s.head_dim) * units;
  if (hv_present(args->k)) s.k_units = (int)(args->k.cols / s.head_dim) * units;
  if (hv_present(args->v) && args->v.data != args->v_out.data) s.v_units = (int)args->v.cols / n;
  s.sign = args->inverse ? -1.0f : 1.0f;
  return s;
}

void hv_cuda_rotary(hv_stream *stream, const hv_rotary_args *args) {
  int64_t half = args->cos_sin.cols / 2;
  bool wide = hv_are_wide(args->q, args->k, args->v, args->q_out, args->k_out, args->v_out, args->cos_sin) &&
              half % HV_WIDE == 0 && args->head_dim % HV_WIDE == 0;
  hv_tensor any = hv_present(args->q) ? args->q : hv_present(args->k) ? args->k : args->v;
  if (!hv_present(any)) return;
  hv_with_type(stream, any.dtype, [&](auto type) {
    hv_with_width(wide, [&](auto width) {
      using T = decltype(type);
      constexpr int N = decltype(width)::value;
      rotary_operands<T> a = {shape_of(args, N),
                              hv_rows_of<const T>(args->q),
                              hv_rows_of<const T>(args->k),
                              hv_rows_of<const T>(args->v),
                              hv_rows_of<T>(args->q_out),
                              hv_rows_of<T>(args->k_out),
                              hv_rows_of<T>(args->v_out),
                              hv_list_of(args->positions),
                              hv_list_of(args->kv_rows),
                              hv_rows_of<const float>(args->cos_sin)};
      int64_t units = (int64_t)a.shape.q_units + a.shape.k_units + a.shape.v_units;
      hv_cover c = hv_cover_of(args->positions.cols, units, 1);
      HV_LAUNCH_EARLY((rotary_kernel<T, N>), hv_ahead{}, c.grid, c.block, 0, stream, a, c.pieces);
    });
  });
}
