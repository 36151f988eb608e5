/* The pickle inside a .pt file, as torch_file.h describes it. */
#ifndef HV_INFER_TORCH_PICKLE_H
#define HV_INFER_TORCH_PICKLE_H

#include "core/base/text.h"
#include "infer/torch_file.h"

/* Describes the tensors; number i lies under the key that i makes in decimal digits. */
HV_NODISCARD hv_status hv_torch_pickle_make(const hv_torch_tensor *tensors, size_t count, hv_text *out);

/* Whether a pickle describes just these tensors, in this order. keys[i] (NULL at the start, on the heap, the caller's
 * after an error too) becomes the key under which the values of number i lie. */
HV_NODISCARD hv_status hv_torch_pickle_check(const uint8_t *data, size_t size, const hv_torch_tensor *tensors,
                                             size_t count, char **keys);

#endif
