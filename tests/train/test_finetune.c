/* Fine-tuning by `hvla-train run` with init_from: which parameters a model of another shape takes over (its learning
 * rate is 0, so the saved model shows them), what is reported, and what is refused. */
#include "core/io/json.h"
#include "core/io/safetensors.h"
#include "tests/check.h"
#include "tests/train/program.h"

enum { HIDDEN = 16 /* of the tiny model */, MOST = 32 };

static char arguments[4096];

/* The arguments of the first run, with the tiny configuration and output <folder>/first. */
static const char *first_run(const char *folder, const char *rest) {
  const char *config = write_tiny_config(folder, "unset");
  snprintf(arguments, sizeof arguments, "run --config '%s' --set 'output=%s/first' %s", config, folder, rest);
  return arguments;
}

/* The arguments of a run from the first one's model: the same demonstrations seen by the wrist camera, with the actions
 * x, y, z and gripper. */
static const char *second_run(const char *folder, const char *rest) {
  static char config[512];
  char text[2048];
  snprintf(config, sizeof config, "%s/second.yaml", folder);
  snprintf(text, sizeof text,
           "init_from: %s/first/model\noutput: %s/second\nthreads: 1\nlog_interval: 1\n"
           "model: {action_dim: 4, cameras: [wrist]}\n"
           "init: {action_dims: [0, 1, 2, 6]}\n"
           "data: {files: " DEMONSTRATIONS ", train_split: train, cameras: {wrist: robot0_eye_in_hand_image},\n"
           "       action_dims: [0, 1, 2, 6], statistics_key: wrist, instruction: lift the cube,\n"
           "       state_keys: [robot0_eef_pos, robot0_eef_quat, robot0_gripper_qpos]}\n"
           "train: {steps: 1, batch_size: 4, branches: 2}\n"
           "optimizer: {learning_rate: 0}\n",
           folder, folder);
  write_text(config, text);
  snprintf(arguments, sizeof arguments, "run --config '%s' %s", config, rest);
  return arguments;
}

static hv_safetensors *open_model(const char *folder, const char *name) {
  hv_safetensors *file;
  assert_ok(hv_safetensors_open(in_run(folder, name, "model/model.safetensors"), &file));
  return file;
}

/* Reads a tensor [rows, cols]. */
static void read_values(const hv_safetensors *file, const char *name, int64_t rows, int64_t cols, float *out) {
  const hv_file_tensor *tensor;
  assert_ok(hv_safetensors_require(file, name, &tensor));
  assert_int_equal(tensor->count, rows * cols);
  hv_file_tensor_read_f32(tensor, 0, rows * cols, out);
}

/* Column i of the new tensor [HIDDEN, now] must be column from[i] of the old one [HIDDEN, before]; −1: it is new, and
 * not all 0. */
static void assert_columns(const char *folder, const char *name, int before, int now, const int *from) {
  hv_safetensors *first = open_model(folder, "first"), *second = open_model(folder, "second");
  float old[HIDDEN * MOST] = {0}, new[HIDDEN * MOST];
  if (before > 0) read_values(first, name, HIDDEN, before, old);
  read_values(second, name, HIDDEN, now, new);
  for (int row = 0; row < HIDDEN; row++) {
    for (int col = 0; col < now; col++) {
      float value = new[row * now + col];
      assert_true(from[col] < 0 ? value != 0.0f && value < 0.2f : value == old[row * before + from[col]]);
    }
  }
  hv_safetensors_close(first);
  hv_safetensors_close(second);
}

/* The same for the rows of the noise head's last layer, where new rows begin as 0. */
static void assert_head(const char *folder, int before, int now, const int *from) {
  hv_safetensors *first = open_model(folder, "first"), *second = open_model(folder, "second");
  static const char *const names[] = {"final_layer.mlp.fc2.weight", "final_layer.mlp.fc2.bias"};
  const int widths[] = {HIDDEN, 1};
  for (int n = 0; n < 2; n++) {
    float old[HIDDEN * MOST], new[HIDDEN * MOST];
    read_values(first, names[n], before, widths[n], old);
    read_values(second, names[n], now, widths[n], new);
    for (int row = 0; row < now; row++) {
      for (int col = 0; col < widths[n]; col++) {
        float expected = from[row] < 0 ? 0.0f : old[from[row] * widths[n] + col];
        assert_true(new[row * widths[n] + col] == expected);
      }
    }
  }
  hv_safetensors_close(first);
  hv_safetensors_close(second);
}

/* All tensors without a dimension of actions or state must be unchanged. */
static void assert_rest_is_kept(const char *folder) {
  static const char *const apart[] = {"x_embedder.mlp.fc1.weight", "proprio_embedder.mlp.fc1.weight",
                                      "final_layer.mlp.fc2.weight", "final_layer.mlp.fc2.bias"};
  hv_safetensors *first = open_model(folder, "first"), *second = open_model(folder, "second");
  assert_int_equal(hv_safetensors_count(first), hv_safetensors_count(second));
  for (int32_t i = 0; i < hv_safetensors_count(first); i++) {
    const hv_file_tensor *a = hv_safetensors_get(first, i), *b = hv_safetensors_get(second, i);
    bool adapted = false;
    for (size_t n = 0; n < sizeof apart / sizeof apart[0]; n++) adapted |= strcmp(a->name, apart[n]) == 0;
    assert_string_equal(a->name, b->name);
    if (adapted) continue;
    assert_int_equal(a->size, b->size);
    assert_memory_equal(a->data, b->data, a->size);
  }
  hv_safetensors_close(first);
  hv_safetensors_close(second);
}

/* The model keeps the statistics of the first data set, so that actions can still be asked for in its units. */
static void assert_both_keys(const char *folder) {
  json_t *known;
  assert_ok(hv_json_load(in_run(folder, "second", "model/dataset_statistics.json"), &known));
  assert_int_equal(json_object_size(known), 2);
  assert_non_null(json_object_get(known, "lift"));
  assert_non_null(json_object_get(known, "wrist"));
  json_decref(known);
}

static void dimensions_are_continued_by_their_meaning(void **state) {
  static const int chosen[] = {0, 1, 2, 6}, state_dims[] = {0, 1, 2, 3, 4, 5, 6, 7, 8};
  expect_train(0, first_run(*state, "--set train.steps=3"), NULL);
  expect_train(0, second_run(*state, ""), "0 continues 0", "3 continues 6; not continued: 3, 4, 5",
               "cameras: wrist instead of front", "x_embedder.mlp.fc1.weight: 4 columns kept, 0 new",
               "final_layer.mlp.fc2.weight: 4 rows kept, 0 new", "final_layer.mlp.fc2.bias: 4 values kept, 0 new",
               NULL);
  assert_columns(*state, "x_embedder.mlp.fc1.weight", 7, 4, chosen);
  assert_columns(*state, "proprio_embedder.mlp.fc1.weight", 9, 9, state_dims);
  assert_head(*state, 7, 4, chosen);
  assert_rest_is_kept(*state);
  assert_both_keys(*state);
}

static void dimensions_may_be_new(void **state) {
  static const int actions[] = {0, 1, -1, 6}, numbers[] = {-1, 8, 7};
  expect_train(0, first_run(*state, "--set train.steps=3"), NULL);
  expect_train(0,
               second_run(*state, "--set 'init.action_dims=[0, 1, -1, 6]' --set 'init.state_dims=[-1, 8, 7]' "
                                  "--set model.state_dim=3 --set data.state_keys=robot0_eef_pos"),
               "2 is new, 3 continues 6", "state dimensions: 0 is new, 1 continues 8, 2 continues 7",
               "proprio_embedder.mlp.fc1.weight: 2 columns kept, 1 new", NULL);
  assert_columns(*state, "x_embedder.mlp.fc1.weight", 7, 4, actions);
  assert_columns(*state, "proprio_embedder.mlp.fc1.weight", 9, 3, numbers);
  assert_head(*state, 7, 4, actions);
  assert_rest_is_kept(*state);
}

static void without_a_map_the_first_dimensions_go_on(void **state) {
  static const int first_ones[] = {0, 1, 2, 3}, position[] = {0, 1, 2, -1, -1, -1, -1, -1, -1};
  expect_train(0, first_run(*state, "--set train.steps=3 --set model.state_dim=3 --set data.state_keys=robot0_eef_pos"),
               NULL);
  expect_train(0, second_run(*state, "--set model.state_dim=9 --set 'init.action_dims=[]'"),
               "3 continues 3; not continued: 4, 5, 6", "2 continues 2, 3 is new", NULL);
  assert_head(*state, 7, 4, first_ones);
  assert_columns(*state, "proprio_embedder.mlp.fc1.weight", 3, 9, position);
}

/* The old model has no state and no noise head; the new one gets both, freshly initialised. */
static void missing_parts_begin_anew(void **state) {
  static const int fresh[] = {-1, -1, -1, -1, -1, -1, -1, -1, -1};
  expect_train(0, first_run(*state, "--set train.steps=3 --set model.state_dim=0 --set model.objective=autoregressive"),
               NULL);
  expect_train(0, second_run(*state, "--set model.state_dim=9 --set model.objective=hybrid"),
               "proprio_embedder.mlp.fc1.weight is new", "t_embedder.mlp.0.weight is new",
               "final_layer.norm_final.weight is new", NULL);
  assert_columns(*state, "x_embedder.mlp.fc1.weight", 0, 4, fresh);
  assert_columns(*state, "proprio_embedder.mlp.fc1.weight", 0, 9, fresh);
  /* If the old config.json says that the model has these parts, they must be in its file. */
  must_shell("cd '%s/first/model' && grep -q '\"state_dim\": 0' config.json && grep -q autoregressive config.json && "
             "sed -i 's/\"state_dim\": 0/\"state_dim\": 9/; s/autoregressive/hybrid/' config.json",
             (const char *)*state);
  assert_ok(hv_remove_tree(in_folder(*state, "second")));
  expect_train(2, second_run(*state, "--set model.state_dim=9"), "proprio_embedder.mlp.fc1.weight",
               "t_embedder.mlp.0.weight", NULL);
}

/* The new model has as many dimensions as the old one, in another order. */
static void another_order_is_followed(void **state) {
  static const int order[] = {1, 0, 2, 3, 4, 6, 5};
  char rest[1024];
  const char *folder = *state;
  expect_train(0, first_run(folder, "--set train.steps=1"), NULL);
  snprintf(rest, sizeof rest,
           "--set train.steps=1 --set optimizer.learning_rate=0 --set 'init_from=%s/first/model' --set "
           "'output=%s/second' --set 'data.action_dims=[1, 0, 2, 3, 4, 6, 5]' --set data.statistics_key=other "
           "--set 'init.action_dims=[1, 0, 2, 3, 4, 6, 5]'",
           folder, folder);
  expect_train(0, first_run(folder, rest), "action dimensions: 0 continues 1, 1 continues 0, 2 continues 2",
               "x_embedder.mlp.fc1.weight: 7 columns kept, 0 new", NULL);
  assert_columns(folder, "x_embedder.mlp.fc1.weight", 7, 7, order);
}

/* With the same demonstrations the statistics are the same, so the key is not written twice. */
static void the_same_demonstrations_keep_their_key(void **state) {
  char rest[1024];
  const char *folder = *state;
  expect_train(0, first_run(folder, "--set train.steps=1"), NULL);
  snprintf(rest, sizeof rest, "--set train.steps=1 --set 'init_from=%s/first/model' --set 'output=%s/second'", folder,
           folder);
  expect_train(0, first_run(folder, rest), NULL);
  assert_true(same_bytes(in_run(folder, "first", "model/dataset_statistics.json"),
                         in_run(folder, "second", "model/dataset_statistics.json")));
}

/* Some settings change what the parameters compute without changing any shape: a warning lists them. */
static void changes_without_a_shape_are_told(void **state) {
  static const char said[] = "was trained with other values of these keys";
  char *output;
  expect_train(0, first_run(*state, "--set train.steps=1"), NULL);
  assert_int_equal(run_train("", second_run(*state, ""), &output), 0);
  assert_null(strstr(output, said));
  free(output);
  assert_ok(hv_remove_tree(in_folder(*state, "second")));
  expect_train(0,
               second_run(*state, "--set model.llm.rope_theta=100 --set model.llm.num_attention_heads=4 "
                                  "--set model.llm.num_key_value_heads=2 --set model.image_resize=letterbox"),
               said, "model.llm.rope_theta: 10000.0 -> 100.0", "model.llm.num_attention_heads: 2 -> 4",
               "model.image_resize: ", NULL);
}

static void other_shapes_are_refused(void **state) {
  static const struct {
    const char *sets, *words[3];
  } cases[] = {
      {"--set 'init.action_dims=[0, 1, 2]'", {"init.action_dims has 3 entries", "4 action dimensions"}},
      {"--set 'init.action_dims=[0, 1, 2, 6, 5]'", {"init.action_dims has 5 entries", "4 action dimensions"}},
      {"--set 'init.action_dims=[0, 1, 2, 7]'", {"init.action_dims names dimension 7", "has 7 action dimensions"}},
      {"--set 'init.state_dims=[1]'", {"init.state_dims has 1 entries", "9 state dimensions"}},
      {"--set data.statistics_key=lift", {"the key \"lift\"", "first/model/dataset_statistics.json", "statistics_key"}},
      {"--set model.llm.hidden_size=24 --set model.llm.num_attention_heads=3",
       {"x_embedder.mlp.fc1.weight is F32 [16, 7]; [24, 4] is expected", "embed_tokens.weight is F32 [1024, 16]",
        "final_layer.mlp.fc2.weight"}},
      {"--set 'model.vision=[{prefix: vision_backbone.featurizer, width: 16, depth: 2, num_heads: 2, mlp_width: 32, "
       "patch_size: 14, image_size: 42, layer_norm_eps: 1e-6, class_token: false, register_tokens: 0, "
       "layer_scale: false, pre_norm: false, activation: gelu, image_mean: [0.5, 0.5, 0.5], "
       "image_std: [0.5, 0.5, 0.5]}]'",
       {"vision_backbone.featurizer.pos_embed is F32 [1, 4, 16]; [1, 9, 16] is expected", "differs in more than"}},
  };
  expect_train(0, first_run(*state, "--set train.steps=3"), NULL);
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    const char *const *words = cases[i].words;
    expect_train(2, second_run(*state, cases[i].sets), words[0], words[1], words[2], NULL);
  }
  expect_train(2, first_run(*state, "--set 'init.action_dims=[0]'"), "init.action_dims", "init_from", NULL);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(dimensions_are_continued_by_their_meaning, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(dimensions_may_be_new, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(without_a_map_the_first_dimensions_go_on, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(missing_parts_begin_anew, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(another_order_is_followed, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(the_same_demonstrations_keep_their_key, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(changes_without_a_shape_are_told, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(other_shapes_are_refused, make_folder, remove_folder),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
