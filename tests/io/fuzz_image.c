/* Fuzzes the PNG and JPEG decoder (fuzz.h). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/image/image.h"
#include "core/io/safetensors.h"
#include "tests/io/fuzz.h"

/* A picture that decodes has sides within the limits, and is the same after being written and read. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  hv_image image, back;
  hv_status status = hv_image_decode(data, size, "input", &image);
  if (status) {
    FUZZ_CHECK(strstr(hv_status_message(status), "input") && !image.rgb);
    hv_status_free(status);
    return 0;
  }
  FUZZ_CHECK(image.width >= 1 && image.width <= HV_IMAGE_MAX_SIDE && image.height >= 1 &&
             image.height <= HV_IMAGE_MAX_SIDE);
  size_t bytes = (size_t)image.width * (size_t)image.height * 3, png_size;
  if (bytes <= 1 << 16) {
    uint8_t *png;
    FUZZ_CHECK(!hv_image_encode_png(&image, &png, &png_size));
    FUZZ_CHECK(!hv_image_decode(png, png_size, "png", &back));
    FUZZ_CHECK(back.width == image.width && memcmp(back.rgb, image.rgb, bytes) == 0);
    hv_image_free(&back);
    free(png);
  }
  hv_image_free(&image);
  return 0;
}

bool fuzz_seed(int index, uint8_t **data, size_t *size) {
  static const char *const names[] = {"gray1.png",       "gray16.png",   "palette4.png",   "interlaced.png",
                                      "rgba16.png",      "filtered.png", "yuv420_q75.jpg", "yuv444_q40.jpg",
                                      "progressive.jpg", "restart.jpg",  "gray.jpg"};
  if ((size_t)index >= sizeof names / sizeof *names) return false;
  hv_safetensors *file;
  FUZZ_CHECK(!hv_safetensors_open(HVLA_SOURCE_DIR "/tests/fixtures/image/pictures.safetensors", &file));
  char key[64];
  snprintf(key, sizeof key, "file.%s", names[index]);
  const hv_file_tensor *tensor = hv_safetensors_find(file, key);
  FUZZ_CHECK(tensor);
  *size = tensor->size;
  *data = malloc(*size);
  FUZZ_CHECK(*data);
  memcpy(*data, tensor->data, *size);
  hv_safetensors_close(file);
  return true;
}
