#include "train/checkpoint_model.h"

#include <string.h>

#include "train/checkpoint_files.h"
#include "train/checkpoint_parts.h"

typedef struct value_source {
  const hv_checkpoint_model *what;
  hv_checkpoint_content content;
} value_source;

/* What one file holds of a parameter that is elements [first, end) of its group. */
static hv_status copy_piece(const value_source *from, const hv_param *param, int32_t shard, int64_t first, int64_t end,
                            char *values) {
  const hv_group *group = hv_params_group(from->what->params, param->group);
  const hv_file_tensor *tensor;
  char name[HV_PART_NAME];
  hv_checkpoint_values_name(group, name);
  HV_TRY(hv_safetensors_require(from->content.shards[shard], name, &tensor));
  hv_element_range file = hv_checkpoint_file_range(group->count, shard, from->content.manifest.ranks);
  if (tensor->count != file.end - file.first || tensor->dtype != from->content.manifest.dtype) {
    return hv_error(HV_ERR_INPUT, "%s: %s has %lld values of %s, the model %lld of %s", tensor->file, name,
                    (long long)tensor->count, tensor->dtype_name, (long long)file.end - (long long)file.first,
                    hv_safetensors_dtype_name(from->content.manifest.dtype));
  }
  int64_t begin = first > file.first ? first : file.first, stop = end < file.end ? end : file.end;
  if (begin >= stop) return HV_OK;
  size_t width = hv_dtype_size(tensor->dtype);
  memcpy(values + (size_t)(begin - first) * width, (const char *)tensor->data + (size_t)(begin - file.first) * width,
         (size_t)(stop - begin) * width);
  return HV_OK;
}

static hv_status read_value(void *source, hv_param_id id, void *values) {
  const value_source *from = source;
  const hv_param *param = hv_params_get(from->what->params, id);
  if (from->what->stop && atomic_load(from->what->stop)) return hv_error(HV_ERR_IO, "writing was given up");
  for (int32_t shard = 0; shard < from->content.manifest.ranks; shard++) {
    HV_TRY(copy_piece(from, param, shard, param->offset, param->offset + param->rows * param->cols, values));
  }
  return HV_OK;
}

hv_status hv_checkpoint_model_save(const hv_checkpoint_model *what, const char *path) {
  value_source source = {.what = what};
  hv_status status = hv_checkpoint_open(what->run, what->step, &source.content);
  hv_model_save save = {.model = what->model,
                        .params = what->params,
                        .read = read_value,
                        .source = &source,
                        .carry = what->carry,
                        .dtype = source.content.manifest.dtype,
                        .tokenizer_path = what->tokenizer_path,
                        .statistics = what->statistics};
  if (!status) status = hv_model_directory_save(path, &save, NULL);
  hv_checkpoint_close(&source.content);
  return status;
}
