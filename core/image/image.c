#include "core/image/image.h"

#include <stdlib.h>
#include <string.h>

#include <spng.h>
#include <turbojpeg.h>

#include "core/base/file.h"

enum { CHANNELS = 3 };

static const uint8_t png_start[] = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1a, '\n'};

hv_status hv_image_check_size(int64_t width, int64_t height) {
  if (width < 1 || height < 1 || width > HV_IMAGE_MAX_SIDE || height > HV_IMAGE_MAX_SIDE ||
      width * height > HV_IMAGE_MAX_PIXELS) {
    return hv_error(HV_ERR_INPUT,
                    "%lld × %lld pixels are out of range: each side must be 1 to %d, and width × height at most %d",
                    (long long)width, (long long)height, HV_IMAGE_MAX_SIDE, HV_IMAGE_MAX_PIXELS);
  }
  return HV_OK;
}

hv_status hv_image_allocate(int32_t width, int32_t height, hv_image *out) {
  *out = (hv_image){0};
  HV_TRY(hv_image_check_size(width, height));
  uint8_t *rgb = malloc((size_t)width * (size_t)height * CHANNELS);
  if (!rgb) return hv_error_memory("a picture");
  *out = (hv_image){.width = width, .height = height, .rgb = rgb};
  return HV_OK;
}

void hv_image_free(hv_image *image) {
  free(image->rgb);
  *image = (hv_image){0};
}

static hv_status png_error(int code) {
  return hv_error(code == SPNG_EMEM ? HV_ERR_MEMORY : HV_ERR_INPUT, "damaged PNG: %s", spng_strerror(code));
}

/* Pillow opens 16-bit gray as such, and clips it at 255 when it converts it to RGB. */
static hv_status decode_gray16(spng_ctx *png, const hv_image *out) {
  size_t count = (size_t)out->width * (size_t)out->height;
  uint16_t *gray = malloc(count * sizeof *gray);
  if (!gray) return hv_error_memory("a picture");
  int code = spng_decode_image(png, gray, count * sizeof *gray, SPNG_FMT_PNG, 0);
  hv_status status = code ? png_error(code) : HV_OK;
  for (size_t i = 0; i < count && !status; i++) {
    memset(out->rgb + CHANNELS * i, gray[i] > UINT8_MAX ? UINT8_MAX : gray[i], CHANNELS);
  }
  free(gray);
  return status;
}

static hv_status decode_png_pixels(spng_ctx *png, hv_image *out) {
  struct spng_ihdr header;
  int code = spng_get_ihdr(png, &header);
  if (code) return png_error(code);
  HV_TRY(hv_image_check_size(header.width, header.height));
  HV_TRY(hv_image_allocate((int32_t)header.width, (int32_t)header.height, out));
  if (header.bit_depth == 16 && header.color_type == SPNG_COLOR_TYPE_GRAYSCALE) return decode_gray16(png, out);
  size_t size = (size_t)out->width * (size_t)out->height * CHANNELS;
  code = spng_decode_image(png, out->rgb, size, SPNG_FMT_RGB8, 0);
  return code ? png_error(code) : HV_OK;
}

static hv_status decode_png(const void *data, size_t size, hv_image *out) {
  spng_ctx *png = spng_ctx_new(0);
  if (!png) return hv_error_memory("a PNG decoder");
  /* Text and profiles are skipped; the limits, of one chunk and of all that are kept, bound the memory that a hostile
   * file can take. */
  spng_set_chunk_limits(png, 1 << 20, 4 << 20);
  int code = spng_set_png_buffer(png, data, size);
  hv_status status = code ? png_error(code) : decode_png_pixels(png, out);
  spng_ctx_free(png);
  return status;
}

/* Camera streams often leave stray bytes in front of a marker, which decoders skip without harm. */
static bool is_harmless(tjhandle jpeg) {
  return tjGetErrorCode(jpeg) == TJERR_WARNING && strstr(tjGetErrorStr2(jpeg), "extraneous bytes") != NULL;
}

/* Whether the last scan that begins also ends; neither marker occurs within a scan. The library reports only its first
 * warning: after one of stray bytes it does not report a missing end. */
static bool has_end(const uint8_t *data, size_t size) {
  enum { MARKER = 0xff, START_OF_SCAN = 0xda, END_OF_IMAGE = 0xd9 };
  for (size_t at = size; at >= 2; at--) {
    if (data[at - 2] != MARKER) continue;
    if (data[at - 1] == END_OF_IMAGE) return true;
    if (data[at - 1] == START_OF_SCAN) return false;
  }
  return false;
}

static hv_status decode_jpeg_pixels(tjhandle jpeg, const void *data, size_t size, hv_image *out) {
  int width = 0, height = 0, subsampling, colours = TJCS_RGB; /* unchanged if the file holds only tables */
  if (tjDecompressHeader3(jpeg, data, size, &width, &height, &subsampling, &colours) != 0 && !is_harmless(jpeg)) {
    return hv_error(HV_ERR_INPUT, "damaged JPEG: %s", tjGetErrorStr2(jpeg));
  }
  if (width == 0 || height == 0) return hv_error(HV_ERR_INPUT, "damaged JPEG: the file ends in its header");
  if (colours == TJCS_CMYK || colours == TJCS_YCCK) {
    return hv_error(HV_ERR_INPUT, "a CMYK JPEG is not supported; save it as RGB");
  }
  HV_TRY(hv_image_allocate(width, height, out));
  /* Each scan goes over all pixels: without the limit, a file of one megabyte with many small scans takes minutes. */
  if (tjDecompress2(jpeg, data, size, out->rgb, width, 0, height, TJPF_RGB, TJFLAG_LIMITSCANS) == 0) return HV_OK;
  if (!is_harmless(jpeg)) return hv_error(HV_ERR_INPUT, "damaged JPEG: %s", tjGetErrorStr2(jpeg));
  if (!has_end(data, size)) return hv_error(HV_ERR_INPUT, "damaged JPEG: the file ends before the picture is complete");
  return HV_OK;
}

static hv_status decode_jpeg(const void *data, size_t size, hv_image *out) {
  tjhandle jpeg = tjInitDecompress();
  if (!jpeg) return hv_error_memory("a JPEG decoder");
  hv_status status = decode_jpeg_pixels(jpeg, data, size, out);
  tjDestroy(jpeg);
  return status;
}

hv_status hv_image_decode(const void *data, size_t size, const char *where, hv_image *out) {
  static const uint8_t jpeg_start[] = {0xff, 0xd8, 0xff};
  *out = (hv_image){0};
  hv_status status;
  if (size > HV_IMAGE_MAX_FILE) {
    status = hv_error(HV_ERR_INPUT, "the file has %zu bytes; a picture may have at most %d", size, HV_IMAGE_MAX_FILE);
  } else if (size >= sizeof png_start && memcmp(data, png_start, sizeof png_start) == 0) {
    status = decode_png(data, size, out);
  } else if (size >= sizeof jpeg_start && memcmp(data, jpeg_start, sizeof jpeg_start) == 0) {
    status = decode_jpeg(data, size, out);
  } else {
    status = hv_error(HV_ERR_INPUT, "neither a PNG nor a JPEG picture");
  }
  if (status) hv_image_free(out);
  return hv_error_context(status, "%s", where);
}

hv_status hv_image_load(const char *path, hv_image *out) {
  *out = (hv_image){0};
  hv_mapping file;
  HV_TRY(hv_map_file(path, &file));
  hv_status status = hv_image_decode(file.data, file.size, path, out);
  hv_unmap(&file);
  return status;
}

hv_status hv_image_encode_png(const hv_image *image, uint8_t **out, size_t *size) {
  *out = NULL;
  spng_ctx *png = spng_ctx_new(SPNG_CTX_ENCODER);
  if (!png) return hv_error_memory("a PNG encoder");
  struct spng_ihdr header = {.width = (uint32_t)image->width,
                             .height = (uint32_t)image->height,
                             .bit_depth = 8,
                             .color_type = SPNG_COLOR_TYPE_TRUECOLOR};
  size_t bytes = (size_t)image->width * (size_t)image->height * CHANNELS;
  int code = spng_set_option(png, SPNG_ENCODE_TO_BUFFER, 1);
  if (!code) code = spng_set_ihdr(png, &header);
  if (!code) code = spng_encode_image(png, image->rgb, bytes, SPNG_FMT_PNG, SPNG_ENCODE_FINALIZE);
  if (!code) *out = spng_get_png_buffer(png, size, &code);
  spng_ctx_free(png);
  if (code)
    return hv_error(code == SPNG_EMEM ? HV_ERR_MEMORY : HV_ERR_INTERNAL, "PNG encoder: %s", spng_strerror(code));
  return HV_OK;
}

/* A mistyped path must not overwrite other data, such as demonstrations. */
static hv_status check_replaceable(const char *path) {
  if (!hv_file_exists(path)) return HV_OK;
  hv_mapping there;
  HV_TRY(hv_map_file(path, &there));
  bool is_png = there.size >= sizeof png_start && memcmp(there.data, png_start, sizeof png_start) == 0;
  bool keep = there.size > 0 && !is_png;
  hv_unmap(&there);
  return keep ? hv_error(HV_ERR_INPUT, "%s exists and is not a PNG: only a PNG is overwritten; give another path", path)
              : HV_OK;
}

hv_status hv_image_save_png(const char *path, const hv_image *image) {
  uint8_t *png;
  size_t size = 0;
  HV_TRY(check_replaceable(path));
  HV_TRY(hv_error_context(hv_image_encode_png(image, &png, &size), "%s", path));
  hv_status status = hv_write_file_atomic(path, png, size);
  free(png);
  return status;
}
