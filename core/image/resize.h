/* Bicubic resizing of 8-bit RGB, every byte as Pillow (up to 12.0) makes it, and what a camera frame becomes.
 *
 * Pillow filters rows first, then columns, each with the kernel a = −0.5 stretched by the shrink factor (antialias),
 * weights normalised over the pixels inside the picture and rounded to 22 fractional bits, and rounds to 8 bits after
 * each pass.
 */
#ifndef HV_IMAGE_RESIZE_H
#define HV_IMAGE_RESIZE_H

#include <stdint.h>

#include "core/base/status.h"
#include "core/hybridvla/config.h"

typedef struct hv_resizer hv_resizer;

/* For pictures of width × height: weights and intermediate memory are made once, and hv_resizer_run allocates nothing.
 * A handle serves one thread at a time. */
HV_NODISCARD hv_status hv_resizer_open(int32_t width, int32_t height, int32_t out_width, int32_t out_height,
                                       hv_resizer **out);

/* The resize of a model's camera frames, to a square of `size`. HV_RESIZE_NAIVE does not keep the aspect ratio.
 * HV_RESIZE_LETTERBOX first pads the shorter side to the longer one, equally on both sides, in the colour int(255 ·
 * mean), clipped to 0 … 255 as Pillow does; if the difference is odd, the padded picture is one pixel off square, as in
 * the public code. `mean` is the first tower's. */
HV_NODISCARD hv_status hv_resizer_open_frame(int32_t width, int32_t height, int32_t size, hv_image_resize mode,
                                             const double mean[3], hv_resizer **out);

/* rgb [height, width, 3] → out [out_height, out_width, 3]. */
void hv_resizer_run(hv_resizer *resizer, const uint8_t *rgb, uint8_t *out);
void hv_resizer_close(hv_resizer *resizer); /* NULL is allowed */

#endif
