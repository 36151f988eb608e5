#include "core/io/model_directory.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "core/base/file.h"
#include "core/io/json.h"
#include "core/io/read_ahead.h"

char *hv_model_directory_tokenizer(const char *path) {
  return hv_path_join(path, "tokenizer.model");
}

char *hv_model_directory_statistics(const char *path) {
  return hv_path_join(path, "dataset_statistics.json");
}

/* Takes from the tensors what config.json does not say. */
static void examine_tower(const hv_safetensors *tensors, hv_vision_config *tower) {
  char name[HV_PREFIX_SIZE + 32];
  snprintf(name, sizeof name, "%s.patch_embed.proj.bias", tower->prefix);
  tower->patch_bias = hv_safetensors_find(tensors, name) != NULL;
  snprintf(name, sizeof name, "%s.pos_embed", tower->prefix);
  const hv_file_tensor *positions = hv_safetensors_find(tensors, name);
  if (!positions || positions->rank < 2) return;
  int64_t side = tower->image_size / tower->patch_size;
  tower->class_position = tower->class_token && positions->shape[positions->rank - 2] == side * side + 1;
}

/* Refuses a path that holds no model. For a run directory, which people often give, the error names the model in it. */
static hv_status check_directory(const char *path, const char *config) {
  struct stat info;
  if (stat(path, &info) != 0 || !S_ISDIR(info.st_mode)) {
    return hv_error(HV_ERR_INPUT,
                    "%s is not a directory; a model is a directory with config.json and model.safetensors", path);
  }
  if (stat(config, &info) == 0) return HV_OK;
  if (errno != ENOENT) return hv_error_errno(errno, "cannot open %s", config);
  char *inside = hv_path_join(path, "model/config.json");
  if (!inside) return hv_error_memory(path);
  bool is_run = hv_file_exists(inside);
  free(inside);
  if (is_run) return hv_error(HV_ERR_INPUT, "%s is a run directory; its model is %s/model", path, path);
  return hv_error(HV_ERR_INPUT, "%s holds no config.json; a model directory holds config.json and model.safetensors",
                  path);
}

hv_status hv_model_directory_open(const char *path, hv_model_directory *out) {
  *out = (hv_model_directory){.path = strdup(path)};
  char *config = hv_path_join(path, "config.json");
  hv_status status = HV_OK;
  if (!out->path || !config) {
    status = hv_error_memory(path);
    goto done;
  }
  HV_CHECK(check_directory(path, config));
  HV_CHECK(hv_model_config_load(config, &out->model));
  HV_CHECK(hv_safetensors_open(path, &out->tensors));
  for (int i = 0; i < out->model.config.num_towers; i++) {
    examine_tower(out->tensors, &out->model.config.vision[i]);
  }
done:
  free(config);
  if (status) hv_model_directory_close(out);
  return status;
}

void hv_model_directory_close(hv_model_directory *directory) {
  free(directory->path);
  hv_model_config_free(&directory->model);
  hv_safetensors_close(directory->tensors);
  *directory = (hv_model_directory){0};
}

/* Whether the tensor fits the parameter; if not, the reason is added to `problems`. */
static bool fits(const hv_param *param, const hv_file_tensor *tensor, hv_text *problems) {
  char expected[160], found[160];
  if (!tensor) {
    hv_format_shape("", param->shape, param->rank, expected, sizeof expected);
    hv_text_add(problems, "\n  %s is missing;%s is expected", param->name, expected);
    return false;
  }
  bool same = tensor->rank == param->rank;
  for (int32_t i = 0; same && i < param->rank; i++) same = tensor->shape[i] == param->shape[i];
  if (!same) {
    hv_format_shape("", param->shape, param->rank, expected, sizeof expected);
    hv_format_shape(tensor->dtype_name, tensor->shape, tensor->rank, found, sizeof found);
    hv_text_add(problems, "\n  %s is %s;%s is expected", param->name, found, expected);
    return false;
  }
  if (!tensor->known || !hv_dtype_is_floating(tensor->dtype)) {
    hv_text_add(problems, "\n  %s has dtype %s; F32, BF16, F16 or F64 is expected", param->name, tensor->dtype_name);
    return false;
  }
  return true;
}

static hv_status check_all(const hv_model_directory *directory, const hv_params *params, const bool *apart) {
  hv_text problems = {0};
  int count = 0;
  for (hv_param_id id = 0; id < hv_params_count(params); id++) {
    const hv_param *param = hv_params_get(params, id);
    if (apart && apart[id]) continue;
    count += !fits(param, hv_safetensors_find(directory->tensors, param->name), &problems);
  }
  hv_status status = HV_OK;
  if (count > 0) {
    status = hv_error(HV_ERR_INPUT, "%s: %d of %d parameters do not fit config.json:%s", directory->path, count,
                      hv_params_count(params), hv_text_string(&problems));
  }
  hv_text_free(&problems);
  return status;
}

hv_status hv_model_directory_check(const hv_model_directory *directory, const hv_params *params) {
  return check_all(directory, params, NULL);
}

/* Copies the tensor first if it is not aligned for its dtype, as a mapped one may be. */
static hv_status fill_one(hv_params *params, hv_param_id id, const hv_file_tensor *tensor, hv_stream *stream) {
  if ((uintptr_t)tensor->data % hv_dtype_size(tensor->dtype) == 0) {
    return hv_param_write(params, id, tensor->dtype, tensor->data, stream);
  }
  void *aligned = malloc(tensor->size);
  if (!aligned) return hv_error_memory(tensor->name);
  memcpy(aligned, tensor->data, tensor->size);
  hv_status status = hv_param_write(params, id, tensor->dtype, aligned, stream);
  free(aligned);
  return status;
}

/* A parameter and where its values lie. */
typedef struct source {
  hv_param_id id;
  const hv_file_tensor *tensor;
} source;

/* Orders by the place in the file; one file after the other. */
static int compare_places(const void *a, const void *b) {
  const hv_file_tensor *x = ((const source *)a)->tensor, *y = ((const source *)b)->tensor;
  return ((uintptr_t)x->data > (uintptr_t)y->data) - ((uintptr_t)x->data < (uintptr_t)y->data);
}

/* Fills parameters in the order of the file, while a thread reads ahead. */
static hv_status fill_all(hv_params *params, const source *sources, hv_mapped_range *ranges, size_t count,
                          hv_stream *stream) {
  hv_read_ahead *ahead;
  hv_status status = HV_OK;
  for (size_t i = 0; i < count; i++)
    ranges[i] = (hv_mapped_range){.data = sources[i].tensor->data, .size = sources[i].tensor->size};
  HV_TRY(hv_read_ahead_open(ranges, count, &ahead));
  for (size_t i = 0; i < count && !status; i++) {
    const hv_file_tensor *tensor = sources[i].tensor;
    hv_read_ahead_wait(ahead, i);
    status = hv_error_context(fill_one(params, sources[i].id, tensor, stream), "%s", tensor->name);
  }
  hv_read_ahead_close(ahead);
  return status;
}

static bool is_carried_along(const hv_config *config, const char *name) {
  for (int32_t i = 0; i < config->num_towers; i++) {
    if (hv_vision_is_unused(&config->vision[i], name)) return true;
  }
  return false;
}

hv_status hv_model_directory_fill(const hv_model_directory *directory, hv_params *params, hv_stream *stream,
                                  hv_text *unexpected) {
  return hv_model_directory_fill_others(directory, params, NULL, stream, unexpected);
}

hv_status hv_model_directory_fill_others(const hv_model_directory *directory, hv_params *params, const bool *apart,
                                         hv_stream *stream, hv_text *unexpected) {
  HV_TRY(check_all(directory, params, apart));
  hv_status status = HV_OK;
  size_t count = 0, all = (size_t)hv_params_count(params);
  source *sources = calloc(all + 1, sizeof *sources);
  hv_mapped_range *ranges = calloc(all + 1, sizeof *ranges);
  if (!sources || !ranges) {
    status = hv_error_memory("a list of parameters");
    goto done;
  }
  for (hv_param_id id = 0; id < hv_params_count(params); id++) {
    if (apart && apart[id]) continue;
    const char *name = hv_params_get(params, id)->name;
    sources[count++] = (source){.id = id, .tensor = hv_safetensors_find(directory->tensors, name)};
  }
  qsort(sources, count, sizeof *sources, compare_places);
  HV_CHECK(fill_all(params, sources, ranges, count, stream));
  for (int32_t i = 0; unexpected && i < hv_safetensors_count(directory->tensors); i++) {
    const char *name = hv_safetensors_get(directory->tensors, i)->name;
    if (hv_params_find(params, name) >= 0 || is_carried_along(&directory->model.config, name)) continue;
    hv_text_add(unexpected, "%s\n", name);
  }
done:
  free(sources);
  free(ranges);
  return status;
}
