/* Whole directories that are complete or absent. */
#ifndef HV_BASE_DIRECTORY_H
#define HV_BASE_DIRECTORY_H

#include "core/base/status.h"

/* Puts the complete directory `fresh` in place of `path` (same file system): swapped in one atomic step where the file
 * system can, and what was there is removed. Where it cannot, `path` is gone for a moment and its old content lies in
 * `path`.old meanwhile. `fresh` is gone afterwards. */
HV_NODISCARD hv_status hv_replace_directory(const char *fresh, const char *path);

/* Fills an empty directory; its files are synced, the directory itself need not be. */
typedef hv_status hv_directory_writer(const char *directory, void *context);

/* Has `write` fill `path`.partial, syncs it and puts it in place of what `path` was. After an error the old stands and
 * nothing else is left. Missing directories above are made. */
HV_NODISCARD hv_status hv_write_directory(const char *path, hv_directory_writer *write, void *context);

#endif
