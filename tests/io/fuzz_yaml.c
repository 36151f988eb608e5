/* Fuzzes the YAML reader, and the options that are parsed from what it reads (fuzz.h). */
#include <string.h>

#include "core/io/options.h"
#include "core/io/yaml.h"
#include "tests/io/fuzz.h"

typedef struct settings {
  int64_t steps;
  double rate;
  char *name;
  hv_string_list frozen;
  json_t *model;
} settings;

static const hv_option table[] = {
    {"steps", HV_OPTION_INT, offsetof(settings, steps), "10", 1, 1e6, NULL, NULL, NULL, ""},
    {"train.rate", HV_OPTION_FLOAT, offsetof(settings, rate), "0.5", 0, 1, NULL, NULL, NULL, ""},
    {"train.frozen", HV_OPTION_STRING_LIST, offsetof(settings, frozen), "[]", 0, 0, NULL, NULL, NULL, ""},
    {"name", HV_OPTION_STRING, offsetof(settings, name), "null", 0, 0, NULL, NULL, NULL, ""},
    {"model", HV_OPTION_OPAQUE, offsetof(settings, model), "null", 0, 0, NULL, NULL, NULL, ""},
};
enum { COUNT = sizeof table / sizeof *table };

/* An accepted document, written and read back, is equal. */
static void check_round_trip(const json_t *document) {
  hv_text yaml = {0};
  json_t *back;
  hv_status status = hv_yaml_format(document, &yaml);
  FUZZ_CHECK(!status);
  status = hv_yaml_parse(hv_text_string(&yaml), yaml.length, "formatted", &back);
  FUZZ_CHECK(!status && json_equal(document, back));
  json_decref(back);
  hv_text_free(&yaml);
}

/* Options that are accepted resolve to a document that parses to the same options. */
static void check_options(const json_t *document) {
  settings first, second;
  const char *const sets[] = {"model.a.b=1"};
  hv_status status = hv_options_parse(table, COUNT, document, "input", sets, 1, &first);
  if (status) {
    hv_status_free(status);
    return;
  }
  json_t *resolved;
  FUZZ_CHECK(!hv_options_to_json(table, COUNT, &first, &resolved));
  FUZZ_CHECK(!hv_options_parse(table, COUNT, resolved, "resolved", NULL, 0, &second));
  FUZZ_CHECK(first.steps == second.steps && first.frozen.count == second.frozen.count);
  FUZZ_CHECK(json_equal(first.model, second.model));
  json_decref(resolved);
  hv_options_free(table, COUNT, &first);
  hv_options_free(table, COUNT, &second);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  json_t *document;
  hv_status status = hv_yaml_parse((const char *)data, size, "input", &document);
  if (status) {
    FUZZ_CHECK(strstr(hv_status_message(status), "input") && !document);
    hv_status_free(status);
    return 0;
  }
  check_round_trip(document);
  check_options(document);
  json_decref(document);
  return 0;
}

bool fuzz_seed(int index, uint8_t **data, size_t *size) {
  static const char *const seeds[] = {
      "steps: 100\ntrain: {rate: 1e-2, frozen: [a, 'b', \"c\\n\"]}\nname: lift\nmodel: {a: {b: 2}, list: [x: 1]}\n",
      "a: |\n  literal\n  text\nb: >-\n  folded\n  text\nc: !!str 12\n# comment\nd: [1, 0x1f, 0o7, .5, ~, true]\n",
      "? key\n: value\nempty:\nnested: {a: {b: {c: [[[]]]}}}\n\"quoted key\": 'it''s'\nunicode: \"\\u00e9\\x41\"\n",
  };
  if ((size_t)index >= sizeof seeds / sizeof *seeds) return false;
  return fuzz_seed_text(seeds[index], data, size);
}
