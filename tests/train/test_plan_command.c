/* `hvla-train plan`: its forecasts, recommendations and advice; the advice that ends a run which is out of memory (on
 * emulated cards with a limit); and `hvla-train bench` on the tiny configuration. */
#include "tests/check.h"
#include "tests/train/program.h"

/* Forecasting a step of few samples takes a fraction of the time. */
#define FEW_SAMPLES "--set train.batch_size=8 --set train.micro_batch=8 "
#define CONFIG(name) "--config '" HVLA_SOURCE_DIR "/configs/" name "' "

/* The JSON object that "plan <arguments> --json" prints, which must end with that exit code; owned by the caller. */
static json_t *plan(int code, const char *arguments) {
  char call[2048], *output;
  json_error_t problem;
  snprintf(call, sizeof call, "plan %s --json", arguments);
  int found = run_train("", call, &output);
  if (found != code) fail_msg("%s ended with %d:\n%s", call, found, output);
  json_t *object = json_loads(output, JSON_REJECT_DUPLICATES, &problem);
  if (!object) fail_msg("%s printed no JSON object: %s\n%s", call, problem.text, output);
  free(output);
  return object;
}

static double bytes_of(const json_t *object, const char *kind) {
  const json_t *value = json_object_get(json_object_get(object, "memory_bytes"), kind);
  if (!json_is_integer(value)) fail_msg("memory_bytes.%s is missing", kind);
  return json_number_value(value);
}

/* Whether one of the lines of advice holds the words. */
static bool advises(const json_t *result, const char *words) {
  size_t i;
  const json_t *line;
  json_array_foreach(json_object_get(result, "advice"), i, line) {
    if (strstr(json_string_value(line), words)) return true;
  }
  return false;
}

static void seven_billion_are_planned_without_them(void **state) {
  (void)state;
  static const char *const kinds[] = {"weights",     "master",    "moments",      "gradients",
                                      "activations", "workspace", "communication"};
  json_t *whole = plan(1, CONFIG("7b.yaml") "--gpus 8 --gpu-memory 80");
  double sum = 0;
  for (int k = 0; k < 7; k++) sum += bytes_of(whole, kinds[k]);
  assert_true(sum == bytes_of(whole, "total"));
  assert_true(bytes_of(whole, "weights") > 15.0e9 && bytes_of(whole, "weights") < 15.3e9);
  assert_true(bytes_of(whole, "moments") > 54e9 && bytes_of(whole, "moments") < 56e9);
  assert_true(json_is_false(json_object_get(whole, "fits")));
  assert_true(json_number_value(json_object_get(whole, "step_seconds")) > 0.3);
  assert_int_equal(json_array_size(json_object_get(whole, "table")), 12);
  const json_t *recommended = json_object_get(whole, "recommended");
  assert_true(bytes_of(recommended, "total") < 80e9);
  assert_string_equal(json_string_value(json_object_get(recommended, "sharding")), "parameters");
  json_t *shared = plan(0, CONFIG("7b.yaml") "--gpus 8 --gpu-memory 80 --set parallel.sharding=parameters");
  assert_true(bytes_of(shared, "moments") * 8 > 54e9 && bytes_of(shared, "moments") * 8 < 56e9);
  assert_true(bytes_of(shared, "activations") == bytes_of(whole, "activations"));
  assert_false(advises(shared, "micro-batches of a step")); /* there is only one */
  json_decref(whole);
  json_decref(shared);
}

/* The 7B model does not fit one card of 80 GB with moments of 32 bits: settings with fewer bits are offered. */
static void fewer_bits_are_told_of_where_nothing_else_fits(void **state) {
  (void)state;
  json_t *result = plan(1, CONFIG("7b.yaml") FEW_SAMPLES "--gpus 1 --gpu-memory 80");
  const json_t *coarser = json_object_get(result, "coarser");
  assert_true(json_is_null(json_object_get(result, "recommended")));
  assert_true(bytes_of(coarser, "total") < 80e9 && bytes_of(coarser, "moments") < 16e9);
  assert_string_equal(json_string_value(json_object_get(coarser, "moments")), "int8");
  assert_string_equal(json_string_value(json_object_get(coarser, "gradients")), "fp32");
  json_decref(result);
  result = plan(1, CONFIG("7b.yaml") FEW_SAMPLES "--gpus 1 --gpu-memory 70");
  assert_string_equal(json_string_value(json_object_get(json_object_get(result, "coarser"), "gradients")), "bf16");
  json_decref(result);
}

/* The first row of the table that "plan" prints for the tiny model on a device with so many bytes and a batch of so
 * many samples. */
static json_t *plan_row(int code, int batch, double bytes) {
  char arguments[512];
  snprintf(arguments, sizeof arguments,
           CONFIG("tiny.yaml") "--device cpu --gpu-memory %.9f --set train.batch_size=%d --set train.micro_batch=0",
           bytes * 1e-9, batch);
  json_t *result = plan(code, arguments);
  json_t *row = json_incref(json_array_get(json_object_get(result, "table"), 0));
  json_decref(result);
  return row;
}

static double size_of_row(int batch) {
  json_t *row = plan_row(0, batch, 1e9);
  double bytes = bytes_of(row, "total");
  assert_int_equal(json_integer_value(json_object_get(row, "micro_batch")), batch);
  json_decref(row);
  return bytes;
}

/* `expected`: the largest micro-batch that divides the batch and fits into so many bytes. */
static void assert_micro_batch(int code, int batch, double bytes, int expected) {
  json_t *row = plan_row(code, batch, bytes);
  assert_int_equal(json_integer_value(json_object_get(row, "micro_batch")), expected);
  assert_int_equal(json_is_true(json_object_get(row, "fits")), bytes_of(row, "total") <= bytes);
  json_decref(row);
}

static void the_largest_micro_batch_that_fits_is_found(void **state) {
  (void)state;
  double one = size_of_row(1), two = size_of_row(2), three = size_of_row(3);
  assert_true(one < two && two < three);
  assert_micro_batch(0, 3, three, 3);
  assert_micro_batch(1, 3, three - 1, 1);
  double five = size_of_row(5);
  assert_true(two < five);
  assert_micro_batch(1, 15, five, 5); /* the row fits, the configuration, with 15 at once, does not */
  assert_micro_batch(1, 15, five - 1, 3);
  assert_micro_batch(1, 12, five, 4);
  assert_micro_batch(1, 2, two - 1, 1);
  assert_micro_batch(1, 1, one - 1, 1);
}

/* If so many GPUs cannot run the configuration, the plan is for the nearest one that they can, as the advice says. */
static void the_nearest_that_runs_is_planned(void **state) {
  (void)state;
  json_t *result = plan(1, CONFIG("tiny.yaml") "--gpus 3 --set train.batch_size=256 --set train.micro_batch=32 "
                                               "--set parallel.sharding=optimizer");
  const json_t *configured = json_object_get(result, "configured");
  assert_true(advises(result, "use one, such as 258"));
  assert_true(advises(result, "32 does not divide the 86 samples of each GPU"));
  assert_true(advises(result, "A step of 258 samples"));
  assert_int_equal(json_integer_value(json_object_get(configured, "micro_batch")), 2);
  assert_string_equal(json_string_value(json_object_get(configured, "sharding")), "replicate");
  assert_true(json_is_true(json_object_get(configured, "fits")));
  json_decref(result);
  /* 1,023 · 1,026 samples would be more than a batch can have. */
  result = plan(1, CONFIG("tiny.yaml") "--device cpu --gpus 1023 --set train.batch_size=1048576 --set "
                                       "train.micro_batch=1");
  assert_true(advises(result, "use one, such as 1048575"));
  assert_true(advises(result, "A step of 1048575 samples"));
  json_decref(result);
}

/* A share of moments in 8 bits consists of whole blocks, and some groups have too few of them for more than 32 GPUs. */
static void many_gpus_are_planned_with_8_bit_moments(void **state) {
  (void)state;
  const char *many =
      CONFIG("tiny.yaml") "--device cpu --gpus 64 --set train.batch_size=64 --set optimizer.moments=int8 ";
  char shared[512];
  json_t *result = plan(0, many);
  assert_int_equal(json_array_size(json_object_get(result, "table")), 3);
  assert_string_equal(json_string_value(json_object_get(json_object_get(result, "configured"), "moments")), "int8");
  json_decref(result);
  snprintf(shared, sizeof shared, "%s --set parallel.sharding=optimizer", many);
  result = plan(1, shared);
  const json_t *configured = json_object_get(result, "configured");
  assert_true(advises(result, "64 GPUs cannot split 8-bit moments"));
  assert_true(advises(result, "optimizer.moments=fp32"));
  assert_string_equal(json_string_value(json_object_get(configured, "moments")), "fp32");
  assert_string_equal(json_string_value(json_object_get(configured, "sharding")), "optimizer");
  json_decref(result);
}

/* Two micro-batches on each of two GPUs: if gradients are sharded, they are summed over GPUs in each micro-batch. */
static void sums_of_gradients_are_counted(void **state) {
  (void)state;
  static const char *const shardings[] = {"optimizer", "gradients"};
  double calls[2];
  for (int i = 0; i < 2; i++) {
    char arguments[512];
    snprintf(arguments, sizeof arguments,
             CONFIG("tiny.yaml") "--gpus 2 --set train.batch_size=8 --set train.micro_batch=2 "
                                 "--set parallel.sharding=%s",
             shardings[i]);
    json_t *result = plan(0, arguments);
    const json_t *sums = json_object_get(json_object_get(result, "communication"), "reduce_scatter");
    double seconds = json_number_value(json_object_get(result, "step_seconds"));
    double alone = json_number_value(json_object_get(result, "compute_seconds"));
    calls[i] = json_number_value(json_object_get(sums, "calls"));
    assert_true(alone > 0 && alone < seconds);
    assert_true(fabs(json_number_value(json_object_get(result, "samples_per_s")) * seconds - 8) < 1e-9);
    assert_int_equal(advises(result, "in each of the 2 micro-batches of a step"), i == 1);
    char waiting[64];
    snprintf(waiting, sizeof waiting, "(%.1f %%) for other GPUs", 100 * (1 - alone / seconds));
    assert_true(advises(result, waiting));
    json_decref(result);
  }
  assert_true(calls[0] > 0 && calls[1] == 2 * calls[0]);
}

static double assumed(const json_t *result, const char *key) {
  return json_number_value(json_object_get(json_object_get(result, "assumed"), key));
}

/* Nothing fits, not even with moments in 8 bits; gradients in bf16 are not offered, because parameters are in fp32. */
static void the_least_is_told_where_nothing_fits(void **state) {
  (void)state;
  const char *tiny = CONFIG("tiny.yaml") "--device cpu ";
  char arguments[512];
  double least = 1e9;
  size_t i;
  const json_t *row;
  snprintf(arguments, sizeof arguments, "%s --set optimizer.moments=int8 --set train.batch_size=1", tiny);
  json_t *result = plan(0, arguments);
  json_array_foreach(json_object_get(result, "table"), i, row) least = fmin(least, bytes_of(row, "total"));
  json_decref(result);
  snprintf(arguments, sizeof arguments, "%s --gpu-memory %.9f", tiny, (least - 1) * 1e-9);
  result = plan(1, arguments);
  assert_true(json_is_null(json_object_get(result, "recommended")));
  assert_true(json_is_null(json_object_get(result, "coarser")));
  assert_true(assumed(result, "matrix_flops_per_s") == 50e12); /* fp32 has no tensor cores */
  assert_true(advises(result, "Those that need the least memory, train.recompute=block train.micro_batch=1, need"));
  json_decref(result);
}

/* Options give rates in their own units; the plan prints them in bytes and operations per second. */
static void what_is_given_is_assumed(void **state) {
  (void)state;
  json_t *result = plan(0, CONFIG("tiny.yaml") "--gpus 2 --matrix-tflops 100 --memory-tb-per-s 1.5 --node-gpus 4 "
                                               "--node-gb-per-s 20 --network-gb-per-s 12.5 --link-efficiency 0.5 "
                                               "--set bench.prompt_tokens=9");
  assert_true(assumed(result, "matrix_flops_per_s") == 100e12);
  assert_true(assumed(result, "memory_bytes_per_s") == 1.5e12);
  assert_true(assumed(result, "node_gpus") == 4);
  assert_true(assumed(result, "node_bytes_per_s") == 20e9);
  assert_true(assumed(result, "network_bytes_per_s") == 12.5e9);
  assert_true(assumed(result, "link_efficiency") == 0.5);
  assert_true(assumed(result, "prompt_tokens") == 9);
  json_decref(result);
}

static void what_cannot_run_is_told(void **state) {
  (void)state;
  expect_train(1, "plan " CONFIG("7b.yaml") "--gpus 3 --gpu-memory 141 --set parallel.sharding=optimizer",
               "train.batch_size 256 is not a multiple of the 3 GPUs", "train.micro_batch 32 does not divide",
               "3 GPUs cannot split the state", NULL);
  expect_train(1, "plan " CONFIG("7b.yaml") FEW_SAMPLES "--gpus 1 --gpu-memory 24", "does not fit", "most of it",
               "No settings fit that leave the results unchanged", NULL);
  expect_train(2, "plan " CONFIG("7b.yaml") "--gpus 0", "gpus", NULL);
  expect_train(2, "plan " CONFIG("7b.yaml") "--gpus 2048", "gpus", "1024", NULL); /* no run has so many ranks */
  expect_train(2, "plan " CONFIG("tiny.yaml") "--device cuda:0", "device", "cuda, cpu, emu", NULL);
  expect_train(0, "plan " CONFIG("tiny.yaml") "--gpus 2", "fits", "samples/s", NULL);
}

/* A run for which the emulated card is too small must end with 2 and print all of the strings. */
static void assert_too_small(const char *folder, const char *card, const char *const *words, size_t count) {
  char call[2048], environment[512], *output;
  snprintf(environment, sizeof environment, "%s LD_LIBRARY_PATH='" HVLA_BINARY_DIR "/lib'", card);
  snprintf(call, sizeof call,
           "run " CONFIG("tiny.yaml") "--device emu --set output='%s/run' --set train.batch_size=64 "
                                      "--set data.files='" DEMONSTRATIONS "' --set tokenizer='" HVLA_SOURCE_DIR
                                      "/data/tokenizer/llama2-tokenizer.model'",
           folder);
  int code = run_train(environment, call, &output);
  assert_int_equal(code, 2);
  for (size_t i = 0; i < count; i++) {
    if (!strstr(output, words[i])) fail_msg("the output lacks \"%s\":\n%s", words[i], output);
  }
  free(output);
}

/* A card of 100 MB holds the model, but not the activations of so many samples. */
static void memory_that_runs_out_ends_with_a_table(void **state) {
  static const char *const words[] = {"out of memory on the emulated card",
                                      "activations needs",
                                      "held by this process",
                                      "moments",
                                      "forecast for the configuration",
                                      "settings that would fit into the 0.100 GB",
                                      "train.recompute=block",
                                      "train.micro_batch="};
  assert_too_small(*state, "HVLA_EMU_MEMORY=100000000", words, sizeof words / sizeof words[0]);
}

/* The same room is left on a card of 500 MB, where another process holds the rest. */
static void a_card_that_others_fill_is_told(void **state) {
  static const char *const words[] = {"out of memory on the emulated card", "held by this process",
                                      "held by others (other processes, the system): 0.400 of 0.500 GB",
                                      "settings that would fit into the 0.100 GB"};
  assert_too_small(*state, "HVLA_EMU_MEMORY=500000000 HVLA_EMU_TAKEN=400000000", words, sizeof words / sizeof words[0]);
}

/* The advice is about the batch of the command line, not the one of the configuration. */
static void a_benchmark_that_does_not_fit_is_explained(void **state) {
  (void)state;
  char *output;
  int code =
      run_train("HVLA_EMU_MEMORY=100000000 LD_LIBRARY_PATH='" HVLA_BINARY_DIR "/lib'",
                "bench " CONFIG("tiny.yaml") "--random-weights --optimizer --batch 64 --steps 1 --device emu", &output);
  bool told = strstr(output, "settings that would fit into the 0.100 GB") && strstr(output, "train.micro_batch=");
  if (code != 2 || !told || strstr(output, "GB: the configuration as it is")) fail_msg("%d:\n%s", code, output);
  free(output);
}

static void the_tiny_configuration_is_measured(const char *device, int batch, int steps) {
  char call[1024], *output;
  json_error_t problem;
  snprintf(call, sizeof call,
           "bench " CONFIG("tiny.yaml") "--random-weights --optimizer --batch %d --steps %d --json --device %s", batch,
           steps, device);
  int code = run_train("LD_LIBRARY_PATH='" HVLA_BINARY_DIR "/lib'", call, &output);
  if (code != 0) fail_msg("%s ended with %d:\n%s", call, code, output);
  json_t *object = json_loads(output, 0, &problem);
  if (!object) fail_msg("no JSON object: %s\n%s", problem.text, output);
  const json_t *ms = json_object_get(object, "ms");
  double min = number_in(ms, "min"), median = number_in(ms, "median"), max = number_in(ms, "max");
  assert_true(min > 0 && min <= median && median <= max);
  assert_true(fabs(number_in(object, "samples_per_s") * median - 1e3 * batch) < 1e-6 * batch);
  assert_true(json_integer_value(json_object_get(object, "peak_memory_bytes")) > 20000000);
  json_decref(object);
  free(output);
}

/* The vocabulary has no word below the action tokens, or hardly one, so prompts cannot be made up of random words. */
static void a_model_without_words_is_planned_and_measured(void **state) {
  (void)state;
  static const char *const bases[] = {"256", "259", "260"};
  for (int i = 0; i < 3; i++) {
    char call[512];
    snprintf(call, sizeof call, "plan " CONFIG("tiny.yaml") "--device cpu --set model.action_tokens.base=%s", bases[i]);
    expect_train(0, call, "fits", NULL);
    snprintf(call, sizeof call,
             "bench " CONFIG("tiny.yaml") "--random-weights --batch 2 --steps 1 --set model.action_tokens.base=%s",
             bases[i]);
    expect_train(0, call, "samples/s", NULL);
  }
}

static void benches_run_on_the_cpu(void **state) {
  (void)state;
  the_tiny_configuration_is_measured("cpu", 2, 2);
}

static void benches_run_on_the_emulator(void **state) {
  (void)state;
  the_tiny_configuration_is_measured("emu", 1, 1);
}

/* In GB, everything would be 0.0. */
static void small_models_are_told_in_megabytes(void **state) {
  const char *config = write_tiny_config(*state, "unset");
  char arguments[512];
  snprintf(arguments, sizeof arguments, "plan --config '%s' --device cpu --gpu-memory 80", config);
  expect_train(0, arguments, "1 GPU with 80.0 GB each: fits", " MB\n", "total MB",
               " MB of the 80.0 GB that each GPU has", NULL);
  expect_train(1, "plan " CONFIG("7b.yaml") FEW_SAMPLES "--gpus 2", "2 GPUs with 80.0 GB each", "total GB", NULL);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(seven_billion_are_planned_without_them),
      cmocka_unit_test(fewer_bits_are_told_of_where_nothing_else_fits),
      cmocka_unit_test(the_largest_micro_batch_that_fits_is_found),
      cmocka_unit_test(the_nearest_that_runs_is_planned),
      cmocka_unit_test(many_gpus_are_planned_with_8_bit_moments),
      cmocka_unit_test(sums_of_gradients_are_counted),
      cmocka_unit_test(the_least_is_told_where_nothing_fits),
      cmocka_unit_test(what_is_given_is_assumed),
      cmocka_unit_test(what_cannot_run_is_told),
      cmocka_unit_test_setup_teardown(small_models_are_told_in_megabytes, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(memory_that_runs_out_ends_with_a_table, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(a_card_that_others_fill_is_told, make_folder, remove_folder),
      cmocka_unit_test(a_benchmark_that_does_not_fit_is_explained),
      cmocka_unit_test(a_model_without_words_is_planned_and_measured),
      cmocka_unit_test(benches_run_on_the_cpu),
      cmocka_unit_test(benches_run_on_the_emulator),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
