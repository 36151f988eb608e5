/* Directories that are written as a whole: complete or absent. */
#ifndef HV_BASE_DIRECTORY_H
#define HV_BASE_DIRECTORY_H

#include <stdbool.h>

#include "core/base/status.h"
#include "core/base/string_list.h"

/* Renames the complete directory `fresh` to `path` (same file system) and removes the old `path`. Where the file system
 * can, the two are swapped in one atomic step; elsewhere `path` is absent for a moment, while its old content is
 * `path`.old (.old-2, … if that is taken). Old content that cannot be removed is named in a warning: it stays in
 * `fresh`, or in `path`.old. */
HV_NODISCARD hv_status hv_replace_directory(const char *fresh, const char *path);

/* Fills an empty directory; its files are synced, the directory itself need not be. */
typedef hv_status hv_directory_writer(const char *directory, void *context);

/* The names of all entries, in no order. A path that is not a readable directory is an error. *out is freed by the
 * caller. */
HV_NODISCARD hv_status hv_directory_list(const char *path, hv_string_list *out);
HV_NODISCARD hv_status hv_directory_is_empty(const char *path, bool *out);

/* What to do if `path`.partial exists already: another process may be writing it, a killed one may have left it, or a
 * person may keep it. HV_LEFTOVER_REMOVE is for a caller that has locked the place, as a run has, so that it can only
 * be a leftover. */
typedef enum hv_leftover { HV_LEFTOVER_REFUSE, HV_LEFTOVER_REMOVE } hv_leftover;

/* Has `write` fill `path`.partial (or .partial-2, …, if a leftover cannot be removed), syncs it, and replaces `path` by
 * it. An empty directory `path` is kept, since it may be a mount point or lie in a directory that is not writable: it
 * is filled in `path`/.partial, whose entries are then moved up one by one. A link is followed. After an error the old
 * `path` is unchanged and nothing is left behind; the same holds if Ctrl-C, SIGTERM or SIGHUP end the process meanwhile
 * (interruption.h). Missing parent directories are made, and stay. */
HV_NODISCARD hv_status hv_write_directory(const char *path, hv_leftover leftover, hv_directory_writer *write,
                                          void *context);

#endif
