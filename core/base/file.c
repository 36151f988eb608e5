#include "core/base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <fts.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

static hv_status open_for_reading(const char *path, int *fd, size_t *size) {
  *size = 0;
  *fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a pipe nobody writes to is refused, not waited for */
  if (*fd < 0) return hv_error_errno(errno, "cannot open %s", path);
  struct stat info;
  if (fstat(*fd, &info) != 0) {
    int reason = errno;
    close(*fd);
    return hv_error_errno(reason, "cannot examine %s", path);
  }
  if (!S_ISREG(info.st_mode)) {
    close(*fd);
    return hv_error(HV_ERR_INPUT, "%s is not a regular file", path);
  }
  *size = (size_t)info.st_size;
  return HV_OK;
}

hv_status hv_map_file(const char *path, hv_mapping *out) {
  *out = (hv_mapping){0};
  int fd;
  size_t size;
  HV_TRY(open_for_reading(path, &fd, &size));
  hv_status status = HV_OK;
  if (size > 0) {
    void *data = mmap(NULL, size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (data == MAP_FAILED) {
      status = hv_error_errno(errno, "cannot map %s", path);
    } else {
      *out = (hv_mapping){.data = data, .size = size};
    }
  }
  close(fd);
  return status;
}

void hv_unmap(hv_mapping *mapping) {
  if (mapping->data) munmap((void *)(uintptr_t)mapping->data, mapping->size);
  *mapping = (hv_mapping){0};
}

hv_status hv_read_text(const char *path, size_t limit, char **out, size_t *length) {
  *out = NULL;
  int fd;
  size_t size;
  HV_TRY(open_for_reading(path, &fd, &size));
  hv_status status = HV_OK;
  char *text = NULL;
  if (size > limit) {
    status = hv_error(HV_ERR_INPUT, "%s has %zu bytes; at most %zu are expected here", path, size, limit);
    goto done;
  }
  text = malloc(size + 1);
  if (!text) {
    status = hv_error_memory(path);
    goto done;
  }
  size_t filled = 0;
  while (filled < size) {
    ssize_t got = read(fd, text + filled, size - filled);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) {
      status = hv_error_errno(errno, "cannot read %s", path);
      goto done;
    }
    if (got == 0) break;
    filled += (size_t)got;
  }
  text[filled] = '\0';
  if (length) *length = filled;
  *out = text;
  text = NULL;
done:
  free(text);
  close(fd);
  return status;
}

hv_status hv_digest_file(const char *path, hv_file_digest *out) {
  enum { PIECE = 1 << 20 };
  int fd;
  size_t size;
  *out = (hv_file_digest){0};
  HV_TRY(open_for_reading(path, &fd, &size));
  hv_status status = HV_OK;
  char *piece = malloc(PIECE);
  XXH3_state_t *hash = XXH3_createState();
  if (!piece || !hash || XXH3_64bits_reset(hash) != XXH_OK) {
    status = hv_error_memory(path);
    goto done;
  }
  for (ssize_t got; (got = read(fd, piece, PIECE)) != 0;) {
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) {
      status = hv_error_errno(errno, "cannot read %s", path);
      goto done;
    }
    XXH3_64bits_update(hash, piece, (size_t)got);
    out->size += (uint64_t)got;
  }
  out->xxh3 = XXH3_64bits_digest(hash);
done:
  XXH3_freeState(hash);
  free(piece);
  close(fd);
  return status;
}

hv_status hv_make_directories(const char *path) {
  char *copy = strdup(path);
  if (!copy) return hv_error_memory("a directory name");
  hv_status status = HV_OK;
  for (char *at = copy + (*copy == '/');; at++) {
    bool last = *at == '\0';
    if (!last && *at != '/') continue;
    *at = '\0';
    bool made = mkdir(copy, 0777) == 0;
    if (!made && errno != EEXIST) status = hv_error_errno(errno, "cannot make directory %s", copy);
    if (made) status = hv_sync_parent(copy);
    if (status || last) break;
    *at = '/';
  }
  free(copy);
  struct stat info;
  if (!status && (stat(path, &info) != 0 || !S_ISDIR(info.st_mode))) {
    status = hv_error(HV_ERR_INPUT, "%s exists and is not a directory", path);
  }
  return status;
}

hv_status hv_sync_directory(const char *path) {
  int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return hv_error_errno(errno, "cannot open directory %s", path);
  /* Some file systems refuse to sync a directory with EINVAL; their renames are durable by themselves. */
  hv_status status = HV_OK;
  if (fsync(fd) != 0 && errno != EINVAL) status = hv_error_errno(errno, "cannot sync directory %s", path);
  close(fd);
  return status;
}

/* Syncs the whole file system that holds `path`. */
static hv_status sync_file_system(const char *path) {
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return hv_error_errno(errno, "cannot open %s", path);
  hv_status status = HV_OK;
  if (syncfs(fd) != 0) status = hv_error_errno(errno, "cannot sync %s", path);
  close(fd);
  return status;
}

hv_status hv_sync_parent(const char *path) {
  char *copy = strdup(path);
  if (!copy) return hv_error_memory(path);
  const char *parent = dirname(copy);
  /* A directory without read permission, as the top of a shared disk may be, cannot be opened. */
  bool hidden = access(parent, R_OK) != 0 && errno == EACCES;
  hv_status status = hidden ? sync_file_system(path) : hv_sync_directory(parent);
  free(copy);
  return status;
}

hv_status hv_sync_file(const char *path) {
  int fd;
  size_t size;
  HV_TRY(open_for_reading(path, &fd, &size));
  hv_status status = HV_OK;
  if (fsync(fd) != 0) status = hv_error_errno(errno, "cannot write %s", path);
  close(fd);
  return status;
}

/* Removes all that it can; the error names the first entry that cannot be removed. */
hv_status hv_remove_tree(const char *path) {
  char *const roots[] = {(char *)(uintptr_t)path, NULL};
  FTS *walk = fts_open(roots, FTS_PHYSICAL | FTS_NOCHDIR, NULL);
  if (!walk && errno == ENOENT) return HV_OK;
  if (!walk) return hv_error_errno(errno, "cannot remove %s", path);
  hv_status status = HV_OK;
  for (FTSENT *entry; (entry = fts_read(walk)) != NULL;) {
    if (entry->fts_info == FTS_D || remove(entry->fts_path) == 0 || errno == ENOENT) continue;
    int reason = entry->fts_info == FTS_DNR ? entry->fts_errno : errno;
    status = hv_status_first(status, hv_error_errno(reason, "cannot remove %s", entry->fts_path));
  }
  if (errno != 0) status = hv_status_first(status, hv_error_errno(errno, "cannot remove %s", path)); /* of fts_read */
  fts_close(walk);
  return status;
}

bool hv_file_exists(const char *path) {
  struct stat info;
  return stat(path, &info) == 0;
}

bool hv_file_is_same(const char *a, const char *b) {
  struct stat first, second;
  return stat(a, &first) == 0 && stat(b, &second) == 0 && first.st_dev == second.st_dev &&
         first.st_ino == second.st_ino;
}

hv_status hv_check_download(const char *path, const char *wanted, const void *head, size_t size) {
  static const char pointer[] = "version https://git-lfs", *const pages[] = {"<!doctype", "<html"};
  if (size >= sizeof pointer - 1 && memcmp(head, pointer, sizeof pointer - 1) == 0) {
    return hv_error(HV_ERR_INPUT,
                    "%s is a Git LFS pointer, not the %s file it stands for; fetch it with `git lfs pull`", path,
                    wanted);
  }
  for (size_t i = 0; i < sizeof pages / sizeof *pages; i++) {
    size_t length = strlen(pages[i]);
    if (size < length || strncasecmp(head, pages[i], length) != 0) continue;
    return hv_error(HV_ERR_INPUT, "%s is a web page (HTML), not the %s file; download the file itself", path, wanted);
  }
  return HV_OK;
}

char *hv_path_join(const char *directory, const char *name) {
  size_t length = strlen(directory);
  const char *separator = length > 0 && directory[length - 1] == '/' ? "" : "/";
  size_t size = length + strlen(name) + 2;
  char *path = malloc(size);
  if (path) snprintf(path, size, "%s%s%s", directory, separator, name);
  return path;
}
