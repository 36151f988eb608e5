/* Reading and writing YAML: scalars by the core schema of version 1.2, errors with line and column, and round trips. */
#include "core/io/json.h"
#include "core/io/yaml.h"
#include "tests/check.h"

static json_t *parse(const char *text) {
  json_t *document;
  assert_ok(hv_yaml_parse(text, strlen(text), "run.yaml", &document));
  return document;
}

static hv_status try_parse(const char *text) {
  json_t *document;
  return hv_yaml_parse(text, strlen(text), "run.yaml", &document);
}

static void scalars_have_the_types_of_yaml_1_2(void **state) {
  (void)state;
  static const struct {
    const char *text, *json;
  } cases[] = {
      {"12", "12"},
      {"-3", "-3"},
      {"+7", "7"},
      {"0x1F", "31"},
      {"0o17", "15"},
      {"1e-5", "1e-5"},
      {"2.5", "2.5"},
      {".5", "0.5"},
      {"3.", "3.0"},
      {"-1E+3", "-1000.0"},
      {"true", "true"},
      {"False", "false"},
      {"null", "null"},
      {"~", "null"},
      {"", "null"},
      {"yes", "\"yes\""},
      {"on", "\"on\""},
      {"1.2.3", "\"1.2.3\""},
      {"e5", "\"e5\""},
      {"1e", "\"1e\""},
      {"12abc", "\"12abc\""},
      {"'12'", "\"12\""},
      {"\"true\"", "\"true\""},
      {"!!str 12", "\"12\""},
      {"a b", "\"a b\""},
      {".", "\".\""},
      {"-", "\"-\""},
      {"0x", "\"0x\""},
      {"1_000", "\"1_000\""},
      {"é", "\"é\""},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    char text[64];
    /* Unquoted, a lone dash would begin a list item. */
    snprintf(text, sizeof text, strcmp(cases[i].text, "-") == 0 ? "key: '%s'" : "key: %s", cases[i].text);
    json_t *document = parse(text);
    hv_text line = {0};
    assert_ok(hv_json_format_line(json_object_get(document, "key"), &line));
    assert_string_equal(line.data, cases[i].json);
    hv_text_free(&line);
    json_decref(document);
  }
}

static void errors_name_the_place(void **state) {
  (void)state;
  static const struct {
    const char *text, *place, *message;
  } cases[] = {
      {"a: 1\nb: 2\na: 3\n", "line 3, column 1", "key twice: a"},
      {"a: &x 1\nb: *x\n", "line 1, column 4", "anchors"},
      {"a: &x [1]\n", "line 1", "anchors"},
      {"b: *x\n", "line 1, column 4", "aliases"},
      {"a: !!binary abc\n", "line 1", "tags"},
      {"a: !!map {b: 1}\n", "line 1", "tags"},
      {"a: 1\n  b: 2\n", "line 2", ""},
      {"a: [1, 2\n", "line 2", ""},
      {"a: \"unfinished\n", "line", ""},
      {"a: .nan\n", "line 1, column 4", "finite"},
      {"a: 1e999\n", "line 1, column 4", "finite"},
      {"a: 99999999999999999999\n", "line 1, column 4", "64 bits"},
      {"a: \"x\\0y\"\n", "line 1, column 4", "\\0"},
      {"a: 1\n---\nb: 2\n", "line 2", "one document"},
      {"a: 1\nb: h\xc3\xbc\xfct\n", "line 2, column 6", "UTF-8"},
      {"a: 1\nb: \x01\n", "line 2, column 4", "control characters"},
      {"? [a, b]\n: 1\n", "line 1", "key"},
      {"a: \xff\n", "run.yaml", ""},
      {"a:\tb\n\t- c", "line 2", ""},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    assert_error(try_parse(cases[i].text), "run.yaml", cases[i].place, cases[i].message);
  }
  assert_error(try_parse("- a\n- b\n"), "run.yaml", "mapping");
  assert_error(try_parse("just text"), "run.yaml", "mapping");
}

static void nesting_is_bounded(void **state) {
  (void)state;
  static const char *const openings[] = {"[", "{a: "};
  char text[16400] = "a: ";
  for (int kind = 0; kind < 2; kind++) {
    char *end = text + 3;
    for (int i = 0; i < 4000; i++) end = stpcpy(end, openings[kind]);
    assert_error(try_parse(text), "64 levels");
  }
}

static void an_empty_file_is_an_empty_mapping(void **state) {
  (void)state;
  json_t *document = parse("# nothing but a comment\n");
  assert_true(json_is_object(document));
  assert_int_equal(json_object_size(document), 0);
  json_decref(document);
}

static void what_is_formatted_reads_back(void **state) {
  (void)state;
  static const char *const documents[] = {
      "{\"a\": 1, \"b\": {\"c\": [1, 2.5, \"x\", null, true], \"d\": {}}, \"e\": []}",
      "{\"s\": [\"12\", \"true\", \"null\", \"~\", \"\", \"1e5\", \" lead\", \"trail \", \"a: b\", \"# c\", \"-\", "
      "\"'\"]}",
      "{\"s\": [\"line\\nbreak\", \"tab\\t\", \"quote\\\"\", \"\\u00e9\\ud83d\\ude00\", \"*x\", \"&y\", \"%z\", "
      "\"@\"]}",
      "{\"reals\": [0.1, 1e-05, 3.0, -0.0, 1e300, 0.30000000000000004, 1e22]}",
      "{\"12\": \"number-like key\", \"true\": 1, \"key with blank\": 2, \"\": 3}",
      "{\"towers\": [{\"prefix\": \"a.b\", \"mean\": [0.485, 0.456, 0.406]}, {\"prefix\": \"c\"}]}",
      "{\"big\": 9223372036854775807, \"small\": -9223372036854775807}",
  };
  for (size_t i = 0; i < sizeof documents / sizeof *documents; i++) {
    json_t *document, *back;
    hv_text yaml = {0};
    assert_ok(hv_json_parse(documents[i], strlen(documents[i]), "case", &document));
    assert_ok(hv_yaml_format(document, &yaml));
    assert_ok(hv_yaml_parse(yaml.data, yaml.length, "formatted", &back));
    if (!json_equal(document, back)) fail_msg("%s became\n%s", documents[i], yaml.data);
    json_decref(document);
    json_decref(back);
    hv_text_free(&yaml);
  }
}

static void assert_written(const char *json, const char *expected) {
  json_t *document;
  hv_text yaml = {0};
  assert_ok(hv_json_parse(json, strlen(json), "case", &document));
  assert_ok(hv_yaml_format(document, &yaml));
  assert_string_equal(yaml.data, expected);
  json_decref(document);
  hv_text_free(&yaml);
}

/* The config.yaml of a run is made to be read by people. */
static void short_lists_stand_on_one_line(void **state) {
  (void)state;
  static const char given[] =
      "{\"a\": [1, \"x\"], \"b\": [[1], [2]], \"c\": [{\"d\": 1}], "
      "\"e\": [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16], "
      "\"f\": \"a text as long as an instruction may be, which people read more easily where it "
      "stands whole on one line\"}";
  assert_written(given, "a: [1, x]\n"
                        "b:\n- [1]\n- [2]\n"
                        "c:\n- d: 1\n"
                        "e: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]\n"
                        "f: a text as long as an instruction may be, which people read more easily where it "
                        "stands whole on one line\n");
}

/* Python's YAML library, which reads version 1.1, must find the same types in what is written. */
static void readers_of_yaml_1_1_find_the_same_types(void **state) {
  (void)state;
  static const char given[] =
      "{\"eps\": 1e-06, \"words\": [\"yes\", \"No\", \"ON\", \"y\", \"=\", \"2026-11-28\", \"1:30\", "
      "\"1_000\", \"-0b1\", \"nothing\", \"-x\"], \"off\": 1, \"<<\": 2}";
  assert_written(given, "eps: 1.0e-06\n"
                        "words: [\"yes\", \"No\", \"ON\", \"y\", \"=\", \"2026-11-28\", \"1:30\", \"1_000\", "
                        "\"-0b1\", nothing, -x]\n"
                        "\"off\": 1\n"
                        "\"<<\": 2\n");
}

static void numbers_are_written_short(void **state) {
  (void)state;
  static const struct {
    double value;
    const char *text;
  } cases[] = {{2e-5, "2.0e-05"}, {-1.5e-7, "-1.5e-07"}, {0.1, "0.1"},     {1, "1.0"},
               {1e22, "1.0e+22"}, {10000, "10000.0"},    {0.485, "0.485"}, {1.0 / 3, "0.3333333333333333"}};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    char text[40];
    hv_format_real(cases[i].value, text, sizeof text);
    assert_string_equal(text, cases[i].text);
  }
}

static void json_files_keep_every_digit(void **state) {
  const char *path = in_folder(*state, "numbers.json");
  json_t *document = json_pack("{s:f, s:[f, f], s:s}", "third", 1.0 / 3, "list", 0.1, -1e-310, "text", "é\n"), *back;
  assert_ok(hv_json_save(path, document));
  assert_ok(hv_json_load(path, &back));
  assert_true(json_equal(document, back));
  json_decref(document);
  json_decref(back);
  write_text(path, "{\"a\": 1, \"a\": 2}");
  assert_error(hv_json_load(path, &back), path, "duplicate");
  write_text(path, "{\"a\": NaN}");
  assert_error(hv_json_load(path, &back), path, "line 1");
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(scalars_have_the_types_of_yaml_1_2),
      cmocka_unit_test(errors_name_the_place),
      cmocka_unit_test(nesting_is_bounded),
      cmocka_unit_test(an_empty_file_is_an_empty_mapping),
      cmocka_unit_test(what_is_formatted_reads_back),
      cmocka_unit_test(short_lists_stand_on_one_line),
      cmocka_unit_test(readers_of_yaml_1_1_find_the_same_types),
      cmocka_unit_test(numbers_are_written_short),
      cmocka_unit_test(json_files_keep_every_digit),
  };
  return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
