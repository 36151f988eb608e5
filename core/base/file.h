/* Files: read-only memory maps, whole-file reads, and writes that are complete or absent.
 *
 * Every error but those of memory names the path. Paths are plain strings; directories are made with mode 0777 less the
 * umask.
 */
#ifndef HV_BASE_FILE_H
#define HV_BASE_FILE_H

#include <stddef.h>
#include <stdint.h>

#include "core/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A file mapped read-only. `data` is NULL for an empty file. */
typedef struct hv_mapping {
  const uint8_t *data;
  size_t size;
} hv_mapping;

HV_NODISCARD hv_status hv_map_file(const char *path, hv_mapping *out);
void hv_unmap(hv_mapping *mapping); /* leaves it empty; an empty one is allowed */

/* Whole file as text, NUL-terminated; *out is freed by the caller. `limit` bytes at most, more is an error. `length`,
 * without the NUL, may be NULL. */
HV_NODISCARD hv_status hv_read_text(const char *path, size_t limit, char **out, size_t *length);

/* A file's size and checksum, by which damage is found. */
typedef struct hv_file_digest {
  uint64_t size; /* bytes */
  uint64_t xxh3; /* XXH3, 64 bits, seed 0 */
} hv_file_digest;

/* Reads the whole file. */
HV_NODISCARD hv_status hv_digest_file(const char *path, hv_file_digest *out);

/* Writes a whole file beside `path`, syncs it, and renames it over `path`: readers see the old or the new, never a
 * part. A symbolic link stays, what it points to is replaced; one that leads to nothing becomes the file itself.
 * Permissions stay; a directory, a pipe or a device is refused. */
HV_NODISCARD hv_status hv_write_file_atomic(const char *path, const void *data, size_t size);

/* The same promise for a large file that is written in pieces, to `path`.<process>.tmp first; a process may have one
 * writer for a path at a time. Commit and abort free the writer; only a crash leaves the temporary file. */
typedef struct hv_file_writer hv_file_writer;
HV_NODISCARD hv_status hv_file_writer_open(const char *path, hv_file_writer **out);
HV_NODISCARD hv_status hv_file_writer_write(hv_file_writer *writer, const void *data, size_t size);
/* What was written so far. */
hv_file_digest hv_file_writer_digest(const hv_file_writer *writer);
HV_NODISCARD hv_status hv_file_writer_commit(hv_file_writer *writer);
void hv_file_writer_abort(hv_file_writer *writer); /* NULL is allowed */

HV_NODISCARD hv_status hv_make_directories(const char *path); /* as mkdir -p, and durable */
HV_NODISCARD hv_status hv_sync_directory(const char *path);   /* makes renames in it durable */
HV_NODISCARD hv_status hv_sync_parent(const char *path);      /* the same in the directory that `path` lies in */
HV_NODISCARD hv_status hv_sync_file(const char *path);        /* makes a file's content durable, whoever wrote it */
HV_NODISCARD hv_status hv_remove_tree(const char *path);      /* as rm -rf; absent is fine */
bool hv_file_exists(const char *path);
bool hv_file_is_same(const char *a, const char *b); /* the same file, also through links; absent: false */

/* HV_ERR_INPUT if a file's first bytes (`head`) show that a failed download left something else in its place, a Git LFS
 * pointer or a web page; `wanted` is what the file should be ("HDF5"). */
HV_NODISCARD hv_status hv_check_download(const char *path, const char *wanted, const void *head, size_t size);

/* "a/b" on the heap, NULL without memory. */
char *hv_path_join(const char *directory, const char *name);

#ifdef __cplusplus
}
#endif

#endif
