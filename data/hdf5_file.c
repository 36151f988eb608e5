#include "data/hdf5_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/base/file.h"
#include "core/base/text.h"
#include "data/hdf5_internal.h"

enum { CACHE_BYTES = 256 << 20 };

/* Opens the file, and refuses what cannot be HDF5 before the library sees it. */
static hv_status open_descriptor(hv_hdf5 *file) {
  file->fd = open(file->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a pipe is refused, not waited for */
  if (file->fd < 0) return hv_error_errno(errno, "cannot open %s", file->path);
  struct stat info;
  if (fstat(file->fd, &info) != 0) return hv_error_errno(errno, "cannot examine %s", file->path);
  if (!S_ISREG(info.st_mode)) {
    return hv_error(HV_ERR_INPUT, "%s is not a regular file; an HDF5 file is expected", file->path);
  }
  if (info.st_size == 0) return hv_error(HV_ERR_INPUT, "%s is empty; an HDF5 file is expected", file->path);
  return HV_OK;
}

/* The type is the library's, so `flags` cannot be const. */
/* NOLINTBEGIN(readability-non-const-parameter) */
static herr_t refuse_external(const char *parent_file, const char *parent_group, const char *child_file,
                              const char *child_object, unsigned *flags, hid_t access, void *argument) {
  (void)parent_file, (void)parent_group, (void)child_file, (void)child_object;
  (void)flags, (void)access, (void)argument;
  return -1;
}
/* NOLINTEND(readability-non-const-parameter) */

static hv_status open_in_library(hv_hdf5 *file) {
  hv_status status = HV_OK;
  hid_t properties = H5Pcreate(H5P_FILE_ACCESS);
  file->access = H5Pcreate(H5P_LINK_ACCESS);
  /* The library's own chunk cache, which would keep memory for each open data set, is off: frames have another cache.
   * Locks fail on some network disks, and readers do not need them. */
  if (properties < 0 || file->access < 0 || H5Pset_cache(properties, 0, 521, 0, 1.0) < 0 ||
      H5Pset_file_locking(properties, false, true) < 0 || H5Pset_elink_cb(file->access, refuse_external, NULL) < 0) {
    status = hv_hdf5_error(file, "/", "cannot set up HDF5");
    goto done;
  }
  htri_t found = H5Fis_hdf5(file->path);
  if (found <= 0) {
    char head[32];
    ssize_t size = pread(file->fd, head, sizeof head, 0);
    if (size < 0) {
      status = hv_error_errno(errno, "cannot read %s", file->path);
      goto done;
    }
    HV_CHECK(hv_check_download(file->path, "HDF5", head, (size_t)size));
    if (found < 0) { /* the check itself failed, for example because too many files are open */
      status = hv_hdf5_error(file, "/", "cannot be opened");
      goto done;
    }
    H5Eclear2(H5E_DEFAULT);
    status = hv_error(HV_ERR_INPUT, "%s is not an HDF5 file: it has no HDF5 signature", file->path);
    goto done;
  }
  file->id = H5Fopen(file->path, H5F_ACC_RDONLY, properties);
  if (file->id < 0) {
    status = hv_hdf5_error(file, "/", "cannot be opened; it may be truncated or damaged");
    goto done;
  }
  status = hv_hdf5_open_heap(file);
done:
  if (properties >= 0) H5Pclose(properties);
  return status;
}

hv_status hv_hdf5_open(const char *path, hv_hdf5 **out) {
  *out = NULL;
  hv_hdf5 *file = calloc(1, sizeof *file);
  if (!file) return hv_error_memory("an HDF5 file");
  *file =
      (hv_hdf5){.path = strdup(path), .fd = -1, .id = -1, .access = -1, .reference = -1, .cache_limit = CACHE_BYTES};
  pthread_mutex_init(&file->cache_mutex, NULL);
  hv_status status = file->path ? open_descriptor(file) : hv_error_memory(path);
  if (!status) {
    hv_hdf5_enter();
    status = open_in_library(file);
    hv_hdf5_leave();
  }
  if (status) {
    hv_hdf5_close(file);
    return status;
  }
  *out = file;
  return HV_OK;
}

void hv_hdf5_close(hv_hdf5 *file) {
  if (!file) return;
  hv_hdf5_enter();
  if (file->reference >= 0) H5Tclose(file->reference);
  if (file->id >= 0) H5Fclose(file->id);
  if (file->access >= 0) H5Pclose(file->access);
  hv_hdf5_leave();
  if (file->fd >= 0) close(file->fd);
  pthread_mutex_destroy(&file->cache_mutex);
  free(file->path);
  free(file);
}

bool hv_hdf5_is_same(const hv_hdf5 *a, const hv_hdf5 *b) {
  struct stat first, second;
  return fstat(a->fd, &first) == 0 && fstat(b->fd, &second) == 0 && first.st_dev == second.st_dev &&
         first.st_ino == second.st_ino;
}

const char *hv_hdf5_path(const hv_hdf5 *file) {
  return file->path;
}

void hv_hdf5_set_cache(hv_hdf5 *file, size_t bytes) {
  pthread_mutex_lock(&file->cache_mutex);
  file->cache_limit = bytes;
  pthread_mutex_unlock(&file->cache_mutex);
}

size_t hv_hdf5_cached_bytes(hv_hdf5 *file) {
  pthread_mutex_lock(&file->cache_mutex);
  size_t bytes = file->cached_bytes;
  pthread_mutex_unlock(&file->cache_mutex);
  return bytes;
}

/* Whether there is a link: HV_HDF5_ABSENT if not, else HV_HDF5_OTHER. */
static hv_status find_link(hv_hdf5 *file, const char *object, hv_hdf5_kind *out) {
  *out = HV_HDF5_ABSENT;
  htri_t exists = H5Lexists(file->id, object, file->access);
  if (exists < 0) return hv_hdf5_error(file, object, "cannot be looked up");
  if (!exists) return HV_OK;
  H5L_info_t info;
  if (H5Lget_info(file->id, object, &info, file->access) < 0) return hv_hdf5_error(file, object, "cannot be looked up");
  if (info.type == H5L_TYPE_EXTERNAL) {
    return hv_hdf5_bad(file, object,
                       "is a link into another file, which is not followed; copy the data into this file");
  }
  if (info.type != H5L_TYPE_HARD) {
    exists = H5Oexists_by_name(file->id, object, file->access);
    if (exists <= 0) return hv_hdf5_error(file, object, "is a link that leads to nothing");
  }
  *out = HV_HDF5_OTHER;
  return HV_OK;
}

static hv_status find_kind(hv_hdf5 *file, const char *object, hv_hdf5_kind *out) {
  *out = HV_HDF5_ABSENT;
  HV_TRY(find_link(file, object, out));
  if (*out == HV_HDF5_ABSENT) return HV_OK;
  hid_t id = H5Oopen(file->id, object, file->access);
  if (id < 0) return hv_hdf5_error(file, object, "cannot be opened");
  H5I_type_t type = H5Iget_type(id);
  H5Oclose(id);
  *out = type == H5I_GROUP ? HV_HDF5_GROUP : type == H5I_DATASET ? HV_HDF5_DATASET : HV_HDF5_OTHER;
  return HV_OK;
}

/* Walks the path from the root, as H5Lexists fails if a group on the way is missing. */
static hv_status find_along(hv_hdf5 *file, const char *object, hv_hdf5_kind *out) {
  *out = HV_HDF5_GROUP;
  if (strcmp(object, "/") == 0) return HV_OK;
  char *path = strdup(object);
  if (!path) return hv_error_memory(object);
  hv_status status = HV_OK;
  for (char *at = path + 1; !status; at++) {
    if (*at != '/' && *at != '\0') continue;
    bool last = *at == '\0';
    *at = '\0';
    status = find_kind(file, path, out);
    if (last || status) break;
    if (*out != HV_HDF5_GROUP) {
      *out = HV_HDF5_ABSENT;
      break;
    }
    *at = '/';
  }
  free(path);
  return status;
}

hv_status hv_hdf5_find(hv_hdf5 *file, const char *object, hv_hdf5_kind *out) {
  hv_hdf5_enter();
  hv_status status = find_along(file, object, out);
  hv_hdf5_leave();
  return status;
}

/* What add_child collects. */
typedef struct children {
  hv_string_list *names;
  hv_status status; /* why a name could not be added */
} children;

static herr_t add_child(hid_t group, const char *name, const H5L_info_t *info, void *argument) {
  (void)group, (void)info;
  children *found = argument;
  found->status = hv_string_list_append(found->names, name);
  return found->status ? -1 : 0;
}

hv_status hv_hdf5_children(hv_hdf5 *file, const char *group, hv_string_list *out) {
  *out = (hv_string_list){0};
  hv_status status = HV_OK;
  hv_hdf5_enter();
  hid_t id = -1;
  hv_hdf5_kind kind;
  HV_CHECK(find_along(file, group, &kind));
  if (kind != HV_HDF5_GROUP) {
    status = hv_hdf5_bad(file, group, kind == HV_HDF5_ABSENT ? "is missing" : "is not a group");
    goto done;
  }
  id = H5Oopen(file->id, group, file->access);
  if (id < 0) {
    status = hv_hdf5_error(file, group, "cannot be opened");
    goto done;
  }
  hsize_t position = 0;
  children found = {.names = out};
  bool listed = H5Literate(id, H5_INDEX_NAME, H5_ITER_INC, &position, add_child, &found) >= 0;
  if (!listed) status = hv_status_first(found.status, hv_hdf5_error(file, group, "its members cannot be listed"));
done:
  if (id >= 0) H5Oclose(id);
  hv_hdf5_leave();
  if (status) hv_string_list_free(out);
  return status;
}

/* Refuses filters that the library cannot undo, and data that are stored in other files. */
static hv_status check_storage(hv_hdf5 *file, const char *object, hid_t properties) {
  int external = H5Pget_external_count(properties);
  H5D_layout_t layout = H5Pget_layout(properties);
  if (external != 0 || layout == H5D_VIRTUAL) {
    return hv_hdf5_bad(file, object,
                       "its data are stored in other files, which are not read; copy them into this file");
  }
  if (layout != H5D_CHUNKED) return HV_OK;
  int filters = H5Pget_nfilters(properties);
  for (int i = 0; i < filters; i++) {
    unsigned flags = 0, config = 0;
    size_t values = 0;
    char name[64] = "";
    H5Z_filter_t filter = H5Pget_filter2(properties, (unsigned)i, &flags, &values, NULL, sizeof name, name, &config);
    if (filter < 0) return hv_hdf5_error(file, object, "its filters cannot be read");
    if (H5Zfilter_avail(filter) > 0) continue;
    const char *known = filter == 32000 ? "lzf" : filter == 32001 ? "blosc" : name[0] ? name : "unknown";
    return hv_hdf5_bad(file, object,
                       "is compressed with filter %d (%s), which this HDF5 library does not have; rewrite "
                       "the file with gzip or without compression",
                       (int)filter, known);
  }
  return HV_OK;
}

static hv_hdf5_class class_of(hid_t type) {
  switch (H5Tget_class(type)) {
  case H5T_FLOAT: return HV_HDF5_FLOAT;
  case H5T_INTEGER: return HV_HDF5_INTEGER;
  case H5T_STRING: return HV_HDF5_STRING;
  default: return HV_HDF5_OTHER_CLASS;
  }
}

hv_status hv_hdf5_describe_open(hv_hdf5 *file, const char *object, hid_t dataset, hv_hdf5_info *out) {
  *out = (hv_hdf5_info){0};
  hv_status status = HV_OK;
  hid_t type = H5Dget_type(dataset), space = H5Dget_space(dataset), properties = H5Dget_create_plist(dataset);
  if (type < 0 || space < 0 || properties < 0) {
    status = hv_hdf5_error(file, object, "its type and shape cannot be read");
    goto done;
  }
  HV_CHECK(check_storage(file, object, properties));
  out->type = class_of(type);
  out->size = H5Tget_size(type);
  out->is_signed = out->type != HV_HDF5_INTEGER || H5Tget_sign(type) == H5T_SGN_2;
  out->rank = H5Sget_simple_extent_ndims(space);
  if (out->rank < 0 || out->rank > HV_HDF5_MAX_RANK) {
    status = hv_hdf5_bad(file, object, "has %d dimensions; at most %d are expected", out->rank, HV_HDF5_MAX_RANK);
    goto done;
  }
  hsize_t shape[HV_HDF5_MAX_RANK] = {0}, chunk[HV_HDF5_MAX_RANK] = {0};
  if (H5Sget_simple_extent_dims(space, shape, NULL) < 0) {
    status = hv_hdf5_error(file, object, "its shape cannot be read");
    goto done;
  }
  for (int i = 0; i < out->rank; i++) out->shape[i] = shape[i] > INT64_MAX ? INT64_MAX : (int64_t)shape[i];
  if (H5Pget_layout(properties) == H5D_CHUNKED && H5Pget_chunk(properties, HV_HDF5_MAX_RANK, chunk) > 0) {
    out->chunk_rows = (int64_t)chunk[0];
  }
done:
  if (properties >= 0) H5Pclose(properties);
  if (space >= 0) H5Sclose(space);
  if (type >= 0) H5Tclose(type);
  return status;
}

hv_status hv_hdf5_open_dataset(hv_hdf5 *file, const char *object, hid_t *out) {
  *out = -1;
  hv_hdf5_kind kind;
  HV_TRY(find_along(file, object, &kind));
  if (kind != HV_HDF5_DATASET) {
    return hv_hdf5_bad(file, object, kind == HV_HDF5_ABSENT ? "is missing" : "is not a data set");
  }
  *out = H5Oopen(file->id, object, file->access);
  return *out < 0 ? hv_hdf5_error(file, object, "cannot be opened") : HV_OK;
}

hv_status hv_hdf5_open_by_chunks(hv_hdf5 *file, const char *object, size_t chunk_bytes, hid_t *out) {
  hid_t access = H5Pcreate(H5P_DATASET_ACCESS);
  bool set = access >= 0 && H5Pset_elink_cb(access, refuse_external, NULL) >= 0 &&
             H5Pset_chunk_cache(access, 1, chunk_bytes, 1.0) >= 0;
  *out = set ? H5Dopen2(file->id, object, access) : -1;
  hv_status status = *out < 0 ? hv_hdf5_error(file, object, "cannot be opened") : HV_OK;
  if (access >= 0) H5Pclose(access);
  return status;
}

/* How many chunks the shape needs; 0: the data set is not chunked. */
static hsize_t count_chunks(hid_t properties, const hv_hdf5_info *info) {
  hsize_t chunk[HV_HDF5_MAX_RANK], count = 1;
  if (H5Pget_layout(properties) != H5D_CHUNKED || H5Pget_chunk(properties, HV_HDF5_MAX_RANK, chunk) < 1) return 0;
  for (int i = 0; i < info->rank; i++) {
    hsize_t along = chunk[i] ? ((hsize_t)info->shape[i] + chunk[i] - 1) / chunk[i] : 0;
    if (__builtin_mul_overflow(count, along, &count)) return UINT64_MAX;
  }
  return count;
}

hv_status hv_hdf5_check_written(const hv_hdf5 *file, const char *object, hid_t dataset, const hv_hdf5_info *info) {
  for (int i = 0; i < info->rank; i++) {
    if (info->shape[i] == 0) return HV_OK;
  }
  if (H5Dget_storage_size(dataset) == 0) return hv_hdf5_bad(file, object, "was declared but never written");
  hid_t properties = H5Dget_create_plist(dataset), space = H5Dget_space(dataset);
  hsize_t expected = properties < 0 ? 0 : count_chunks(properties, info), written = 0;
  hv_status status = HV_OK;
  if (properties < 0 || space < 0 || (expected > 0 && H5Dget_num_chunks(dataset, space, &written) < 0)) {
    status = hv_hdf5_error(file, object, "its storage cannot be read");
  } else if (written < expected) {
    status = hv_hdf5_bad(file, object, "only %llu of its %llu chunks were ever written", (unsigned long long)written,
                         (unsigned long long)expected);
  }
  if (space >= 0) H5Sclose(space);
  if (properties >= 0) H5Pclose(properties);
  return status;
}

hv_status hv_hdf5_describe(hv_hdf5 *file, const char *dataset, hv_hdf5_info *out) {
  *out = (hv_hdf5_info){0};
  hid_t id = -1;
  hv_hdf5_enter();
  hv_status status = hv_hdf5_open_dataset(file, dataset, &id);
  if (!status) status = hv_hdf5_describe_open(file, dataset, id, out);
  if (id >= 0) H5Dclose(id);
  hv_hdf5_leave();
  return status;
}

void hv_hdf5_info_text(const hv_hdf5_info *info, char *text, size_t size) {
  hv_text shape = {0};
  for (int i = 0; i < info->rank; i++) hv_text_add(&shape, "%s%lld", i ? ", " : "", (long long)info->shape[i]);
  if (info->type == HV_HDF5_FLOAT || info->type == HV_HDF5_INTEGER) {
    const char *type = info->type == HV_HDF5_FLOAT ? "f" : info->is_signed ? "i" : "u";
    snprintf(text, size, "%s%zu (%s)", type, 8 * info->size, hv_text_string(&shape));
  } else {
    const char *type = info->type == HV_HDF5_STRING ? "strings" : "a compound or other type";
    snprintf(text, size, "%s (%s)", type, hv_text_string(&shape));
  }
  hv_text_free(&shape);
}

hv_status hv_hdf5_read_f32(hv_hdf5 *file, const char *dataset, int64_t count, float *out) {
  hid_t id = -1;
  hv_hdf5_info info;
  char found[128];
  hv_hdf5_enter();
  hv_status status = HV_OK;
  HV_CHECK(hv_hdf5_open_dataset(file, dataset, &id));
  HV_CHECK(hv_hdf5_describe_open(file, dataset, id, &info));
  int64_t elements = 1;
  for (int i = 0; i < info.rank; i++) {
    if (__builtin_mul_overflow(elements, info.shape[i], &elements)) elements = INT64_MAX;
  }
  if (info.type != HV_HDF5_FLOAT || elements != count || count > HV_HDF5_MAX_ELEMENTS) {
    hv_hdf5_info_text(&info, found, sizeof found);
    status = hv_hdf5_bad(file, dataset, "is %s; %lld floating-point numbers are expected", found, (long long)count);
    goto done;
  }
  HV_CHECK(hv_hdf5_check_written(file, dataset, id, &info));
  HV_CHECK(hv_hdf5_check_chunks(file, dataset, id, false));
  if (H5Dread(id, H5T_NATIVE_FLOAT, H5S_ALL, H5S_ALL, H5P_DEFAULT, out) < 0) {
    status = hv_hdf5_error(file, dataset, "cannot be read");
  }
done:
  if (id >= 0) H5Dclose(id);
  hv_hdf5_leave();
  return status;
}
