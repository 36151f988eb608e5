#include "train/checkpoint/checkpoint_model.h"

#include <stdlib.h>
#include <string.h>

#include "train/checkpoint/checkpoint_files.h"
#include "train/checkpoint/checkpoint_parts.h"

typedef struct value_source {
  const hv_checkpoint_model *what;
  hv_checkpoint_content content;
} value_source;

/* The tensor in the files that holds a group's elements. */
typedef struct value_run {
  char name[HV_PART_NAME];
  hv_dtype dtype;
} value_run;

/* The group's moving averages if the checkpoint has them, else its values. */
static value_run run_of(const value_source *from, const hv_group *group) {
  value_run run = {.dtype = HV_F32};
  hv_checkpoint_average_name(group, run.name);
  if (hv_safetensors_find(from->content.shards[0], run.name)) return run;
  run.dtype = from->content.manifest.dtype;
  hv_checkpoint_values_name(group, run.name);
  return run;
}

/* Copies the part of a parameter that one file holds; the parameter is elements [first, end) of its group. */
static hv_status copy_piece(const value_source *from, const hv_param *param, const value_run *run, int32_t shard,
                            char *values) {
  const hv_group *group = hv_params_group(from->what->params, param->group);
  int64_t first = param->offset, end = first + param->rows * param->cols;
  const hv_file_tensor *tensor;
  HV_TRY(hv_safetensors_require(from->content.shards[shard], run->name, &tensor));
  hv_element_range file = hv_checkpoint_file_range(group->count, shard, from->content.manifest.ranks);
  if (tensor->count != file.end - file.first || tensor->dtype != run->dtype) {
    return hv_error(HV_ERR_INPUT, "%s: %s has %lld values of %s; the model needs %lld of %s", tensor->file, run->name,
                    (long long)tensor->count, tensor->dtype_name, (long long)file.end - (long long)file.first,
                    hv_safetensors_dtype_name(run->dtype));
  }
  int64_t begin = first > file.first ? first : file.first, stop = end < file.end ? end : file.end;
  if (begin >= stop) return HV_OK;
  size_t width = hv_dtype_size(tensor->dtype);
  memcpy(values + (size_t)(begin - first) * width, (const char *)tensor->data + (size_t)(begin - file.first) * width,
         (size_t)(stop - begin) * width);
  return HV_OK;
}

static hv_status copy_pieces(const value_source *from, const hv_param *param, const value_run *run, char *values) {
  for (int32_t shard = 0; shard < from->content.manifest.ranks; shard++) {
    HV_TRY(copy_piece(from, param, run, shard, values));
  }
  return HV_OK;
}

static hv_status read_value(void *source, hv_param_id id, void *values) {
  const value_source *from = source;
  const hv_param *param = hv_params_get(from->what->params, id);
  if (from->what->stop && atomic_load(from->what->stop)) return hv_error(HV_ERR_IO, "writing was cancelled");
  value_run run = run_of(from, hv_params_group(from->what->params, param->group));
  if (run.dtype == from->content.manifest.dtype) return copy_pieces(from, param, &run, values);
  int64_t count = param->rows * param->cols;
  char *wide = malloc((size_t)count * hv_dtype_size(run.dtype));
  if (!wide) return hv_error_memory(param->name);
  hv_status status = copy_pieces(from, param, &run, wide);
  if (!status) hv_dtype_convert(from->content.manifest.dtype, values, run.dtype, wide, count);
  free(wide);
  return status;
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
                        .statistics = what->statistics,
                        .leftover = what->leftover};
  if (!status) status = hv_model_directory_save(path, &save, NULL);
  hv_checkpoint_close(&source.content);
  return status;
}
