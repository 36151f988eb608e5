/* Safetensors files: memory-mapped reading of one file or of a sharded model directory, streamed atomic writing.
 *
 * Opening validates everything before a tensor is handed out: the header's length, its JSON, dtypes, shapes (products
 * checked for overflow), offsets in range, sizes that fit the shapes, no overlap, no hole, no name twice. A tensor of
 * unknown dtype is listed; hv_safetensors_require makes it an error. Reading is safe from several threads; the tensors
 * stay valid until the close.
 */
#ifndef HV_IO_SAFETENSORS_H
#define HV_IO_SAFETENSORS_H

#include <stdbool.h>

#include "core/base/file.h"
#include "core/tensor/dtype.h"

enum { HV_FILE_MAX_RANK = 8 };

typedef struct hv_file_tensor {
  const char *name;
  const char *file;       /* path of the file that holds it */
  const char *dtype_name; /* as the file spells it: "F32", "BF16", "BOOL", … */
  bool known;             /* dtype is valid */
  hv_dtype dtype;
  int32_t rank;
  int64_t shape[HV_FILE_MAX_RANK];
  int64_t count;    /* elements */
  const void *data; /* little-endian, contiguous; may be unaligned for its type */
  size_t size;      /* bytes */
} hv_file_tensor;

typedef struct hv_safetensors hv_safetensors;

/* `path` is a file, or a directory with model.safetensors or model.safetensors.index.json and its shards. All missing
 * shards are named in one error. */
HV_NODISCARD hv_status hv_safetensors_open(const char *path, hv_safetensors **out);

/* One file's content in memory that outlives the handle; `where` names it in errors. */
HV_NODISCARD hv_status hv_safetensors_open_memory(const void *data, size_t size, const char *where,
                                                  hv_safetensors **out);
void hv_safetensors_close(hv_safetensors *file); /* NULL is allowed */

/* Tensors in the order of their names (as bytes). */
int32_t hv_safetensors_count(const hv_safetensors *file);
const hv_file_tensor *hv_safetensors_get(const hv_safetensors *file, int32_t index);
const hv_file_tensor *hv_safetensors_find(const hv_safetensors *file, const char *name); /* NULL: not there */

/* The path given to open. */
const char *hv_safetensors_path(const hv_safetensors *file);

/* As find, but a missing tensor or an unknown dtype is an error that names file and tensor. */
HV_NODISCARD hv_status hv_safetensors_require(const hv_safetensors *file, const char *name, const hv_file_tensor **out);

/* "F32 [2, 3]" into `out`, for messages. */
void hv_format_shape(const char *dtype_name, const int64_t *shape, int32_t rank, char *out, size_t size);

/* Values [first, first + count) as floats (every known dtype; F64, I32 and I64 are rounded). */
void hv_file_tensor_read_f32(const hv_file_tensor *tensor, int64_t first, int64_t count, float *out);

/* The same in `to`, rounded to nearest even; tensor and `to` are floating point, or the same. A finite value that `to`
 * cannot hold is an error that names tensor and element. */
HV_NODISCARD hv_status hv_file_tensor_convert(const hv_file_tensor *tensor, int64_t first, int64_t count, hv_dtype to,
                                              void *out);

/* The name that files use for a dtype: "F32", …. */
const char *hv_safetensors_dtype_name(hv_dtype dtype);

/* Writing: open, declare every tensor, then the data of each in the same order, in pieces of any size, then commit.
 * The file appears complete under its name at the commit, or not at all. Data is aligned as long as tensors of wider
 * dtypes are declared before narrower ones. */
typedef struct hv_safetensors_writer hv_safetensors_writer;

HV_NODISCARD hv_status hv_safetensors_writer_open(const char *path, hv_safetensors_writer **out);
HV_NODISCARD hv_status hv_safetensors_writer_declare(hv_safetensors_writer *writer, const char *name, hv_dtype dtype,
                                                     int32_t rank, const int64_t *shape);
HV_NODISCARD hv_status hv_safetensors_writer_write(hv_safetensors_writer *writer, const void *data, size_t size);
/* After commit or abort the writer is gone. Data missing from or beyond what was declared is an error. */
HV_NODISCARD hv_status hv_safetensors_writer_commit(hv_safetensors_writer *writer);
/* The same, telling what the file holds. */
HV_NODISCARD hv_status hv_safetensors_writer_commit_digest(hv_safetensors_writer *writer, hv_file_digest *out);
void hv_safetensors_writer_abort(hv_safetensors_writer *writer); /* NULL is allowed */

#endif
