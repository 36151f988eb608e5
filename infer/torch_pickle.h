/* The pickle inside a .pt file, as torch_file.h describes it. */
#ifndef HV_INFER_TORCH_PICKLE_H
#define HV_INFER_TORCH_PICKLE_H

#include "core/base/text.h"
#include "infer/torch_file.h"

/* Makes the pickle that describes the tensors; the key of tensor i is i in decimal. */
HV_NODISCARD hv_status hv_torch_pickle_make(const hv_torch_tensor *tensors, size_t count, hv_text *out);

/* Checks that a pickle describes exactly these tensors, in this order. keys[i] (NULL before) becomes the key of tensor
 * i's values, on the heap, freed by the caller after an error too. */
HV_NODISCARD hv_status hv_torch_pickle_check(const uint8_t *data, size_t size, const hv_torch_tensor *tensors,
                                             size_t count, char **keys);

#endif
