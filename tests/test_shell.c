/* The helpers of tests/shell.h on lines with known results: streams apart or in order, no output lost, exit codes. */
#include "tests/shell.h"

#include <signal.h>

#include "tests/check.h"

static void streams_come_apart_or_in_order(void **state) {
  (void)state;
  static const char line[] = "echo one; echo two >&2; echo three";
  char *out, *errors;
  assert_int_equal(run_shell(&out, &errors, line), 0);
  assert_string_equal(out, "one\nthree\n");
  assert_string_equal(errors, "two\n");
  free(out);
  free(errors);
  assert_int_equal(run_shell(&out, NULL, line), 0);
  assert_string_equal(out, "one\ntwo\nthree\n");
  free(out);
  assert_int_equal(run_shell(&out, NULL, "printf 'one\\000two\\000'"), 0);
  assert_string_equal(out, "onetwo");
  free(out);
  assert_int_equal(run_shell(&out, &errors, "true"), 0);
  assert_string_equal(out, "");
  assert_string_equal(errors, "");
  free(out);
  free(errors);
}

/* The line writes more than a pipe holds to both streams in turn: reading one to its end and then the other would
 * deadlock. */
static void nothing_is_cut_short(void **state) {
  (void)state;
  enum { SIZE = 3000000 };
  char *out, *errors, *word = malloc(20001);
  int code = run_shell(&out, &errors,
                       "head -c %d /dev/zero | tr '\\0' e >&2; head -c %d /dev/zero | tr '\\0' o; exit 3", SIZE, SIZE);
  assert_int_equal(code, 3);
  assert_int_equal(strlen(out), SIZE);
  assert_int_equal(strspn(out, "o"), SIZE);
  assert_int_equal(strlen(errors), SIZE);
  assert_int_equal(strspn(errors, "e"), SIZE);
  free(out);
  free(errors);
  assert_non_null(word);
  memset(word, 'w', 20000);
  word[20000] = '\0';
  assert_int_equal(run_shell(&out, NULL, "printf %%s %s", word), 0);
  assert_string_equal(out, word);
  free(out);
  free(word);
}

static void codes_tell_signals(void **state) {
  (void)state;
  char *out;
  assert_int_equal(run_shell(&out, NULL, "kill -SEGV $$"), 128 + SIGSEGV);
  free(out);
  assert_int_equal(run_shell(&out, NULL, "no-such-program"), 127);
  assert_non_null(strstr(out, "no-such-program"));
  free(out);
  assert_int_equal(wait_for_exit(start_shell("exit %d", 5)), 5);
  pid_t process = start_shell("exec sleep 60");
  assert_int_equal(kill(process, SIGTERM), 0);
  assert_int_equal(wait_for_exit(process), 128 + SIGTERM);
  must_shell("exit 0");
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(streams_come_apart_or_in_order),
      cmocka_unit_test(nothing_is_cut_short),
      cmocka_unit_test(codes_tell_signals),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
