/* Checks that an export equals the model it was made from: tensor by tensor, and in what both predict. */
#ifndef HV_INFER_VERIFY_H
#define HV_INFER_VERIFY_H

#include "core/io/safetensors.h"
#include "infer/export.h"

/* Checks that both files hold the same names and shapes, and that `after` holds the values of `before`, converted to
 * the export's dtype (hv_export_dtype), to the bit. HV_ERR_NO names the first tensors that differ. */
HV_NODISCARD hv_status hv_verify_tensors(const hv_safetensors *before, const hv_safetensors *after, const hv_dtype *to);

/* Compares the size and checksum of a copied file with the original's; HV_ERR_NO if they differ. */
HV_NODISCARD hv_status hv_verify_copy(const char *before, const char *after);

/* Turns an error about a file that the export wrote itself into HV_ERR_NO, as it is not wrong input. Takes ownership of
 * the error. */
hv_status hv_verify_as_no(hv_status problem);

typedef struct hv_verification {
  const char *before, *after; /* model directories */
  const json_t *statistics;   /* of both */
  const char *device;         /* as in hvla_options */
  int threads;
  double tolerance; /* 0: equal to the bit; else hv_verify_tolerance */
} hv_verification;

/* How much normalised actions and probabilities may differ if tensors lose precision in `to`. */
double hv_verify_tolerance(hv_dtype to);

/* Predicts from synthetic observations in every mode that the model has, with both models one after the other. With a
 * tolerance it compares denoised actions (clipped to the data's range), and the probabilities of action tokens up to
 * the first token that differs, since later ones depend on it. Adds a line on what was compared and the largest
 * difference. HV_ERR_NO says where they differ. */
HV_NODISCARD hv_status hv_verify_predictions(const hv_verification *what, hv_text *out);

#endif
