/* Image bytes to patches, and the tokens of a vision tower. */
#include "core/cpu/kernel.h"

typedef struct patchify_context {
  const hv_patchify_args *args;
  real value[3][256]; /* of each channel's byte */
} patchify_context;

static void patchify_rows(const void *context, int64_t first, int64_t last, void *scratch) {
  const patchify_context *c = context;
  const hv_patchify_args *a = c->args;
  int64_t side = a->image_size / a->patch_size, patch = a->patch_size;
  for (int64_t row = first; row < last; row++) {
    int64_t image = row / (side * side), top = row / side % side * patch, left = row % side * patch;
    const uint8_t *pixels = element(&a->images, image, (top * a->image_size + left) * 3);
    real *y = target(&a->y, row, 0, scratch), *to = y;
    for (int64_t channel = 0; channel < 3; channel++) {
      for (int64_t py = 0; py < patch; py++) {
        const uint8_t *line = pixels + py * a->image_size * 3 + channel;
        for (int64_t px = 0; px < patch; px++) *to++ = c->value[channel][line[3 * px]];
      }
    }
    store(&a->y, row, 0, a->y.cols, y);
  }
}

void HV_KERNEL(patchify)(hv_cpu_pool *pool, const hv_patchify_args *args) {
  if (!hv_cpu_reserve(pool, (size_t)args->y.cols * sizeof(real))) return;
  patchify_context c = {.args = args};
  for (int channel = 0; channel < 3; channel++) {
    for (int byte = 0; byte < 256; byte++) {
      c.value[channel][byte] = ((real)byte / 255 - (real)args->mean[channel]) / (real)args->std[channel];
    }
  }
  hv_cpu_for(pool, args->y.rows, hv_cpu_grain(2 * args->y.cols), patchify_rows, &c);
}

/* y[row] = source[source_row] (+ position[position_row], if that is not negative) */
static void embed_row(const hv_tensor *y, int64_t row, const hv_tensor *source, int64_t source_row,
                      const hv_tensor *position, int64_t position_row) {
  real buffer[3][HV_CHUNK];
  for (int64_t col = 0; col < y->cols; col += HV_CHUNK) {
    int64_t count = min_i64(HV_CHUNK, y->cols - col);
    const real *from = load(source, source_row, col, count, buffer[0]);
    real *to = target(y, row, col, buffer[1]);
    if (position_row < 0) {
      memcpy(to, from, (size_t)count * sizeof *to);
    } else {
      const real *add = load(position, position_row, col, count, buffer[2]);
#pragma omp simd
      for (int64_t j = 0; j < count; j++) to[j] = from[j] + add[j];
    }
    store(y, row, col, count, to);
  }
}

static void vit_embed_rows(const void *context, int64_t first, int64_t last, void *scratch) {
  (void)scratch;
  const hv_vit_embed_args *a = context;
  int64_t patches = a->patches.rows / a->images, tokens = a->y.rows / a->images;
  int64_t cls = hv_present(a->cls_token) ? 1 : 0, prefix = tokens - patches;
  int64_t cls_position = a->pos_embed.rows > patches ? 1 : 0;
  for (int64_t row = first; row < last; row++) {
    int64_t image = row / tokens, token = row % tokens;
    if (token < cls) {
      embed_row(&a->y, row, &a->cls_token, 0, &a->pos_embed, cls_position ? 0 : -1);
    } else if (token < prefix) {
      embed_row(&a->y, row, &a->reg_token, token - cls, &a->pos_embed, -1);
    } else {
      int64_t patch = token - prefix;
      embed_row(&a->y, row, &a->patches, image * patches + patch, &a->pos_embed, patch + cls_position);
    }
  }
}

void HV_KERNEL(vit_embed)(hv_cpu_pool *pool, const hv_vit_embed_args *args) {
  if (args->images == 0) return;
  hv_cpu_for(pool, args->y.rows, hv_cpu_grain(2 * args->y.cols), vit_embed_rows, args);
}

static void add_values(const hv_tensor *sum, int64_t row, int64_t col, int64_t count, const real *values) {
  if (!hv_present(*sum)) return;
  real old_buffer[HV_CHUNK], buffer[HV_CHUNK];
  const real *old = load(sum, row, col, count, old_buffer);
  real *to = target(sum, row, col, buffer);
#pragma omp simd
  for (int64_t j = 0; j < count; j++) to[j] = old[j] + values[j];
  store(sum, row, col, count, to);
}

/* One piece of one token, over all images: its gradient goes to the patch, and its sum to what all images share. */
static void token_gradient(const hv_vit_embed_backward_args *a, int64_t token, int64_t col, int64_t count) {
  int64_t tokens = a->dy.rows / a->images, patches = tokens - a->prefix_tokens, patch = token - a->prefix_tokens;
  real sum[HV_CHUNK] = {0}, buffer[HV_CHUNK];
  for (int64_t image = 0; image < a->images; image++) {
    const real *dy = load(&a->dy, image * tokens + token, col, count, buffer);
#pragma omp simd
    for (int64_t j = 0; j < count; j++) sum[j] += dy[j];
    if (patch >= 0) store(&a->dpatches, image * patches + patch, col, count, dy);
  }
  int64_t cls = a->has_cls_token ? 1 : 0;
  if (token < cls) {
    add_values(&a->dcls_token, 0, col, count, sum);
    if (a->cls_has_position) add_values(&a->dpos_embed, 0, col, count, sum);
  } else if (patch < 0) {
    add_values(&a->dreg_token, token - cls, col, count, sum);
  } else {
    add_values(&a->dpos_embed, patch + (a->cls_has_position ? 1 : 0), col, count, sum);
  }
}

static void vit_embed_backward_chunks(const void *context, int64_t first, int64_t last, void *scratch) {
  (void)scratch;
  const hv_vit_embed_backward_args *a = context;
  int64_t chunks = chunks_of(a->dy.cols);
  for (int64_t i = first; i < last; i++) {
    int64_t col = i % chunks * HV_CHUNK;
    token_gradient(a, i / chunks, col, min_i64(HV_CHUNK, a->dy.cols - col));
  }
}

void HV_KERNEL(vit_embed_backward)(hv_cpu_pool *pool, const hv_vit_embed_backward_args *args) {
  if (args->images == 0) return;
  int64_t count = args->dy.rows / args->images * chunks_of(args->dy.cols);
  hv_cpu_for(pool, count, hv_cpu_grain(args->images * HV_CHUNK), vit_embed_backward_chunks, args);
}
