/* PNG and JPEG decoding against the pixels that Pillow decodes (tests/fixtures/image), damaged and hostile files, and
 * the PNG writer. */
#include "core/image/image.h"

#include <turbojpeg.h>

#include "core/base/text.h"
#include "core/io/safetensors.h"
#include "tests/check.h"

static int open_fixtures(void **state) {
  const char *path = HVLA_SOURCE_DIR "/tests/fixtures/image/pictures.safetensors";
  return hv_safetensors_open(path, (hv_safetensors **)state) ? -1 : 0;
}

static int close_fixtures(void **state) {
  hv_safetensors_close(*state);
  return 0;
}

static const hv_file_tensor *fixture(const hv_safetensors *file, const char *kind, const char *name) {
  char key[96];
  snprintf(key, sizeof key, "%s.%s", kind, name);
  const hv_file_tensor *tensor;
  assert_ok(hv_safetensors_require(file, key, &tensor));
  return tensor;
}

static void every_kind_decodes_as_in_pillow(void **state) {
  const hv_safetensors *file = *state;
  int compared = 0;
  for (int32_t i = 0; i < hv_safetensors_count(file); i++) {
    const hv_file_tensor *encoded = hv_safetensors_get(file, i);
    if (strncmp(encoded->name, "file.", 5) != 0) continue;
    const char *name = encoded->name + 5;
    const hv_file_tensor *expected = fixture(file, "rgb", name);
    hv_image image;
    assert_ok(hv_image_decode(encoded->data, encoded->size, name, &image));
    assert_int_equal(image.height, expected->shape[0]);
    assert_int_equal(image.width, expected->shape[1]);
    if (memcmp(image.rgb, expected->data, expected->size) != 0) fail_msg("%s differs from Pillow's", name);
    hv_image_free(&image);
    compared++;
  }
  assert_int_equal(compared, 34);
}

static void truncated_files_are_refused(void **state) {
  static const char *const names[] = {"rgb8.png", "interlaced.png", "palette4.png", "yuv420_q75.jpg",
                                      "progressive.jpg"};
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
    const hv_file_tensor *encoded = fixture(*state, "file", names[i]);
    bool is_png = strstr(names[i], "png") != NULL;
    /* A cut behind the last pixel need not be refused: it loses a PNG's last checksum and end chunk, or a JPEG's end
     * marker of two bytes. */
    size_t longest = encoded->size - (is_png ? 17 : 3);
    for (size_t size = 0; size <= longest; size += size < 64 ? 1 : 7) {
      hv_image image;
      assert_error(hv_image_decode(encoded->data, size, "cut.img", &image), "cut.img");
      assert_null(image.rgb);
    }
  }
}

/* Some cameras leave stray bytes before a segment and before the end. libjpeg warns about them, and then about nothing
 * else: a truncation after them must still be noticed. */
static void stray_bytes_in_a_jpeg_hide_no_truncation(void **state) {
  const hv_file_tensor *encoded = fixture(*state, "file", "yuv420_q75.jpg");
  const hv_file_tensor *expected = fixture(*state, "rgb", "yuv420_q75.jpg");
  const char *whole = encoded->data;
  size_t second = 4 + (size_t)((uint8_t)whole[4] << 8 | (uint8_t)whole[5]); /* where the second segment begins */
  hv_text stray = {0};
  hv_text_add_bytes(&stray, whole, second);
  hv_text_add_bytes(&stray, "\0\x11", 2);
  hv_text_add_bytes(&stray, whole + second, encoded->size - second - 2);
  hv_text_add_bytes(&stray, "\0", 1);
  hv_text_add_bytes(&stray, whole + encoded->size - 2, 2);
  assert_false(stray.failed);
  hv_image image;
  assert_ok(hv_image_decode(stray.data, stray.length, "camera.jpg", &image));
  assert_memory_equal(image.rgb, expected->data, expected->size);
  hv_image_free(&image);
  for (size_t size = stray.length - 4; size > 64; size -= 7) {
    assert_error(hv_image_decode(stray.data, size, "cut.jpg", &image), "cut.jpg", "damaged JPEG");
    assert_null(image.rgb);
  }
  hv_text_free(&stray);
}

static void put_big_endian(uint8_t *at, uint32_t value) {
  for (int i = 0; i < 4; i++) at[i] = (uint8_t)(value >> (24 - 8 * i));
}

static uint32_t png_crc(const uint8_t *bytes, size_t size) {
  uint32_t crc = ~0u;
  for (size_t i = 0; i < size; i++) {
    crc ^= bytes[i];
    for (int bit = 0; bit < 8; bit++) crc = (crc >> 1) ^ (crc & 1 ? 0xedb88320u : 0);
  }
  return ~crc;
}

/* Leaves numbers on the stack that look like valid sizes. */
static void soil_the_stack(void) {
  volatile int values[1024];
  for (size_t i = 0; i < sizeof values / sizeof *values; i++) values[i] = 64;
}

/* The library sets no size for such a file; whatever the variables held before must not be taken for one. */
static void a_jpeg_of_tables_alone_is_refused(void **state) {
  (void)state;
  hv_image image;
  soil_the_stack();
  assert_error(hv_image_decode("\xff\xd8\xff\xd9", 4, "tables.jpg", &image), "tables.jpg", "ends in its header");
}

static void a_picture_that_claims_to_be_huge_is_refused(void **state) {
  const hv_file_tensor *encoded = fixture(*state, "file", "rgb8.png");
  uint8_t *bytes = malloc(encoded->size);
  assert_non_null(bytes);
  memcpy(bytes, encoded->data, encoded->size);
  static const uint32_t sides[][2] = {{16385, 1}, {1, 1u << 30}, {16384, 16384}};
  for (size_t i = 0; i < 3; i++) {
    put_big_endian(bytes + 16, sides[i][0]);
    put_big_endian(bytes + 20, sides[i][1]);
    put_big_endian(bytes + 29, png_crc(bytes + 12, 17));
    hv_image image;
    assert_error(hv_image_decode(bytes, encoded->size, "bomb.png", &image), "bomb.png", "out of range");
  }
  free(bytes);
}

/* Each scan of a progressive JPEG goes over the whole picture, so a small file with many scans would take very long. */
static void a_jpeg_of_endless_scans_is_refused(void **state) {
  enum { START_OF_SCAN = 0xda, SCANS = 500 };
  const hv_file_tensor *encoded = fixture(*state, "file", "progressive.jpg");
  const uint8_t *bytes = encoded->data;
  size_t last = 0, end = encoded->size - 2;
  for (size_t i = 0; i < end; i++) {
    if (bytes[i] == 0xff && bytes[i + 1] == START_OF_SCAN) last = i;
  }
  hv_text bomb = {0};
  hv_text_add_bytes(&bomb, encoded->data, end);
  for (int i = 0; i < SCANS; i++) hv_text_add_bytes(&bomb, (const char *)bytes + last, end - last);
  hv_text_add_bytes(&bomb, (const char *)bytes + end, 2);
  assert_false(bomb.failed);
  hv_image image;
  assert_error(hv_image_decode(bomb.data, bomb.length, "bomb.jpg", &image), "bomb.jpg", "more than 500 scans");
  assert_null(image.rgb);
  hv_text_free(&bomb);
}

static void other_files_are_named_for_what_they_are_not(void **state) {
  (void)state;
  hv_image image;
  assert_error(hv_image_decode("GIF89a", 6, "a.gif", &image), "a.gif", "neither a PNG nor a JPEG");
  assert_error(hv_image_decode("", 0, "empty", &image), "empty");
  assert_error(hv_image_decode("\xff\xd8\xff", (size_t)HV_IMAGE_MAX_FILE + 1, "long.jpg", &image), "long.jpg",
               "at most 268435456");
  assert_error(hv_image_load("/nonexistent/picture.png", &image), "/nonexistent/picture.png");
}

/* A CMYK JPEG, as made for printing. */
static void a_jpeg_of_four_inks_is_refused(void **state) {
  (void)state;
  static const uint8_t inks[8 * 8 * 4] = {0};
  unsigned char *bytes = NULL;
  unsigned long size = 0;
  tjhandle encoder = tjInitCompress();
  assert_non_null(encoder);
  assert_int_equal(tjCompress2(encoder, inks, 8, 0, 8, TJPF_CMYK, &bytes, &size, TJSAMP_444, 90, 0), 0);
  hv_image image;
  assert_error(hv_image_decode(bytes, size, "print.jpg", &image), "print.jpg", "a CMYK JPEG is not supported");
  assert_null(image.rgb);
  tjFree(bytes);
  tjDestroy(encoder);
}

static void a_written_png_reads_back(void **state) {
  (void)state;
  void *folder = NULL;
  assert_int_equal(make_folder(&folder), 0);
  hv_image image, back;
  assert_ok(hv_image_allocate(31, 7, &image));
  for (int i = 0; i < 31 * 7 * 3; i++) image.rgb[i] = (uint8_t)(i * 37 + i / 11);
  assert_ok(hv_image_save_png(in_folder(folder, "out.png"), &image));
  assert_ok(hv_image_load(in_folder(folder, "out.png"), &back));
  assert_int_equal(back.width, 31);
  assert_int_equal(back.height, 7);
  assert_memory_equal(back.rgb, image.rgb, 31 * 7 * 3);
  hv_image_free(&image);
  hv_image_free(&back);
  assert_error(hv_image_allocate(0, 5, &image), "0 × 5");
  assert_int_equal(remove_folder(&folder), 0);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(every_kind_decodes_as_in_pillow),
      cmocka_unit_test(truncated_files_are_refused),
      cmocka_unit_test(stray_bytes_in_a_jpeg_hide_no_truncation),
      cmocka_unit_test(a_jpeg_of_tables_alone_is_refused),
      cmocka_unit_test(a_picture_that_claims_to_be_huge_is_refused),
      cmocka_unit_test(a_jpeg_of_endless_scans_is_refused),
      cmocka_unit_test(other_files_are_named_for_what_they_are_not),
      cmocka_unit_test(a_jpeg_of_four_inks_is_refused),
      cmocka_unit_test(a_written_png_reads_back),
  };
  return cmocka_run_group_tests(tests, open_fixtures, close_fixtures);
}
