#include "infer/export.h"

#include <stdint.h>
#include <stdlib.h>

#include "core/base/file.h"
#include "core/hybridvla/model.h"
#include "core/io/json.h"
#include "infer/device.h"
#include "infer/model_card.h"

enum { CARD_LIMIT = 16 << 20 /* bytes */ };

/* Refuses tensors of unknown dtypes: the export would lack them. */
static hv_status check_dtypes(const hv_safetensors *tensors) {
  hv_text unknown = {0};
  int count = 0;
  for (int32_t i = 0; i < hv_safetensors_count(tensors); i++) {
    const hv_file_tensor *tensor = hv_safetensors_get(tensors, i);
    if (tensor->known) continue;
    if (count++ < 20) hv_text_add(&unknown, "\n  %s is %s", tensor->name, tensor->dtype_name);
  }
  hv_status status = HV_OK;
  if (count > 0)
    status = hv_error(HV_ERR_INPUT, "%s holds tensors of dtypes that are not supported:%s%s",
                      hv_safetensors_path(tensors), hv_text_string(&unknown), count > 20 ? "\n  …" : "");
  hv_text_free(&unknown);
  return status;
}

/* Checks that every parameter that config.json asks for is there. */
static hv_status check_parameters(const hv_model_directory *directory) {
  hv_device *device;
  hv_model *model = NULL;
  HV_TRY(hv_infer_open_device("cpu", 1, &device));
  hv_status status = hv_model_open(&directory->model.config, device, HV_F32, &model);
  if (!status) status = hv_model_directory_check(directory, hv_model_params(model));
  hv_model_close(model);
  hv_device_close(device);
  return status;
}

static hv_status read_parts(const char *model, hv_export_source *out) {
  hv_status status = HV_OK;
  char *statistics = hv_model_directory_statistics(model), *card = hv_path_join(model, "README.md");
  out->tokenizer_path = hv_model_directory_tokenizer(model);
  if (!statistics || !card || !out->tokenizer_path) {
    status = hv_error_memory("a path");
    goto done;
  }
  HV_CHECK(check_dtypes(out->directory.tensors));
  HV_CHECK(check_parameters(&out->directory));
  if (!hv_file_exists(out->tokenizer_path)) {
    status = hv_error(HV_ERR_INPUT, "%s is missing: a model cannot be used without its tokenizer", out->tokenizer_path);
    goto done;
  }
  HV_CHECK(hv_json_load(statistics, &out->statistics));
  if (hv_file_exists(card)) HV_CHECK(hv_read_text(card, CARD_LIMIT, &out->card, NULL));
  status = hv_run_record_load(model, out->directory.model.document, &out->run);
done:
  free(statistics);
  free(card);
  return status;
}

hv_status hv_export_source_open(const char *model, hv_export_source *out) {
  *out = (hv_export_source){0};
  hv_status status = hv_model_directory_open(model, &out->directory);
  if (!status) status = read_parts(model, out);
  if (status) hv_export_source_close(out);
  return status;
}

void hv_export_source_close(hv_export_source *source) {
  hv_model_directory_close(&source->directory);
  json_decref(source->statistics);
  hv_run_record_free(&source->run);
  free(source->tokenizer_path);
  free(source->card);
  *source = (hv_export_source){0};
}

hv_dtype hv_export_dtype(const hv_file_tensor *tensor, const hv_dtype *to) {
  return to && hv_dtype_is_floating(tensor->dtype) ? *to : tensor->dtype;
}

double hv_export_bytes(const hv_safetensors *tensors, const hv_dtype *to) {
  double bytes = 0;
  for (int32_t i = 0; i < hv_safetensors_count(tensors); i++) {
    const hv_file_tensor *tensor = hv_safetensors_get(tensors, i);
    bytes += (double)tensor->count * (double)hv_dtype_size(hv_export_dtype(tensor, to));
  }
  return bytes;
}

bool hv_export_narrows(const hv_safetensors *tensors, const hv_dtype *to) {
  for (int32_t i = 0; i < hv_safetensors_count(tensors); i++) {
    const hv_file_tensor *tensor = hv_safetensors_get(tensors, i);
    hv_dtype after = hv_export_dtype(tensor, to);
    if (after != tensor->dtype && hv_dtype_size(after) <= hv_dtype_size(tensor->dtype)) return true;
  }
  return false;
}

hv_status hv_export_card(const hv_export_source *source, const hv_dtype *to, const char *usage, hv_text *out) {
  hv_model_card card = {.directory = &source->directory,
                        .statistics = source->statistics,
                        .run = &source->run,
                        .source_card = source->card,
                        .dtype = to ? hv_dtype_name(*to) : NULL,
                        .usage = usage};
  return hv_model_card_format(&card, out);
}
