#include "core/image/resize.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/image/image.h"

enum { FRACTION_BITS = 32 - 8 - 2, CHANNELS = 3 };

/* One direction: out pixel i is the sum of `count[i]` source pixels from `first[i]` on, by weights [i, taps]. */
typedef struct axis {
  int32_t in, out, taps;
  int32_t *first, *count, *weights;
} axis;

struct hv_resizer {
  axis x, y;
  uint8_t *narrow; /* [y.in, x.out, 3]: output of the first pass; NULL if one pass is enough */
  int32_t *sums;   /* [x.out · 3]: a row of the second pass */
  /* Letterbox: the picture is copied to (left, top) of [y.in, x.in, 3], whose border is filled once. NULL: none. */
  uint8_t *padded;
  int32_t width, height, left, top;
};

/* The cubic convolution kernel with a = −1/2 (Keys 1981). */
static double cubic(double x) {
  const double a = -0.5;
  x = fabs(x);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  if (x < 2) return (((x - 5) * x + 8) * x - 4) * a;
  return 0;
}

/* Halves away from zero, as Pillow rounds its weights. */
static int32_t to_fixed(double weight) {
  double scaled = weight * (1 << FRACTION_BITS);
  return (int32_t)(scaled < 0 ? scaled - 0.5 : scaled + 0.5);
}

static void weigh(axis *a, int32_t index, double scale, double stretch, double support, double *weights) {
  double centre = (index + 0.5) * scale;
  int32_t first = (int32_t)(centre - support + 0.5), last = (int32_t)(centre + support + 0.5);
  if (first < 0) first = 0;
  if (last > a->in) last = a->in;
  double sum = 0;
  for (int32_t i = first; i < last; i++) {
    weights[i - first] = cubic((i - centre + 0.5) * (1 / stretch));
    sum += weights[i - first];
  }
  a->first[index] = first;
  a->count[index] = last - first;
  int32_t *fixed = a->weights + (size_t)index * (size_t)a->taps;
  for (int32_t i = 0; i < last - first; i++) fixed[i] = to_fixed(sum != 0 ? weights[i] / sum : weights[i]);
}

static hv_status open_axis(int32_t in, int32_t out, axis *a) {
  double scale = (double)in / out;
  double stretch = scale < 1 ? 1 : scale;
  double support = 2 * stretch;
  *a = (axis){.in = in, .out = out, .taps = (int32_t)ceil(support) * 2 + 1};
  a->first = malloc((size_t)out * sizeof *a->first);
  a->count = malloc((size_t)out * sizeof *a->count);
  a->weights = calloc((size_t)out * (size_t)a->taps, sizeof *a->weights);
  double *weights = calloc((size_t)a->taps, sizeof *weights);
  hv_status status = HV_OK;
  if (!a->first || !a->count || !a->weights || !weights) {
    status = hv_error_memory("the weights of a resize");
  } else {
    for (int32_t i = 0; i < out; i++) weigh(a, i, scale, stretch, support, weights);
  }
  free(weights);
  return status;
}

static void close_axis(axis *a) {
  free(a->first);
  free(a->count);
  free(a->weights);
}

hv_status hv_resizer_open(int32_t width, int32_t height, int32_t out_width, int32_t out_height, hv_resizer **out) {
  *out = NULL;
  HV_TRY(hv_error_context(hv_image_check_size(width, height), "a picture to resize"));
  HV_TRY(hv_error_context(hv_image_check_size(out_width, out_height), "a resized picture"));
  hv_resizer *resizer = calloc(1, sizeof *resizer);
  if (!resizer) return hv_error_memory("a resize");
  hv_status status = HV_OK;
  resizer->width = width;
  resizer->height = height;
  HV_CHECK(open_axis(width, out_width, &resizer->x));
  HV_CHECK(open_axis(height, out_height, &resizer->y));
  resizer->sums = malloc((size_t)out_width * CHANNELS * sizeof *resizer->sums);
  bool two_passes = width != out_width && height != out_height;
  if (two_passes) resizer->narrow = malloc((size_t)height * (size_t)out_width * CHANNELS);
  if (!resizer->sums || (two_passes && !resizer->narrow)) status = hv_error_memory("a resize");
done:
  if (status) {
    hv_resizer_close(resizer);
    return status;
  }
  *out = resizer;
  return HV_OK;
}

hv_status hv_resizer_open_frame(int32_t width, int32_t height, int32_t size, hv_image_resize mode, const double mean[3],
                                hv_resizer **out) {
  *out = NULL;
  if (mode == HV_RESIZE_NAIVE || width == height) return hv_resizer_open(width, height, size, size, out);
  /* Half the difference, rounded down, goes on each side: if it is odd, the shorter side stays one pixel short. */
  int32_t side = width > height ? width : height, left = (side - width) / 2, top = (side - height) / 2;
  hv_resizer *resizer;
  HV_TRY(hv_resizer_open(width + 2 * left, height + 2 * top, size, size, &resizer));
  resizer->width = width;
  resizer->height = height;
  resizer->left = left;
  resizer->top = top;
  size_t pixels = (size_t)(width + 2 * left) * (size_t)(height + 2 * top);
  resizer->padded = malloc(pixels * CHANNELS);
  if (!resizer->padded) {
    hv_resizer_close(resizer);
    return hv_error_memory("a padded picture");
  }
  uint8_t colour[CHANNELS];
  for (int i = 0; i < CHANNELS; i++) colour[i] = (uint8_t)fmin(fmax(255 * mean[i], 0), 255);
  for (size_t i = 0; i < pixels * CHANNELS; i++) resizer->padded[i] = colour[i % CHANNELS];
  *out = resizer;
  return HV_OK;
}

void hv_resizer_close(hv_resizer *resizer) {
  if (!resizer) return;
  close_axis(&resizer->x);
  close_axis(&resizer->y);
  free(resizer->narrow);
  free(resizer->sums);
  free(resizer->padded);
  free(resizer);
}

static uint8_t to_byte(int32_t sum) {
  int32_t value = sum >> FRACTION_BITS;
  return (uint8_t)(value < 0 ? 0 : value > 255 ? 255 : value);
}

static void resize_row(const axis *a, const uint8_t *from, uint8_t *to) {
  for (int32_t x = 0; x < a->out; x++) {
    const int32_t *weights = a->weights + (size_t)x * (size_t)a->taps;
    const uint8_t *pixel = from + (size_t)a->first[x] * CHANNELS;
    int32_t red = 1 << (FRACTION_BITS - 1), green = red, blue = red;
    for (int32_t i = 0; i < a->count[x]; i++, pixel += CHANNELS) {
      red += pixel[0] * weights[i];
      green += pixel[1] * weights[i];
      blue += pixel[2] * weights[i];
    }
    *to++ = to_byte(red);
    *to++ = to_byte(green);
    *to++ = to_byte(blue);
  }
}

/* All columns of one output row together, source row after source row. */
static void resize_columns(const axis *a, int32_t y, const uint8_t *from, size_t row_size, int32_t *sums, uint8_t *to) {
  const int32_t *weights = a->weights + (size_t)y * (size_t)a->taps;
  for (size_t i = 0; i < row_size; i++) sums[i] = 1 << (FRACTION_BITS - 1);
  for (int32_t k = 0; k < a->count[y]; k++) {
    const uint8_t *row = from + (size_t)(a->first[y] + k) * row_size;
    int32_t weight = weights[k];
    for (size_t i = 0; i < row_size; i++) sums[i] += row[i] * weight;
  }
  for (size_t i = 0; i < row_size; i++) to[i] = to_byte(sums[i]);
}

static const uint8_t *pad(hv_resizer *resizer, const uint8_t *rgb) {
  size_t row_size = (size_t)resizer->width * CHANNELS;
  for (int32_t y = 0; y < resizer->height; y++) {
    size_t place = (size_t)(resizer->top + y) * (size_t)resizer->x.in + (size_t)resizer->left;
    memcpy(resizer->padded + place * CHANNELS, rgb + (size_t)y * row_size, row_size);
  }
  return resizer->padded;
}

void hv_resizer_run(hv_resizer *resizer, const uint8_t *rgb, uint8_t *out) {
  const axis *x = &resizer->x, *y = &resizer->y;
  if (resizer->padded) rgb = pad(resizer, rgb);
  size_t in_row = (size_t)x->in * CHANNELS, out_row = (size_t)x->out * CHANNELS;
  bool wider = x->in != x->out, taller = y->in != y->out;
  const uint8_t *narrow = rgb;
  if (wider) {
    uint8_t *to = taller ? resizer->narrow : out;
    for (int32_t row = 0; row < y->in; row++) resize_row(x, rgb + (size_t)row * in_row, to + (size_t)row * out_row);
    narrow = to;
  }
  if (taller) {
    for (int32_t row = 0; row < y->out; row++) {
      resize_columns(y, row, narrow, out_row, resizer->sums, out + (size_t)row * out_row);
    }
  }
  if (!wider && !taller) memcpy(out, rgb, (size_t)y->in * in_row);
}
