/* Reading HDF5 files that others wrote: every call checked, every error naming file and object.
 *
 * The HDF5 library is not thread-safe as distributions build it, so every call into it is made under one lock, here;
 * all functions may be called from any thread. Paths of objects are absolute ("/data/demo_0/actions"). Links to other
 * files, data stored in other files and virtual data sets are refused: only the file itself is read.
 */
#ifndef HV_DATA_HDF5_FILE_H
#define HV_DATA_HDF5_FILE_H

#include <stddef.h>
#include <stdint.h>

#include "core/base/string_list.h"
#include "data/frames.h"

typedef struct hv_hdf5 hv_hdf5;

HV_NODISCARD hv_status hv_hdf5_open(const char *path, hv_hdf5 **out);
void hv_hdf5_close(hv_hdf5 *file); /* NULL is allowed; after everything opened from it is closed */
const char *hv_hdf5_path(const hv_hdf5 *file);
bool hv_hdf5_is_same(const hv_hdf5 *a, const hv_hdf5 *b); /* the same file on disk, under any paths */

typedef enum hv_hdf5_kind { HV_HDF5_ABSENT, HV_HDF5_GROUP, HV_HDF5_DATASET, HV_HDF5_OTHER } hv_hdf5_kind;
/* What lies at `object`. A dangling, cyclic or external link on the way is an error. */
HV_NODISCARD hv_status hv_hdf5_find(hv_hdf5 *file, const char *object, hv_hdf5_kind *out);
/* Names of the links in a group, in the library's order (by name). */
HV_NODISCARD hv_status hv_hdf5_children(hv_hdf5 *file, const char *group, hv_string_list *out);

typedef enum hv_hdf5_class { HV_HDF5_FLOAT, HV_HDF5_INTEGER, HV_HDF5_STRING, HV_HDF5_OTHER_CLASS } hv_hdf5_class;
enum { HV_HDF5_MAX_RANK = 8, HV_HDF5_MAX_ELEMENTS = INT32_MAX /* elements of an array that is read as a whole */ };
typedef struct hv_hdf5_info {
  hv_hdf5_class type;
  size_t size; /* bytes an element */
  bool is_signed;
  int rank; /* at most HV_HDF5_MAX_RANK, more is an error */
  int64_t shape[HV_HDF5_MAX_RANK];
  int64_t chunk_rows; /* shape[0] of a chunk, 0: contiguous */
} hv_hdf5_info;
/* Refuses filters that this build of HDF5 cannot undo, by name and id. */
HV_NODISCARD hv_status hv_hdf5_describe(hv_hdf5 *file, const char *dataset, hv_hdf5_info *out);
/* "f64 (43, 7)" into text[size]. */
void hv_hdf5_info_text(const hv_hdf5_info *info, char *text, size_t size);

/* A whole floating-point data set as f32, row-major; `count` is the number of elements that the caller knows it has, at
 * most HV_HDF5_MAX_ELEMENTS. */
HV_NODISCARD hv_status hv_hdf5_read_f32(hv_hdf5 *file, const char *dataset, int64_t count, float *out);
/* A 1-D data set of strings, fixed (NUL- or space-padded) or of variable length. */
HV_NODISCARD hv_status hv_hdf5_read_strings(hv_hdf5 *file, const char *dataset, hv_string_list *out);

/* An attribute of `object` that is one string of any kind; *out is NULL where it is absent, else freed by the caller.
 * Another type is an error. */
HV_NODISCARD hv_status hv_hdf5_attribute_text(hv_hdf5 *file, const char *object, const char *name, char **out);
/* An attribute that is one integer of any width; *present tells whether there is one. */
HV_NODISCARD hv_status hv_hdf5_attribute_integer(hv_hdf5 *file, const char *object, const char *name, bool *present,
                                                 int64_t *out);

/* The frames of a u8 data set (T, H, W, 3); any other type or shape is an error that says what was found.
 *
 * Contiguous data are read from the file directly, without the library and its lock. Chunks of one frame each are read
 * under the lock and inflated outside of it. Data sets with several frames in a chunk are read whole, once, and cached
 * by the file, up to `hv_hdf5_set_cache` bytes. All others (parts of a frame in a chunk, other filters) the library
 * reads frame by frame. */
HV_NODISCARD hv_status hv_hdf5_open_frames(hv_hdf5 *file, const char *dataset, hv_frames **out);
void hv_hdf5_set_cache(hv_hdf5 *file, size_t bytes); /* 256 MiB by default; the data set in use is always kept */
size_t hv_hdf5_cached_bytes(hv_hdf5 *file);

#endif
