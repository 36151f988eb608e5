/* The algorithm chosen for each shape of matrix product, kept for as long as a device is open, and in a file for the
 * next process: there the library might choose another, and a resumed run would no longer give the same bytes. Used by
 * both implementations of matrix products (matmul.cu, emu/matmul.cc). Not thread-safe. */
#ifndef HV_CUDA_MATMUL_CHOICES_H
#define HV_CUDA_MATMUL_CHOICES_H

#include "core/base/text.h"
#include "cuda/matmul.h"

/* What an algorithm is chosen for: everything but the addresses, of which only the alignment counts. Compared as bytes,
 * so it must be made by hv_product_shape_of. */
struct hv_product_shape {
  int64_t m, n, k, stride_a, stride_b, stride_c, stride_d;
  int32_t dtype, dtype_d;
  uint32_t align_a, align_b, align_c, align_d, align_bias; /* bytes; align_bias 0: no bias */
  bool transpose_a, transpose_b, has_c, has_bias, gelu_tanh, unused[7];
};

hv_product_shape hv_product_shape_of(const hv_matmul_args *args);

enum { HV_ALGORITHM_BYTES = 64 };

/* A choice. `taken`: there is an algorithm for the shape; its bytes are the library's own format. `supposed`: it is the
 * heuristics' guess, neither measured nor read from a file, so that measuring may replace it. */
struct hv_algorithm {
  bool taken, supposed;
  unsigned char bytes[HV_ALGORITHM_BYTES];
};

/* Zero-initialise before use. */
struct hv_choices {
  struct hv_choice *first;
  int64_t count;
};

void hv_choices_free(hv_choices *choices); /* leaves it empty */

/* NULL if none is chosen yet. Valid until hv_choices_free. */
const hv_algorithm *hv_choices_find(const hv_choices *choices, const hv_product_shape *shape);
/* Replaces an earlier choice for the shape. */
HV_NODISCARD hv_status hv_choices_set(hv_choices *choices, const hv_product_shape *shape,
                                      const hv_algorithm *algorithm);

/* Write the choices as text, headed by `made_by` (library and card), and read them back. If the text is of another
 * library, card or format, *fits is false and nothing is read; a damaged line is HV_ERR_INPUT. */
void hv_choices_write(const hv_choices *choices, const char *made_by, hv_text *out);
HV_NODISCARD hv_status hv_choices_read(hv_choices *choices, const char *made_by, const char *text, bool *fits);

#endif
