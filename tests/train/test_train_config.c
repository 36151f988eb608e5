/* Run configurations, by `hvla-train config` and `run`: what is refused and with which message, how a configuration is
 * resolved, and that docs/configuration.md documents every key. */
#include "core/io/json.h"
#include "core/io/model_config.h"
#include "core/io/yaml.h"
#include "tests/check.h"
#include "tests/train/program.h"

static char arguments[2048];

static const char *with(const char *format, const char *config, const char *rest) {
  snprintf(arguments, sizeof arguments, format, config, rest);
  return arguments;
}

static void names_the_nearest_key(void **state) {
  const char *config = write_tiny_config(*state, "x");
  expect_train(2, with("config --config '%s' --set %s", config, "optimizer.learning_rat=1"), "optimizer.learning_rate",
               "optimizer.learning_rat", NULL);
  expect_train(2, with("config --config '%s' --set %s", config, "trian.steps=1"), "train.steps", NULL);
  const char *typo = in_folder(*state, "typo.yaml");
  write_text(typo, "model: {}\noptimizer:\n  weight_deacy: 0.1\n");
  expect_train(2, with("config --config '%s'%s", typo, ""), "typo.yaml", "weight_deacy", "optimizer.weight_decay",
               NULL);
}

static void names_the_nearest_key_of_a_model(void **state) {
  const char *config = write_tiny_config(*state, in_folder(*state, "run"));
  expect_train(2, with("run --config '%s' --set %s", config, "model.llm.hidden_sise=32"),
               "with --set: model: llm.hidden_sise", "hidden_size", NULL);
  assert_false(hv_file_exists(in_folder(*state, "run")));
}

static void refuses_wrong_types_and_ranges(void **state) {
  static const char *const cases[][2] = {
      {"train.steps=many", "train.steps"},
      {"train.steps=1.5", "train.steps"},
      {"train.batch_size=0", "train.batch_size"},
      {"optimizer.learning_rate=fast", "optimizer.learning_rate"},
      {"optimizer.beta1=1.5", "optimizer.beta1"},
      {"dtype=fp8", "fp32"},
      {"dtype=fp16", "must be one of fp32, bf16, not \"fp16\"; fp16 is a dtype of exported files alone (hvla-infer "
                     "export --dtype fp16)"},
      {"optimizer.schedule=cosin", "cosine"},
      {"data.override_instruction=maybe", "data.override_instruction"},
      {"data.gripper_dims=[1, x]", "gripper_dims"},
      {"checkpoint.keep=-1", "checkpoint.keep"},
  };
  const char *config = write_tiny_config(*state, "x");
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    char set[128];
    snprintf(set, sizeof set, "'%s'", cases[i][0]);
    expect_train(2, with("config --config '%s' --set %s", config, set), cases[i][1], NULL);
  }
  expect_train(2, with("config --config '%s' --set %s", config, "train.steps"), "key=value", NULL);
  expect_train(2, with("config --config '%s' --set '%s'", config, "train.freeze=[*]"),
               "train.freeze must be written as YAML: line 1", NULL);
}

/* A value of --set may be quoted as in the file: some launchers pass quotes on, which no shell has removed. */
static void quotes_around_text_are_no_part_of_it(void **state) {
  static const char *const cases[][2] = {{"\"pick: it up\"", "instruction: 'pick: it up'"},
                                         {"'\\''pick up'\\''", "instruction: pick up\n"},
                                         {"pick \"it\" up", "instruction: pick \"it\" up"}};
  const char *config = write_tiny_config(*state, "x");
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    char set[128];
    snprintf(set, sizeof set, "'data.instruction=%s'", cases[i][0]);
    expect_train(0, with("config --config '%s' --set %s", config, set), cases[i][1], NULL);
  }
}

static void refuses_contradictions(void **state) {
  const char *config = write_tiny_config(*state, "x");
  expect_train(2, with("config --config '%s' --set %s", config, "train.epochs=2"), "train.steps", "train.epochs", NULL);
  expect_train(2, with("config --config '%s' --set %s", config, "watch.spike_factor=1"), "watch.spike_factor (1)",
               "more than 1", NULL);
  expect_train(2, with("config --config '%s' --set %s", config, "train.micro_batch=3"), "train.micro_batch",
               "train.batch_size", NULL);
  expect_train(2, with("config --config '%s' --set train.ce_weight=0 --set %s", config, "train.diffusion_weight=0"),
               "nothing would be trained", NULL);
  expect_train(2, with("config --config '%s' --set %s", config, "validation.at_start=true"),
               "validation.at_start needs a held-out split", NULL);
  expect_train(2, with("config --config '%s' --set dtype=fp32 --set %s", config, "optimizer.gradients=bf16"),
               "optimizer.gradients can be bf16 only if dtype is bf16", NULL);
  expect_train(2, with("config --config '%s' --set %s", config, "'init.state_dims=[0]'"), "init.state_dims",
               "init_from", NULL);
}

static void says_what_a_run_needs(void **state) {
  const char *config = write_tiny_config(*state, "x");
  expect_train(2, with("run --config '%s' --set %s", config, "output=null"), "output", NULL);
  expect_train(2, with("run --config '%s' --set %s", config, "output="), "output must be a path, not an empty string",
               NULL);
  expect_train(2, with("run --config '%s' --set %s", config, "'data.files=[]'"), "data.files", NULL);
  expect_train(2, with("run --config '%s' --set %s", config, "tokenizer=null"), "tokenizer", NULL);
  expect_train(2, with("run --config '%s' --set %s", config, "train.steps=0"), "train.epochs", NULL);
}

static void resolves_to_a_configuration_of_its_own(void **state) {
  char *first, *second;
  const char *config = write_tiny_config(*state, "x");
  assert_int_equal(run_train("", with("config --config '%s' --set %s", config, "optimizer.beta1=0.95"), &first), 0);
  assert_non_null(strstr(first, "beta1: 0.95"));
  assert_non_null(strstr(first, "max_grad_norm: 1"));
  const char *resolved = in_folder(*state, "resolved.yaml");
  write_text(resolved, first);
  assert_int_equal(run_train("", with("config --config '%s'%s", resolved, ""), &second), 0);
  assert_string_equal(first, second);
  free(first);
  free(second);
}

/* `model` in a resolved configuration has the keys of a model's config.json, defaults included, for programs that read
 * config.yaml. */
static void the_model_has_the_keys_of_its_config_json(void **state) {
  char *printed;
  json_t *resolved, *written, *again;
  hv_model_config model;
  const char *config = write_tiny_config(*state, "x"), *path = in_folder(*state, "config.json");
  assert_int_equal(run_train("", with("config --json --config '%s'%s", config, ""), &printed), 0);
  assert_ok(hv_json_parse(printed, strlen(printed), "printed", &resolved));
  const json_t *found = json_object_get(resolved, "model");
  assert_ok(hv_model_config_from_json(found, "printed", HV_UNKNOWN_REFUSE, &model));
  assert_ok(hv_model_config_save(path, &model));
  assert_ok(hv_json_load(path, &written));
  assert_true(json_equal(found, written));
  assert_string_equal(json_string_value(json_object_get(found, "final_norm")), "variance");
  free(printed);
  assert_int_equal(
      run_train("", with("config --json --config '%s' --set model=null --set %s", config, "init_from=runs/base/model"),
                &printed),
      0);
  assert_ok(hv_json_parse(printed, strlen(printed), "printed", &again));
  assert_true(json_is_object(json_object_get(again, "model")));
  assert_int_equal(json_object_size(json_object_get(again, "model")), 0);
  free(printed);
  json_decref(resolved);
  json_decref(written);
  json_decref(again);
  hv_model_config_free(&model);
}

static void documents_every_key(void **state) {
  (void)state;
  char *printed, *page = read_file(HVLA_SOURCE_DIR "/docs/configuration.md");
  assert_int_equal(run_train("", "config --document", &printed), 0);
  if (strcmp(printed, page) != 0)
    fail_msg("docs/configuration.md is out of date: hvla-train config --document writes it");
  free(printed);
  free(page);
}

static void teaches(void **state) {
  (void)state;
  expect_train(0, "--help", "run", "check", "config", "bench", NULL);
  expect_train(0, "run --help", "--resume", "optimizer.learning_rate", "metrics.jsonl", NULL);
  expect_train(0, "check --help", "--batch", "--steps", NULL);
  static const char *const commands[] = {"run", "check", "config", "bench", "plan", "status", "model", "report"};
  for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++) {
    char *help;
    assert_int_equal(run_train("", with("%s --help%s", commands[i], ""), &help), 0);
    size_t length = strlen(help);
    if (help[length - 1] != '\n' || help[length - 2] == '\n')
      fail_msg("%s --help ends in the middle of a line", commands[i]);
    for (const char *line = help; *line; line = strchr(line, '\n') + 1)
      if (strcspn(line, "\n") > 110) fail_msg("%s --help has a line of %zu bytes", commands[i], strcspn(line, "\n"));
    free(help);
  }
  expect_train(2, "trian", "run", NULL);
  expect_train(2, "run --confg x", "--config", NULL);
  expect_train(2, "config", "--config FILE", NULL);
}

static void shipped_configurations_are_valid(void **state) {
  (void)state;
  expect_train(0, "config --config '" HVLA_SOURCE_DIR "/configs/lift-tiny.yaml'", "lift the cube", NULL);
  expect_train(0, "config --config '" HVLA_SOURCE_DIR "/configs/finetune-lift.yaml'", "lift_wrist", NULL);
  expect_train(0, "config --config '" HVLA_SOURCE_DIR "/configs/bench-cpu.yaml'", "1376", NULL);
  expect_train(0, "config --config '" HVLA_SOURCE_DIR "/configs/7b.yaml'", "11008", NULL);
}

/* The two configurations of the CPU benchmark, ours and PyTorch's, describe the same model. */
static void the_benchmark_has_one_architecture(void **state) {
  (void)state;
  json_t *ours, *theirs;
  assert_ok(hv_yaml_load(HVLA_SOURCE_DIR "/configs/bench-cpu.yaml", &ours));
  assert_ok(hv_json_load(HVLA_SOURCE_DIR "/configs/bench-cpu.config.json", &theirs));
  assert_true(json_equal(json_object_get(ours, "model"), theirs));
  json_decref(ours);
  json_decref(theirs);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(names_the_nearest_key, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(names_the_nearest_key_of_a_model, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(refuses_wrong_types_and_ranges, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(quotes_around_text_are_no_part_of_it, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(refuses_contradictions, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(says_what_a_run_needs, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(resolves_to_a_configuration_of_its_own, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(the_model_has_the_keys_of_its_config_json, make_folder, remove_folder),
      cmocka_unit_test(documents_every_key),
      cmocka_unit_test(teaches),
      cmocka_unit_test(shipped_configurations_are_valid),
      cmocka_unit_test(the_benchmark_has_one_architecture),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
