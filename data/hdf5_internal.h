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
  int fd; /* for data that are read past the library */
  hid_t id;
  hid_t access; /* link access: refuses links to other files */
  /* Of the global heap: */
  hid_t reference;                  /* the type as which a string of variable length is read */
  size_t address_size, length_size; /* bytes of an address and of a length in the file */
  uint64_t base;                    /* what addresses are relative to */
  pthread_mutex_t cache_mutex;
  hv_dataset_frames *newest, *oldest; /* whose pixels are kept, by last use */
  size_t cached_bytes, cache_limit;
};

/* Every call into HDF5 lies between the two; enter also silences the library's own printing. */
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
HV_NODISCARD hv_status hv_hdf5_describe_open(hv_hdf5 *file, const char *object, hid_t dataset, hv_hdf5_info *out);

/* HV_ERR_INPUT where a part was never written, which the library reads as zeros. Between enter and leave. */
HV_NODISCARD hv_status hv_hdf5_check_written(const hv_hdf5 *file, const char *object, hid_t dataset,
                                             const hv_hdf5_info *info);

/* HV_ERR_INPUT where a chunk is stored in fewer bytes than it can be, behind which the library would read on. Between
 * enter and leave, before it reads. */
HV_NODISCARD hv_status hv_hdf5_check_chunks(hv_hdf5 *file, const char *object, hid_t dataset);

/* Between enter and leave, after the file is opened: fills in the heap's fields. */
HV_NODISCARD hv_status hv_hdf5_open_heap(hv_hdf5 *file);
size_t hv_hdf5_reference_size(const hv_hdf5 *file);
/* The string that a reference points to; *out is freed by the caller. */
HV_NODISCARD hv_status hv_hdf5_heap_text(const hv_hdf5 *file, const char *object, const uint8_t *reference, char **out);

#endif
