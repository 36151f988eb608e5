#include "tests/infer/program.h"

#include "tests/check.h"

#define PROGRAM HVLA_BINARY_DIR "/infer/hvla-infer"

int run_infer_after(const char *before, const char *folder, const char *arguments, char **out, char **errors) {
  return run_shell(out, errors, "cd '%s' && %s '%s' %s", folder, before, PROGRAM, arguments);
}

int run_infer(const char *folder, const char *arguments, char **out, char **errors) {
  return run_infer_after("", folder, arguments, out, errors);
}

json_t *infer_json(const char *folder, const char *arguments) {
  char *out, *errors;
  json_error_t problem;
  int code = run_infer(folder, arguments, &out, &errors);
  if (code) fail_msg("hvla-infer %s: exit code %d: %s", arguments, code, errors);
  assert_string_equal(errors, "");
  json_t *document = json_loads(out, 0, &problem);
  if (!document) fail_msg("hvla-infer %s printed no JSON: %s\n%s", arguments, problem.text, out);
  free(out);
  free(errors);
  return document;
}

void infer_fails_words(const char *folder, int code, const char *const *arguments_and_words) {
  const char *arguments = arguments_and_words[0];
  char *out, *errors;
  int found = run_infer(folder, arguments, &out, &errors);
  if (found != code) fail_msg("hvla-infer %s: exit code %d, not %d: %s", arguments, found, code, errors);
  assert_string_equal(out, "");
  for (const char *const *word = arguments_and_words + 1; *word; word++)
    if (!strstr(errors, *word)) fail_msg("hvla-infer %s: \"%s\" lacks \"%s\"", arguments, errors, *word);
  free(out);
  free(errors);
}
