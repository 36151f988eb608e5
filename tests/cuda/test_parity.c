/* `hvla-train check` on a device against PyTorch's results in tests/fixtures/parity, in fp32 and bf16; and the same
 * bytes every time, in whatever order blocks and threads run. test_parity [DEVICE], by default emu. */
#include <math.h>

#include "core/io/safetensors.h"
#include "tests/cuda/under_test.h"
#include "tests/train/program.h"

#define FIXTURES HVLA_SOURCE_DIR "/tests/fixtures/parity/"

static const char *const cases[] = {"one_arm", "two_arms", "chunk", "clip", "linear", "diffusion", "autoregressive"};
enum { CASES = sizeof cases / sizeof cases[0] };

static bool starts_with(const char *text, const char *start) {
  return strncmp(text, start, strlen(start)) == 0;
}

static hv_safetensors *open_tensors(const char *path) {
  hv_safetensors *tensors;
  assert_ok(hv_safetensors_open(path, &tensors));
  return tensors;
}

static hv_safetensors *open_expected(const char *case_name) {
  char path[512];
  snprintf(path, sizeof path, FIXTURES "%s/expected.safetensors", case_name);
  return open_tensors(path);
}

static void check_case(const char *case_name, const char *out, const char *rest) {
  char arguments[2048];
  snprintf(arguments, sizeof arguments,
           "check --model '" FIXTURES "%s' --batch '" FIXTURES "%s/batch.safetensors' --out '%s' --device %s %s",
           case_name, case_name, out, under_test, rest);
  expect_train(0, arguments, NULL);
}

/* Two measures of how close two tensors of one shape are. */
typedef struct comparison {
  double error;  /* ‖found − expected‖ / ‖expected‖ */
  double cosine; /* cosine of the angle between them */
} comparison;

static comparison compare(const char *case_name, const hv_safetensors *found_in, const hv_file_tensor *expected) {
  const hv_file_tensor *found = hv_safetensors_find(found_in, expected->name);
  if (!found || found->count != expected->count) {
    fail_msg("%s: %s is not written, or in another shape", case_name, expected->name);
    return (comparison){NAN, NAN};
  }
  float *a = malloc((size_t)found->count * sizeof *a), *b = malloc((size_t)found->count * sizeof *b);
  assert_true(a && b);
  hv_file_tensor_read_f32(found, 0, found->count, a);
  hv_file_tensor_read_f32(expected, 0, found->count, b);
  double difference = 0, aa = 0, ab = 0, bb = 0;
  for (int64_t i = 0; i < found->count; i++) {
    difference += pow((double)a[i] - (double)b[i], 2);
    aa += (double)a[i] * (double)a[i];
    ab += (double)a[i] * (double)b[i];
    bb += (double)b[i] * (double)b[i];
  }
  free(a);
  free(b);
  return (comparison){sqrt(difference) / fmax(sqrt(bb), 1e-30), ab / fmax(sqrt(aa * bb), 1e-30)};
}

static bool is_output_of_check(const char *name) {
  return strcmp(name, "logits") != 0 && !starts_with(name, "objective.");
}

static void fp32_equals_pytorch(void **state) {
  for (int c = 0; c < CASES; c++) {
    const char *out = in_folder(*state, "out.safetensors");
    check_case(cases[c], out, "--steps 10 --lr 1e-3");
    hv_safetensors *found = open_tensors(out), *expected = open_expected(cases[c]);
    int compared = 0;
    for (int32_t i = 0; i < hv_safetensors_count(expected); i++) {
      const hv_file_tensor *want = hv_safetensors_get(expected, i);
      if (!is_output_of_check(want->name)) continue;
      bool trained = starts_with(want->name, "grad.") || starts_with(want->name, "param.");
      double tolerance = trained || strcmp(want->name, "losses") == 0 ? 1e-3 : 1e-4;
      double error = compare(cases[c], found, want).error;
      if (!(error < tolerance)) fail_msg("%s: %s is off by %g", cases[c], want->name, error);
      compared++;
    }
    assert_true(compared >= 5);
    hv_safetensors_close(found);
    hv_safetensors_close(expected);
  }
}

static double loss_in(const hv_safetensors *tensors) {
  const hv_file_tensor *tensor;
  float loss;
  assert_ok(hv_safetensors_require(tensors, "loss", &tensor));
  hv_file_tensor_read_f32(tensor, 0, 1, &loss);
  return (double)loss;
}

/* The limits are near those of PyTorch's own bf16: the fixtures are chosen so that its cosines are at least 0.999
 * (MINIMUM_COSINE in make_parity.py). */
static void bf16_is_close_to_pytorchs_fp32(void **state) {
  static const double most_off = 0.002, least_cosine = 0.998;
  double largest = 0, least = 1;
  for (int c = 0; c < CASES; c++) {
    const char *out = in_folder(*state, "out.safetensors");
    check_case(cases[c], out, "--dtype bf16");
    hv_safetensors *found = open_tensors(out), *expected = open_expected(cases[c]);
    double wanted = loss_in(expected), off = fabs(loss_in(found) - wanted) / wanted;
    largest = fmax(largest, off);
    if (!(off < most_off)) fail_msg("%s: the loss is off by %g", cases[c], off);
    for (int32_t i = 0; i < hv_safetensors_count(expected); i++) {
      const hv_file_tensor *want = hv_safetensors_get(expected, i);
      if (!starts_with(want->name, "grad.")) continue;
      double cosine = compare(cases[c], found, want).cosine;
      least = fmin(least, cosine);
      if (!(cosine >= least_cosine)) fail_msg("%s: the cosine of %s is %g", cases[c], want->name, cosine);
    }
    hv_safetensors_close(found);
    hv_safetensors_close(expected);
  }
  print_message("loss within %.2g; gradients' cosines from %.5f\n", largest, least);
}

/* Steps of training, repeated with other orders of blocks and threads and with more threads of the host. */
static void repeats_to_the_bit(void **state) {
  static const char *const dtypes[] = {"--dtype fp32 --steps 2 --lr 1e-3", "--dtype bf16 --steps 2 --lr 1e-3"};
  static const char *const seeds[] = {"1", "2", "3"};
  for (int d = 0; d < 2; d++) {
    const char *first = in_folder(*state, "first.safetensors"), *again = in_folder(*state, "again.safetensors");
    check_case("chunk", first, dtypes[d]);
    for (int s = 0; s < 3; s++) {
      char rest[128];
      snprintf(rest, sizeof rest, "%s --threads %d", dtypes[d], s % 2 + 1);
      assert_int_equal(setenv("HVLA_EMU_SEED", seeds[s], 1), 0);
      check_case("chunk", again, rest);
      assert_int_equal(unsetenv("HVLA_EMU_SEED"), 0);
      assert_true(same_bytes(first, again));
    }
  }
}

int main(int argc, char **argv) {
  choose_device(argc, argv);
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(fp32_equals_pytorch, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(bf16_is_close_to_pytorchs_fp32, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(repeats_to_the_bit, make_folder, remove_folder),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
