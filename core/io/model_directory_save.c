#include <stdlib.h>
#include <string.h>

#include "core/base/file.h"
#include "core/io/json.h"
#include "core/io/model_directory.h"
#include "core/io/safetensors_shards.h"

/* Whether a tensor of `carry` goes into the new file as it is. */
static bool is_carried(const hv_params *params, const hv_file_tensor *tensor) {
  return tensor->known && (!params || hv_params_find(params, tensor->name) < 0);
}

/* The dtype that a carried tensor is written in. */
static hv_dtype carried_dtype(const hv_model_save *what, const hv_file_tensor *tensor) {
  return what->convert_carried && hv_dtype_is_floating(tensor->dtype) ? what->dtype : tensor->dtype;
}

typedef hv_status visit(const hv_model_save *what, const hv_file_tensor *tensor, hv_safetensors_shards *file);

/* Calls `call` for each carried tensor in the order of the file: wide dtypes first, so that all are aligned unless
 * parameters of a narrower dtype come before them. */
static hv_status each_carried(const hv_model_save *what, visit *call, hv_safetensors_shards *file) {
  for (size_t width = 8; what->carry && width > 0; width /= 2) {
    for (int32_t i = 0; i < hv_safetensors_count(what->carry); i++) {
      const hv_file_tensor *tensor = hv_safetensors_get(what->carry, i);
      if (!is_carried(what->params, tensor) || hv_dtype_size(carried_dtype(what, tensor)) != width) continue;
      HV_TRY(call(what, tensor, file));
    }
  }
  return HV_OK;
}

static hv_status declare_carried(const hv_model_save *what, const hv_file_tensor *tensor, hv_safetensors_shards *file) {
  return hv_safetensors_shards_declare(file, tensor->name, carried_dtype(what, tensor), tensor->rank, tensor->shape);
}

static hv_status declare_tensors(const hv_model_save *what, hv_safetensors_shards *file) {
  for (hv_param_id id = 0; what->params && id < hv_params_count(what->params); id++) {
    const hv_param *param = hv_params_get(what->params, id);
    HV_TRY(hv_safetensors_shards_declare(file, param->name, what->dtype, param->rank, param->shape));
  }
  return each_carried(what, declare_carried, file);
}

static hv_status write_data(const hv_model_save *what, const void *data, size_t size, hv_safetensors_shards *file) {
  HV_TRY(hv_safetensors_shards_write(file, data, size));
  if (what->progress) what->progress(what->progress_context, size);
  return HV_OK;
}

/* Writes in pieces, so that no tensor is in memory as a whole. */
static hv_status write_carried(const hv_model_save *what, const hv_file_tensor *tensor, hv_safetensors_shards *file) {
  enum { PIECE = 1 << 19 };
  hv_dtype dtype = carried_dtype(what, tensor);
  size_t width = hv_dtype_size(dtype);
  void *values = malloc(PIECE * width);
  hv_status status = values ? HV_OK : hv_error_memory(tensor->name);
  for (int64_t first = 0; first < tensor->count && !status; first += PIECE) {
    int64_t count = tensor->count - first < PIECE ? tensor->count - first : PIECE;
    status = hv_file_tensor_convert(tensor, first, count, dtype, values);
    if (!status) status = write_data(what, values, (size_t)count * width, file);
  }
  free(values);
  return status;
}

static int64_t largest_parameter(const hv_params *params) {
  int64_t largest = 0;
  for (hv_param_id id = 0; id < hv_params_count(params); id++) {
    const hv_param *param = hv_params_get(params, id);
    if (param->rows * param->cols > largest) largest = param->rows * param->cols;
  }
  return largest;
}

static hv_status write_parameters(const hv_model_save *what, hv_safetensors_shards *file, hv_stream *stream) {
  size_t width = hv_dtype_size(what->dtype);
  void *values = malloc((size_t)largest_parameter(what->params) * width + 1);
  if (!values) return hv_error_memory("a parameter");
  hv_status status = HV_OK;
  for (hv_param_id id = 0; id < hv_params_count(what->params) && !status; id++) {
    const hv_param *param = hv_params_get(what->params, id);
    status = what->read ? what->read(what->source, id, values)
                        : hv_param_read(what->params, id, what->dtype, values, stream);
    if (!status) status = write_data(what, values, (size_t)(param->rows * param->cols) * width, file);
  }
  free(values);
  return status;
}

static hv_status save_tensors(const char *directory, const hv_model_save *what, hv_stream *stream) {
  hv_safetensors_shards *file;
  HV_TRY(hv_safetensors_shards_open(directory, what->shard_size, &file));
  hv_status status = declare_tensors(what, file);
  if (!status && what->params) status = write_parameters(what, file, stream);
  if (!status) status = each_carried(what, write_carried, file);
  if (status) {
    hv_safetensors_shards_abort(file);
    return status;
  }
  return hv_safetensors_shards_commit(file);
}

static hv_status copy_file(const char *from, const char *to) {
  hv_mapping file;
  HV_TRY(hv_map_file(from, &file));
  hv_status status = hv_write_file_atomic(to, file.data, file.size);
  hv_unmap(&file);
  return status;
}

/* Every file of the model into an existing directory. */
static hv_status write_directory(const char *directory, const hv_model_save *what, hv_stream *stream) {
  char *config = hv_path_join(directory, "config.json"), *card = hv_path_join(directory, "README.md");
  char *tokenizer = hv_model_directory_tokenizer(directory), *statistics = hv_model_directory_statistics(directory);
  hv_status status = HV_OK;
  if (!config || !card || !tokenizer || !statistics) {
    status = hv_error_memory(directory);
    goto done;
  }
  HV_CHECK(hv_model_config_save(config, what->model));
  HV_CHECK(save_tensors(directory, what, stream));
  if (what->tokenizer_path) HV_CHECK(copy_file(what->tokenizer_path, tokenizer));
  if (what->statistics) HV_CHECK(hv_json_save(statistics, what->statistics));
  if (what->card) status = hv_write_file_atomic(card, what->card, strlen(what->card));
done:
  free(config);
  free(card);
  free(tokenizer);
  free(statistics);
  return status;
}

typedef struct saving {
  const hv_model_save *what;
  hv_stream *stream;
} saving;

static hv_status write_files(const char *directory, void *context) {
  const saving *job = context;
  return write_directory(directory, job->what, job->stream);
}

hv_status hv_model_directory_save(const char *path, const hv_model_save *what, hv_stream *stream) {
  saving job = {.what = what, .stream = stream};
  return hv_error_context(hv_write_directory(path, what->leftover, write_files, &job), "cannot save the model");
}
