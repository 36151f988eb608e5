/* The host memory that core/base reports as available, against /proc/meminfo, against a limit on the address space, and
 * with made-up control groups of versions 1 and 2. */
#include <sys/resource.h>

#include "core/base/directory.h"
#include "core/base/file.h"
#include "core/base/host_memory.h"
#include "tests/check.h"

/* The value of a key in /proc/meminfo, in bytes. */
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

/* A control group may allow less than the machine has, but more than this process uses. */
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
  tight.rlim_cur -= hv_host_address_space_left(); /* now: what the process uses already */
  tight.rlim_cur += MORE;
  assert_int_equal(setrlimit(RLIMIT_AS, &tight), 0);
  size_t left = hv_host_address_space_left(), available = hv_host_memory_available();
  assert_int_equal(setrlimit(RLIMIT_AS, &old), 0);
  assert_in_range(left, MORE - (8 << 20), MORE + (8 << 20));
  assert_in_range(available, 0, MORE + (8 << 20));
  if (old.rlim_cur == RLIM_INFINITY) assert_true(hv_host_address_space_left() == SIZE_MAX);
}

/* Writes a file of the made-up system whose root directory is `root`. */
static void put(const char *root, const char *path, const char *text) {
  char *file = hv_path_join(root, path + 1);
  assert_non_null(file);
  char *slash = strrchr(file, '/');
  *slash = '\0';
  assert_ok(hv_make_directories(file));
  *slash = '/';
  write_text(file, text);
  free(file);
}

static void control_groups_of_version_1_count(void **state) {
  const char *root = *state;
  assert_true(hv_host_groups_available(root) == SIZE_MAX);
  put(root, "/proc/self/cgroup", "12:cpuset:/other\n4:cpu,memory:/job/step\n1:name=memory:/other\n0::/\n");
  assert_true(hv_host_groups_available(root) == SIZE_MAX);
  put(root, "/sys/fs/cgroup/memory/other/memory.limit_in_bytes", "1\n");
  put(root, "/sys/fs/cgroup/memory/other/memory.usage_in_bytes", "1\n");
  put(root, "/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"); /* no limit */
  put(root, "/sys/fs/cgroup/memory/memory.usage_in_bytes", "7000\n");
  put(root, "/sys/fs/cgroup/memory/job/step/memory.limit_in_bytes", "9000\n");
  put(root, "/sys/fs/cgroup/memory/job/step/memory.usage_in_bytes", "2500\n");
  assert_int_equal(hv_host_groups_available(root), 6500);
  put(root, "/sys/fs/cgroup/memory/job/step/memory.stat", "inactive_file 300\ntotal_inactive_file 500\n");
  assert_int_equal(hv_host_groups_available(root), 7000);
  put(root, "/sys/fs/cgroup/memory/job/memory.limit_in_bytes", "6000\n");
  put(root, "/sys/fs/cgroup/memory/job/memory.usage_in_bytes", "5000\n");
  assert_int_equal(hv_host_groups_available(root), 1000);
}

/* A container sees its own group at the root of /sys/fs/cgroup, but /proc/self/cgroup gives the name that the host
 * uses. */
static void control_groups_of_version_2_count(void **state) {
  const char *root = *state;
  put(root, "/proc/self/cgroup", "0::/job/step\n");
  put(root, "/sys/fs/cgroup/memory.max", "9000\n");
  put(root, "/sys/fs/cgroup/memory.current", "2500\n");
  put(root, "/sys/fs/cgroup/memory.stat", "anon 1\ninactive_file 500\n");
  assert_int_equal(hv_host_groups_available(root), 7000);
  put(root, "/sys/fs/cgroup/job/memory.max", "max\n");
  put(root, "/sys/fs/cgroup/job/memory.current", "8000\n");
  assert_int_equal(hv_host_groups_available(root), 7000);
  put(root, "/sys/fs/cgroup/job/step/memory.max", "3000\n");
  put(root, "/sys/fs/cgroup/job/step/memory.current", "4000\n");
  assert_int_equal(hv_host_groups_available(root), 0);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(what_is_left_is_a_part_of_what_there_is),
      cmocka_unit_test(a_limit_on_the_address_space_counts),
      cmocka_unit_test_setup_teardown(control_groups_of_version_1_count, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(control_groups_of_version_2_count, make_folder, remove_folder),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
