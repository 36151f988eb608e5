/* If told to measure, a device takes the fastest algorithm for each matrix product. Its choices last as long as the
 * device, and another device can read them. The emulator, which can be told the times, runs all tests; a card those
 * that hold for any device. test_measuring [DEVICE], by default emu. */
#include "tests/cuda/under_test.h"

enum { ROWS = 40, WIDTH = 32 };

typedef struct fixture {
  hv_device *device;
  hv_stream *stream;
  hv_tensor x, weight, y;
  void *memory[3];
} fixture;

static hv_tensor matrix(fixture *f, int index, int64_t rows) {
  assert_ok(hv_device_allocate(f->device, HV_MEMORY_WORKSPACE, (size_t)(rows * WIDTH) * sizeof(float), "a matrix",
                               &f->memory[index]));
  hv_tensor t = hv_tensor_make(f->memory[index], HV_F32, rows, WIDTH);
  hv_fill(f->stream, &(hv_fill_args){.dst = t, .value = 0.5});
  return t;
}

/* Opens an emulated device on which each algorithm takes the given microseconds, and which takes number `supposed` for
 * the fastest until it measures. */
static fixture open_fixture(const char *times, const char *supposed) {
  fixture f;
  assert_int_equal(setenv("HVLA_EMU_ALGORITHM", supposed, 1), 0);
  assert_int_equal(times ? setenv("HVLA_EMU_TIMES", times, 1) : unsetenv("HVLA_EMU_TIMES"), 0);
  assert_ok(hv_device_load(under_test, &(hv_device_options){.index = 0}, &f.device));
  assert_ok(hv_stream_open(f.device, &f.stream));
  f.x = matrix(&f, 0, ROWS);
  f.weight = matrix(&f, 1, WIDTH);
  f.y = matrix(&f, 2, ROWS);
  return f;
}

static void close_fixture(fixture *f) {
  for (int i = 0; i < 3; i++) hv_device_release(f->device, f->memory[i]);
  hv_stream_close(f->stream);
  hv_device_close(f->device);
}

/* Runs a product of so many rows. */
static void multiply(fixture *f, int64_t rows) {
  hv_linear(
      f->stream,
      &(hv_linear_args){.x = hv_tensor_rows(f->x, 0, rows), .weight = f->weight, .y = hv_tensor_rows(f->y, 0, rows)});
  assert_ok(hv_stream_synchronize(f->stream));
}

static hv_text choices_of(const fixture *f) {
  hv_text text = {0};
  hv_device_write_choices(f->device, &text);
  assert_false(text.failed);
  return text;
}

/* The algorithm chosen for the only shape so far. */
static int chosen(const fixture *f) {
  hv_text text = choices_of(f);
  const char *at = strrchr(text.data, ' ');
  assert_non_null(at);
  int digit = at[2] - '0';
  hv_text_free(&text);
  return digit;
}

static int measured(const char *times, const char *supposed) {
  fixture f = open_fixture(times, supposed);
  assert_true(hv_device_measure_choices(f.device, true));
  multiply(&f, ROWS);
  (void)hv_device_measure_choices(f.device, false);
  int algorithm = chosen(&f);
  close_fixture(&f);
  return algorithm;
}

static void the_fastest_is_taken(void **state) {
  (void)state;
  assert_int_equal(measured("4,3,2,1", "0"), 3);
  assert_int_equal(measured("4,3,1,2", "0"), 2);
  assert_int_equal(measured("1,3,4,2", "3"), 0);
}

/* Of equally fast algorithms, the one is taken that is supposed to be the fastest. */
static void ties_go_to_what_is_supposed(void **state) {
  (void)state;
  assert_int_equal(measured("2,2,2,2", "0"), 0);
  assert_int_equal(measured("2,2,2,2", "2"), 2);
  assert_int_equal(measured("1,3,3,1", "2"), 3);
  assert_int_equal(measured("2,1.99,2,2", "0"), 0); /* within what counts as equal */
}

static void nothing_is_measured_unasked(void **state) {
  (void)state;
  fixture f = open_fixture("4,3,2,1", "0");
  multiply(&f, ROWS);
  assert_int_equal(chosen(&f), 0);
  assert_true(hv_device_measure_choices(f.device, true)); /* so far the choice was only supposed */
  multiply(&f, ROWS);
  assert_int_equal(chosen(&f), 3);
  (void)hv_device_measure_choices(f.device, false);
  multiply(&f, ROWS);
  assert_int_equal(chosen(&f), 3);
  close_fixture(&f);
  f = open_fixture(NULL, "1");
  assert_false(hv_device_measure_choices(f.device, true)); /* this device cannot measure */
  multiply(&f, ROWS);
  assert_int_equal(chosen(&f), 1);
  close_fixture(&f);
}

/* Another device reads the choices, before or after it has chosen by itself, and does not measure these shapes again.
 */
static void choices_are_kept(void **state) {
  (void)state;
  bool fits;
  fixture f = open_fixture("4,3,1,2", "0");
  assert_true(hv_device_measure_choices(f.device, true));
  multiply(&f, ROWS);
  hv_text text = choices_of(&f);
  close_fixture(&f);
  for (int before = 0; before < 2; before++) {
    f = open_fixture("1,2,3,4", "1");
    assert_true(hv_device_measure_choices(f.device, true));
    if (before) multiply(&f, ROWS);
    assert_ok(hv_device_read_choices(f.device, text.data, &fits));
    assert_true(fits);
    multiply(&f, ROWS);
    assert_int_equal(chosen(&f), 2);
    close_fixture(&f);
  }
  hv_text_free(&text);
}

/* On any device: products are right once measuring is over, and another device that reads the choices makes the same.
 */
static void measuring_leaves_no_trace(void **state) {
  (void)state;
  static float y[ROWS * WIDTH];
  bool fits;
  fixture f = open_fixture("4,3,1,2", "0"), other = open_fixture("1,2,3,4", "1");
  assert_true(hv_device_measure_choices(f.device, true));
  multiply(&f, ROWS);
  assert_true(hv_device_measure_choices(f.device, false));
  multiply(&f, ROWS);
  hv_download(f.stream, y, f.y.data, sizeof y);
  assert_ok(hv_stream_synchronize(f.stream));
  for (int i = 0; i < ROWS * WIDTH; i++) assert_true(y[i] == 0.25f * WIDTH);
  hv_text text = choices_of(&f);
  assert_ok(hv_device_read_choices(other.device, text.data, &fits));
  assert_true(fits);
  multiply(&other, ROWS);
  hv_text same = choices_of(&other);
  assert_string_equal(same.data, text.data);
  hv_text_free(&text);
  hv_text_free(&same);
  close_fixture(&f);
  close_fixture(&other);
}

/* What an algorithm may depend on: sizes, strides in elements, and offsets in bytes from a multiple of 256. */
enum property {
  P_ROWS,
  P_IN,
  P_OUT,
  P_X_STRIDE,
  P_WEIGHT_STRIDE,
  P_Y_STRIDE,
  P_RESIDUAL_STRIDE, /* 0: no residual */
  P_X_OFFSET,
  P_WEIGHT_OFFSET,
  P_Y_OFFSET,
  P_RESIDUAL_OFFSET,
  P_BIAS_OFFSET, /* below 0: no bias */
  P_ACTIVATION,
  P_DTYPE,
  P_RESULT, /* the dtype of y */
  PROPERTIES
};

static hv_tensor rows_in(char *buffer, int64_t dtype, int64_t rows, int64_t cols, int64_t stride, int64_t offset) {
  hv_tensor t = hv_tensor_make(buffer + offset, (hv_dtype)dtype, rows, cols);
  t.row_stride = stride;
  return t;
}

static void run_product(fixture *f, char *const *buffer, const int64_t *p) {
  hv_linear_args args = {.activation = (hv_activation)p[P_ACTIVATION]};
  args.x = rows_in(buffer[0], p[P_DTYPE], p[P_ROWS], p[P_IN], p[P_X_STRIDE], p[P_X_OFFSET]);
  args.weight = rows_in(buffer[1], p[P_DTYPE], p[P_OUT], p[P_IN], p[P_WEIGHT_STRIDE], p[P_WEIGHT_OFFSET]);
  args.y = rows_in(buffer[2], p[P_RESULT], p[P_ROWS], p[P_OUT], p[P_Y_STRIDE], p[P_Y_OFFSET]);
  if (p[P_RESIDUAL_STRIDE] > 0) {
    args.residual = rows_in(buffer[3], p[P_DTYPE], p[P_ROWS], p[P_OUT], p[P_RESIDUAL_STRIDE], p[P_RESIDUAL_OFFSET]);
  }
  if (p[P_BIAS_OFFSET] >= 0) args.bias = rows_in(buffer[4], p[P_DTYPE], 1, p[P_OUT], p[P_OUT], p[P_BIAS_OFFSET]);
  hv_linear(f->stream, &args);
  assert_ok(hv_stream_synchronize(f->stream));
}

/* The two backward products of a layer with square operands: one transposes nothing, the other one operand. */
static void run_gradients(fixture *f, char *const *buffer, const int64_t *p) {
  hv_tensor a = rows_in(buffer[0], p[P_DTYPE], p[P_ROWS], p[P_IN], p[P_X_STRIDE], p[P_X_OFFSET]);
  hv_tensor b = rows_in(buffer[1], p[P_DTYPE], p[P_OUT], p[P_IN], p[P_WEIGHT_STRIDE], p[P_WEIGHT_OFFSET]);
  hv_tensor d = rows_in(buffer[2], p[P_RESULT], p[P_ROWS], p[P_OUT], p[P_Y_STRIDE], p[P_Y_OFFSET]);
  hv_linear_backward_input(f->stream, &(hv_linear_backward_input_args){.dy = a, .weight = b, .dx = d});
  hv_linear_backward_weight(f->stream,
                            &(hv_linear_backward_weight_args){.dy = a, .x = b, .dweight = d, .set_dweight = true});
  assert_ok(hv_stream_synchronize(f->stream));
}

static int choices_made(const fixture *f) {
  hv_text text = choices_of(f);
  int lines = 0;
  for (const char *at = text.data; *at; at++) lines += *at == '\n';
  hv_text_free(&text);
  return lines - 2; /* without the first two lines, which say what made the choices */
}

/* On any device: products that differ in a single property get choices of their own, because an algorithm for one may
 * not suit the other. */
static void each_shape_has_a_choice(void **state) {
  (void)state;
  enum { BUFFERS = 5, BYTES = 16 << 10 };
  static const struct {
    enum property property;
    int value;
  } changes[] = {
      {P_ROWS, 32},
      {P_IN, 32},
      {P_OUT, 32},
      {P_X_STRIDE, 40},
      {P_X_OFFSET, 16},
      {P_WEIGHT_STRIDE, 48},
      {P_WEIGHT_OFFSET, 32},
      {P_Y_STRIDE, 56},
      {P_RESIDUAL_STRIDE, 56},
      {P_RESIDUAL_STRIDE, 64},
      {P_RESIDUAL_OFFSET, 16},
      {P_BIAS_OFFSET, 0},
      {P_BIAS_OFFSET, 64},
      {P_Y_OFFSET, 32},
      {P_BIAS_OFFSET, 128},
      {P_RESIDUAL_STRIDE, 0},
      {P_ACTIVATION, HV_ACT_GELU_TANH},
      {P_BIAS_OFFSET, -1},
      {P_ACTIVATION, HV_ACT_NONE},
      {P_DTYPE, HV_BF16},
      {P_RESULT, HV_BF16},
  };
  fixture f = open_fixture(NULL, "0");
  char *buffer[BUFFERS];
  for (int i = 0; i < BUFFERS; i++) {
    void *memory;
    assert_ok(hv_device_allocate(f.device, HV_MEMORY_WORKSPACE, BYTES, "a matrix", &memory));
    buffer[i] = memory;
  }
  int64_t p[PROPERTIES] = {24, 16, 16, 32, 32, 32, 0, 0, 0, 0, 0, -1, HV_ACT_NONE, HV_F32, HV_F32};
  run_product(&f, buffer, p);
  int choices = 1;
  assert_int_equal(choices_made(&f), choices);
  for (size_t i = 0; i < sizeof changes / sizeof changes[0]; i++) {
    p[changes[i].property] = changes[i].value;
    choices++;
    for (int again = 0; again < 2; again++) {
      run_product(&f, buffer, p);
      if (choices_made(&f) != choices) fail_msg("change %zu of the product: the number of choices is wrong", i);
    }
  }
  run_gradients(&f, buffer, p);
  assert_int_equal(choices_made(&f), choices + 2);
  for (int i = 0; i < BUFFERS; i++) hv_device_release(f.device, buffer[i]);
  close_fixture(&f);
}

/* On any device: choices that were cut short or damaged are an error; those of another format or library are ignored.
 */
static void damaged_choices_are_refused(void **state) {
  (void)state;
  static const char no_digits[] = "/:`gAG \n-";
  bool fits;
  fixture f = open_fixture(NULL, "0");
  multiply(&f, ROWS);
  hv_text text = choices_of(&f);
  char *data = text.data, *line = strchr(strchr(data, '\n') + 1, '\n') + 1;
  size_t length = strlen(line);
  assert_true(length > 100);
  for (size_t i = 0; i < 2 * sizeof no_digits - 2; i++) {
    char *at = line + 20 + i % 2, kept = *at; /* the first or second digit of a byte */
    *at = no_digits[i / 2];
    assert_error(hv_device_read_choices(f.device, data, &fits), "line 3");
    *at = kept;
  }
  for (size_t i = 1; i < length; i++) {
    char kept = line[i];
    line[i] = '\0';
    assert_error(hv_device_read_choices(f.device, data, &fits), "line 3");
    line[i] = kept;
  }
  assert_ok(hv_device_read_choices(f.device, data, &fits));
  assert_true(fits);
  for (char *at = data; at < line; at++) {
    char kept = *at;
    *at = '!';
    assert_ok(hv_device_read_choices(f.device, data, &fits));
    assert_false(fits);
    *at = kept;
  }
  hv_text_free(&text);
  close_fixture(&f);
}

int main(int argc, char **argv) {
  choose_device(argc, argv);
  const struct CMUnitTest everywhere[] = {
      cmocka_unit_test(measuring_leaves_no_trace),
      cmocka_unit_test(each_shape_has_a_choice),
      cmocka_unit_test(damaged_choices_are_refused),
  };
  if (strcmp(under_test, "emu") != 0) return cmocka_run_group_tests(everywhere, NULL, NULL);
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(measuring_leaves_no_trace),
      cmocka_unit_test(each_shape_has_a_choice),
      cmocka_unit_test(damaged_choices_are_refused),
      cmocka_unit_test(the_fastest_is_taken),
      cmocka_unit_test(ties_go_to_what_is_supposed),
      cmocka_unit_test(nothing_is_measured_unasked),
      cmocka_unit_test(choices_are_kept),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
