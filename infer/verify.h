/* Whether an export is the model it was made from: tensor by tensor, and by what both predict. */
#ifndef HV_INFER_VERIFY_H
#define HV_INFER_VERIFY_H

#include "core/io/safetensors.h"
#include "infer/export.h"

/* Both files hold the same names and shapes, and the values of `after` are those of `before` in the dtype that the
 * export gives them (hv_export_dtype), to the bit. HV_ERR_NO names the first tensors that differ. */
HV_NODISCARD hv_status hv_verify_tensors(const hv_safetensors *before, const hv_safetensors *after, const hv_dtype *to);

/* A file that was copied has every byte. HV_ERR_NO: it has not. */
HV_NODISCARD hv_status hv_verify_copy(const char *before, const char *after);

/* What is wrong with a file of the export's own is the answer no, not wrong input. Takes the error. */
hv_status hv_verify_as_no(hv_status problem);

typedef struct hv_verification {
  const char *before, *after; /* model directories */
  const json_t *statistics;   /* of both */
  const char *device;         /* as in hvla_options */
  int threads;
  double tolerance; /* 0: equal to the bit; else as hv_verify_tolerance says */
} hv_verification;

/* What predictions may differ by when the tensors lose digits in `to`, in normalised actions and probabilities. */
double hv_verify_tolerance(hv_dtype to);

/* Predicts from made-up observations in every mode that the model has, with both models one after the other. With a
 * tolerance, denoised actions (clipped to the data's range) and the probabilities of words are compared up to the first
 * word that differs, behind which they answer to another sentence. Adds a line on what was compared and the largest
 * difference. HV_ERR_NO: they differ, and where. */
HV_NODISCARD hv_status hv_verify_predictions(const hv_verification *what, hv_text *out);

#endif
