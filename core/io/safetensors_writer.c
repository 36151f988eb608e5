#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/file.h"
#include "core/io/json.h"
#include "core/io/safetensors.h"

struct hv_safetensors_writer {
  hv_file_writer *file;
  char *path;
  json_t *header;            /* NULL once it is written */
  int64_t declared, written; /* bytes of data */
};

static void free_writer(hv_safetensors_writer *writer) {
  json_decref(writer->header);
  free(writer->path);
  free(writer);
}

hv_status hv_safetensors_writer_open(const char *path, hv_safetensors_writer **out) {
  *out = NULL;
  hv_safetensors_writer *writer = calloc(1, sizeof *writer);
  if (!writer) return hv_error_memory(path);
  /* Hugging Face's loaders refuse a file that does not say which framework its tensors are for. */
  writer->header = json_pack("{s:{s:s}}", "__metadata__", "format", "pt");
  writer->path = strdup(path);
  hv_status status = writer->header && writer->path ? HV_OK : hv_error_memory(path);
  if (!status) status = hv_file_writer_open(path, &writer->file);
  if (status) {
    free_writer(writer);
    return status;
  }
  *out = writer;
  return HV_OK;
}

hv_status hv_safetensors_writer_declare(hv_safetensors_writer *writer, const char *name, hv_dtype dtype, int32_t rank,
                                        const int64_t *shape) {
  if (!writer->header) return hv_error(HV_ERR_INTERNAL, "%s: tensor %s is declared after data", writer->path, name);
  if (json_object_get(writer->header, name)) {
    return hv_error(HV_ERR_INTERNAL, "%s: tensor %s is declared twice", writer->path, name);
  }
  int64_t size = (int64_t)hv_dtype_size(dtype), end;
  json_t *extents = json_array();
  if (!extents) return hv_error_memory(writer->path);
  bool overflow = false;
  for (int32_t i = 0; i < rank; i++) {
    overflow |= shape[i] < 0 || __builtin_mul_overflow(size, shape[i], &size);
    json_array_append_new(extents, json_integer(shape[i]));
  }
  if (overflow || __builtin_add_overflow(writer->declared, size, &end)) {
    json_decref(extents);
    return hv_error(HV_ERR_INTERNAL, "%s: the shape of tensor %s is out of range", writer->path, name);
  }
  json_t *entry = json_pack("{s:s, s:o, s:[I, I]}", "dtype", hv_safetensors_dtype_name(dtype), "shape", extents,
                            "data_offsets", (json_int_t)writer->declared, (json_int_t)end);
  if (!entry || json_array_size(json_object_get(entry, "shape")) != (size_t)rank ||
      json_object_set_new(writer->header, name, entry) != 0) {
    return hv_error_memory(writer->path);
  }
  writer->declared = end;
  return HV_OK;
}

/* The length and the header, padded with blanks so that the data begins at a multiple of 8. */
static hv_status write_header(hv_safetensors_writer *writer) {
  hv_text text = {0};
  hv_text_add_bytes(&text, "\0\0\0\0\0\0\0\0", 8);
  char *json = json_dumps(writer->header, JSON_COMPACT);
  hv_status status = HV_OK;
  if (!json) {
    status = hv_error_memory(writer->path);
    goto done;
  }
  hv_text_add_bytes(&text, json, strlen(json));
  hv_text_add_bytes(&text, "       ", (8 - text.length % 8) % 8);
  if (text.failed) {
    status = hv_error_memory(writer->path);
    goto done;
  }
  for (int i = 0; i < 8; i++) text.data[i] = (char)((uint64_t)(text.length - 8) >> (8 * i));
  HV_CHECK(hv_file_writer_write(writer->file, text.data, text.length));
  json_decref(writer->header);
  writer->header = NULL;
done:
  free(json);
  hv_text_free(&text);
  return status;
}

hv_status hv_safetensors_writer_write(hv_safetensors_writer *writer, const void *data, size_t size) {
  if (writer->header) HV_TRY(write_header(writer));
  if (size > (uint64_t)(writer->declared - writer->written)) {
    return hv_error(HV_ERR_INTERNAL, "%s: more data than the %" PRId64 " bytes declared", writer->path,
                    writer->declared);
  }
  HV_TRY(hv_file_writer_write(writer->file, data, size));
  writer->written += (int64_t)size;
  return HV_OK;
}

hv_status hv_safetensors_writer_commit_digest(hv_safetensors_writer *writer, hv_file_digest *out) {
  hv_status status = writer->header ? write_header(writer) : HV_OK;
  if (!status && writer->written != writer->declared) {
    status = hv_error(HV_ERR_INTERNAL, "%s: %" PRId64 " bytes of data were declared, %" PRId64 " written", writer->path,
                      writer->declared, writer->written);
  }
  *out = hv_file_writer_digest(writer->file);
  if (status) {
    hv_file_writer_abort(writer->file);
  } else {
    status = hv_file_writer_commit(writer->file);
  }
  free_writer(writer);
  return status;
}

hv_status hv_safetensors_writer_commit(hv_safetensors_writer *writer) {
  hv_file_digest digest;
  return hv_safetensors_writer_commit_digest(writer, &digest);
}

void hv_safetensors_writer_abort(hv_safetensors_writer *writer) {
  if (!writer) return;
  hv_file_writer_abort(writer->file);
  free_writer(writer);
}
