#include "train/checkpoint/checkpoint_shard.h"

#include <stdlib.h>
#include <string.h>

#include "core/io/safetensors.h"
#include "train/checkpoint/checkpoint_parts.h"

enum { PIECE = 8 << 20 /* bytes written at a time, and copied at a time if there is no room for all */ };

struct hv_checkpoint_shard {
  hv_device *device;
  hv_checkpoint_parts parts; /* cut to what this rank writes */
  size_t bytes;
  char *copy; /* [bytes], the parts one after the other; NULL: not reserved */
};

static size_t part_bytes(const hv_checkpoint_part *part) {
  return (size_t)part->tensor.cols * hv_dtype_size(part->tensor.dtype);
}

hv_status hv_checkpoint_shard_open(const hv_params *params, const hv_optimizer *optimizer, const hv_ema *ema,
                                   hv_checkpoint_shard **out) {
  *out = NULL;
  hv_checkpoint_shard *shard = calloc(1, sizeof *shard);
  if (!shard) return hv_error_memory("a checkpoint's part");
  shard->device = hv_params_device(params);
  hv_status status = hv_checkpoint_parts_list(params, optimizer, ema, &shard->parts);
  if (status) {
    hv_checkpoint_shard_close(shard);
    return status;
  }
  const hv_comm *comm = hv_params_comm(params);
  for (int i = 0; i < shard->parts.count; i++) {
    hv_checkpoint_part *part = &shard->parts.items[i];
    hv_element_range range = hv_checkpoint_file_range(part->total, comm ? comm->rank : 0, comm ? comm->size : 1);
    part->tensor = hv_tensor_cols(part->tensor, range.first - part->first, range.end - range.first);
    part->first = range.first;
    shard->bytes += part_bytes(part);
  }
  *out = shard;
  return HV_OK;
}

void hv_checkpoint_shard_close(hv_checkpoint_shard *shard) {
  if (!shard) return;
  hv_checkpoint_shard_release(shard);
  hv_checkpoint_parts_free(&shard->parts);
  free(shard);
}

size_t hv_checkpoint_shard_bytes(const hv_checkpoint_shard *shard) {
  return shard->bytes;
}

hv_status hv_checkpoint_shard_reserve(hv_checkpoint_shard *shard) {
  void *copy;
  HV_TRY(hv_device_allocate_host(shard->device, shard->bytes, "the copy of a checkpoint", &copy));
  memset(copy, 0, shard->bytes); /* so that its pages are taken now, not at the first checkpoint */
  shard->copy = copy;
  return HV_OK;
}

void hv_checkpoint_shard_release(hv_checkpoint_shard *shard) {
  hv_device_release_host(shard->device, shard->copy);
  shard->copy = NULL;
}

hv_status hv_checkpoint_shard_copy(hv_checkpoint_shard *shard, hv_stream *stream) {
  if (!shard->copy) return HV_OK;
  char *to = shard->copy;
  for (int i = 0; i < shard->parts.count; i++) {
    size_t size = part_bytes(&shard->parts.items[i]);
    hv_download(stream, to, shard->parts.items[i].tensor.data, size);
    to += size;
  }
  return hv_stream_synchronize(stream);
}

static hv_status write_piece(hv_safetensors_writer *writer, const void *data, size_t size, const atomic_bool *stop) {
  if (atomic_load(stop)) return hv_error(HV_ERR_IO, "writing was cancelled");
  return hv_safetensors_writer_write(writer, data, size);
}

static hv_status write_copy(const hv_checkpoint_shard *shard, hv_safetensors_writer *writer, const atomic_bool *stop) {
  for (size_t at = 0; at < shard->bytes; at += PIECE) {
    size_t piece = shard->bytes - at < PIECE ? shard->bytes - at : PIECE;
    HV_TRY(write_piece(writer, shard->copy + at, piece, stop));
  }
  return HV_OK;
}

static hv_status write_from_device(const hv_checkpoint_shard *shard, hv_safetensors_writer *writer, hv_stream *stream,
                                   const atomic_bool *stop) {
  hv_status status = HV_OK;
  void *staging;
  HV_TRY(hv_device_allocate_host(shard->device, PIECE, "a checkpoint's staging", &staging));
  for (int i = 0; i < shard->parts.count; i++) {
    const char *from = shard->parts.items[i].tensor.data;
    size_t size = part_bytes(&shard->parts.items[i]);
    for (size_t at = 0; at < size; at += PIECE) {
      size_t piece = size - at < PIECE ? size - at : PIECE;
      hv_download(stream, staging, from + at, piece);
      HV_CHECK(hv_stream_synchronize(stream));
      HV_CHECK(write_piece(writer, staging, piece, stop));
    }
  }
done:
  hv_device_release_host(shard->device, staging);
  return status;
}

hv_status hv_checkpoint_shard_write(hv_checkpoint_shard *shard, const char *path, hv_stream *stream,
                                    const atomic_bool *stop, hv_file_digest *out) {
  hv_status status = HV_OK;
  hv_safetensors_writer *writer;
  HV_TRY(hv_safetensors_writer_open(path, &writer));
  for (int i = 0; i < shard->parts.count; i++) {
    const hv_checkpoint_part *part = &shard->parts.items[i];
    HV_CHECK(
        hv_safetensors_writer_declare(writer, part->name, part->tensor.dtype, 1, (const int64_t[]){part->tensor.cols}));
  }
  HV_CHECK(shard->copy ? write_copy(shard, writer, stop) : write_from_device(shard, writer, stream, stop));
  status = hv_safetensors_writer_commit_digest(writer, out);
  writer = NULL;
done:
  hv_safetensors_writer_abort(writer);
  return status;
}
