/* Checks that chunks are stored in enough bytes, which the library does not do. It copies a whole chunk from what the
 * filters return, or from its cache, beyond the end if that is shorter; and computing the checksum of fewer bytes than
 * a checksum has never ends (seen with HDF5 1.10.8). A chunk that is not compressed must have all its bytes; the length
 * of a compressed one is only known when it is decompressed. */
#include "data/hdf5_internal.h"

enum { MOST_FILTERS = 32, CHECKSUM = 4 /* bytes that fletcher32 appends to a chunk */ };

typedef struct chunked {
  int rank, num_filters;
  H5Z_filter_t filters[MOST_FILTERS];
  hsize_t shape[HV_HDF5_MAX_RANK], chunk[HV_HDF5_MAX_RANK];
  hsize_t bytes;       /* of a chunk in memory */
  bool partial_stored; /* chunks that reach beyond the shape are stored without filters */
} chunked;

/* False if the library fails or the data set is beyond the limits above. */
static bool describe(hid_t dataset, hid_t properties, chunked *out) {
  unsigned options = 0;
  hid_t type = H5Dget_type(dataset), space = H5Dget_space(dataset);
  out->rank = space < 0 ? -1 : H5Sget_simple_extent_ndims(space);
  bool good = type >= 0 && out->rank > 0 && out->rank <= HV_HDF5_MAX_RANK &&
              H5Sget_simple_extent_dims(space, out->shape, NULL) == out->rank &&
              H5Pget_chunk(properties, HV_HDF5_MAX_RANK, out->chunk) == out->rank &&
              H5Pget_chunk_opts(properties, &options) >= 0 && out->num_filters <= MOST_FILTERS;
  out->bytes = type < 0 ? 0 : H5Tget_size(type);
  for (int i = 0; good && i < out->rank; i++) {
    if (__builtin_mul_overflow(out->bytes, out->chunk[i], &out->bytes)) out->bytes = UINT64_MAX;
  }
  for (int i = 0; good && i < out->num_filters; i++) {
    unsigned flags = 0, config = 0;
    size_t values = 0;
    out->filters[i] = H5Pget_filter2(properties, (unsigned)i, &flags, &values, NULL, 0, NULL, &config);
    good = out->filters[i] >= 0;
  }
  out->partial_stored = (options & H5D_CHUNK_DONT_FILTER_PARTIAL_CHUNKS) != 0;
  if (type >= 0) H5Tclose(type);
  if (space >= 0) H5Sclose(space);
  return good;
}

/* The least stored size of a chunk to which the filters in the mask `skipped` were not applied. */
static hsize_t least_bytes(const chunked *set, uint32_t skipped) {
  hsize_t checksums = 0;
  bool packed = false;
  for (int i = 0; i < set->num_filters; i++) {
    if (skipped >> i & 1) continue;
    if (set->filters[i] == H5Z_FILTER_FLETCHER32) checksums += CHECKSUM;
    packed |= set->filters[i] != H5Z_FILTER_FLETCHER32 && set->filters[i] != H5Z_FILTER_SHUFFLE;
  }
  return (packed ? 1 : set->bytes) + checksums;
}

/* Moves to the next chunk; false after the last. */
static bool next(const chunked *set, hsize_t *at) {
  for (int i = set->rank - 1; i >= 0; i--) {
    at[i] += set->chunk[i];
    if (at[i] < set->shape[i]) return true;
    at[i] = 0;
  }
  return false;
}

static bool is_cut(const chunked *set, const hsize_t *at) {
  bool cut = false;
  for (int i = 0; i < set->rank; i++) cut |= at[i] + set->chunk[i] > set->shape[i];
  return cut;
}

static hv_status check(hv_hdf5 *file, const char *object, hid_t dataset, const chunked *set) {
  hsize_t at[HV_HDF5_MAX_RANK] = {0};
  for (int i = 0; i < set->rank; i++) {
    if (set->shape[i] == 0) return HV_OK;
  }
  do {
    unsigned skipped = 0;
    haddr_t address = HADDR_UNDEF;
    hsize_t stored = 0;
    if (H5Dget_chunk_info_by_coord(dataset, at, &skipped, &address, &stored) < 0) {
      return hv_hdf5_error(file, object, "its storage cannot be read");
    }
    if (address == HADDR_UNDEF || (set->partial_stored && is_cut(set, at))) continue;
    hsize_t least = least_bytes(set, skipped);
    if (stored >= least) continue;
    return hv_hdf5_bad(file, object,
                       "its chunk at row %llu is stored in %llu bytes, %llu at least are expected; the "
                       "file is damaged",
                       (unsigned long long)at[0], (unsigned long long)stored, (unsigned long long)least);
  } while (next(set, at));
  return HV_OK;
}

hv_status hv_hdf5_check_chunks(hv_hdf5 *file, const char *object, hid_t dataset, bool keeps_chunks) {
  hv_status status = HV_OK;
  hid_t properties = H5Dget_create_plist(dataset);
  bool is_chunked = properties >= 0 && H5Pget_layout(properties) == H5D_CHUNKED;
  chunked set = {.num_filters = is_chunked ? H5Pget_nfilters(properties) : 0};
  bool trusts = is_chunked && (set.num_filters != 0 || keeps_chunks);
  if (properties < 0 || set.num_filters < 0 || (trusts && !describe(dataset, properties, &set))) {
    status = hv_hdf5_error(file, object, "its storage cannot be read");
  } else if (trusts) {
    status = check(file, object, dataset, &set);
  }
  if (properties >= 0) H5Pclose(properties);
  return status;
}
