#include "core/base/host_memory.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

enum { PATH_SIZE = 4096 };

static size_t smaller(size_t a, size_t b) {
  return a < b ? a : b;
}

/* The number behind `key` at the start of a line of the file; false where there is none. */
static bool read_number(const char *path, const char *key, size_t *out) {
  char line[256], *end;
  bool found = false;
  FILE *file = fopen(path, "re");
  if (!file) return false;
  while (!found && fgets(line, sizeof line, file)) {
    if (strncmp(line, key, strlen(key)) != 0) continue;
    const char *digits = line + strlen(key);
    *out = strtoull(digits, &end, 10);
    found = end != digits;
  }
  (void)fclose(file);
  return found;
}

static bool read_of_group(const char *group, const char *name, const char *key, size_t *out) {
  char path[PATH_SIZE + 64];
  snprintf(path, sizeof path, "/sys/fs/cgroup%s/%s", group, name);
  return read_number(path, key, out);
}

/* What a control group has left; pages of files that it read and nobody needs count as left. */
static size_t group_available(const char *group) {
  size_t limit, used, reclaimable;
  /* No such file, or "max". */
  if (!read_of_group(group, "memory.max", "", &limit)) return SIZE_MAX;
  if (!read_of_group(group, "memory.current", "", &used)) return SIZE_MAX;
  if (read_of_group(group, "memory.stat", "inactive_file ", &reclaimable)) used -= smaller(used, reclaimable);
  return limit > used ? limit - used : 0;
}

size_t hv_host_address_space_left(void) {
  struct rlimit limit;
  size_t pages;
  if (getrlimit(RLIMIT_AS, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return SIZE_MAX;
  if (!read_number("/proc/self/statm", "", &pages)) return SIZE_MAX;
  size_t used = pages * (size_t)sysconf(_SC_PAGESIZE);
  return limit.rlim_cur > used ? limit.rlim_cur - used : 0;
}

size_t hv_host_memory_available(void) {
  size_t kib, available = read_number("/proc/meminfo", "MemAvailable:", &kib) ? kib * 1024 : SIZE_MAX;
  available = smaller(available, hv_host_address_space_left());
  char line[PATH_SIZE], *group = NULL;
  FILE *file = fopen("/proc/self/cgroup", "re");
  if (!file) return available;
  while (!group && fgets(line, sizeof line, file)) {
    if (strncmp(line, "0::/", 4) == 0) group = line + 3;
  }
  (void)fclose(file);
  if (!group) return available;
  group[strcspn(group, "\n")] = '\0';
  /* The group itself and all that it lies in; the last is the root, "". */
  for (;;) {
    available = smaller(available, group_available(group));
    char *slash = strrchr(group, '/');
    if (!slash) return available;
    *slash = '\0';
  }
}
