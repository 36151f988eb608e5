/* The memory that is left on the host, held against what the system says itself. */
#include "train/checkpoint/host_memory.h"

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

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(what_is_left_is_a_part_of_what_there_is)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
