/* Pictures of 8-bit RGB: decoded from PNG and JPEG, written as PNG. */
#ifndef HV_IMAGE_IMAGE_H
#define HV_IMAGE_IMAGE_H

#include <stddef.h>
#include <stdint.h>

#include "core/base/status.h"

enum { HV_IMAGE_MAX_SIDE = 16384, HV_IMAGE_MAX_PIXELS = 64 << 20, HV_IMAGE_MAX_FILE = 256 << 20 };

typedef struct hv_image {
  int32_t width, height;
  uint8_t *rgb; /* owned: [height, width, 3] */
} hv_image;

/* HV_ERR_INPUT for a picture without pixels or beyond the limits. */
HV_NODISCARD hv_status hv_image_check_size(int64_t width, int64_t height);

HV_NODISCARD hv_status hv_image_allocate(int32_t width, int32_t height, hv_image *out); /* contents undefined */
void hv_image_free(hv_image *image);                                                    /* leaves it empty */

/* PNG or JPEG, told apart by the first bytes. PNG of any depth and colour type becomes what Pillow's convert("RGB")
 * gives: alpha is dropped, a palette looked up, 16-bit colours keep the upper 8 bits, 16-bit gray is clipped at 255.
 * JPEG may be RGB or gray. A picture beyond the limits above, a truncated or damaged one and a CMYK JPEG are errors;
 * `where` names it. Safe from several threads. */
HV_NODISCARD hv_status hv_image_decode(const void *data, size_t size, const char *where, hv_image *out);
HV_NODISCARD hv_status hv_image_load(const char *path, hv_image *out);

/* PNG bytes on the heap, freed by the caller. */
HV_NODISCARD hv_status hv_image_encode_png(const hv_image *image, uint8_t **out, size_t *size);
/* Atomic. A file that is there and is no PNG is left as it is: HV_ERR_INPUT. */
HV_NODISCARD hv_status hv_image_save_png(const char *path, const hv_image *image);

#endif
