/* The source of `hvla-infer export`, and what its formats share. */
#ifndef HV_INFER_EXPORT_H
#define HV_INFER_EXPORT_H

#include "core/io/model_directory.h"
#include "infer/run_record.h"

typedef struct hv_export_source {
  hv_model_directory directory;
  json_t *statistics;
  char *tokenizer_path;
  char *card; /* the model's own README.md; NULL: none */
  hv_run_record run;
} hv_export_source;

/* Opens a complete model with tensors of known dtypes; otherwise the error says what is missing, and *out is empty. */
HV_NODISCARD hv_status hv_export_source_open(const char *model, hv_export_source *out);
void hv_export_source_close(hv_export_source *source); /* leaves it empty */

/* Below, `to` is the dtype in which floating-point tensors are exported, NULL: each as it is stored. Other tensors are
 * not converted. */

hv_dtype hv_export_dtype(const hv_file_tensor *tensor, const hv_dtype *to);

/* Bytes of all tensors as they are exported. */
double hv_export_bytes(const hv_safetensors *tensors, const hv_dtype *to);

/* Whether any tensor loses precision. */
bool hv_export_narrows(const hv_safetensors *tensors, const hv_dtype *to);

/* The source's README.md for an export; `usage` as in hv_model_card. */
HV_NODISCARD hv_status hv_export_card(const hv_export_source *source, const hv_dtype *to, const char *usage,
                                      hv_text *out);

#endif
