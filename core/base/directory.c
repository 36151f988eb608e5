#include "core/base/directory.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "core/base/file.h"

/* `path` without slashes at its end, with a suffix; on the heap, NULL without memory. */
static char *with_suffix(const char *path, const char *suffix) {
  size_t length = strlen(path);
  while (length > 1 && path[length - 1] == '/') length--;
  char *name = malloc(length + strlen(suffix) + 1);
  if (name) sprintf(name, "%.*s%s", (int)length, path, suffix);
  return name;
}

/* For file systems without an atomic swap. */
static hv_status move_aside(const char *fresh, const char *path) {
  char *old = with_suffix(path, ".old");
  if (!old) return hv_error_memory(path);
  hv_status status = HV_OK;
  HV_CHECK(hv_remove_tree(old));
  if (rename(path, old) != 0) {
    status = hv_error_errno(errno, "cannot rename %s to %s", path, old);
  } else if (rename(fresh, path) != 0) {
    status = hv_error_errno(errno, "cannot rename %s to %s", fresh, path);
    if (rename(old, path) != 0) status = hv_error_context(status, "%s now lies in %s", path, old);
  } else {
    status = hv_sync_parent(path);
    if (!status) status = hv_remove_tree(old);
  }
done:
  free(old);
  return status;
}

hv_status hv_replace_directory(const char *fresh, const char *path) {
  struct stat info;
  if (lstat(path, &info) == 0 && !S_ISDIR(info.st_mode)) {
    return hv_error(HV_ERR_INPUT, "%s exists and is not a directory", path);
  }
  if (renameat2(AT_FDCWD, fresh, AT_FDCWD, path, RENAME_EXCHANGE) == 0) {
    HV_TRY(hv_sync_parent(path));
    return hv_remove_tree(fresh);
  }
  if (errno == EINVAL || errno == ENOSYS) return move_aside(fresh, path);
  if (errno == ENOENT && rename(fresh, path) == 0) return hv_sync_parent(path);
  return hv_error_errno(errno, "cannot rename %s to %s", fresh, path);
}

hv_status hv_write_directory(const char *path, hv_directory_writer *write, void *context) {
  char *partial = with_suffix(path, ".partial");
  if (!partial) return hv_error_memory(path);
  hv_status status = HV_OK;
  /* Left by a process that was killed while it wrote. */
  HV_CHECK(hv_remove_tree(partial));
  HV_CHECK(hv_make_directories(partial));
  status = write(partial, context);
  if (!status) status = hv_sync_directory(partial);
  if (!status) status = hv_replace_directory(partial, path);
  if (status) status = hv_status_first(status, hv_remove_tree(partial));
done:
  free(partial);
  return status;
}
