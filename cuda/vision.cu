/* patchify; the tokens of a vision tower (vit_embed) and their gradient. Elementwise over rows of tokens (hv_cover_of),
 * no shared memory. */
#include "cuda/elementwise.h"
#include "cuda/kernels.h"

struct patch_shape {
  int image_size, patch_size, side; /* side: patches along an image's edge */
  float mean[3], std[3];
};

template <typename T>
static __global__ void patchify_kernel(hv_rows<const uint8_t> images, patch_shape s, hv_rows<T> y, int64_t cols,
                                       unsigned pieces) {
  hv_place at = hv_place_here<1>(pieces);
  if (at.col >= cols) return;
  int col = (int)at.col, area = s.patch_size * s.patch_size, channel = col / area;
  int py = col % area / s.patch_size, px = col % s.patch_size;
  int patch = (int)(at.row % (s.side * s.side));
  int top = patch / s.side * s.patch_size + py, left = patch % s.side * s.patch_size + px;
  uint8_t byte = *images.at(at.row / (s.side * s.side), ((int64_t)top * s.image_size + left) * 3 + channel);
  *y.at(at.row, at.col) = hv_from_float<T>(((float)byte / 255.0f - s.mean[channel]) / s.std[channel]);
}

void hv_cuda_patchify(hv_stream *stream, const hv_patchify_args *args) {
  patch_shape s = {args->image_size, args->patch_size, args->image_size / args->patch_size, {}, {}};
  for (int i = 0; i < 3; i++) {
    s.mean[i] = (float)args->mean[i];
    s.std[i] = (float)args->std[i];
  }
  hv_with_type(stream, args->y.dtype, [&](auto type) {
    using T = decltype(type);
    hv_cover c = hv_cover_of(args->y.rows, args->y.cols, 1);
    HV_LAUNCH((patchify_kernel<T>), c.grid, c.block, 0, stream, hv_rows_of<const uint8_t>(args->images), s,
              hv_rows_of<T>(args->y), c.cols, c.pieces);
  });
}

/* An image's tokens: `cls` (0 or 1) class tokens, then registers up to token `prefix`, then patches. */
struct token_shape {
  int64_t tokens, prefix, cls;
  int64_t cls_position; /* 1: the first row of the positions is the class token's */
};

template <typename T, int N>
static __global__ void vit_embed_kernel(token_shape s, hv_rows<const T> patches, const T *cls_token,
                                        hv_rows<const T> reg_token, hv_rows<const T> positions, hv_rows<T> y,
                                        int64_t cols, unsigned pieces) {
  hv_place at = hv_place_here<N>(pieces);
  if (at.col >= cols) return;
  int64_t image = at.row / s.tokens, token = at.row % s.tokens, position = -1;
  const T *source;
  if (token < s.cls) {
    source = cls_token + at.col;
    if (s.cls_position) position = 0;
  } else if (token < s.prefix) {
    source = reg_token.at(token - s.cls, at.col);
  } else {
    source = patches.at(image * (s.tokens - s.prefix) + token - s.prefix, at.col);
    position = token - s.prefix + s.cls_position;
  }
  hv_floats<N> x = hv_read<N>(source);
  if (position >= 0) {
    hv_floats<N> add = hv_read<N>(positions.at(position, at.col));
    HV_UNROLL
    for (int j = 0; j < N; j++) x.at[j] += add.at[j];
  }
  hv_write(y.at(at.row, at.col), x);
}

void hv_cuda_vit_embed(hv_stream *stream, const hv_vit_embed_args *args) {
  if (args->images == 0) return;
  int64_t patches = args->patches.rows / args->images, tokens = args->y.rows / args->images;
  token_shape s = {tokens, tokens - patches, hv_present(args->cls_token), args->pos_embed.rows > patches};
  bool wide = hv_are_wide(args->patches, args->cls_token, args->reg_token, args->pos_embed, args->y);
  hv_with_type(stream, args->y.dtype, [&](auto type) {
    hv_with_width(wide, [&](auto width) {
      using T = decltype(type);
      constexpr int N = decltype(width)::value;
      hv_cover c = hv_cover_of(args->y.rows, args->y.cols, N);
      HV_LAUNCH((vit_embed_kernel<T, N>), c.grid, c.block, 0, stream, s, hv_rows_of<const T>(args->patches),
                (const T *)args->cls_token.data, hv_rows_of<const T>(args->reg_token),
                hv_rows_of<const T>(args->pos_embed), hv_rows_of<T>(args->y), c.cols, c.pieces);
    });
  });
}

/* A parameter's gradient, F32 or BF16, to which sums are added; absent where data is NULL. */
struct gradient_rows {
  void *data;
  int64_t stride;
  bool is_float;
  __device__ void add(int64_t row, int64_t col, float x) const {
    if (!data) return;
    if (is_float) {
      ((float *)data)[row * stride + col] += x;
    } else {
      hv_bf16 *at = (hv_bf16 *)data + row * stride + col;
      *at = hv_from_float<hv_bf16>(hv_to_float(*at) + x);
    }
  }
};

static gradient_rows gradient_of(hv_tensor t) {
  return {t.data, t.row_stride, t.dtype == HV_F32};
}

/* A thread owns one column of one token and goes over the images in order: the order of each sum is fixed without
 * atomics. */
template <typename T>
static __global__ void vit_embed_backward_kernel(token_shape s, int64_t images, hv_rows<const T> dy,
                                                 hv_rows<T> dpatches, gradient_rows dcls, gradient_rows dreg,
                                                 gradient_rows dpositions, int64_t cols, unsigned pieces) {
  hv_place at = hv_place_here<1>(pieces); /* at.row is the token */
  if (at.col >= cols) return;
  int64_t patches = s.tokens - s.prefix, patch = at.row - s.prefix;
  float sum = 0;
  for (int64_t image = 0; image < images; image++) {
    T d = *dy.at(image * s.tokens + at.row, at.col);
    sum += hv_to_float(d);
    if (patch >= 0) *dpatches.at(image * patches + patch, at.col) = d;
  }
  if (at.row < s.cls) {
    dcls.add(0, at.col, sum);
    if (s.cls_position) dpositions.add(0, at.col, sum);
  } else if (patch < 0) {
    dreg.add(at.row - s.cls, at.col, sum);
  } else {
    dpositions.add(patch + s.cls_position, at.col, sum);
  }
}

void hv_cuda_vit_embed_backward(hv_stream *stream, const hv_vit_embed_backward_args *args) {
  if (args->images == 0) return;
  int64_t tokens = args->dy.rows / args->images;
  token_shape s = {tokens, args->prefix_tokens, args->has_cls_token, args->cls_has_position};
  hv_with_type(stream, args->dy.dtype, [&](auto type) {
    using T = decltype(type);
    hv_cover c = hv_cover_of(tokens, args->dy.cols, 1);
    HV_LAUNCH((vit_embed_backward_kernel<T>), c.grid, c.block, 0, stream, s, args->images,
              hv_rows_of<const T>(args->dy), hv_rows_of<T>(args->dpatches), gradient_of(args->dcls_token),
              gradient_of(args->dreg_token), gradient_of(args->dpos_embed), c.cols, c.pieces);
  });
}
