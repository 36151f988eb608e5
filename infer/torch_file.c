#include "infer/torch_file.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zip.h>

#include "core/base/file.h"
#include "core/base/interruption.h"
#include "infer/torch_pickle.h"

enum {
  ALIGNMENT = 64,
  PICKLE_LIMIT = 64 << 20, /* bytes */
  PIECE = 1 << 16,         /* elements */
  ENTRY_SIZE = 64,
  /* Bytes in a zip entry: local header, extra field for sizes beyond 32 bits, head of the extra field for padding. */
  LOCAL_HEADER = 30,
  ZIP64_FIELD = 20,
  EXTRA_HEAD = 4,
  PADDING_FIELD = 0x4246, /* "FB", as torch pads */
};

/* The elements of one tensor as bytes, converted a piece at a time. */
typedef struct byte_source {
  const hv_torch_tensor *tensor;
  struct writer *writer;
  int64_t next;         /* first element of the next piece */
  size_t begin, filled; /* range of bytes in writer->piece that are still to be copied */
} byte_source;

typedef struct writer {
  const char *path;
  const hv_torch_tensor *tensors;
  size_t count;
  zip_t *archive;
  int64_t offset;       /* in the archive, of the next entry */
  byte_source *sources; /* [count] */
  void *piece;          /* PIECE elements; entries are read one after the other */
  hv_status status;     /* a source's error; libzip itself only reports that reading failed */
  hv_torch_progress *progress;
  void *context;
} writer;

static hv_status next_piece(byte_source *source) {
  const hv_torch_tensor *tensor = source->tensor;
  int64_t left = tensor->source->count - source->next, count = left < PIECE ? left : PIECE;
  HV_TRY(hv_interruption_status());
  HV_TRY(hv_file_tensor_convert(tensor->source, source->next, count, tensor->dtype, source->writer->piece));
  source->next += count;
  source->begin = 0;
  source->filled = (size_t)count * hv_dtype_size(tensor->dtype);
  return HV_OK;
}

/* Bytes copied; -1: an error, which the writer keeps. */
static zip_int64_t read_source(byte_source *source, void *data, zip_uint64_t size) {
  writer *self = source->writer;
  size_t done = 0;
  while (done < size) {
    if (source->begin == source->filled) {
      if (source->next == source->tensor->source->count) break;
      hv_status status = next_piece(source);
      if (status) {
        self->status = hv_status_first(self->status, status);
        return -1;
      }
    }
    size_t part = source->filled - source->begin;
    if (part > size - done) part = size - done;
    memcpy((char *)data + done, (const char *)self->piece + source->begin, part);
    source->begin += part;
    done += part;
  }
  if (self->progress) self->progress(self->context, done);
  return (zip_int64_t)done;
}

static int64_t tensor_bytes(const hv_torch_tensor *tensor) {
  return tensor->source->count * (int64_t)hv_dtype_size(tensor->dtype);
}

/* The callback through which libzip uses a source. */
static zip_int64_t serve_source(void *user, void *data, zip_uint64_t size, zip_source_cmd_t command) {
  byte_source *source = user;
  zip_error_t failed;
  switch (command) {
  case ZIP_SOURCE_OPEN:
    source->next = 0;
    source->begin = source->filled = 0;
    return 0;
  case ZIP_SOURCE_READ: return read_source(source, data, size);
  case ZIP_SOURCE_STAT: {
    zip_stat_t *stat = data;
    zip_stat_init(stat);
    stat->valid = ZIP_STAT_SIZE;
    stat->size = (zip_uint64_t)tensor_bytes(source->tensor);
    return sizeof *stat;
  }
  case ZIP_SOURCE_ERROR:
    zip_error_init(&failed);
    zip_error_set(&failed, ZIP_ER_READ, 0);
    return zip_error_to_data(&failed, data, size);
  case ZIP_SOURCE_SUPPORTS:
    return zip_source_make_command_bitmap(ZIP_SOURCE_OPEN, ZIP_SOURCE_READ, ZIP_SOURCE_CLOSE, ZIP_SOURCE_STAT,
                                          ZIP_SOURCE_ERROR, ZIP_SOURCE_FREE, -1);
  case ZIP_SOURCE_CLOSE:
  case ZIP_SOURCE_FREE: return 0;
  default: return -1;
  }
}

/* Adds an entry of `size` bytes, aligned and not compressed. Its date is fixed, so that the same tensors make the same
 * file. Takes ownership of the source. */
static hv_status add_entry(writer *self, const char *name, zip_source_t *source, int64_t size) {
  static const uint8_t zeros[ALIGNMENT];
  zip_t *archive = self->archive;
  zip_int64_t index = source ? zip_file_add(archive, name, source, ZIP_FL_ENC_GUESS) : -1;
  if (index < 0) {
    zip_source_free(source);
    return hv_error(HV_ERR_IO, "%s: cannot add %s: %s", self->path, name, zip_strerror(archive));
  }
  int64_t begin = self->offset + LOCAL_HEADER + (int64_t)strlen(name) + EXTRA_HEAD;
  if (size >= UINT32_MAX) begin += ZIP64_FIELD;
  int64_t padding = (ALIGNMENT - begin % ALIGNMENT) % ALIGNMENT;
  self->offset = begin + padding + size;
  zip_uint64_t entry = (zip_uint64_t)index;
  if (zip_set_file_compression(archive, entry, ZIP_CM_STORE, 0) != 0 ||
      zip_file_set_dostime(archive, entry, 0, (1 << 5) + 1, 0) != 0 || /* 1 January 1980, the earliest in a zip */
      zip_file_extra_field_set(archive, entry, PADDING_FIELD, ZIP_EXTRA_FIELD_NEW, zeros, (zip_uint16_t)padding,
                               ZIP_FL_LOCAL) != 0) {
    return hv_error(HV_ERR_IO, "%s: cannot add %s: %s", self->path, name, zip_strerror(archive));
  }
  return HV_OK;
}

static hv_status add_text(writer *self, const char *name, const char *text, size_t size) {
  return add_entry(self, name, zip_source_buffer(self->archive, text, size, 0), (int64_t)size);
}

static hv_status add_entries(writer *self, const hv_text *pickle) {
  HV_TRY(add_text(self, "archive/data.pkl", pickle->data, pickle->length));
  HV_TRY(add_text(self, "archive/byteorder", "little", 6));
  for (size_t i = 0; i < self->count; i++) {
    char name[ENTRY_SIZE];
    byte_source *source = &self->sources[i];
    *source = (byte_source){.tensor = &self->tensors[i], .writer = self};
    snprintf(name, sizeof name, "archive/data/%zu", i);
    HV_TRY(
        add_entry(self, name, zip_source_function(self->archive, serve_source, source), tensor_bytes(source->tensor)));
  }
  return add_text(self, "archive/version", "3\n", 2);
}

static hv_status open_archive(const char *path, int flags, zip_t **out) {
  int code;
  *out = zip_open(path, flags, &code);
  if (*out) return HV_OK;
  zip_error_t error;
  zip_error_init_with_code(&error, code);
  hv_status status =
      hv_error(flags & ZIP_CREATE ? HV_ERR_IO : HV_ERR_INPUT, "cannot open %s: %s", path, zip_error_strerror(&error));
  zip_error_fini(&error);
  return status;
}

hv_status hv_torch_file_write(const char *path, const hv_torch_tensor *tensors, size_t count,
                              hv_torch_progress *progress, void *context) {
  writer self = {.path = path, .tensors = tensors, .count = count, .progress = progress, .context = context};
  hv_status status = HV_OK;
  hv_text pickle = {0};
  self.sources = calloc(count + 1, sizeof *self.sources);
  self.piece = malloc(PIECE * sizeof(double));
  if (!self.sources || !self.piece) {
    status = hv_error_memory("the tensors of a .pt file");
    goto done;
  }
  HV_CHECK(hv_torch_pickle_make(tensors, count, &pickle));
  HV_CHECK(open_archive(path, ZIP_CREATE | ZIP_EXCL, &self.archive));
  HV_CHECK(add_entries(&self, &pickle));
  /* zip_close writes everything, to a temporary file that it then renames. */
  if (zip_close(self.archive) == 0) {
    self.archive = NULL;
    status = hv_sync_file(path);
  } else {
    status = self.status ? self.status : hv_error(HV_ERR_IO, "cannot write %s: %s", path, zip_strerror(self.archive));
    self.status = HV_OK;
  }
done:
  if (self.archive) zip_discard(self.archive);
  hv_status_free(self.status);
  hv_text_free(&pickle);
  free(self.sources);
  free(self.piece);
  return status;
}

/* The archive that is compared with the tensors. */
typedef struct reader {
  zip_t *archive;
  void *read, *wanted; /* PIECE elements each */
  hv_torch_progress *progress;
  void *context;
} reader;

static hv_status open_entry(const reader *self, const char *name, zip_uint64_t *size, zip_file_t **out) {
  zip_stat_t stat;
  if (zip_stat(self->archive, name, 0, &stat) != 0) return hv_error(HV_ERR_NO, "%s is missing", name);
  if (!(stat.valid & ZIP_STAT_COMP_METHOD) || stat.comp_method != ZIP_CM_STORE)
    return hv_error(HV_ERR_NO, "%s is compressed", name);
  *size = stat.size;
  *out = zip_fopen(self->archive, name, 0);
  return *out ? HV_OK : hv_error(HV_ERR_INPUT, "cannot read %s: %s", name, zip_strerror(self->archive));
}

/* Reads exactly `size` bytes. At the end of an entry libzip checks its checksum. */
static hv_status read_bytes(zip_file_t *file, const char *name, void *out, size_t size) {
  for (size_t done = 0; done < size;) {
    zip_int64_t got = zip_fread(file, (char *)out + done, size - done);
    if (got < 0) return hv_error(HV_ERR_NO, "cannot read %s: %s", name, zip_file_strerror(file));
    if (got == 0) return hv_error(HV_ERR_NO, "%s ends too early", name);
    done += (size_t)got;
  }
  return HV_OK;
}

static hv_status read_pickle(const reader *self, uint8_t **out, size_t *size) {
  static const char name[] = "archive/data.pkl";
  zip_uint64_t length;
  zip_file_t *file;
  *out = NULL;
  HV_TRY(open_entry(self, name, &length, &file));
  hv_status status = HV_OK;
  if (length > PICKLE_LIMIT) {
    status = hv_error(HV_ERR_INPUT, "%s has %" PRIu64 " bytes; at most %d are expected", name, (uint64_t)length,
                      PICKLE_LIMIT);
    goto done;
  }
  *size = (size_t)length;
  *out = malloc(*size + 1);
  status = *out ? read_bytes(file, name, *out, *size) : hv_error_memory(name);
done:
  zip_fclose(file);
  return status;
}

static hv_status compare_values(const reader *self, const hv_torch_tensor *tensor, const char *key) {
  char name[ENTRY_SIZE];
  zip_uint64_t size;
  zip_file_t *file;
  hv_status status = HV_OK;
  snprintf(name, sizeof name, "archive/data/%s", key);
  HV_TRY(open_entry(self, name, &size, &file));
  if (size != (zip_uint64_t)tensor_bytes(tensor)) {
    status = hv_error(HV_ERR_NO, "%s has %" PRIu64 " bytes, not %" PRId64, name, (uint64_t)size, tensor_bytes(tensor));
    goto done;
  }
  for (int64_t first = 0; first < tensor->source->count; first += PIECE) {
    int64_t left = tensor->source->count - first, count = left < PIECE ? left : PIECE;
    size_t bytes = (size_t)count * hv_dtype_size(tensor->dtype);
    HV_CHECK(read_bytes(file, name, self->read, bytes));
    HV_CHECK(hv_file_tensor_convert(tensor->source, first, count, tensor->dtype, self->wanted));
    if (memcmp(self->read, self->wanted, bytes) != 0) {
      status = hv_error(HV_ERR_NO, "has other values");
      goto done;
    }
    if (self->progress) self->progress(self->context, bytes);
  }
  char past;
  if (zip_fread(file, &past, 1) < 0) status = hv_error(HV_ERR_NO, "%s: %s", name, zip_file_strerror(file));
done:
  zip_fclose(file);
  return status;
}

static hv_status compare(reader *self, const hv_torch_tensor *tensors, size_t count, char **keys) {
  uint8_t *pickle;
  size_t size = 0;
  hv_status status = read_pickle(self, &pickle, &size);
  if (!status) status = hv_torch_pickle_check(pickle, size, tensors, count, keys);
  for (size_t i = 0; i < count && !status; i++)
    status = hv_error_context(compare_values(self, &tensors[i], keys[i]), "tensor %s", tensors[i].name);
  free(pickle);
  return status;
}

hv_status hv_torch_file_compare(const char *path, const hv_torch_tensor *tensors, size_t count,
                                hv_torch_progress *progress, void *context) {
  reader self = {.progress = progress, .context = context};
  hv_status status = HV_OK;
  char **keys = calloc(count + 1, sizeof *keys);
  self.read = malloc(PIECE * sizeof(double));
  self.wanted = malloc(PIECE * sizeof(double));
  if (!keys || !self.read || !self.wanted) {
    status = hv_error_memory("a piece of a tensor");
    goto done;
  }
  HV_CHECK(open_archive(path, ZIP_RDONLY | ZIP_CHECKCONS, &self.archive));
  status = compare(&self, tensors, count, keys);
done:
  if (self.archive) zip_discard(self.archive);
  for (size_t i = 0; keys && i < count; i++) free(keys[i]);
  free(keys);
  free(self.read);
  free(self.wanted);
  return hv_error_context(status, "%s", path);
}
