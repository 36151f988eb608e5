/* Options of a run configuration, with a small table of them: types, defaults, --set, what is refused, and which name
 * is suggested for a misspelt one. */
#include "core/base/nearest.h"
#include "core/io/json.h"
#include "core/io/options.h"
#include "core/io/yaml.h"
#include "tests/check.h"

typedef struct settings {
  int64_t steps, seed;
  double rate;
  bool shuffle;
  char *name, *file;
  int32_t schedule;
  hv_string_list frozen;
  hv_int_list grippers;
  hv_string_map cameras;
  hv_number_map groups;
  json_t *model;
} settings;

static const char *const schedules[] = {"constant", "cosine", NULL};

static const hv_option table[] = {
    {"train.steps", HV_OPTION_INT, offsetof(settings, steps), NULL, 1, 1e9, NULL, NULL, "steps",
     "Optimizer steps to run."},
    {"train.seed", HV_OPTION_INT, offsetof(settings, seed), "7", 0, 0, NULL, NULL, NULL, "Of every random draw."},
    {"train.learning_rate", HV_OPTION_FLOAT, offsetof(settings, rate), "2e-5", 0, 1, NULL, NULL, NULL, "Step size."},
    {"train.schedule", HV_OPTION_ENUM, offsetof(settings, schedule), "constant", 0, 0, schedules, NULL, NULL,
     "Of the rate."},
    {"train.frozen", HV_OPTION_STRING_LIST, offsetof(settings, frozen), "[\"vision_*\"]", 0, 0, NULL, NULL, NULL,
     "Patterns."},
    {"data.shuffle", HV_OPTION_BOOL, offsetof(settings, shuffle), "true", 0, 0, NULL, NULL, NULL, "Whether."},
    {"data.name", HV_OPTION_STRING, offsetof(settings, name), "null", 0, 0, NULL, NULL, NULL, "Key."},
    {"data.file", HV_OPTION_PATH, offsetof(settings, file), "demos.hdf5", 0, 0, NULL, NULL, NULL, "Demonstrations."},
    {"data.grippers", HV_OPTION_INT_LIST, offsetof(settings, grippers), "[]", 0, 31, NULL, NULL, NULL, "Dimensions."},
    {"data.cameras", HV_OPTION_STRING_MAP, offsetof(settings, cameras), "null", 0, 0, NULL, NULL, NULL, "Names."},
    {"train.groups", HV_OPTION_NUMBER_MAP, offsetof(settings, groups), "{}", 0.1, 10, NULL, NULL, NULL, "Factors."},
    {"model", HV_OPTION_OPAQUE, offsetof(settings, model), "null", 0, 0, NULL, NULL, NULL, "The architecture."},
};
enum { COUNT = sizeof table / sizeof *table };

static hv_status parse_with(const char *yaml, const char *const *sets, size_t num_sets, settings *out) {
  json_t *document;
  assert_ok(hv_yaml_parse(yaml, strlen(yaml), "run.yaml", &document));
  memset(out, 0xa5, sizeof *out); /* what the memory held before must not matter */
  hv_status status = hv_options_parse(table, COUNT, document, "run.yaml", sets, num_sets, out);
  json_decref(document);
  return status;
}

static hv_status parse(const char *yaml, settings *out) {
  return parse_with(yaml, NULL, 0, out);
}

static hv_status parse_set(const char *set, settings *out) {
  return parse_with("train: {steps: 10}\nmodel: {llm: {width: 8}, vision: [{width: 4}, {width: 5}]}\n", &set, 1, out);
}

static void defaults_fill_what_is_absent(void **state) {
  (void)state;
  settings s;
  assert_ok(parse("train: {steps: 10}\n", &s));
  assert_int_equal(s.steps, 10);
  assert_int_equal(s.seed, 7);
  assert_float_equal(s.rate, 2e-5, 0);
  assert_true(s.shuffle);
  assert_null(s.name);
  assert_string_equal(s.file, "demos.hdf5");
  assert_int_equal(s.schedule, 0);
  assert_int_equal(s.frozen.count, 1);
  assert_string_equal(s.frozen.items[0], "vision_*");
  assert_int_equal(s.grippers.count, 0);
  assert_int_equal(s.cameras.count, 0);
  assert_int_equal(s.groups.count, 0);
  assert_null(s.model);
  hv_options_free(table, COUNT, &s);
  assert_null(s.file);
}

static void every_type_is_read(void **state) {
  (void)state;
  settings s;
  assert_ok(parse("train: {steps: 1e6, seed: -3, learning_rate: 1, schedule: cosine, frozen: [a, b*],\n"
                  "  groups: {'*.b': 0.5, a.*: 3}}\n"
                  "data:\n  shuffle: false\n  name: lift\n  file: a b.hdf5\n  grippers: 6\n"
                  "  cameras: {front: agentview_image, wrist: eye}\n"
                  "model: {width: 3}\n",
                  &s));
  assert_int_equal(s.steps, 1000000);
  assert_int_equal(s.seed, -3);
  assert_float_equal(s.rate, 1, 0);
  assert_int_equal(s.schedule, 1);
  assert_int_equal(s.frozen.count, 2);
  assert_string_equal(s.frozen.items[1], "b*");
  assert_false(s.shuffle);
  assert_string_equal(s.name, "lift");
  assert_int_equal(s.grippers.count, 1);
  assert_int_equal(s.grippers.items[0], 6);
  assert_int_equal(s.cameras.count, 2);
  assert_string_equal(s.cameras.names[0], "front");
  assert_string_equal(s.cameras.values[1], "eye");
  assert_int_equal(s.groups.count, 2);
  assert_string_equal(s.groups.names[0], "*.b");
  assert_string_equal(s.groups.names[1], "a.*");
  assert_float_equal(s.groups.values[0], 0.5, 0);
  assert_float_equal(s.groups.values[1], 3, 0);
  assert_int_equal(json_integer_value(json_object_get(s.model, "width")), 3);
  hv_options_free(table, COUNT, &s);
}

/* null, or nothing after the colon. */
static void no_value_is_an_empty_list(void **state) {
  (void)state;
  settings s;
  assert_ok(parse("train: {steps: 10, frozen: null}\ndata:\n  grippers:\n", &s));
  assert_int_equal(s.frozen.count, 0);
  assert_int_equal(s.grippers.count, 0);
  hv_options_free(table, COUNT, &s);
}

static void wrong_values_say_what_is_right(void **state) {
  (void)state;
  static const struct {
    const char *line, *key, *expected;
  } cases[] = {
      {"train: {steps: 0}", "train.steps", "an integer from 1 to 1000000000, not 0"},
      {"train: {steps: 1.5}", "train.steps", "an integer"},
      {"train: {steps: ten}", "train.steps", "not \"ten\""},
      {"train: {steps: null}", "train.steps", "not null"},
      {"train: {steps: [1]}", "train.steps", "an integer"},
      {"train: {steps: 1, seed: 1e300}", "train.seed", "an integer"},
      {"train: {steps: 1, learning_rate: 2}", "train.learning_rate", "a number from 0 to 1, not 2"},
      {"train: {steps: 1, schedule: cosin}", "train.schedule",
       "one of constant, cosine, not \"cosin\"; did you mean cosine?"},
      {"train: {steps: 1, frozen: [1]}", "train.frozen", "a list of strings"},
      {"train: {steps: 1}\ndata: {shuffle: yes}", "data.shuffle", "true or false, not \"yes\""},
      {"train: {steps: 1}\ndata: {name: 12}", "data.name", "put it in quotes"},
      {"train: {steps: 1}\ndata: {grippers: [32]}", "data.grippers", "from 0 to 31"},
      {"train: {steps: 1}\ndata: {cameras: [a]}", "data.cameras", "a mapping of strings"},
      {"train: {steps: 1}\ndata: {cameras: {a: 1}}", "data.cameras", "a mapping of strings"},
      {"train: {steps: 1, groups: [a]}", "train.groups", "a mapping of numbers"},
      {"train: {steps: 1, groups: {a: b}}", "train.groups", "a mapping of numbers"},
      {"train: {steps: 1, groups: {a: 11}}", "train.groups", "a mapping of numbers from 0.1 to 10"},
      {"train: {steps: 1}\nmodel: big", "model", "a mapping"},
      {"data: {name: x}", "train.steps", "is missing; it must be an integer"},
      {"train: 5", "train", "must be a mapping"},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    settings s;
    assert_error(parse(cases[i].line, &s), "run.yaml", cases[i].key, cases[i].expected);
  }
}

static void all_mistakes_come_together(void **state) {
  (void)state;
  settings s;
  assert_error(parse("train: {steps: 0, sede: 3}\ndata: {shuffle: 1}\nextra: 2\n", &s), "train.steps", "train.sede",
               "data.shuffle", "extra");
}

static void unknown_keys_name_the_nearest(void **state) {
  (void)state;
  static const struct {
    const char *line, *key, *nearest;
  } cases[] = {
      {"train: {steps: 1, sede: 3}", "train.sede", "did you mean train.seed?"},
      {"train: {steps: 1, learning-rate: 3}", "train.learning-rate", "did you mean train.learning_rate?"},
      {"train: {steps: 1}\ntrian: {seed: 3}", "trian", "did you mean train?"},
      {"train: {steps: 1, shuffle: true}", "train.shuffle", "did you mean data.shuffle?"},
      {"train: {steps: 1}\nmodle: {}", "modle", "did you mean model?"},
      {"train: {steps: 1}\nwibble: 1", "wibble", "is not a known key"},
      {"train: {steps: 1}\ntrain.seed: 3", "train.seed", "write it as a mapping, train: {seed: …}"},
      {"train: {steps: 1, schedule.x: 3}", "train.schedule.x", "has a dot"},
      {"train: {steps: 1}\nmodel.llm: {width: 8}", "model.llm", "model: {llm: …}"},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    settings s;
    assert_error(parse(cases[i].line, &s), "run.yaml", cases[i].key, cases[i].nearest);
  }
}

static void sets_override_the_file(void **state) {
  (void)state;
  const char *const sets[] = {"train.steps=20",    "train.steps=30",       "train.frozen=[x, y]",
                              "data.name=12 a: b", "data.cameras.front=c", "train.schedule=cosine",
                              "data.file=null"};
  settings s;
  assert_ok(parse_with("train: {steps: 10}\n", sets, sizeof sets / sizeof *sets, &s));
  assert_int_equal(s.steps, 30);
  assert_int_equal(s.frozen.count, 2);
  assert_string_equal(s.name, "12 a: b");
  assert_string_equal(s.cameras.values[0], "c");
  assert_int_equal(s.schedule, 1);
  assert_null(s.file);
  hv_options_free(table, COUNT, &s);
}

static void sets_reach_into_opaque_mappings(void **state) {
  (void)state;
  settings s;
  assert_ok(parse_set("model.llm.width=64", &s));
  assert_int_equal(json_integer_value(json_object_get(json_object_get(s.model, "llm"), "width")), 64);
  hv_options_free(table, COUNT, &s);
  assert_ok(parse_set("model.vision.1.width=32", &s));
  const json_t *tower = json_array_get(json_object_get(s.model, "vision"), 1);
  assert_int_equal(json_integer_value(json_object_get(tower, "width")), 32);
  hv_options_free(table, COUNT, &s);
  assert_ok(parse_set("model.new.key=[1, 2]", &s));
  assert_int_equal(json_array_size(json_object_get(json_object_get(s.model, "new"), "key")), 2);
  hv_options_free(table, COUNT, &s);
}

static void wrong_sets_are_refused(void **state) {
  (void)state;
  static const struct {
    const char *set, *message;
  } cases[] = {
      {"train.steps", "must be written key=value"},
      {"=3", "must be written key=value"},
      {"train.steps=many", "--set: train.steps must be an integer"},
      {"train.steps=", "not null"},
      {"train.stepz=3", "did you mean train.steps?"},
      {"train=3", "is a section"},
      {"data.shuffle=1", "true or false"},
      {"train.learning_rate=fast", "a number"},
      {"train.frozen=[x", "line"},
      {"data.cameras.front=5", "--set: data.cameras must be a mapping of strings"},
      {"model=3", "a mapping"},
      {"model.vision.7.width=3", "names a missing list item"},
      {"model.vision.x=3", "names a missing list item"},
      {"model.vision..width=3", "names a missing list item"},
      {"model.vision.=3", "names a missing list item"},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    settings s;
    assert_error(parse_set(cases[i].set, &s), "--set", cases[i].message);
  }
}

static void a_resolved_document_parses_to_the_same(void **state) {
  (void)state;
  settings a, b;
  assert_ok(parse("train: {steps: 10, learning_rate: 3e-4, groups: {'*.b': 0.5, a.*: 3}}\n"
                  "data: {cameras: {front: x}, grippers: [6, 13]}\n",
                  &a));
  json_t *first, *second;
  hv_text yaml = {0};
  assert_ok(hv_options_to_json(table, COUNT, &a, &first));
  assert_ok(hv_yaml_format(first, &yaml));
  assert_ok(parse(yaml.data, &b));
  assert_ok(hv_options_to_json(table, COUNT, &b, &second));
  assert_true(json_equal(first, second));
  assert_non_null(strstr(yaml.data, "learning_rate: 0.0003"));
  assert_null(json_object_get(first, "model"));
  hv_options_free(table, COUNT, &a);
  hv_options_free(table, COUNT, &b);
  hv_text_free(&yaml);
  json_decref(first);
  json_decref(second);
}

static void the_table_documents_itself(void **state) {
  (void)state;
  hv_text text = {0};
  hv_options_document(table, COUNT, &text);
  assert_non_null(
      strstr(text.data, "| `train.steps` | an integer from 1 to 1000000000 (steps) | required | Optimizer"));
  assert_non_null(strstr(text.data, "| `train.schedule` | one of constant, cosine | `constant` | Of the rate. |"));
  hv_text_free(&text);
}

static void distances_count_swaps_as_one(void **state) {
  (void)state;
  static const struct {
    const char *a, *b;
    int distance;
  } cases[] = {{"", "", 0},           {"", "abc", 3},  {"abc", "", 3},      {"kitten", "sitting", 3},
               {"trian", "train", 1}, {"ab", "ba", 1}, {"abcd", "badc", 2}, {"same", "same", 0},
               {"ca", "abc", 3}};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    assert_int_equal(hv_edit_distance(cases[i].a, cases[i].b), cases[i].distance);
    assert_int_equal(hv_edit_distance(cases[i].b, cases[i].a), cases[i].distance);
  }
}

/* Two edits turn a name of one or two letters into anything, so it is near to nothing. */
static void short_names_are_near_to_nothing(void **state) {
  (void)state;
  hv_nearest nearest = {.name = "ab"};
  hv_nearest_offer(&nearest, "cd");
  assert_null(nearest.best);
  hv_nearest_offer(&nearest, "abc");
  assert_string_equal(nearest.best, "abc");
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(defaults_fill_what_is_absent),
      cmocka_unit_test(every_type_is_read),
      cmocka_unit_test(no_value_is_an_empty_list),
      cmocka_unit_test(short_names_are_near_to_nothing),
      cmocka_unit_test(wrong_values_say_what_is_right),
      cmocka_unit_test(all_mistakes_come_together),
      cmocka_unit_test(unknown_keys_name_the_nearest),
      cmocka_unit_test(sets_override_the_file),
      cmocka_unit_test(sets_reach_into_opaque_mappings),
      cmocka_unit_test(wrong_sets_are_refused),
      cmocka_unit_test(a_resolved_document_parses_to_the_same),
      cmocka_unit_test(the_table_documents_itself),
      cmocka_unit_test(distances_count_swaps_as_one),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
