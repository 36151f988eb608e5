/* `hvla-train run` on a device: with the same seed the losses are close to the CPU's, and a resumed run ends in the
 * same bytes as one that runs through. test_training [DEVICE [STEPS]], by default emu 12. */
#include <math.h>

#include "tests/cuda/under_test.h"
#include "tests/train/program.h"

static int steps = 12;

static void train(const char *folder, const char *name, const char *device, const char *rest) {
  char arguments[2048];
  const char *config = write_tiny_config(folder, "unset");
  snprintf(arguments, sizeof arguments, "run --config '%s' --device %s --set 'output=%s/%s' %s", config, device, folder,
           name, rest);
  expect_train(0, arguments, NULL);
}

/* The losses of all steps, in order. */
static double *losses_of(const char *run, int count) {
  json_t *lines = read_metrics(run);
  double *losses = calloc((size_t)count, sizeof *losses);
  size_t i;
  const json_t *line;
  int found = 0;
  assert_non_null(losses);
  json_array_foreach(lines, i, line) {
    const json_t *loss = json_object_get(line, "loss");
    if (loss && found < count) losses[found++] = json_number_value(loss);
  }
  json_decref(lines);
  assert_int_equal(found, count);
  return losses;
}

/* The first 50 losses must be within `tolerance` of the CPU's, the mean of the last 20 within 2 %. */
static void compare_with_cpu(const char *folder, const char *settings, double tolerance) {
  char rest[256];
  snprintf(rest, sizeof rest, "--set train.steps=%d --set checkpoint.interval=%d %s", steps, steps, settings);
  train(folder, "cpu", "cpu", rest);
  train(folder, "device", under_test, rest);
  double *expected = losses_of(in_folder(folder, "cpu"), steps), *found = losses_of(in_folder(folder, "device"), steps);
  double off = 0, sums[2] = {0, 0};
  for (int i = 0; i < steps && i < 50; i++) off = larger_of(off, fabs(found[i] - expected[i]) / expected[i]);
  for (int i = steps > 20 ? steps - 20 : 0; i < steps; i++) {
    sums[0] += found[i];
    sums[1] += expected[i];
  }
  print_message("%d steps, %s: losses within %.2g, the mean of the last %.2g; %g to %g\n", steps, settings, off,
                fabs(sums[0] - sums[1]) / sums[1], expected[0], expected[steps - 1]);
  assert_true(off < tolerance);
  assert_true(fabs(sums[0] - sums[1]) < 0.02 * sums[1]);
  assert_true(expected[steps - 1] < expected[0]);
  free(expected);
  free(found);
}

static void learns_as_the_cpu_does(void **state) {
  compare_with_cpu(*state, "--set dtype=fp32", 1e-3);
}

static void learns_as_the_cpu_does_in_less_memory(void **state) {
  compare_with_cpu(*state, "--set dtype=bf16 --set optimizer.gradients=bf16 --set optimizer.moments=int8", 2e-2);
}

/* The host builds the next micro-batch while the device computes an earlier one. */
static void micro_batches_as_on_the_cpu(void **state) {
  enum { STEPS = 3 };
  static const char rest[] = "--set train.steps=3 --set checkpoint.interval=3 --set train.micro_batch=1";
  train(*state, "cpu", "cpu", rest);
  train(*state, "device", under_test, rest);
  double *expected = losses_of(in_folder(*state, "cpu"), STEPS), *found = losses_of(in_folder(*state, "device"), STEPS);
  for (int i = 0; i < STEPS; i++) assert_true(fabs(found[i] - expected[i]) < 1e-5 * expected[i]);
  free(expected);
  free(found);
}

/* Without measuring algorithms, because two runs that measure may choose different ones. */
static void resumes_to_the_same_bytes(void **state) {
  static const char *const dtypes[] = {"fp32", "bf16"};
  static const char *const files[] = {"model/model.safetensors", "checkpoints/step-6/training.safetensors"};
  for (int d = 0; d < 2; d++) {
    char whole[64], halves[64], rest[256];
    snprintf(whole, sizeof whole, "whole-%s", dtypes[d]);
    snprintf(halves, sizeof halves, "halves-%s", dtypes[d]);
    snprintf(rest, sizeof rest, "--set measure_algorithms=false --set train.steps=6 --set dtype=%s", dtypes[d]);
    train(*state, whole, under_test, rest);
    snprintf(rest, sizeof rest, "--set measure_algorithms=false --set train.steps=3 --set dtype=%s", dtypes[d]);
    train(*state, halves, under_test, rest);
    snprintf(rest, sizeof rest, "--set measure_algorithms=false --set train.steps=6 --set dtype=%s --resume",
             dtypes[d]);
    train(*state, halves, under_test, rest);
    for (int f = 0; f < 2; f++) {
      char one[1024], other[1024];
      snprintf(one, sizeof one, "%s/%s/%s", (const char *)*state, whole, files[f]);
      snprintf(other, sizeof other, "%s/%s/%s", (const char *)*state, halves, files[f]);
      if (!same_bytes(one, other)) fail_msg("%s differs after resuming in %s", files[f], dtypes[d]);
    }
  }
}

/* After four steps, the run `same` must have the same bytes as the run "whole", and the run `other` must not. */
static void assert_end_of_whole(const char *folder, const char *same, const char *other) {
  static const char file[] = "checkpoints/step-4/training.safetensors";
  const char *whole = in_run(folder, "whole", file);
  assert_true(same_bytes(in_run(folder, same, file), whole));
  assert_false(same_bytes(in_run(folder, other, file), whole));
}

/* A resumed run uses the algorithms that were chosen before, not those that a new run would choose; the emulator can be
 * told to choose others. Without the file of choices the bytes differ. */
static void keeps_to_chosen_algorithms(void **state) {
  if (strcmp(under_test, "emu") != 0) {
    print_message("skipped: cuBLASLt cannot be told what to choose\n");
    skip();
  }
  train(*state, "whole", under_test, "--set train.steps=4");
  train(*state, "halves", under_test, "--set train.steps=2");
  train(*state, "forgetful", under_test, "--set train.steps=2");
  assert_int_equal(unlink(in_run(*state, "forgetful", "device-choices-emu.txt")), 0);
  assert_int_equal(setenv("HVLA_EMU_ALGORITHM", "1", 1), 0);
  train(*state, "halves", under_test, "--set train.steps=4 --resume");
  train(*state, "forgetful", under_test, "--set train.steps=4 --resume");
  assert_int_equal(unsetenv("HVLA_EMU_ALGORITHM"), 0);
  assert_end_of_whole(*state, "halves", "forgetful");
}

/* A resumed run uses the algorithms that were measured at its start, even if others are faster now. */
static void keeps_to_measured_algorithms(void **state) {
  if (strcmp(under_test, "emu") != 0) {
    print_message("skipped: only the emulator can be told what is the fastest\n");
    skip();
  }
  assert_int_equal(setenv("HVLA_EMU_TIMES", "4,4,4,1", 1), 0);
  train(*state, "unasked", under_test, "--set train.steps=4 --set measure_algorithms=false");
  train(*state, "whole", under_test, "--set train.steps=4");
  train(*state, "halves", under_test, "--set train.steps=2");
  assert_int_equal(setenv("HVLA_EMU_TIMES", "4,1,4,4", 1), 0);
  train(*state, "halves", under_test, "--set train.steps=4 --resume");
  assert_int_equal(unsetenv("HVLA_EMU_TIMES"), 0);
  assert_end_of_whole(*state, "halves", "unasked");
}

/* To write a checkpoint in the background, a copy in page-locked memory is needed, of which there may be too little:
 * then training waits, and the files are the same. */
static void checkpoints_are_written_where_no_copy_fits(void **state) {
  char *output;
  if (strcmp(under_test, "emu") != 0) skip(); /* only the emulator can be told how much there is */
  train(*state, "whole", under_test, LARGE_VOCABULARY "--set train.steps=4");
  assert_int_equal(setenv("HVLA_EMU_LOCKABLE", "12000000", 1), 0);
  const char *config = write_tiny_config(*state, "unset");
  char arguments[1024];
  snprintf(arguments, sizeof arguments,
           "run --config '%s' --device emu --set 'output=%s/piecewise' " LARGE_VOCABULARY "--set train.steps=4", config,
           (const char *)*state);
  assert_int_equal(run_train("", arguments, &output), 0);
  assert_int_equal(unsetenv("HVLA_EMU_LOCKABLE"), 0);
  if (!strstr(output, "training waits while checkpoints are written") || !strstr(output, "of page-locked host memory"))
    fail_msg("the message about the lack of memory is missing:\n%s", output);
  free(output);
  static const char file[] = "checkpoints/step-4/training.safetensors";
  assert_true(same_bytes(in_run(*state, "whole", file), in_run(*state, "piecewise", file)));
}

int main(int argc, char **argv) {
  choose_device(argc, argv);
  if (argc > 2) steps = (int)strtol(argv[2], NULL, 10);
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(learns_as_the_cpu_does, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(learns_as_the_cpu_does_in_less_memory, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(micro_batches_as_on_the_cpu, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(resumes_to_the_same_bytes, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(checkpoints_are_written_where_no_copy_fits, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(keeps_to_chosen_algorithms, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(keeps_to_measured_algorithms, make_folder, remove_folder),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
