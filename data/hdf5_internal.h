/* What the files that read HDF5 share: the library's lock and its errors (hdf5_library.c), opening objects
 * (hdf5_file.c), strings of variable length (hdf5_heap.c). */
#ifndef HV_DATA_HDF5_INTERNAL_H
#define HV_DATA_HDF5_INTERNAL_H

/* HDF5 2.0 gave H5Dread_chunk another argument; this names the form that all versions have. */
#define H5Dread_chunk_vers 1
#include <hdf5.h>
#include <pthread.h>

#include "data/hdf5_file.h"

typedef struct hv_dataset_frames hv_dataset_frames;

struct hv_hdf5 {
  char *path;
  int fd; /* for data that are read without the library */
  hid_t id;
  hid_t access; /* link access: refuses links to other files */
  /* Of the global heap: */
  hid_t reference;                  /* HDF5 type for reading the reference of a variable-length string */
  size_t address_size, length_size; /* bytes of an address and of a length in the file */
  uint64_t base;                    /* base of the file's addresses */
  pthread_mutex_t cache_mutex;
  hv_dataset_frames *newest, *oldest; /* data sets with cached pixels, by last use */
  size_t cached_bytes, cache_limit;
};

/* The library's lock: every call into HDF5 lies between enter and leave. enter also silences the library's own
 * printing. */
void hv_hdf5_enter(void);
void hv_hdf5_leave(void);

/* "<file>: <object>: <formatted>: <what the library says>". Called before leave. */
hv_status hv_hdf5_error(const hv_hdf5 *file, const char *object, const char *format, ...)
    HV_PRINTF(3, 4) HV_NONNULL_RESULT;
/* "<file>: <object>: <formatted>", HV_ERR_INPUT. */
hv_status hv_hdf5_bad(const hv_hdf5 *file, const char *object, const char *format, ...)
    HV_PRINTF(3, 4) HV_NONNULL_RESULT;

/* Between enter and leave. The data set is closed by the caller, with H5Dclose. */
HV_NODISCARD hv_status hv_hdf5_open_dataset(hv_hdf5 *file, const char *object, hid_t *out);
/* The same for one that is there, of whose chunks the library keeps `chunk_bytes`. Without filters, a chunk that it
 * cannot keep is read in the pieces in which it lies in memory, single bytes at worst. */
HV_NODISCARD hv_status hv_hdf5_open_by_chunks(hv_hdf5 *file, const char *object, size_t chunk_bytes, hid_t *out);
HV_NODISCARD hv_status hv_hdf5_describe_open(hv_hdf5 *file, const char *object, hid_t dataset, hv_hdf5_info *out);

/* HV_ERR_INPUT if a part of the data was never written; the library would read zeros. Between enter and leave. */
HV_NODISCARD hv_status hv_hdf5_check_written(const hv_hdf5 *file, const char *object, hid_t dataset,
                                             const hv_hdf5_info *info);

/* HV_ERR_INPUT if a chunk is stored in fewer bytes than is possible; the library would read beyond its end, with
 * filters and, if it keeps chunks in its cache (`keeps_chunks`), without. Between enter and leave, before the data are
 * read. */
HV_NODISCARD hv_status hv_hdf5_check_chunks(hv_hdf5 *file, const char *object, hid_t dataset, bool keeps_chunks);

/* Between enter and leave, after the file is opened: fills in the heap's fields. */
HV_NODISCARD hv_status hv_hdf5_open_heap(hv_hdf5 *file);
size_t hv_hdf5_reference_size(const hv_hdf5 *file);
/* The string that a reference points to; *out is freed by the caller. */
HV_NODISCARD hv_status hv_hdf5_heap_text(const hv_hdf5 *file, const char *object, const uint8_t *reference, char **out);

#endif
