/* A .pt file as torch.save writes it since 1.6 and torch.load reads it with weights_only: a zip archive with a pickle
 * that describes the tensors and an entry of raw bytes for each.
 *
 *   archive/data.pkl    {"model": {module: {name: tensor}}}; a tensor is torch._utils._rebuild_tensor_v2 of
 *                       (storage, 0, shape, stride, False, OrderedDict()), a storage the persistent identifier
 *                       ("storage", torch.<T>Storage, key, "cpu", elements)
 *   archive/byteorder   little
 *   archive/data/<key>  one tensor's elements, contiguous; keys count from 0 in the order of the pickle
 *   archive/version     3
 *
 * Entries are stored, not compressed, and their data begins at a multiple of 64 bytes, so that it can be mapped.
 */
#ifndef HV_INFER_TORCH_FILE_H
#define HV_INFER_TORCH_FILE_H

#include "core/io/safetensors.h"

/* A tensor to write. */
typedef struct hv_torch_tensor {
  const char *name;             /* "<module>.<name inside it>"; tensors of a module stand together */
  const hv_file_tensor *source; /* read piece by piece while the file is written */
  hv_dtype dtype;               /* of the file */
} hv_torch_tensor;

typedef void hv_torch_progress(void *context, size_t bytes);

/* The path must not exist. A value that its dtype cannot hold is an error that names it; then there is no file. Synced.
 */
HV_NODISCARD hv_status hv_torch_file_write(const char *path, const hv_torch_tensor *tensors, size_t count,
                                           hv_torch_progress *progress, void *context);

/* Reads a file of this form and compares it with what it was written from: names in their order, dtypes, shapes, every
 * byte, the archive's checksums. The error says what differs first: HV_ERR_NO, or HV_ERR_INPUT if the file does not
 * have this form. */
HV_NODISCARD hv_status hv_torch_file_compare(const char *path, const hv_torch_tensor *tensors, size_t count,
                                             hv_torch_progress *progress, void *context);

#endif
