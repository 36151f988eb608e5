/* Whole directories that are complete or absent. */
#ifndef HV_BASE_DIRECTORY_H
#define HV_BASE_DIRECTORY_H

#include <stdbool.h>

#include "core/base/status.h"
#include "core/base/string_list.h"

/* Puts the complete directory `fresh` in place of `path` (same file system): swapped in one atomic step where the file
 * system can, and what was there is removed; a warning names what cannot be, which lies in `fresh` then. Where it
 * cannot, `path` is gone for a moment and its old content lies in `path`.old meanwhile (.old-2, … where that is taken).
 * Otherwise `fresh` is gone afterwards. */
HV_NODISCARD hv_status hv_replace_directory(const char *fresh, const char *path);

/* Fills an empty directory; its files are synced, the directory itself need not be. */
typedef hv_status hv_directory_writer(const char *directory, void *context);

/* The names of everything in it, in no order; an error where it is no directory that can be read. *out is freed by the
 * caller. */
HV_NODISCARD hv_status hv_directory_list(const char *path, hv_string_list *out);
HV_NODISCARD hv_status hv_directory_is_empty(const char *path, bool *out);

/* What is done about a `path`.partial that is there: another process may be writing it, one that was killed have left
 * it, or a person keep it. Only who shuts others out of the place, as a run does, can say that it is a leftover. */
typedef enum hv_leftover { HV_LEFTOVER_REFUSE, HV_LEFTOVER_REMOVE } hv_leftover;

/* Has `write` fill `path`.partial (or .partial-2, …, where a leftover cannot be removed), syncs it and puts it in place
 * of what `path` was. A directory that is there and empty stays, which may be a disk's top or lie where nothing may be
 * written: it gets the content from a folder .partial of its own, all but at once. A link is followed. After an error
 * the old stands and nothing else is left; so it is when Ctrl-C, SIGTERM or SIGHUP end the process meanwhile
 * (interruption.h). Missing directories above are made, and stay. */
HV_NODISCARD hv_status hv_write_directory(const char *path, hv_leftover leftover, hv_directory_writer *write,
                                          void *context);

#endif
