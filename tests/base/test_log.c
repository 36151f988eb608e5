/* What the logger writes to standard error, which the test redirects to a file. */
#include "core/base/log.h"
#include "tests/check.h"

static void a_long_message_is_written_whole(void **state) {
  char message[20000], *text;
  memset(message, 'x', sizeof message);
  memcpy(message + sizeof message - 5, "end.", 5);
  const char *path = in_folder(*state, "log");
  FILE *file = fopen(path, "we");
  assert_non_null(file);
  int before = dup(STDERR_FILENO);
  assert_true(dup2(fileno(file), STDERR_FILENO) >= 0);
  hv_log_error("%s", message);
  assert_true(dup2(before, STDERR_FILENO) >= 0);
  close(before);
  assert_int_equal(fclose(file), 0);

  assert_ok(hv_read_text(path, 1 << 20, &text, NULL));
  const char *start = strstr(text, " error: ");
  assert_non_null(start);
  assert_int_equal(strlen(start), strlen(" error: ") + strlen(message) + 1);
  assert_string_equal(text + strlen(text) - 5, "end.\n");
  free(text);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(a_long_message_is_written_whole, make_folder, remove_folder),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
