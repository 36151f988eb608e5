#include "core/base/directory.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "core/base/file.h"
#include "core/base/interruption.h"
#include "core/base/log.h"

/* `path` without slashes at its end, with a suffix; on the heap, NULL without memory. */
static char *with_suffix(const char *path, const char *suffix) {
  size_t length = strlen(path);
  while (length > 1 && path[length - 1] == '/') length--;
  char *name = malloc(length + strlen(suffix) + 1);
  if (name) sprintf(name, "%.*s%s", (int)length, path, suffix);
  return name;
}

/* Removes `old`, which is no longer needed once `path` is complete. If it cannot be removed, that is only a warning,
 * since nothing but disk space is lost: a network file system keeps a file that somebody still reads. */
static void remove_former(const char *old, const char *path) {
  hv_status status = hv_remove_tree(old);
  if (status)
    hv_log_warning("%s is complete, but %s, no longer needed, could not be removed: %s", path, old,
                   hv_status_message(status));
  hv_status_free(status);
}

/* The first of `path`.old, `path`.old-2, … that does not exist: one that exists may be a person's copy. */
static char *name_former(const char *path) {
  struct stat info;
  char suffix[32] = ".old";
  char *name = with_suffix(path, suffix);
  for (int number = 2; name && lstat(name, &info) == 0; number++) {
    free(name);
    snprintf(suffix, sizeof suffix, ".old-%d", number);
    name = with_suffix(path, suffix);
  }
  return name;
}

/* Replaces `path` on file systems without an atomic swap. */
static hv_status move_aside(const char *fresh, const char *path) {
  char *old = name_former(path);
  if (!old) return hv_error_memory(path);
  hv_status status = HV_OK;
  if (rename(path, old) != 0) {
    status = hv_error_errno(errno, "cannot rename %s to %s", path, old);
  } else if (rename(fresh, path) != 0) {
    status = hv_error_errno(errno, "cannot rename %s to %s", fresh, path);
    if (rename(old, path) != 0)
      status = hv_error_context(status, "%s was renamed to %s and could not be renamed back", path, old);
  } else {
    status = hv_sync_parent(path);
    if (!status) remove_former(old, path);
  }
  free(old);
  return status;
}

hv_status hv_replace_directory(const char *fresh, const char *path) {
  struct stat info;
  if (lstat(path, &info) == 0 && !S_ISDIR(info.st_mode)) {
    return hv_error(HV_ERR_INPUT, "%s exists and is not a directory", path);
  }
  if (renameat2(AT_FDCWD, fresh, AT_FDCWD, path, RENAME_EXCHANGE) == 0) {
    hv_status status = hv_sync_parent(path);
    if (!status) remove_former(fresh, path);
    /* Without the sync the new content may not survive a crash, so the old one is put back if it can be. */
    if (status) (void)renameat2(AT_FDCWD, fresh, AT_FDCWD, path, RENAME_EXCHANGE);
    return status;
  }
  if (errno == EINVAL || errno == ENOSYS) return move_aside(fresh, path);
  if (errno == ENOENT && rename(fresh, path) == 0) return hv_sync_parent(path);
  return hv_error_errno(errno, "cannot rename %s to %s", fresh, path);
}

/* The suffix of a directory that is being filled; inside an empty directory, the whole name. */
static const char partial_suffix[] = ".partial";

hv_status hv_directory_list(const char *path, hv_string_list *out) {
  *out = (hv_string_list){0};
  DIR *folder = opendir(path);
  if (!folder) return hv_error_errno(errno, "cannot read directory %s", path);
  hv_status status = HV_OK;
  const struct dirent *entry;
  while (!status && (errno = 0, entry = readdir(folder)) != NULL) {
    const char *name = entry->d_name;
    if (strcmp(name, ".") != 0 && strcmp(name, "..") != 0) status = hv_string_list_append(out, name);
  }
  if (!status && errno != 0) status = hv_error_errno(errno, "cannot read directory %s", path);
  closedir(folder);
  if (status) hv_string_list_free(out);
  return status;
}

hv_status hv_directory_is_empty(const char *path, bool *out) {
  hv_string_list names;
  HV_TRY(hv_directory_list(path, &names));
  *out = names.count == 0;
  hv_string_list_free(&names);
  return HV_OK;
}

static hv_status move_entry(const char *name, const char *from, const char *to) {
  hv_status status = HV_OK;
  char *old = hv_path_join(from, name), *new = hv_path_join(to, name);
  if (!old || !new) {
    status = hv_error_memory("a path");
  } else if (rename(old, new) != 0) {
    status = hv_error_errno(errno, "cannot rename %s to %s", old, new);
  }
  free(old);
  free(new);
  return status;
}

static hv_status remove_entry(const char *name, const char *directory) {
  char *path = hv_path_join(directory, name);
  hv_status status = path ? hv_remove_tree(path) : hv_error_memory("a path");
  free(path);
  return status;
}

/* Moves all entries of `from`. After an error those already moved are removed again; entries that others have put into
 * `to` meanwhile stay. */
static hv_status move_entries(const char *from, const char *to) {
  hv_string_list names;
  HV_TRY(hv_directory_list(from, &names));
  hv_status status = HV_OK;
  size_t moved = 0;
  while (moved < names.count && !status) status = move_entry(names.items[moved++], from, to);
  for (size_t i = 0; status && i + 1 < moved; i++) {
    status = hv_status_first(status, remove_entry(names.items[i], to));
  }
  hv_string_list_free(&names);
  if (!status) status = hv_sync_directory(to);
  return status;
}

static char *name_partial(const char *to, bool inside, int number) {
  char suffix[sizeof partial_suffix + 16];
  snprintf(suffix, sizeof suffix, "%s-%d", partial_suffix, number);
  if (number == 1) suffix[sizeof partial_suffix - 1] = '\0';
  return inside ? hv_path_join(to, suffix) : with_suffix(to, suffix);
}

/* Removes leftovers under all of the names and returns the first name that is free then. A leftover that somebody still
 * reads may not be removable now; a later call tries again. */
static hv_status clear_partials(const char *to, bool inside, char **out) {
  enum { NAMES = 8 };
  hv_status status = HV_OK;
  *out = NULL;
  for (int number = 1; number <= NAMES; number++) {
    char *name = name_partial(to, inside, number);
    hv_status stuck = name ? hv_remove_tree(name) : hv_error_memory(to);
    bool taken = !stuck && !*out;
    if (taken) *out = name;
    if (!taken) free(name);
    status = hv_status_first(status, stuck);
  }
  if (!*out) return status;
  hv_status_free(status);
  return HV_OK;
}

static hv_status choose_partial(const char *to, bool inside, hv_leftover leftover, char **out) {
  if (leftover == HV_LEFTOVER_REMOVE) return clear_partials(to, inside, out);
  *out = name_partial(to, inside, 1);
  return *out ? HV_OK : hv_error_memory(to);
}

/* Makes the directory and its missing parents. It must not exist yet, so that no other process uses it. */
static hv_status make_partial(const char *partial) {
  char *copy = strdup(partial);
  hv_status status = copy ? hv_make_directories(dirname(copy)) : hv_error_memory(partial);
  free(copy);
  if (status || mkdir(partial, 0777) == 0) return status;
  if (errno != EEXIST) return hv_error_errno(errno, "cannot make directory %s", partial);
  return hv_error(HV_ERR_INPUT,
                  "%s exists already: another process is writing it, or a killed one left it; remove it if no process "
                  "uses it",
                  partial);
}

hv_status hv_write_directory(const char *path, hv_leftover leftover, hv_directory_writer *write, void *context) {
  bool empty = false;
  struct stat info;
  char *partial = NULL, *target = realpath(path, NULL);
  if (!target && errno != ENOENT) return hv_error_errno(errno, "cannot open %s", path);
  const char *to = target ? target : path;
  hv_status status = HV_OK;
  hv_interruption_hold();
  if (target && stat(target, &info) == 0 && S_ISDIR(info.st_mode)) HV_CHECK(hv_directory_is_empty(target, &empty));
  HV_CHECK(choose_partial(to, empty, leftover, &partial));
  HV_CHECK(make_partial(partial));
  status = write(partial, context);
  if (!status) status = hv_sync_directory(partial);
  if (!status) status = hv_interruption_status();
  if (!status) status = empty ? move_entries(partial, to) : hv_replace_directory(partial, to);
  /* Not after success: once `partial` has replaced `to`, another process may use its name. */
  if (status) status = hv_status_first(status, hv_remove_tree(partial));
  if (!status && empty) remove_former(partial, to);
done:
  free(partial);
  free(target);
  hv_interruption_release();
  return status;
}
