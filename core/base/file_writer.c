#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "core/base/file.h"
#include "core/base/interruption.h"

struct hv_file_writer {
  int fd;
  char *path, *partial_path;
  uint64_t size;
  XXH3_state_t *hash;
};

static void free_writer(hv_file_writer *writer) {
  if (writer->fd >= 0) close(writer->fd);
  XXH3_freeState(writer->hash);
  free(writer->path);
  free(writer->partial_path);
  free(writer);
}

/* The path of the file to be replaced, links resolved, on the heap. *mode: its permissions, 0 if there is no file. */
static hv_status find_target(const char *path, char **out, mode_t *mode) {
  struct stat info = {0};
  bool exists = stat(path, &info) == 0;
  if (exists && !S_ISREG(info.st_mode)) {
    return hv_error(HV_ERR_INPUT, "cannot write %s: it is %s", path,
                    S_ISDIR(info.st_mode) ? "a directory" : "not a regular file, and only those can be replaced");
  }
  *mode = info.st_mode & 07777;
  *out = exists ? realpath(path, NULL) : strdup(path);
  return *out ? HV_OK : hv_error_errno(errno, "cannot write %s", path);
}

hv_status hv_file_writer_open(const char *path, hv_file_writer **out) {
  *out = NULL;
  hv_file_writer *writer = calloc(1, sizeof *writer);
  if (!writer) return hv_error_memory("a file writer");
  writer->fd = -1;
  hv_status status = HV_OK;
  mode_t mode;
  HV_CHECK(find_target(path, &writer->path, &mode));
  if (asprintf(&writer->partial_path, "%s.%ld.tmp", writer->path, (long)getpid()) < 0) writer->partial_path = NULL;
  writer->hash = XXH3_createState();
  if (!writer->partial_path || !writer->hash || XXH3_64bits_reset(writer->hash) != XXH_OK) {
    status = hv_error_memory("a file writer");
    goto done;
  }
  writer->fd = open(writer->partial_path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (writer->fd < 0) {
    status = hv_error_errno(errno, "cannot create %s", writer->partial_path);
    goto done;
  }
  if (mode) fchmod(writer->fd, mode); /* ignored if it fails: a file system without permissions has none to keep */
  *out = writer;
  return HV_OK;
done:
  free_writer(writer);
  return status;
}

hv_status hv_file_writer_write(hv_file_writer *writer, const void *data, size_t size) {
  const char *from = data;
  HV_TRY(hv_interruption_status());
  while (size > 0) {
    ssize_t written = write(writer->fd, from, size);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return hv_error_errno(errno, "cannot write %s", writer->path);
    XXH3_64bits_update(writer->hash, from, (size_t)written);
    writer->size += (uint64_t)written;
    from += written;
    size -= (size_t)written;
  }
  return HV_OK;
}

hv_file_digest hv_file_writer_digest(const hv_file_writer *writer) {
  return (hv_file_digest){.size = writer->size, .xxh3 = XXH3_64bits_digest(writer->hash)};
}

hv_status hv_file_writer_commit(hv_file_writer *writer) {
  hv_status status = HV_OK;
  if (fsync(writer->fd) != 0) {
    status = hv_error_errno(errno, "cannot write %s", writer->path);
    goto done;
  }
  int closed = close(writer->fd);
  writer->fd = -1;
  if (closed != 0) {
    status = hv_error_errno(errno, "cannot write %s", writer->path);
    goto done;
  }
  if (rename(writer->partial_path, writer->path) != 0) {
    status = hv_error_errno(errno, "cannot rename %s to %s", writer->partial_path, writer->path);
    goto done;
  }
  status = hv_sync_parent(writer->path);
done:
  if (status) unlink(writer->partial_path);
  free_writer(writer);
  return status;
}

void hv_file_writer_abort(hv_file_writer *writer) {
  if (!writer) return;
  unlink(writer->partial_path);
  free_writer(writer);
}

hv_status hv_write_file_atomic(const char *path, const void *data, size_t size) {
  hv_file_writer *writer;
  HV_TRY(hv_file_writer_open(path, &writer));
  hv_status status = hv_file_writer_write(writer, data, size);
  if (status) {
    hv_file_writer_abort(writer);
    return status;
  }
  return hv_file_writer_commit(writer);
}
