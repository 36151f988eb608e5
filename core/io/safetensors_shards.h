/* A directory's tensors, written as Hugging Face does: model.safetensors, or, where they are more than a file may hold,
 * model-00001-of-0000N.safetensors, … and model.safetensors.index.json, which says what lies where.
 *
 * As with one file: declare every tensor, then write the data of each in the same order, in pieces of any size. A
 * tensor lies whole in one file, so one that is larger than the limit has a file to itself. Files appear one after the
 * other; a caller who promises all or nothing writes into a directory that nobody reads yet.
 */
#ifndef HV_IO_SAFETENSORS_SHARDS_H
#define HV_IO_SAFETENSORS_SHARDS_H

#include "core/base/status.h"
#include "core/tensor/dtype.h"

typedef struct hv_safetensors_shards hv_safetensors_shards;

/* The directory must exist. `limit`: bytes of tensors in one file; 0: no limit. */
HV_NODISCARD hv_status hv_safetensors_shards_open(const char *directory, int64_t limit, hv_safetensors_shards **out);
HV_NODISCARD hv_status hv_safetensors_shards_declare(hv_safetensors_shards *shards, const char *name, hv_dtype dtype,
                                                     int32_t rank, const int64_t *shape);
HV_NODISCARD hv_status hv_safetensors_shards_write(hv_safetensors_shards *shards, const void *data, size_t size);
/* After commit or abort the handle is gone. Abort leaves the files that were complete. */
HV_NODISCARD hv_status hv_safetensors_shards_commit(hv_safetensors_shards *shards);
void hv_safetensors_shards_abort(hv_safetensors_shards *shards); /* NULL is allowed */

#endif
