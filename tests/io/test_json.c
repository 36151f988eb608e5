/* Parsing JSON from memory: the errors of invalid JSON, and of memory that runs out at each allocation in turn. */
#include "core/io/json.h"
#include "tests/check.h"

static const char where[] = "dir/file.json";

static hv_status parse(const char *text, json_t **out) {
  return hv_json_parse(text, strlen(text), where, out);
}

static void what_is_no_json_is_told_with_its_place(void **state) {
  (void)state;
  json_t *document;
  assert_error(parse("{\"a\": 1,\n  x}", &document), "dir/file.json is not valid JSON: line 2, column 3: ");
  assert_error(parse("{\"a\": 1, \"a\": 2}", &document), "dir/file.json is not valid JSON", "duplicate");
  assert_error(parse("", &document), "dir/file.json is not valid JSON: line 1, column 0: ");
}

static int allocations_left;

static void *allocate(size_t size) {
  return allocations_left-- > 0 ? malloc(size) : NULL;
}

/* Every allocation in turn fails, and the error is about memory. (The document holds no strings: if memory runs out
 * inside one, jansson itself reports a wrong character.) */
static void memory_that_runs_out_is_no_wrong_json(void **state) {
  (void)state;
  json_malloc_t allocates;
  json_free_t frees;
  json_t *document = NULL;
  int failures = 0;
  json_get_alloc_funcs(&allocates, &frees);
  json_set_alloc_funcs(allocate, free);
  for (;; failures++) {
    allocations_left = failures;
    hv_status status = parse("[1, 2.5, [null, {}], 3, 4, 5, 6, 7, 8, 9]", &document);
    if (!status) break;
    assert_int_equal(hv_status_code(status), HV_ERR_MEMORY);
    assert_non_null(strstr(hv_status_message(status), where));
    hv_status_free(status);
  }
  assert_true(failures > 5);
  json_decref(document);
  json_set_alloc_funcs(allocates, frees);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(what_is_no_json_is_told_with_its_place),
      cmocka_unit_test(memory_that_runs_out_is_no_wrong_json),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
