/* The memory that is left on the host, held against what the system says itself. */
#include <sys/resource.h>

#include "core/base/host_memory.h"
#include "tests/check.h"

/* Bytes behind a key of /proc/meminfo. */
static size_t meminfo(const char *key) {
  char line[256];
  unsigned long long kib = 0;
  FILE *file = fopen("/proc/meminfo", "re");
  assert_non_null(file);
  while (!kib && fgets(line, sizeof line, file)) {
    if (strncmp(line, key, strlen(key)) == 0) kib = strtoull(line + strlen(key), NULL, 10);
  }
  (void)fclose(file);
  assert_true(kib > 0);
  return (size_t)kib << 10;
}

/* A control group may leave less than the machine has, but room for this process. */
static void what_is_left_is_a_part_of_what_there_is(void **state) {
  (void)state;
  size_t left = hv_host_memory_available();
  print_message("%zu MB are left\n", left >> 20);
  assert_true(left > (size_t)64 << 20);
  assert_true(left < meminfo("MemTotal:"));
}

static void a_limit_on_the_address_space_counts(void **state) {
  (void)state;
  enum { MORE = 100 << 20 };
  struct rlimit old, tight;
  assert_int_equal(getrlimit(RLIMIT_AS, &old), 0);
  tight = (struct rlimit){.rlim_cur = (rlim_t)1 << 46, .rlim_max = old.rlim_max};
  assert_int_equal(setrlimit(RLIMIT_AS, &tight), 0);
  tight.rlim_cur -= hv_host_address_space_left(); /* what the process has now */
  tight.rlim_cur += MORE;
  assert_int_equal(setrlimit(RLIMIT_AS, &tight), 0);
  size_t left = hv_host_address_space_left(), available = hv_host_memory_available();
  assert_int_equal(setrlimit(RLIMIT_AS, &old), 0);
  assert_in_range(left, MORE - (8 << 20), MORE + (8 << 20));
  assert_in_range(available, 0, MORE + (8 << 20));
  if (old.rlim_cur == RLIM_INFINITY) assert_true(hv_host_address_space_left() == SIZE_MAX);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(what_is_left_is_a_part_of_what_there_is),
                                     cmocka_unit_test(a_limit_on_the_address_space_counts)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
