#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#include "core/base/file.h"

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

hv_status hv_file_writer_open(const char *path, hv_file_writer **out) {
  *out = NULL;
  hv_file_writer *writer = calloc(1, sizeof *writer);
  if (!writer) return hv_error_memory("a file writer");
  writer->fd = -1;
  size_t size = strlen(path) + 32;
  writer->path = strdup(path);
  writer->partial_path = malloc(size);
  writer->hash = XXH3_createState();
  if (!writer->path || !writer->partial_path || !writer->hash || XXH3_64bits_reset(writer->hash) != XXH_OK) {
    free_writer(writer);
    return hv_error_memory("a file writer");
  }
  snprintf(writer->partial_path, size, "%s.%ld.tmp", path, (long)getpid());
  writer->fd = open(writer->partial_path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (writer->fd < 0) {
    hv_status status = hv_error_errno(errno, "cannot create %s", writer->partial_path);
    free_writer(writer);
    return status;
  }
  *out = writer;
  return HV_OK;
}

hv_status hv_file_writer_write(hv_file_writer *writer, const void *data, size_t size) {
  const char *from = data;
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
