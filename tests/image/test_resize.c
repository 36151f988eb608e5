/* Resized pictures against Pillow's (tests/fixtures/resize): every byte of small ones, checksums of large ones. */
#include <zlib.h>

#include "core/image/resize.h"
#include "core/io/json.h"
#include "core/io/safetensors.h"
#include "tests/check.h"

#define FIXTURES HVLA_SOURCE_DIR "/tests/fixtures/resize/"

static int open_fixtures(void **state) {
  return hv_safetensors_open(FIXTURES "resize.safetensors", (hv_safetensors **)state) ? -1 : 0;
}

static int close_fixtures(void **state) {
  hv_safetensors_close(*state);
  return 0;
}

static const hv_file_tensor *input(const hv_safetensors *file, const char *name) {
  char key[64];
  snprintf(key, sizeof key, "in.%s", name);
  const hv_file_tensor *tensor;
  assert_ok(hv_safetensors_require(file, key, &tensor));
  return tensor;
}

static void compare(const hv_file_tensor *expected, hv_resizer *resizer, const hv_file_tensor *in) {
  uint8_t *out = malloc(expected->size);
  assert_non_null(out);
  /* Twice, to see that one run leaves nothing behind in the resizer that changes the next. */
  for (int run = 0; run < 2; run++) {
    memset(out, run * 255, expected->size);
    hv_resizer_run(resizer, in->data, out);
    assert_memory_equal(out, expected->data, expected->size);
  }
  free(out);
}

static void naive_resize_gives_pillows_bytes(void **state) {
  const hv_safetensors *file = *state;
  int compared = 0;
  for (int32_t i = 0; i < hv_safetensors_count(file); i++) {
    const hv_file_tensor *expected = hv_safetensors_get(file, i);
    /* naive.NAME.WIDTHxHEIGHT */
    if (strncmp(expected->name, "naive.", 6) != 0) continue;
    char name[32], *end;
    snprintf(name, sizeof name, "%.*s", (int)strcspn(expected->name + 6, "."), expected->name + 6);
    int32_t width = (int32_t)strtol(expected->name + 6 + strlen(name) + 1, &end, 10);
    int32_t height = (int32_t)strtol(end + 1, NULL, 10);
    const hv_file_tensor *in = input(file, name);
    hv_resizer *resizer;
    assert_ok(hv_resizer_open((int32_t)in->shape[1], (int32_t)in->shape[0], width, height, &resizer));
    compare(expected, resizer, in);
    hv_resizer_close(resizer);
    compared++;
  }
  assert_int_equal(compared, 17);
}

static void letterbox_pads_in_the_mean_colour(void **state) {
  const hv_safetensors *file = *state;
  const double mean[3] = {0.48145466, 0.4578275, 0.40821073};
  const hv_file_tensor *fill = hv_safetensors_find(file, "fill");
  for (int i = 0; i < 3; i++) assert_int_equal(((const uint8_t *)fill->data)[i], (int)(255 * mean[i]));
  static const char *const names[] = {"wide", "tall", "odd"};
  for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
    char key[64];
    snprintf(key, sizeof key, "letterbox.%s.28", names[i]);
    const hv_file_tensor *expected, *in = input(file, names[i]);
    assert_ok(hv_safetensors_require(file, key, &expected));
    hv_resizer *resizer;
    assert_ok(
        hv_resizer_open_frame((int32_t)in->shape[1], (int32_t)in->shape[0], 28, HV_RESIZE_LETTERBOX, mean, &resizer));
    compare(expected, resizer, in);
    hv_resizer_close(resizer);
  }
}

/* Pillow clips a mean of 300 to 255, and of −5 to 0. */
static void a_mean_that_is_no_colour_is_clipped(void **state) {
  (void)state;
  static const struct {
    double mean[3];
    uint8_t colour[3];
  } cases[] = {
      {{1, 0, 254.9 / 255}, {255, 0, 254}}, {{1.01, -0.01, 1e300}, {255, 0, 255}}, {{-1e300, 300, -2}, {0, 255, 0}}};
  const uint8_t picture[9] = {1, 2, 3, 4, 5, 6, 7, 8, 9};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    uint8_t out[9 * 3];
    hv_resizer *resizer;
    assert_ok(hv_resizer_open_frame(3, 1, 3, HV_RESIZE_LETTERBOX, cases[i].mean, &resizer));
    hv_resizer_run(resizer, picture, out);
    hv_resizer_close(resizer);
    for (int pixel = 0; pixel < 9; pixel++)
      assert_memory_equal(out + pixel * 3, pixel / 3 == 1 ? picture + pixel % 3 * 3 : cases[i].colour, 3);
  }
}

/* The same pixels as those of the generator in scripts/fixtures/make_resize.py. */
static uint8_t *generate(size_t size, uint32_t x) {
  uint8_t *bytes = malloc(size);
  assert_non_null(bytes);
  for (size_t i = 0; i < size; i++) {
    x = 1664525u * x + 1013904223u;
    bytes[i] = (uint8_t)(x >> 24);
  }
  return bytes;
}

static int32_t integer(const json_t *row, const char *key) {
  return (int32_t)json_integer_value(json_object_get(row, key));
}

static void large_pictures_have_pillows_checksums(void **state) {
  json_t *rows;
  assert_ok(hv_json_load(FIXTURES "checksums.json", &rows));
  assert_int_equal(json_array_size(rows), 11);
  size_t index;
  json_t *row;
  json_array_foreach(rows, index, row) {
    int32_t width = integer(row, "width"), height = integer(row, "height");
    int32_t out_width = integer(row, "out_width"), out_height = integer(row, "out_height");
    const char *source = json_string_value(json_object_get(row, "source"));
    uint8_t *made = source ? NULL : generate((size_t)width * (size_t)height * 3, (uint32_t)integer(row, "seed"));
    size_t size = (size_t)out_width * (size_t)out_height * 3;
    uint8_t *out = malloc(size);
    assert_non_null(out);
    hv_resizer *resizer;
    assert_ok(hv_resizer_open(width, height, out_width, out_height, &resizer));
    hv_resizer_run(resizer, source ? input(*state, source)->data : made, out);
    hv_resizer_close(resizer);
    assert_int_equal(crc32(0, out, (uInt)size), json_integer_value(json_object_get(row, "crc32")));
    free(made);
    free(out);
  }
  json_decref(rows);
}

static void impossible_sizes_are_refused(void **state) {
  (void)state;
  hv_resizer *resizer;
  assert_error(hv_resizer_open(0, 4, 4, 4, &resizer), "0 × 4");
  assert_error(hv_resizer_open(4, 4, 4, -1, &resizer), "4 × -1");
  assert_error(hv_resizer_open(16385, 4, 4, 4, &resizer), "16385");
  assert_error(hv_resizer_open(16384, 16384, 4, 4, &resizer), "width × height at most");
  hv_resizer_close(NULL);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(naive_resize_gives_pillows_bytes),    cmocka_unit_test(letterbox_pads_in_the_mean_colour),
      cmocka_unit_test(a_mean_that_is_no_colour_is_clipped), cmocka_unit_test(large_pictures_have_pillows_checksums),
      cmocka_unit_test(impossible_sizes_are_refused),
  };
  return cmocka_run_group_tests(tests, open_fixtures, close_fixtures);
}
