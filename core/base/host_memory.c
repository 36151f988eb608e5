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

/* Reads the number after `key`, which begins a line of the file; false if there is none. */
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

/* The files in which a version of control groups (cgroups) reports memory. */
typedef struct group_files {
  const char *mount, *limit, *used, *reclaimable; /* the last: a key of memory.stat that counts the groups inside too */
} group_files;

static const group_files version_1 = {"/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes",
                                      "total_inactive_file "};
static const group_files version_2 = {"/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file "};

/* The bytes that a control group, given by its directory, has left. Inactive pages of the file cache, which the kernel
 * can reclaim, count as left. */
static size_t group_available(const group_files *files, const char *group) {
  char path[PATH_SIZE + 64];
  size_t limit, used, reclaimable;
  snprintf(path, sizeof path, "%s/%s", group, files->limit);
  if (!read_number(path, "", &limit)) return SIZE_MAX; /* no such file, or "max" */
  snprintf(path, sizeof path, "%s/%s", group, files->used);
  if (!read_number(path, "", &used)) return SIZE_MAX;
  snprintf(path, sizeof path, "%s/memory.stat", group);
  if (read_number(path, files->reclaimable, &reclaimable)) used -= smaller(used, reclaimable);
  return limit > used ? limit - used : 0;
}

/* The least that a group ("/a/b") and the groups around it have left, up to the root, where a container finds its own
 * group. */
static size_t groups_available(const char *root, const group_files *files, const char *group) {
  char path[PATH_SIZE];
  size_t available = SIZE_MAX;
  int above = snprintf(path, sizeof path, "%s%s", root, files->mount);
  snprintf(path + above, sizeof path - (size_t)above, "%s", group);
  for (;;) {
    available = smaller(available, group_available(files, path));
    char *slash = strrchr(path + above, '/');
    if (!slash) return available;
    *slash = '\0';
  }
}

/* Whether "cpu,memory" has the word "memory". */
static bool holds_memory(const char *controllers) {
  static const char word[] = "memory";
  for (;;) {
    size_t length = strcspn(controllers, ",");
    if (length == sizeof word - 1 && strncmp(controllers, word, length) == 0) return true;
    if (controllers[length] == '\0') return false;
    controllers += length + 1;
  }
}

size_t hv_host_address_space_left(void) {
  struct rlimit limit;
  size_t pages;
  if (getrlimit(RLIMIT_AS, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return SIZE_MAX;
  if (!read_number("/proc/self/statm", "", &pages)) return SIZE_MAX;
  size_t used = pages * (size_t)sysconf(_SC_PAGESIZE);
  return limit.rlim_cur > used ? limit.rlim_cur - used : 0;
}

size_t hv_host_groups_available(const char *root) {
  char line[PATH_SIZE], path[PATH_SIZE];
  size_t available = SIZE_MAX;
  snprintf(path, sizeof path, "%s/proc/self/cgroup", root);
  FILE *file = fopen(path, "re");
  if (!file) return available;
  /* Version 2 has "0::/a/b"; version 1 has a line for each hierarchy, with its controllers: "4:cpu,memory:/a/b". */
  while (fgets(line, sizeof line, file)) {
    line[strcspn(line, "\n")] = '\0';
    char *controllers = strchr(line, ':'), *group = controllers ? strchr(controllers + 1, ':') : NULL;
    if (!group) continue;
    *group++ = '\0';
    controllers++;
    const group_files *files = !*controllers ? &version_2 : holds_memory(controllers) ? &version_1 : NULL;
    if (files) available = smaller(available, groups_available(root, files, group));
  }
  (void)fclose(file);
  return available;
}

size_t hv_host_memory_available(void) {
  size_t kib, available = read_number("/proc/meminfo", "MemAvailable:", &kib) ? kib * 1024 : SIZE_MAX;
  available = smaller(available, hv_host_address_space_left());
  return smaller(available, hv_host_groups_available(""));
}
