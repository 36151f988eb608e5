/* Strings of variable length, read from the file's global heap with every bound checked: the library's own reading of a
 * damaged heap crashes or never ends (seen with HDF5 1.10.8).
 *
 * Such a string is stored as a reference: its length (4 bytes), the address of a heap collection, and an index (4
 * bytes). A collection is "GCOL", a version, 3 unused bytes, its size, and then objects: an index (2 bytes; 0: free
 * space, the last), a count (2), 4 unused bytes, a size, and the content padded to 8 bytes. (HDF5 File Format
 * Specification, III.E.)
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "data/hdf5_internal.h"

static const char reference_tag[] = "hvla: reference into the global heap";

enum { MAX_COLLECTION = 256 << 20, OBJECT_ALIGNMENT = 8 };

/* The library gives out such strings only as strings that it has read itself. To get the references, a conversion to
 * opaque bytes is registered that changes nothing; it accepts only the type that carries our tag. */
static herr_t keep_reference(hid_t source, hid_t destination, H5T_cdata_t *data, size_t count, size_t stride,
                             size_t background_stride, void *buffer, void *background, hid_t properties) {
  (void)count, (void)stride, (void)background_stride, (void)buffer, (void)background, (void)properties;
  if (data->command != H5T_CONV_INIT) return 0;
  data->need_bkg = H5T_BKG_NO;
  char *tag = H5Tget_tag(destination);
  bool ours = tag && strcmp(tag, reference_tag) == 0 && H5Tget_size(source) == H5Tget_size(destination);
  if (tag) H5free_memory(tag);
  return ours ? 0 : -1;
}

hv_status hv_hdf5_open_heap(hv_hdf5 *file) {
  static bool registered; /* with the library, once; guarded by its lock */
  hv_status status = HV_OK;
  hid_t creation = H5Fget_create_plist(file->id), string = H5Tcopy(H5T_C_S1);
  hsize_t base = 0;
  if (creation < 0 || string < 0 || H5Tset_size(string, H5T_VARIABLE) < 0 || H5Pget_userblock(creation, &base) < 0 ||
      H5Pget_sizes(creation, &file->address_size, &file->length_size) < 0) {
    status = hv_hdf5_error(file, "/", "its superblock cannot be read");
    goto done;
  }
  file->base = base;
  if (file->address_size > 8 || file->length_size > 8) {
    status = hv_hdf5_bad(file, "/", "has addresses of %zu bytes; at most 8 are expected", file->address_size);
    goto done;
  }
  file->reference = H5Tcreate(H5T_OPAQUE, hv_hdf5_reference_size(file));
  if (file->reference < 0 || H5Tset_tag(file->reference, reference_tag) < 0 ||
      (!registered && H5Tregister(H5T_PERS_SOFT, "hvla reference", string, file->reference, keep_reference) < 0)) {
    status = hv_hdf5_error(file, "/", "cannot set up reading of strings");
    goto done;
  }
  registered = true;
done:
  if (string >= 0) H5Tclose(string);
  if (creation >= 0) H5Pclose(creation);
  return status;
}

size_t hv_hdf5_reference_size(const hv_hdf5 *file) {
  return 4 + file->address_size + 4;
}

static uint64_t little_endian(const uint8_t *bytes, size_t size) {
  uint64_t value = 0;
  for (size_t i = 0; i < size; i++) value |= (uint64_t)bytes[i] << (8 * i);
  return value;
}

static hv_status read_at(const hv_hdf5 *file, const char *object, uint64_t at, uint8_t *out, size_t size) {
  size_t filled = 0;
  while (filled < size) {
    if (at > INT64_MAX - size) return hv_hdf5_bad(file, object, "its text lies beyond the end of the file");
    ssize_t got = pread(file->fd, out + filled, size - filled, (off_t)(at + filled));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return hv_error_errno(errno, "%s: cannot read %s", file->path, object);
    if (got == 0) return hv_hdf5_bad(file, object, "its text lies beyond the end of the file");
    filled += (size_t)got;
  }
  return HV_OK;
}

/* Reads the collection at an address of the file; *out is freed by the caller. */
static hv_status read_collection(const hv_hdf5 *file, const char *object, uint64_t address, uint8_t **out,
                                 uint64_t *size) {
  *out = NULL;
  uint8_t header[16];
  size_t header_size = 8 + file->length_size;
  if (address > INT64_MAX - file->base) return hv_hdf5_bad(file, object, "its text lies beyond the end of the file");
  HV_TRY(read_at(file, object, file->base + address, header, header_size));
  *size = little_endian(header + 8, file->length_size);
  if (memcmp(header, "GCOL", 4) != 0 || *size < header_size || *size > MAX_COLLECTION) {
    return hv_hdf5_bad(file, object, "its text is not where the file says; the file is damaged");
  }
  *out = malloc(*size);
  if (!*out) return hv_error_memory("a heap of strings");
  hv_status status = read_at(file, object, file->base + address, *out, *size);
  if (status) {
    free(*out);
    *out = NULL;
  }
  return status;
}

static uint64_t aligned(uint64_t size) {
  return (size + OBJECT_ALIGNMENT - 1) / OBJECT_ALIGNMENT * OBJECT_ALIGNMENT;
}

/* The object with this index, NULL if the collection has none that lies inside it. */
static const uint8_t *find_object(const hv_hdf5 *file, const uint8_t *collection, uint64_t size, uint64_t index,
                                  uint64_t *length) {
  uint64_t header = aligned(8 + file->length_size), at = header;
  while (at + header <= size) {
    uint64_t found = little_endian(collection + at, 2);
    *length = little_endian(collection + at + 8, file->length_size);
    at += header;
    if (found == 0 || *length > size - at) return NULL;
    if (found == index) return collection + at;
    at += aligned(*length);
  }
  return NULL;
}

hv_status hv_hdf5_heap_text(const hv_hdf5 *file, const char *object, const uint8_t *reference, char **out) {
  *out = NULL;
  uint64_t length = little_endian(reference, 4), size = 0, stored = 0;
  uint64_t address = little_endian(reference + 4, file->address_size);
  uint64_t index = little_endian(reference + 4 + file->address_size, 4);
  if (length == 0) {
    *out = strdup("");
    return *out ? HV_OK : hv_error_memory(object);
  }
  uint8_t *collection;
  HV_TRY(read_collection(file, object, address, &collection, &size));
  hv_status status = HV_OK;
  const uint8_t *text = find_object(file, collection, size, index, &stored);
  if (!text || stored < length) {
    status = hv_hdf5_bad(file, object, "its text is not where the file says; the file is damaged");
  } else {
    *out = strndup((const char *)text, length);
    if (!*out) status = hv_error_memory(object);
  }
  free(collection);
  return status;
}
