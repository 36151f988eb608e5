#include "tests/data/program.h"

#include "tests/check.h"

int run_data(const char *arguments, char **out, char **errors) {
  return run_shell(out, errors, "'" HVLA_BINARY_DIR "/data/hvla-data' %s", arguments);
}

json_t *data_json(int code, const char *arguments) {
  char *out, *errors;
  json_error_t problem;
  int found = run_data(arguments, &out, &errors);
  if (found != code) fail_msg("hvla-data %s: exit code %d, not %d: %s", arguments, found, code, errors);
  if (code == 0) assert_string_equal(errors, "");
  json_t *document = json_loads(out, 0, &problem);
  if (!document) fail_msg("hvla-data %s printed no JSON: %s", arguments, problem.text);
  free(out);
  free(errors);
  return document;
}
