/* `hvla-train check --debug-nan` names the parameter or layer in which a value first is not finite; the tests plant
 * one. test_debug_nan [DEVICE], by default emu. */
#include <math.h>

#include "core/io/safetensors.h"
#include "tests/cuda/under_test.h"
#include "tests/train/program.h"

#define FIXTURE HVLA_SOURCE_DIR "/tests/fixtures/parity/one_arm"

/* Copies the fixture's model and sets the first value of one parameter. */
static void plant(const char *directory, const char *parameter, float value) {
  hv_safetensors *file;
  hv_safetensors_writer *writer;
  must_shell("rm -rf '%s' && cp -r '" FIXTURE "' '%s' && chmod -R u+w '%s'", directory, directory, directory);
  char path[512];
  snprintf(path, sizeof path, "%s/model.safetensors", directory);
  assert_ok(hv_safetensors_open(FIXTURE "/model.safetensors", &file));
  assert_ok(hv_safetensors_writer_open(path, &writer));
  bool found = false;
  for (int32_t i = 0; i < hv_safetensors_count(file); i++) {
    const hv_file_tensor *t = hv_safetensors_get(file, i);
    assert_ok(hv_safetensors_writer_declare(writer, t->name, t->dtype, t->rank, t->shape));
  }
  for (int32_t i = 0; i < hv_safetensors_count(file); i++) {
    const hv_file_tensor *t = hv_safetensors_get(file, i);
    char *values = malloc(t->size);
    assert_non_null(values);
    memcpy(values, t->data, t->size);
    if (strcmp(t->name, parameter) == 0) {
      assert_int_equal(t->dtype, HV_F32);
      memcpy(values, &value, sizeof value);
      found = true;
    }
    assert_ok(hv_safetensors_writer_write(writer, values, t->size));
    free(values);
  }
  assert_true(found);
  assert_ok(hv_safetensors_writer_commit(writer));
  hv_safetensors_close(file);
}

static const char *check_of(const char *folder, const char *model, const char *dtype) {
  static char arguments[2048];
  snprintf(arguments, sizeof arguments,
           "check --debug-nan --device %s --model '%s' --batch '" FIXTURE "/batch.safetensors' --out '%s/out' "
           "--dtype %s --threads 1 --steps 1",
           under_test, model, folder, dtype);
  return arguments;
}

static void names_the_layer(void **state) {
  static const char *const dtypes[] = {"fp32", "bf16"};
  const char *model = in_folder(*state, "model");
  for (int d = 0; d < 2; d++) {
    plant(model, "llm_backbone.llm.model.layers.1.mlp.up_proj.weight", 3e38f);
    expect_train(2, check_of(*state, model, dtypes[d]), "not finite", "llm_backbone.llm.model.layers.1, forward",
                 "linear", NULL);
    plant(model, "final_layer.mlp.fc1.weight", 3e38f);
    expect_train(2, check_of(*state, model, dtypes[d]), "in final_layer, forward", NULL);
    plant(model, "final_layer.mlp.fc2.bias", 1e38f); /* the prediction is finite, its square is not */
    expect_train(2, check_of(*state, model, dtypes[d]), "in final_layer, forward: diffusion_loss", NULL);
  }
}

static void names_a_parameter(void **state) {
  static const char *const dtypes[] = {"fp32", "bf16"};
  const char *model = in_folder(*state, "model");
  plant(model, "projector.projector.2.bias", -INFINITY);
  for (int d = 0; d < 2; d++) {
    expect_train(2, check_of(*state, model, dtypes[d]), "projector.projector.2.bias has -inf at row 0, column 0", NULL);
  }
}

static void finds_nothing_where_all_is_finite(void **state) {
  expect_train(0, check_of(*state, FIXTURE, "fp32"), NULL);
  expect_train(0, check_of(*state, FIXTURE, "bf16"), NULL);
}

int main(int argc, char **argv) {
  choose_device(argc, argv);
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(names_the_layer, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(names_a_parameter, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(finds_nothing_where_all_is_finite, make_folder, remove_folder),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
