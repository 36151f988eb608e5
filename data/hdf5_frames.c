/* Frames of an image data set, read in the cheapest way that its storage allows. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zlib.h>

#include "core/image/image.h"
#include "data/hdf5_internal.h"

typedef enum storage {
  STORAGE_CONTIGUOUS,   /* read from the file directly */
  STORAGE_FRAME_CHUNKS, /* one frame in each chunk, without filters or with deflate */
  STORAGE_SLABS,        /* read through the library, frame by frame */
  STORAGE_WHOLE,        /* several frames in a chunk: the whole data set is read at once and cached */
} storage;

struct hv_dataset_frames {
  hv_frames base;
  hv_hdf5 *file;
  char *object;
  hid_t dataset; /* WHOLE: -1, opened to be read, or its cached chunk would stay */
  storage storage;
  bool deflated;
  size_t frame_bytes, cut_chunk; /* bytes of a chunk that cuts frames up, 0: it does not */
  uint64_t offset;               /* CONTIGUOUS: of frame 0 in the file */
  /* WHOLE, guarded by the file's cache_mutex: */
  uint8_t *pixels;
  hv_dataset_frames *newer, *older;
};

static hv_status frame_error(hv_dataset_frames *frames, int64_t index, const char *reason) {
  return hv_error(HV_ERR_INPUT, "%s: %s: frame %lld: %s", frames->file->path, frames->object, (long long)index, reason);
}

static hv_status read_contiguous(hv_dataset_frames *frames, int64_t index, uint8_t *rgb) {
  uint64_t at = frames->offset + (uint64_t)index * frames->frame_bytes;
  size_t filled = 0;
  while (filled < frames->frame_bytes) {
    ssize_t got = pread(frames->file->fd, rgb + filled, frames->frame_bytes - filled, (off_t)(at + filled));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return hv_error_errno(errno, "%s: cannot read %s", frames->file->path, frames->object);
    if (got == 0) return frame_error(frames, index, "lies beyond the end of the file");
    filled += (size_t)got;
  }
  return HV_OK;
}

/* Reads a frame through the library. Between enter and leave. */
static hv_status read_slab(hv_dataset_frames *frames, int64_t index, uint8_t *rgb) {
  hv_status status = HV_OK;
  hsize_t start[4] = {(hsize_t)index, 0, 0, 0};
  hsize_t count[4] = {1, (hsize_t)frames->base.height, (hsize_t)frames->base.width, 3};
  hid_t stored = H5Dget_space(frames->dataset), memory = H5Screate_simple(4, count, NULL);
  if (stored < 0 || memory < 0 || H5Sselect_hyperslab(stored, H5S_SELECT_SET, start, NULL, count, NULL) < 0 ||
      H5Dread(frames->dataset, H5T_NATIVE_UINT8, memory, stored, H5P_DEFAULT, rgb) < 0) {
    status = hv_hdf5_error(frames->file, frames->object, "frame %lld cannot be read", (long long)index);
  }
  if (memory >= 0) H5Sclose(memory);
  if (stored >= 0) H5Sclose(stored);
  return status;
}

/* The most bytes in which a frame may be stored: deflate adds little to what it cannot compress. */
static size_t chunk_limit(const hv_dataset_frames *frames) {
  return 2 * frames->frame_bytes + 4096;
}

/* The frame's chunk as stored, at most chunk_limit bytes. */
static hv_status read_chunk(hv_dataset_frames *frames, int64_t index, uint8_t *out, size_t *size, bool *deflated) {
  hv_status status = HV_OK;
  hsize_t at[4] = {(hsize_t)index, 0, 0, 0}, stored = 0;
  uint32_t skipped = 0;
  hv_hdf5_enter();
  if (H5Dget_chunk_storage_size(frames->dataset, at, &stored) < 0 || stored == 0) {
    H5Eclear2(H5E_DEFAULT);
    status = frame_error(frames, index, "was never written");
    goto done;
  }
  if (stored > chunk_limit(frames)) {
    status = frame_error(frames, index, "its stored size is larger than any deflated frame; the file is damaged");
    goto done;
  }
  if (H5Dread_chunk(frames->dataset, H5P_DEFAULT, at, &skipped, out) < 0) {
    status = hv_hdf5_error(frames->file, frames->object, "frame %lld cannot be read", (long long)index);
  }
  *size = (size_t)stored;
  *deflated = frames->deflated && !(skipped & 1U);
done:
  hv_hdf5_leave();
  return status;
}

static hv_status read_frame_chunk(hv_dataset_frames *frames, int64_t index, uint8_t *rgb) {
  uint8_t *stored = malloc(chunk_limit(frames));
  if (!stored) return hv_error_memory("a stored frame");
  size_t size = 0;
  bool deflated = false;
  hv_status status = read_chunk(frames, index, stored, &size, &deflated);
  if (status) goto done;
  uLongf inflated = frames->frame_bytes;
  if (!deflated) {
    inflated = size;
    if (size == frames->frame_bytes) memcpy(rgb, stored, size);
  } else {
    int result = uncompress(rgb, &inflated, stored, size);
    if (result != Z_OK) {
      status = frame_error(frames, index,
                           result == Z_BUF_ERROR
                               ? "its deflate stream is cut off or longer than a frame; the file is damaged"
                               : "its deflate stream is corrupt");
      goto done;
    }
  }
  if (inflated != frames->frame_bytes)
    status = frame_error(frames, index, "its chunk is not as long as a frame; the file is damaged");
done:
  free(stored);
  return status;
}

static void unlink_cached(hv_dataset_frames *frames) {
  hv_hdf5 *file = frames->file;
  *(frames->newer ? &frames->newer->older : &file->newest) = frames->older;
  *(frames->older ? &frames->older->newer : &file->oldest) = frames->newer;
  frames->newer = frames->older = NULL;
}

static void link_newest(hv_dataset_frames *frames) {
  hv_hdf5 *file = frames->file;
  frames->older = file->newest;
  *(file->newest ? &file->newest->newer : &file->oldest) = frames;
  file->newest = frames;
}

static void drop_cached(hv_dataset_frames *frames) {
  unlink_cached(frames);
  free(frames->pixels);
  frames->pixels = NULL;
  frames->file->cached_bytes -= frames->frame_bytes * (size_t)frames->base.count;
}

/* Reads all frames into memory, and drops the least recently used data sets until they fit. The caller holds
 * cache_mutex. */
static hv_status fill_cache(hv_dataset_frames *frames) {
  hv_hdf5 *file = frames->file;
  size_t bytes = frames->frame_bytes * (size_t)frames->base.count;
  while (file->oldest && file->cached_bytes + bytes > file->cache_limit) drop_cached(file->oldest);
  uint8_t *pixels = malloc(bytes);
  if (!pixels) return hv_error_memory("the frames of an episode");
  hid_t dataset;
  hv_hdf5_enter();
  hv_status status = hv_hdf5_open_by_chunks(file, frames->object, frames->cut_chunk, &dataset);
  if (!status) status = hv_hdf5_check_chunks(file, frames->object, dataset, frames->cut_chunk > 0);
  if (!status && H5Dread(dataset, H5T_NATIVE_UINT8, H5S_ALL, H5S_ALL, H5P_DEFAULT, pixels) < 0) {
    status = hv_hdf5_error(file, frames->object, "cannot be read");
  }
  if (dataset >= 0) H5Dclose(dataset);
  hv_hdf5_leave();
  if (status) {
    free(pixels);
    return status;
  }
  frames->pixels = pixels;
  file->cached_bytes += bytes;
  link_newest(frames);
  return HV_OK;
}

static hv_status read_whole(hv_dataset_frames *frames, int64_t index, uint8_t *rgb) {
  hv_status status = HV_OK;
  pthread_mutex_lock(&frames->file->cache_mutex);
  if (frames->pixels) {
    unlink_cached(frames);
    link_newest(frames);
  } else {
    status = fill_cache(frames);
  }
  if (frames->pixels) memcpy(rgb, frames->pixels + (size_t)index * frames->frame_bytes, frames->frame_bytes);
  pthread_mutex_unlock(&frames->file->cache_mutex);
  return status;
}

static hv_status read_frame(hv_frames *base, int64_t index, uint8_t *rgb) {
  hv_dataset_frames *frames = (hv_dataset_frames *)base;
  if (index < 0 || index >= base->count) return frame_error(frames, index, "is outside of the episode");
  switch (frames->storage) {
  case STORAGE_CONTIGUOUS: return read_contiguous(frames, index, rgb);
  case STORAGE_FRAME_CHUNKS: return read_frame_chunk(frames, index, rgb);
  case STORAGE_WHOLE: return read_whole(frames, index, rgb);
  case STORAGE_SLABS: break;
  }
  hv_hdf5_enter();
  hv_status status = read_slab(frames, index, rgb);
  hv_hdf5_leave();
  return status;
}

static void close_frames(hv_frames *base) {
  hv_dataset_frames *frames = (hv_dataset_frames *)base;
  pthread_mutex_lock(&frames->file->cache_mutex);
  if (frames->pixels) drop_cached(frames);
  pthread_mutex_unlock(&frames->file->cache_mutex);
  if (frames->dataset >= 0) {
    hv_hdf5_enter();
    H5Dclose(frames->dataset);
    hv_hdf5_leave();
  }
  free(frames->object);
  free(frames);
}

static hv_status check_frames(hv_hdf5 *file, const char *object, const hv_hdf5_info *info) {
  char found[128];
  hv_hdf5_info_text(info, found, sizeof found);
  bool bytes = info->type == HV_HDF5_INTEGER && info->size == 1 && !info->is_signed;
  if (!bytes || info->rank != 4 || info->shape[3] != 3) {
    return hv_hdf5_bad(file, object, "is %s; images are u8 (frames, height, width, 3)", found);
  }
  for (int i = 1; i < 3; i++) {
    if (info->shape[i] >= 1 && info->shape[i] <= HV_IMAGE_MAX_SIDE) continue;
    return hv_hdf5_bad(file, object, "is %s; an image has 1 to %d pixels a side", found, HV_IMAGE_MAX_SIDE);
  }
  return HV_OK;
}

/* Whether each chunk is exactly one frame, without filters or with deflate, the only filter that is undone here. */
static bool has_frame_chunks(hid_t properties, const hsize_t chunk[4], const hv_frames *base, bool *deflated) {
  if (chunk[0] != 1 || chunk[1] != (hsize_t)base->height || chunk[2] != (hsize_t)base->width || chunk[3] != 3) {
    return false;
  }
  int filters = H5Pget_nfilters(properties);
  *deflated = false;
  for (int i = 0; i < filters; i++) {
    unsigned flags = 0, config = 0;
    size_t values = 0;
    H5Z_filter_t filter = H5Pget_filter2(properties, (unsigned)i, &flags, &values, NULL, 0, NULL, &config);
    /* The mask of skipped filters has a bit for each position; read_chunk looks at bit 0. */
    if (filter != H5Z_FILTER_DEFLATE || i > 0) return false;
    *deflated = true;
  }
  return true;
}

static size_t cut_chunk_bytes(const hsize_t chunk[4], const hv_frames *base) {
  bool cut = chunk[1] < (hsize_t)base->height || chunk[2] < (hsize_t)base->width || chunk[3] < 3;
  return cut ? (size_t)(chunk[0] * chunk[1] * chunk[2] * chunk[3]) : 0; /* less than 4 GiB, as the library has it */
}

static void choose_storage(hv_dataset_frames *frames, const hv_hdf5_info *info, hid_t properties) {
  H5D_layout_t layout = H5Pget_layout(properties);
  haddr_t address = layout == H5D_CONTIGUOUS ? H5Dget_offset(frames->dataset) : HADDR_UNDEF;
  hsize_t chunk[4];
  bool chunked = layout == H5D_CHUNKED && H5Pget_chunk(properties, 4, chunk) == 4;
  if (address != HADDR_UNDEF) {
    frames->storage = STORAGE_CONTIGUOUS;
    frames->offset = address;
  } else if (chunked && has_frame_chunks(properties, chunk, &frames->base, &frames->deflated)) {
    frames->storage = STORAGE_FRAME_CHUNKS;
  } else if (chunked && info->chunk_rows > 1) {
    frames->storage = STORAGE_WHOLE;
  } else {
    frames->storage = STORAGE_SLABS;
  }
  if (chunked) frames->cut_chunk = cut_chunk_bytes(chunk, &frames->base);
  H5Eclear2(H5E_DEFAULT);
}

hv_status hv_hdf5_open_frames(hv_hdf5 *file, const char *dataset, hv_frames **out) {
  *out = NULL;
  hv_dataset_frames *frames = calloc(1, sizeof *frames);
  if (!frames) return hv_error_memory("an image data set");
  *frames = (hv_dataset_frames){.base = {.read = read_frame, .close = close_frames}, .file = file, .dataset = -1};
  frames->object = strdup(dataset);
  hv_hdf5_info info;
  hid_t properties = -1;
  hv_status status = frames->object ? HV_OK : hv_error_memory(dataset);
  if (status) goto closed;
  hv_hdf5_enter();
  HV_CHECK(hv_hdf5_open_dataset(file, dataset, &frames->dataset));
  HV_CHECK(hv_hdf5_describe_open(file, dataset, frames->dataset, &info));
  HV_CHECK(check_frames(file, dataset, &info));
  frames->base.count = info.shape[0];
  frames->base.height = (int32_t)info.shape[1];
  frames->base.width = (int32_t)info.shape[2];
  frames->frame_bytes = (size_t)(info.shape[1] * info.shape[2] * 3);
  if ((uint64_t)info.shape[0] > SIZE_MAX / 2 / frames->frame_bytes) {
    status = hv_hdf5_bad(file, dataset, "claims %lld frames, more than memory can address", (long long)info.shape[0]);
    goto done;
  }
  properties = H5Dget_create_plist(frames->dataset);
  if (properties < 0) {
    status = hv_hdf5_error(file, dataset, "its storage cannot be read");
    goto done;
  }
  choose_storage(frames, &info, properties);
  /* A missing chunk of one frame is reported when it is read, with the number of the frame. */
  if (frames->storage != STORAGE_FRAME_CHUNKS || H5Dget_storage_size(frames->dataset) == 0) {
    HV_CHECK(hv_hdf5_check_written(file, dataset, frames->dataset, &info));
  }
  if (frames->storage == STORAGE_SLABS)
    HV_CHECK(hv_hdf5_check_chunks(file, dataset, frames->dataset, frames->cut_chunk > 0));
  if (frames->storage == STORAGE_WHOLE || frames->cut_chunk > 0) {
    H5Dclose(frames->dataset);
    frames->dataset = -1;
  }
  if (frames->storage == STORAGE_SLABS && frames->cut_chunk > 0)
    HV_CHECK(hv_hdf5_open_by_chunks(file, dataset, frames->cut_chunk, &frames->dataset));
done:
  if (properties >= 0) H5Pclose(properties);
  hv_hdf5_leave();
closed:
  if (status) {
    close_frames(&frames->base);
    return status;
  }
  *out = &frames->base;
  return HV_OK;
}
