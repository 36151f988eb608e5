/* config.json: what is read, kept, refused and written back, on a small model's and on those of the parity fixtures. */
#include "core/io/json.h"
#include "core/io/model_config.h"
#include "core/io/yaml.h"
#include "tests/check.h"

/* A small valid model as YAML. Each test changes one value of it. */
static const char small[] =
    "model_type: hybridvla\naction_dim: 7\naction_chunk: 2\ncameras: [front, wrist]\nprojector: fused-gelu-mlp\n"
    "vision:\n"
    "  - {prefix: vision_backbone.dino_featurizer, width: 48, depth: 3, num_heads: 4, mlp_width: 96, patch_size: 14,\n"
    "     image_size: 56, layer_norm_eps: 1e-6, class_token: true, register_tokens: 4, layer_scale: true, pre_norm: "
    "false,\n"
    "     activation: gelu, image_mean: [0.485, 0.456, 0.406], image_std: [0.229, 0.224, 0.225]}\n"
    "  - {prefix: vision_backbone.featurizer, width: 32, depth: 2, num_heads: 2, mlp_width: 64, patch_size: 14,\n"
    "     image_size: 56, layer_norm_eps: 1e-5, class_token: true, register_tokens: 0, layer_scale: false, pre_norm: "
    "true,\n"
    "     activation: quick_gelu, image_mean: [0.5, 0.5, 0.5], image_std: [0.5, 0.5, 0.5]}\n"
    "llm: {model_type: llama, hidden_size: 64, intermediate_size: 128, num_hidden_layers: 2, num_attention_heads: 4,\n"
    "      num_key_value_heads: 2, rms_norm_eps: 1e-5, rope_theta: 10000.0, vocab_size: 280, hidden_act: silu}\n"
    "diffusion: {steps: 100, schedule: squaredcos_cap_v2}\n"
    "action_tokens: {base: 272, bins: 256}\n"
    "special_tokens: {bos: 1, eos: 2, pad: 272, bod: 273, eod: 274, empty: 15}\n";

static json_t *small_document(void) {
  json_t *document;
  assert_ok(hv_yaml_parse(small, strlen(small), "small", &document));
  return document;
}

/* The object or list that holds the value at a dotted path, whose last word goes to `last`. Numbers index lists. */
static json_t *parent_of(json_t *at, const char *path, char last[64]) {
  char copy[128];
  snprintf(copy, sizeof copy, "%s", path);
  char *rest = copy, *word = strsep(&rest, ".");
  for (; rest; word = strsep(&rest, ".")) {
    at = json_is_array(at) ? json_array_get(at, strtoul(word, NULL, 10)) : json_object_get(at, word);
  }
  snprintf(last, 64, "%s", word);
  return at;
}

/* Reads the small model with the value at `path` replaced, or removed where `yaml` is NULL. */
static hv_status read_with(const char *path, const char *yaml, hv_unknown_keys unknown, hv_model_config *out) {
  json_t *document = small_document();
  char last[64];
  json_t *parent = parent_of(document, path, last);
  if (yaml) {
    json_t *value;
    assert_ok(hv_yaml_parse_value(yaml, "value", &value));
    json_object_set_new(parent, last, value);
  } else {
    assert_int_equal(json_object_del(parent, last), 0);
  }
  hv_status status = hv_model_config_from_json(document, "dir/config.json", unknown, out);
  json_decref(document);
  return status;
}

static void values_and_defaults_are_read(void **state) {
  (void)state;
  json_t *document = small_document();
  hv_model_config model;
  assert_ok(hv_model_config_from_json(document, "config.json", HV_UNKNOWN_REFUSE, &model));
  const hv_config *c = &model.config;
  assert_int_equal(c->action_dim, 7);
  assert_int_equal(c->action_chunk, 2);
  assert_int_equal(c->state_dim, 7);
  assert_int_equal(c->objective, HV_HYBRID);
  assert_int_equal(c->final_norm, HV_NORM_VARIANCE);
  assert_int_equal(c->projector, HV_PROJECTOR_FUSED_GELU_MLP);
  assert_int_equal(c->image_resize, HV_RESIZE_NAIVE);
  assert_int_equal(c->num_cameras, 2);
  assert_string_equal(c->cameras[1], "wrist");
  assert_int_equal(c->num_towers, 2);
  assert_string_equal(c->vision[1].prefix, "vision_backbone.featurizer");
  assert_int_equal(c->vision[1].activation, HV_ACT_QUICK_GELU);
  assert_float_equal(c->vision[0].image_std[2], 0.225, 0);
  assert_true(c->vision[0].patch_bias && !c->vision[0].class_position);
  assert_true(!c->vision[1].patch_bias && c->vision[1].class_position);
  assert_int_equal(c->llm.num_key_value_heads, 2);
  assert_float_equal(c->llm.rope_theta, 10000, 0);
  assert_int_equal(c->action_base, 272);
  assert_int_equal(c->token_empty, 15);
  hv_model_config_free(&model);
  json_decref(document);
}

static void optional_keys_are_read(void **state) {
  (void)state;
  hv_model_config model;
  assert_ok(read_with("state_dim", "0", HV_UNKNOWN_KEEP, &model));
  assert_int_equal(model.config.state_dim, 0);
  hv_model_config_free(&model);
  assert_ok(read_with("objective", "autoregressive", HV_UNKNOWN_KEEP, &model));
  assert_int_equal(model.config.objective, HV_AUTOREGRESSIVE);
  assert_string_equal(hv_objective_name(model.config.objective), "autoregressive");
  hv_model_config_free(&model);
  assert_ok(read_with("final_norm", "rms", HV_UNKNOWN_KEEP, &model));
  assert_int_equal(model.config.final_norm, HV_NORM_RMS);
  hv_model_config_free(&model);
  assert_ok(read_with("special_tokens.empty", "null", HV_UNKNOWN_KEEP, &model));
  assert_int_equal(model.config.token_empty, -1);
  hv_model_config_free(&model);
  assert_ok(read_with("action_tokens.base", "256", HV_UNKNOWN_KEEP, &model)); /* the least: as many as there are bins */
  hv_model_config_free(&model);
  assert_ok(read_with("action_tokens.base", "280", HV_UNKNOWN_KEEP, &model)); /* the most: the end of the vocabulary */
  hv_model_config_free(&model);
}

static void every_missing_key_is_named_with_its_file(void **state) {
  (void)state;
  static const char *const paths[] = {"model_type",
                                      "action_dim",
                                      "action_chunk",
                                      "cameras",
                                      "projector",
                                      "vision",
                                      "llm",
                                      "diffusion",
                                      "action_tokens",
                                      "special_tokens",
                                      "vision.0.prefix",
                                      "vision.1.width",
                                      "vision.0.layer_norm_eps",
                                      "vision.0.class_token",
                                      "vision.1.activation",
                                      "vision.0.image_mean",
                                      "llm.model_type",
                                      "llm.hidden_size",
                                      "llm.num_key_value_heads",
                                      "llm.rope_theta",
                                      "llm.hidden_act",
                                      "diffusion.steps",
                                      "diffusion.schedule",
                                      "action_tokens.base",
                                      "special_tokens.bos",
                                      "special_tokens.empty"};
  for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) {
    hv_model_config model;
    char last[64], expected[160];
    json_t *document = small_document();
    parent_of(document, paths[i], last);
    json_decref(document);
    snprintf(expected, sizeof expected, "%s is missing", last);
    assert_error(read_with(paths[i], NULL, HV_UNKNOWN_KEEP, &model), "dir/config.json", expected);
  }
}

static void values_that_do_not_fit_are_refused(void **state) {
  (void)state;
  static const struct {
    const char *path, *value, *key, *message;
  } cases[] = {
      {"model_type", "openvla", "model_type", "\"openvla\" is not supported"},
      {"action_dim", "0", "action_dim", "an integer from 1"},
      {"action_dim", "7.5", "action_dim", "an integer"},
      {"state_dim", "-1", "state_dim", "an integer from 0"},
      {"cameras", "[front, front]", "cameras", "front twice"},
      {"cameras", "[]", "cameras", "a list of 1 to 8"},
      {"projector", "mlp", "projector", "one of fused-gelu-mlp, gelu-mlp, linear, not mlp"},
      {"objective", "both", "objective", "one of hybrid, diffusion, autoregressive"},
      {"vision", "[]", "vision", "1 to 2"},
      {"vision", "{}", "vision", "1 to 2"},
      {"vision.0.num_heads", "5", "vision[0].num_heads", "must divide the width 48"},
      {"vision.0.image_size", "60", "vision[0].image_size", "multiple of patch_size 14"},
      {"vision.1.image_size", "28", "vision[1].image_size", "those of vision[0]"},
      {"vision.1.prefix", "vision_backbone.dino_featurizer", "vision[1].prefix", "must differ"},
      {"vision.0.activation", "relu", "vision[0].activation", "one of gelu, gelu_tanh, quick_gelu"},
      {"vision.0.image_std", "[0.1, 0, 0.1]", "vision[0].image_std", "above 0"},
      {"vision.0.image_mean", "[0.5]", "vision[0].image_mean", "3 numbers"},
      {"vision.0.class_token", "1", "vision[0].class_token", "true or false"},
      {"vision.0.layer_norm_eps", "0", "vision[0].layer_norm_eps", "above 0"},
      {"llm.model_type", "phi", "llm.model_type", "\"phi\" is not supported by this version; supported is \"llama\""},
      {"llm.hidden_act", "gelu", "llm.hidden_act", "supported is \"silu\""},
      {"vision", "[1]", "vision", "must be a list of 1 to 2 mappings"},
      {"vision.0.width", "2048", "vision[0].num_heads", "gives a head size of 512; at most 256"},
      {"llm.hidden_size", "2048", "llm.num_attention_heads", "gives a head size of 512; at most 256"},
      {"llm.num_attention_heads", "3", "llm.num_attention_heads", "must divide hidden_size 64"},
      {"llm.num_attention_heads", "64", "llm.num_attention_heads", "even size"},
      {"llm.num_key_value_heads", "3", "llm.num_key_value_heads", "must divide num_attention_heads 4"},
      {"llm.rope_scaling", "{factor: 2}", "llm.rope_scaling", "not supported"},
      {"llm.head_dim", "32", "llm.head_dim", "= 16"},
      {"llm.vocab_size", "274", "special_tokens.eod", "below llm.vocab_size 274"},
      {"special_tokens.bos", "280", "special_tokens.bos", "below llm.vocab_size 280"},
      {"special_tokens.pad", "null", "special_tokens.pad", "a token id, not null"},
      {"special_tokens.empty", "-1", "special_tokens.empty", "a token id or null, not -1"},
      {"action_tokens.base", "281", "action_tokens.base", "at most llm.vocab_size 280"},
      {"action_tokens.base", "255", "action_tokens.base", "at least bins (256)"},
      {"diffusion.steps", "1001", "diffusion.steps", "an integer from 1 to 1000"},
      {"diffusion.schedule", "linear", "diffusion.schedule", "supported is \"squaredcos_cap_v2\""},
      {"diffusion", "3", "diffusion", "must be a mapping"},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    hv_model_config model;
    assert_error(read_with(cases[i].path, cases[i].value, HV_UNKNOWN_KEEP, &model), "dir/config.json", cases[i].key,
                 cases[i].message);
    assert_null(model.document);
  }
}

static void a_colour_is_one_problem(void **state) {
  (void)state;
  hv_model_config model;
  hv_status status = read_with("vision.0.image_std", "[0, 0, -1]", HV_UNKNOWN_KEEP, &model);
  assert_non_null(status);
  assert_string_equal(hv_status_message(status),
                      "dir/config.json: vision[0].image_std must be a list of 3 numbers above 0 (red, green, blue)");
  hv_status_free(status);
}

static void unknown_keys_are_kept_in_files_and_refused_from_people(void **state) {
  (void)state;
  hv_model_config model;
  json_t *document;
  assert_ok(read_with("llm.trained_by", "somebody", HV_UNKNOWN_KEEP, &model));
  assert_ok(hv_model_config_to_json(&model, &document));
  assert_string_equal(json_string_value(json_object_get(json_object_get(document, "llm"), "trained_by")), "somebody");
  json_decref(document);
  hv_model_config_free(&model);
  assert_error(read_with("objectiv", "hybrid", HV_UNKNOWN_REFUSE, &model), "objectiv is not a known key",
               "did you mean objective?");
  assert_error(read_with("vision.1.widht", "3", HV_UNKNOWN_REFUSE, &model), "vision[1].widht", "did you mean width?");
  assert_ok(read_with("llm.max_position_embeddings", "2048", HV_UNKNOWN_REFUSE, &model));
  hv_model_config_free(&model);
}

static void a_saved_config_loads_the_same(void **state) {
  const char *path = in_folder(*state, "config.json");
  json_t *document = small_document();
  hv_model_config model, back;
  assert_ok(hv_model_config_from_json(document, "config.json", HV_UNKNOWN_KEEP, &model));
  model.config.objective = HV_DIFFUSION;
  model.config.state_dim = 9;
  model.config.vision[0].layer_norm_eps = 1e-7;
  assert_ok(hv_model_config_save(path, &model));
  assert_ok(hv_model_config_load(path, &back));
  assert_memory_equal(&model.config, &back.config, sizeof model.config);
  assert_string_equal(json_string_value(json_object_get(back.document, "objective")), "diffusion");
  hv_model_config_free(&model);
  hv_model_config_free(&back);
  json_decref(document);
  write_text(path, "{\"model_type\": ");
  assert_error(hv_model_config_load(path, &back), path, "not valid JSON");
  assert_error(hv_model_config_load(in_folder(*state, "absent.json"), &back), "absent.json");
}

static void changes_go_over_a_base(void **state) {
  (void)state;
  json_t *document = small_document(), *changes;
  hv_model_config base, model;
  assert_ok(hv_model_config_from_json(document, "config.json", HV_UNKNOWN_KEEP, &base));
  base.config.vision[0].patch_bias = false;
  assert_ok(hv_yaml_parse_value("{action_chunk: 4, cameras: [side], llm: {rms_norm_eps: 1e-6}}", "changes", &changes));
  assert_ok(hv_model_config_override(&base, changes, "run.yaml: model", &model));
  json_decref(changes);
  assert_int_equal(model.config.action_chunk, 4);
  assert_int_equal(model.config.num_cameras, 1);
  assert_float_equal(model.config.llm.rms_norm_eps, 1e-6, 0);
  assert_int_equal(model.config.llm.hidden_size, 64);
  assert_false(model.config.vision[0].patch_bias);
  hv_model_config_free(&model);
  assert_ok(hv_yaml_parse_value("{llm: {num_attention_heads: 5}, actoin_dim: 3}", "changes", &changes));
  assert_error(hv_model_config_override(&base, changes, "run.yaml: model", &model), "run.yaml: model", "actoin_dim",
               "did you mean action_dim?");
  json_object_del(changes, "actoin_dim");
  assert_error(hv_model_config_override(&base, changes, "run.yaml: model", &model), "run.yaml: model",
               "llm.num_attention_heads");
  json_decref(changes);
  hv_model_config_free(&base);
  json_decref(document);
}

static void the_models_of_the_parity_fixtures_load(void **state) {
  (void)state;
  static const char *const cases[] = {"one_arm", "two_arms", "chunk", "linear", "clip", "diffusion", "autoregressive"};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    char path[512];
    snprintf(path, sizeof path, "%s/tests/fixtures/parity/%s/config.json", HVLA_SOURCE_DIR, cases[i]);
    hv_model_config model;
    assert_ok(hv_model_config_load(path, &model));
    hv_model_config_free(&model);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(values_and_defaults_are_read),
      cmocka_unit_test(optional_keys_are_read),
      cmocka_unit_test(every_missing_key_is_named_with_its_file),
      cmocka_unit_test(values_that_do_not_fit_are_refused),
      cmocka_unit_test(a_colour_is_one_problem),
      cmocka_unit_test(unknown_keys_are_kept_in_files_and_refused_from_people),
      cmocka_unit_test(a_saved_config_loads_the_same),
      cmocka_unit_test(changes_go_over_a_base),
      cmocka_unit_test(the_models_of_the_parity_fixtures_load),
  };
  return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
