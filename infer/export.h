/* What the formats of hvla-infer export start from, and what they share. */
#ifndef HV_INFER_EXPORT_H
#define HV_INFER_EXPORT_H

#include "core/io/model_directory.h"
#include "infer/run_record.h"

typedef struct hv_export_source {
  hv_model_directory directory;
  json_t *statistics;
  char *tokenizer_path;
  char *card; /* the README.md beside it; NULL: none */
  hv_run_record run;
} hv_export_source;

/* A whole model with tensors of known dtypes; otherwise the error tells what is missing. Then *out is empty. */
HV_NODISCARD hv_status hv_export_source_open(const char *model, hv_export_source *out);
void hv_export_source_close(hv_export_source *source); /* leaves it empty */

/* Below, `to` is the dtype that floating-point tensors are exported in; NULL: each as it is stored. Others stay. */

hv_dtype hv_export_dtype(const hv_file_tensor *tensor, const hv_dtype *to);

/* Bytes of all tensors as they are exported. */
double hv_export_bytes(const hv_safetensors *tensors, const hv_dtype *to);

/* Whether any tensor loses digits. */
bool hv_export_narrows(const hv_safetensors *tensors, const hv_dtype *to);

/* The source's README.md for an export; `usage` as in hv_model_card. */
HV_NODISCARD hv_status hv_export_card(const hv_export_source *source, const hv_dtype *to, const char *usage,
                                      hv_text *out);

#endif
