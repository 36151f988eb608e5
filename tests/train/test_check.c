/* Runs `hvla-train check` on the models and batches of tests/fixtures/parity: outputs, losses, gradients and trained
 * parameters against PyTorch's; and on invalid batches, which must be refused. */
#include <math.h>

#include "core/io/safetensors.h"
#include "tests/check.h"
#include "tests/train/program.h"

#define FIXTURES HVLA_SOURCE_DIR "/tests/fixtures/parity/"

static const char *const cases[] = {"one_arm", "two_arms", "chunk", "clip", "linear", "diffusion", "autoregressive"};
enum { CASES = sizeof cases / sizeof cases[0] };

static hv_safetensors *open_tensors(const char *path) {
  hv_safetensors *tensors;
  assert_ok(hv_safetensors_open(path, &tensors));
  return tensors;
}

static float *floats_of(const hv_file_tensor *tensor) {
  float *values = malloc((size_t)tensor->count * sizeof *values);
  assert_non_null(values);
  hv_file_tensor_read_f32(tensor, 0, tensor->count, values);
  return values;
}

/* ‖found − expected‖ / ‖expected‖; fails if shape or dtype differ. */
static double relative_error(const hv_file_tensor *found, const hv_file_tensor *expected) {
  assert_int_equal(found->rank, expected->rank);
  assert_memory_equal(found->shape, expected->shape, (size_t)found->rank * sizeof found->shape[0]);
  assert_string_equal(found->dtype_name, "F32");
  float *a = floats_of(found), *b = floats_of(expected);
  double difference = 0, norm = 0;
  for (int64_t i = 0; i < found->count; i++) {
    difference += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
    norm += (double)b[i] * (double)b[i];
  }
  free(a);
  free(b);
  return sqrt(difference) / fmax(sqrt(norm), 1e-30);
}

static bool starts_with(const char *text, const char *start) {
  return strncmp(text, start, strlen(start)) == 0;
}

static double tolerance_of(const char *name) {
  return starts_with(name, "grad.") || starts_with(name, "param.") || strcmp(name, "losses") == 0 ? 1e-3 : 1e-4;
}

static void run_check(const char *case_name, const char *out, const char *rest) {
  char arguments[2048];
  snprintf(arguments, sizeof arguments,
           "check --model '" FIXTURES "%s' --batch '" FIXTURES "%s/batch.safetensors' --out '%s' %s", case_name,
           case_name, out, rest);
  expect_train(0, arguments, NULL);
}

/* Runs the check on a fixture's batch and opens what it writes; the caller closes it. */
static hv_safetensors *check_case(const char *folder, const char *case_name, const char *rest) {
  const char *out = in_folder(folder, "out.safetensors");
  run_check(case_name, out, rest);
  return open_tensors(out);
}

/* Opens PyTorch's results for the batch; the caller closes them. */
static hv_safetensors *expected_of(const char *case_name) {
  char path[512];
  snprintf(path, sizeof path, FIXTURES "%s/expected.safetensors", case_name);
  return open_tensors(path);
}

static void equals_pytorch(void **state) {
  for (int c = 0; c < CASES; c++) {
    hv_safetensors *found = check_case(*state, cases[c], "--steps 10 --lr 1e-3"), *expected = expected_of(cases[c]);
    int compared = 0;
    for (int32_t i = 0; i < hv_safetensors_count(expected); i++) {
      const hv_file_tensor *want = hv_safetensors_get(expected, i);
      if (strcmp(want->name, "logits") == 0 || starts_with(want->name, "objective.")) continue;
      const hv_file_tensor *got = hv_safetensors_find(found, want->name);
      if (!got) {
        fail_msg("%s: %s is not written", cases[c], want->name);
        continue;
      }
      double error = relative_error(got, want);
      if (!(error < tolerance_of(want->name))) fail_msg("%s: %s is off by %g", cases[c], want->name, error);
      compared++;
    }
    assert_true(compared >= 5);
    hv_safetensors_close(found);
    hv_safetensors_close(expected);
  }
}

static bool has_gradients(const hv_safetensors *tensors) {
  for (int32_t i = 0; i < hv_safetensors_count(tensors); i++) {
    if (starts_with(hv_safetensors_get(tensors, i)->name, "grad.")) return true;
  }
  return false;
}

/* If the fixture has gradients, every gradient that is written is among them; none is of the vision towers. */
static void writes_no_other_gradients(void **state) {
  for (int c = 0; c < CASES; c++) {
    hv_safetensors *found = check_case(*state, cases[c], ""), *expected = expected_of(cases[c]);
    for (int32_t i = 0; i < hv_safetensors_count(found); i++) {
      const char *name = hv_safetensors_get(found, i)->name;
      assert_false(starts_with(name, "grad.vision") || starts_with(name, "param.") || strcmp(name, "losses") == 0);
      if (!starts_with(name, "grad.") || !has_gradients(expected)) continue;
      if (!hv_safetensors_find(expected, name)) fail_msg("%s: %s is written, PyTorch has none", cases[c], name);
    }
    hv_safetensors_close(found);
    hv_safetensors_close(expected);
  }
}

static double loss_of(const hv_safetensors *tensors, const char *name) {
  const hv_file_tensor *tensor;
  float loss;
  assert_ok(hv_safetensors_require(tensors, name, &tensor));
  hv_file_tensor_read_f32(tensor, 0, 1, &loss);
  return (double)loss;
}

static void serves_each_objective_of_a_hybrid_model(void **state) {
  static const char *const hybrid[] = {"one_arm", "two_arms", "chunk", "clip", "linear"};
  static const char *const objectives[] = {"diffusion", "autoregressive"};
  for (int c = 0; c < 5; c++) {
    for (int o = 0; o < 2; o++) {
      char option[64], name[64];
      snprintf(option, sizeof option, "--objective %s", objectives[o]);
      snprintf(name, sizeof name, "objective.%s.loss", objectives[o]);
      hv_safetensors *found = check_case(*state, hybrid[c], option), *expected = expected_of(hybrid[c]);
      double loss = loss_of(found, "loss"), wanted = loss_of(expected, name);
      if (!(fabs(loss - wanted) < 1e-4 * wanted)) fail_msg("%s: %g, expected %g", hybrid[c], loss, wanted);
      assert_true((hv_safetensors_find(found, "noise_pred") != NULL) == (o == 0));
      assert_true((hv_safetensors_find(found, "loss_ce") != NULL) == (o == 1));
      hv_safetensors_close(found);
      hv_safetensors_close(expected);
    }
  }
}

static void refuses_an_objective_that_the_model_lacks(void **state) {
  char arguments[2048];
  const char *out = in_folder(*state, "out.safetensors");
  snprintf(arguments, sizeof arguments,
           "check --model '" FIXTURES "diffusion' --batch '" FIXTURES
           "diffusion/batch.safetensors' --out '%s' --objective hybrid",
           out);
  expect_train(2, arguments, "diffusion", "hybrid", NULL);
  assert_false(hv_file_exists(out));
}

/* How one tensor of a batch is made invalid. */
typedef struct spoiling {
  const char *tensor;
  hv_dtype dtype;      /* the dtype that it gets */
  int32_t drop_rank;   /* dimensions left out in front */
  int32_t longer_axis; /* this axis is one longer; −1: none */
  int64_t index;       /* this value … */
  double value;        /* … becomes this one; index −1: none */
  bool leave_out;
  const char *words[3];
} spoiling;

enum { KEEP = -1 };

static void set_value(hv_dtype dtype, void *data, int64_t index, double value) {
  if (dtype == HV_F32) ((float *)data)[index] = (float)value;
  if (dtype == HV_I32) ((int32_t *)data)[index] = (int32_t)value;
  if (dtype == HV_U8) ((uint8_t *)data)[index] = (uint8_t)value;
}

/* Copies a batch with one tensor spoiled; `add_mask` adds an action mask of ones first. */
static void write_spoiled(const char *from, const char *to, const spoiling *how) {
  hv_safetensors *tensors = open_tensors(from);
  hv_safetensors_writer *writer;
  assert_ok(hv_safetensors_writer_open(to, &writer));
  void *data[16];
  size_t sizes[16];
  int written = 0;
  for (int32_t i = 0; i < hv_safetensors_count(tensors); i++) {
    const hv_file_tensor *tensor = hv_safetensors_get(tensors, i);
    bool spoil = strcmp(tensor->name, how->tensor) == 0;
    if (spoil && how->leave_out) continue;
    int64_t shape[HV_FILE_MAX_RANK], count = 1;
    int32_t rank = 0;
    for (int32_t d = spoil ? how->drop_rank : 0; d < tensor->rank; d++) {
      shape[rank] = tensor->shape[d] + (spoil && how->longer_axis == d);
      count *= shape[rank++];
    }
    hv_dtype dtype = spoil ? how->dtype : tensor->dtype;
    sizes[written] = (size_t)count * hv_dtype_size(dtype);
    data[written] = calloc(1, sizes[written] + 1);
    memcpy(data[written], tensor->data, sizes[written] < tensor->size ? sizes[written] : tensor->size);
    if (spoil && how->index >= 0) set_value(dtype, data[written], how->index, how->value);
    assert_ok(hv_safetensors_writer_declare(writer, tensor->name, dtype, rank, shape));
    written++;
  }
  for (int i = 0; i < written; i++) {
    assert_ok(hv_safetensors_writer_write(writer, data[i], sizes[i]));
    free(data[i]);
  }
  assert_ok(hv_safetensors_writer_commit(writer));
  hv_safetensors_close(tensors);
}

static void refuses_spoiled_batches(void **state) {
  static const spoiling spoilings[] = {
      {"images", HV_F32, 0, KEEP, KEEP, 0, false, {"images", "F32", "U8"}},
      {"images", HV_U8, 1, KEEP, KEEP, 0, false, {"images", "expected U8"}},
      {"images", HV_U8, 0, 2, KEEP, 0, false, {"images", "expected U8"}},
      {"images", HV_U8, 0, KEEP, KEEP, 0, true, {"images is missing", "U8 [B, "}},
      {"prompt_ids", HV_I64, 0, KEEP, KEEP, 0, false, {"prompt_ids", "I64", "I32"}},
      {"prompt_ids", HV_I32, 0, KEEP, 1, 280, false, {"prompt_ids", "280", "279"}},
      {"prompt_ids", HV_I32, 0, KEEP, 1, -1, false, {"prompt_ids", "-1"}},
      {"prompt_ids", HV_I32, 0, KEEP, 1, -7, false, {"prompt_ids", "-7"}},
      {"prompt_ids", HV_I32, 0, KEEP, 0, 5, false, {"prompt_ids", "<s>", "5"}},
      {"state", HV_F32, 0, 1, KEEP, 0, false, {"state", "expected F32"}},
      {"state", HV_F32, 0, KEEP, 2, NAN, false, {"state", "nan", "finite"}},
      {"state", HV_F32, 0, KEEP, KEEP, 0, true, {"state is missing", "F32 ["}},
      {"actions", HV_F64, 0, KEEP, KEEP, 0, false, {"actions", "F64", "F32"}},
      {"actions", HV_F32, 0, KEEP, 3, INFINITY, false, {"actions", "inf", "finite"}},
      {"actions", HV_F32, 0, 0, KEEP, 0, false, {"actions", "expected F32"}},
      {"noise", HV_F32, 0, 3, KEEP, 0, false, {"noise", "expected F32"}},
      {"noise", HV_F32, 0, KEEP, 0, NAN, false, {"noise", "nan"}},
      {"noise", HV_F32, 0, KEEP, KEEP, 0, true, {"noise is missing"}},
      {"timesteps", HV_I32, 0, KEEP, 0, 50, false, {"timesteps", "50", "49"}},
      {"timesteps", HV_I32, 0, KEEP, 0, -1, false, {"timesteps", "-1"}},
      {"timesteps", HV_I32, 0, 1, KEEP, 0, false, {"timesteps", "expected I32"}},
      {"timesteps", HV_I32, 0, KEEP, KEEP, 0, true, {"timesteps is missing"}},
      {"action_mask", HV_U8, 0, KEEP, 1, 2, false, {"action_mask", "expected 0 or 1"}},
      {"action_mask", HV_U8, 0, 1, KEEP, 0, false, {"action_mask", "expected U8"}},
  };
  for (size_t i = 0; i < sizeof spoilings / sizeof spoilings[0]; i++) {
    char arguments[2048];
    const char *bad = in_folder(*state, "bad.safetensors"), *out = in_folder(*state, "out.safetensors");
    write_spoiled(FIXTURES "diffusion/batch.safetensors", bad, &spoilings[i]);
    snprintf(arguments, sizeof arguments, "check --model '" FIXTURES "diffusion' --batch '%s' --out '%s'", bad, out);
    expect_train(2, arguments, "bad.safetensors", spoilings[i].words[0], spoilings[i].words[1],
                 spoilings[i].words[1] ? spoilings[i].words[2] : NULL, NULL);
    assert_false(hv_file_exists(out));
  }
}

/* Writes the batch `from` with one string of its header replaced. */
static void write_with_header(const char *from, const char *to, const char *old, const char *new) {
  char *bytes;
  size_t size;
  assert_ok(hv_read_text(from, 1 << 26, &bytes, &size));
  uint64_t header;
  memcpy(&header, bytes, sizeof header);
  const char *at = memmem(bytes + 8, header, old, strlen(old));
  assert_non_null(at);
  size_t before = (size_t)(at - bytes) - 8, rest = size - 8 - before - strlen(old);
  hv_file_writer *writer;
  header += strlen(new) - strlen(old);
  assert_ok(hv_file_writer_open(to, &writer));
  assert_ok(hv_file_writer_write(writer, &header, sizeof header));
  assert_ok(hv_file_writer_write(writer, bytes + 8, before));
  assert_ok(hv_file_writer_write(writer, new, strlen(new)));
  assert_ok(hv_file_writer_write(writer, at + strlen(old), rest));
  assert_ok(hv_file_writer_commit(writer));
  free(bytes);
}

static void refuses_truth_values_as_a_mask(void **state) {
  char arguments[2048];
  const char *bad = in_folder(*state, "bad.safetensors"), *out = in_folder(*state, "out.safetensors");
  write_with_header(FIXTURES "diffusion/batch.safetensors", bad, "\"action_mask\":{\"dtype\":\"U8\"",
                    "\"action_mask\":{\"dtype\":\"BOOL\"");
  snprintf(arguments, sizeof arguments, "check --model '" FIXTURES "diffusion' --batch '%s' --out '%s'", bad, out);
  expect_train(2, arguments, "action_mask is BOOL", "expected U8", NULL);
  assert_false(hv_file_exists(out));
}

/* Somebody who ports the model may forget the prompt's last token and wonder about different numbers; a warning names
 * it. */
static void warns_of_a_prompt_without_its_end(void **state) {
  char arguments[2048];
  const char *other = in_folder(*state, "other.safetensors"), *out = in_folder(*state, "out.safetensors");
  hv_safetensors *batch = open_tensors(FIXTURES "diffusion/batch.safetensors");
  const hv_file_tensor *prompt = hv_safetensors_find(batch, "prompt_ids");
  const int32_t *ids = prompt->data;
  int64_t length = 0;
  while (length < prompt->shape[1] && ids[length] >= 0) length++;
  spoiling how = {"prompt_ids", HV_I32, 0, KEEP, length - 1, 7, false, {NULL}};
  hv_safetensors_close(batch);
  write_spoiled(FIXTURES "diffusion/batch.safetensors", other, &how);
  snprintf(arguments, sizeof arguments, "check --model '" FIXTURES "diffusion' --batch '%s' --out '%s'", other, out);
  expect_train(0, arguments, "warning", "prompt_ids of sample 0 end with 7", "special_tokens.empty", NULL);
  snprintf(arguments, sizeof arguments,
           "check --model '" FIXTURES "diffusion' --batch '" FIXTURES "diffusion/batch.safetensors' --out '%s'", out);
  char *said;
  assert_int_equal(run_train("", arguments, &said), 0);
  assert_null(strstr(said, "warning"));
  free(said);
}

static void reports_all_shapes_together(void **state) {
  char arguments[2048];
  const char *out = in_folder(*state, "out.safetensors");
  snprintf(arguments, sizeof arguments,
           "check --model '" FIXTURES "two_arms' --batch '" FIXTURES "chunk/batch.safetensors' --out '%s'", out);
  expect_train(2, arguments, "images", "actions", "noise", NULL);
  assert_false(hv_file_exists(out));
}

static void refuses_files_that_are_none(void **state) {
  char arguments[2048];
  const char *out = in_folder(*state, "out.safetensors"), *text = in_folder(*state, "text.safetensors");
  write_text(text, "this is no safetensors file");
  const char *const batches[] = {text, in_folder(*state, "absent.safetensors")};
  for (int i = 0; i < 2; i++) {
    snprintf(arguments, sizeof arguments, "check --model '" FIXTURES "one_arm' --batch '%s' --out '%s'", batches[i],
             out);
    expect_train(2, arguments, batches[i], NULL);
    assert_false(hv_file_exists(out));
  }
  snprintf(arguments, sizeof arguments, "check --model '%s' --batch '" FIXTURES "one_arm/batch.safetensors' --out '%s'",
           text, out);
  expect_train(2, arguments, "text.safetensors", NULL);
  snprintf(arguments, sizeof arguments,
           "check --model '" FIXTURES "one_arm' --batch '" FIXTURES
           "one_arm/batch.safetensors' --out '%s' --device nowhere",
           out);
  expect_train(2, arguments, "nowhere", NULL);
  assert_false(hv_file_exists(out));
}

/* --out must not be the batch itself, by whatever name; the batch stays as it is. */
static void does_not_write_over_its_batch(void **state) {
  const char *batch = in_folder(*state, "batch.safetensors"), *original = FIXTURES "one_arm/batch.safetensors";
  const char *const names[] = {batch, in_folder(*state, "./batch.safetensors"), in_folder(*state, "link.safetensors")};
  must_shell("cp '%s' '%s' && ln -s batch.safetensors '%s'", original, batch, names[2]);
  for (int i = 0; i < 3; i++) {
    char arguments[2048];
    snprintf(arguments, sizeof arguments, "check --model '" FIXTURES "one_arm' --batch '%s' --out '%s'", batch,
             names[i]);
    expect_train(2, arguments, names[i], "--batch", NULL);
    assert_true(same_bytes(batch, original));
  }
}

/* Nor a file of the model, or one beside them. */
static void does_not_write_into_its_model(void **state) {
  const char *model = in_folder(*state, "model"), *weights = in_folder(*state, "model/model.safetensors");
  const char *const outs[] = {weights, in_folder(*state, "link/model.safetensors"), in_folder(*state, "model/out")};
  must_shell("cp -r '" FIXTURES "one_arm' '%s' && ln -s model '%s'", model, in_folder(*state, "link"));
  for (int i = 0; i < 3; i++) {
    char arguments[2048];
    snprintf(arguments, sizeof arguments,
             "check --model '%s' --batch '" FIXTURES "one_arm/batch.safetensors' --out '%s'", model, outs[i]);
    expect_train(2, arguments, outs[i], "--model", NULL);
  }
  assert_true(same_bytes(weights, FIXTURES "one_arm/model.safetensors"));
  assert_false(hv_file_exists(outs[2]));
}

/* Parameters after --steps are the same to the bit with any number of threads. */
static void does_not_depend_on_threads(void **state) {
  const char *one = in_folder(*state, "one.safetensors"), *two = in_folder(*state, "two.safetensors");
  run_check("one_arm", one, "--steps 3 --lr 1e-3 --threads 1");
  run_check("one_arm", two, "--steps 3 --lr 1e-3 --threads 2");
  assert_true(same_bytes(one, two));
}

/* Parameters after steps in bf16 are written as master values, which keep updates that are too small for bf16. */
static void gives_master_values(void **state) {
  const char *start = in_folder(*state, "start.safetensors"), *end = in_folder(*state, "end.safetensors");
  const double rate = 1e-6;
  run_check("one_arm", start, "--dtype bf16 --steps 1 --lr 0");
  run_check("one_arm", end, "--dtype bf16 --steps 4 --lr 1e-6");
  hv_safetensors *before = open_tensors(start), *after = open_tensors(end);
  int compared = 0;
  for (int32_t t = 0; t < hv_safetensors_count(after); t++) {
    const hv_file_tensor *found = hv_safetensors_get(after, t);
    if (!starts_with(found->name, "param.")) continue;
    float *a = floats_of(hv_safetensors_find(before, found->name)), *b = floats_of(found);
    double largest = 0;
    for (int64_t i = 0; i < found->count; i++) largest = fmax(largest, fabs((double)b[i] - (double)a[i]));
    if (!(largest > 0.5 * rate && largest < 5 * rate)) fail_msg("%s has moved by %g", found->name, largest);
    free(a);
    free(b);
    compared++;
  }
  assert_true(compared > 20);
  hv_safetensors_close(before);
  hv_safetensors_close(after);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(equals_pytorch, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(writes_no_other_gradients, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(serves_each_objective_of_a_hybrid_model, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(refuses_an_objective_that_the_model_lacks, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(refuses_spoiled_batches, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(refuses_truth_values_as_a_mask, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(warns_of_a_prompt_without_its_end, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(reports_all_shapes_together, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(refuses_files_that_are_none, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(does_not_write_over_its_batch, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(does_not_write_into_its_model, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(does_not_depend_on_threads, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(gives_master_values, make_folder, remove_folder),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
