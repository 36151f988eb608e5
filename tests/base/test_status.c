/* Errors as values: their codes, messages, causes and exit codes, and texts that cannot be built. */
#include <errno.h>

#include "core/base/text.h"
#include "tests/check.h"

static hv_status layered(int depth) {
  if (depth == 0) return hv_error(HV_ERR_INPUT, "key \"%s\" is missing", "action");
  HV_TRY(layered(depth - 1));
  return HV_OK;
}

static void errors_carry_code_and_message(void **state) {
  (void)state;
  hv_status status = layered(3);
  assert_non_null(status);
  assert_int_equal(hv_status_code(status), HV_ERR_INPUT);
  assert_string_equal(hv_status_message(status), "key \"action\" is missing");
  status = hv_error_context(status, "file %d", 7);
  assert_int_equal(hv_status_code(status), HV_ERR_INPUT);
  assert_string_equal(hv_status_message(status), "file 7: key \"action\" is missing");
  hv_status_free(status);
  assert_null(hv_error_context(HV_OK, "nothing"));
  assert_string_equal(hv_status_message(HV_OK), "");
  hv_status_free(HV_OK);
}

static void long_messages_are_kept_whole(void **state) {
  (void)state;
  char text[5000];
  memset(text, 'x', sizeof text);
  text[sizeof text - 1] = '\0';
  hv_status status = hv_error_context(hv_error(HV_ERR_NO, "%s", text), "%s", text);
  assert_int_equal(strlen(hv_status_message(status)), 2 * (sizeof text - 1) + 2);
  hv_status_free(status);
}

static void system_errors_name_their_cause(void **state) {
  (void)state;
  hv_status status = hv_error_errno(ENOSPC, "cannot write %s", "a.bin");
  assert_int_equal(hv_status_code(status), HV_ERR_IO);
  assert_non_null(strstr(hv_status_message(status), "cannot write a.bin: "));
  assert_non_null(strstr(hv_status_message(status), strerror(ENOSPC)));
  hv_status_free(status);
}

static void the_first_of_two_errors_is_kept(void **state) {
  (void)state;
  hv_status status = hv_status_first(hv_error(HV_ERR_IO, "first"), hv_error(HV_ERR_INPUT, "second"));
  assert_string_equal(hv_status_message(status), "first");
  hv_status_free(status);
  status = hv_status_first(HV_OK, hv_error(HV_ERR_INPUT, "second"));
  assert_string_equal(hv_status_message(status), "second");
  status = hv_status_first(status, HV_OK);
  assert_string_equal(hv_status_message(status), "second");
  hv_status_free(status);
  assert_null(hv_status_first(HV_OK, HV_OK));
}

static void exit_codes(void **state) {
  (void)state;
  static const struct {
    hv_code code;
    int exit_code;
  } expected[] = {{HV_ERR_NO, 1}, {HV_ERR_INPUT, 2}};
  assert_int_equal(hv_status_exit_code(HV_OK), 0);
  for (size_t i = 0; i < sizeof expected / sizeof expected[0]; i++) {
    hv_status status = hv_error(expected[i].code, "x");
    assert_int_equal(hv_status_exit_code(status), expected[i].exit_code);
    hv_status_free(status);
  }
  for (hv_code code = HV_ERR_NO; code <= HV_ERR_INTERNAL; code++) {
    hv_status status = hv_error(code, "x");
    assert_in_range(hv_status_exit_code(status), 1, 2);
    hv_status_free(status);
  }
}

static void a_text_that_cannot_be_made_has_failed(void **state) {
  (void)state;
  hv_text text = {0};
  hv_text_add(&text, "%s", "kept");
  hv_text_add(&text, "%ls", L"\u00e9"); /* cannot be encoded in the C locale */
  assert_true(text.failed);
  hv_text_add(&text, "%s", "dropped");
  assert_string_equal(hv_text_string(&text), "kept");
  hv_text_free(&text);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(errors_carry_code_and_message),
      cmocka_unit_test(long_messages_are_kept_whole),
      cmocka_unit_test(system_errors_name_their_cause),
      cmocka_unit_test(the_first_of_two_errors_is_kept),
      cmocka_unit_test(exit_codes),
      cmocka_unit_test(a_text_that_cannot_be_made_has_failed),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
