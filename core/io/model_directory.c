#include "core/io/model_directory.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "core/base/file.h"
#include "core/io/json.h"

char *hv_model_directory_tokenizer(const char *path) {
  return hv_path_join(path, "tokenizer.model");
}

char *hv_model_directory_statistics(const char *path) {
  return hv_path_join(path, "dataset_statistics.json");
}

/* What config.json does not say, the tensors do. */
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

hv_status hv_model_directory_open(const char *path, hv_model_directory *out) {
  *out = (hv_model_directory){.path = strdup(path)};
  char *config = hv_path_join(path, "config.json");
  hv_status status = HV_OK;
  if (!out->path || !config) {
    status = hv_error_memory(path);
    goto done;
  }
  struct stat info;
  if (stat(path, &info) != 0 || !S_ISDIR(info.st_mode)) {
    status =
        hv_error(HV_ERR_INPUT, "%s is no directory; a model is one that holds config.json and model.safetensors", path);
    goto done;
  }
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

static bool is_floating(hv_dtype dtype) {
  return dtype == HV_F32 || dtype == HV_BF16 || dtype == HV_F16 || dtype == HV_F64;
}

/* Notes what keeps the tensor from filling the parameter; false if anything does. */
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
  if (!tensor->known || !is_floating(tensor->dtype)) {
    hv_text_add(problems, "\n  %s has dtype %s; F32, BF16, F16 or F64 is expected", param->name, tensor->dtype_name);
    return false;
  }
  return true;
}

static hv_status check_all(const hv_model_directory *directory, const hv_params *params) {
  hv_text problems = {0};
  int count = 0;
  for (hv_param_id id = 0; id < hv_params_count(params); id++) {
    const hv_param *param = hv_params_get(params, id);
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

/* A mapped tensor may lie anywhere, but a value is read as what it is. */
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

hv_status hv_model_directory_fill(const hv_model_directory *directory, hv_params *params, hv_stream *stream,
                                  hv_text *unexpected) {
  HV_TRY(check_all(directory, params));
  for (hv_param_id id = 0; id < hv_params_count(params); id++) {
    const hv_file_tensor *tensor = hv_safetensors_find(directory->tensors, hv_params_get(params, id)->name);
    HV_TRY(hv_error_context(fill_one(params, id, tensor, stream), "%s", tensor->name));
  }
  for (int32_t i = 0; unexpected && i < hv_safetensors_count(directory->tensors); i++) {
    const char *name = hv_safetensors_get(directory->tensors, i)->name;
    if (hv_params_find(params, name) < 0) hv_text_add(unexpected, "%s\n", name);
  }
  return HV_OK;
}

/* Whether a tensor of `carry` goes into the new file as it is. */
static bool is_carried(const hv_params *params, const hv_file_tensor *tensor) {
  return tensor->known && hv_params_find(params, tensor->name) < 0;
}

static hv_status declare_tensors(const hv_model_save *what, hv_safetensors_writer *writer) {
  for (hv_param_id id = 0; id < hv_params_count(what->params); id++) {
    const hv_param *param = hv_params_get(what->params, id);
    HV_TRY(hv_safetensors_writer_declare(writer, param->name, what->dtype, param->rank, param->shape));
  }
  for (int32_t i = 0; what->carry && i < hv_safetensors_count(what->carry); i++) {
    const hv_file_tensor *tensor = hv_safetensors_get(what->carry, i);
    if (!is_carried(what->params, tensor)) continue;
    HV_TRY(hv_safetensors_writer_declare(writer, tensor->name, tensor->dtype, tensor->rank, tensor->shape));
  }
  return HV_OK;
}

static int64_t largest_parameter(const hv_params *params) {
  int64_t largest = 0;
  for (hv_param_id id = 0; id < hv_params_count(params); id++) {
    const hv_param *param = hv_params_get(params, id);
    if (param->rows * param->cols > largest) largest = param->rows * param->cols;
  }
  return largest;
}

static hv_status write_tensors(const hv_model_save *what, hv_safetensors_writer *writer, hv_stream *stream) {
  size_t width = hv_dtype_size(what->dtype);
  void *values = malloc((size_t)largest_parameter(what->params) * width + 1);
  if (!values) return hv_error_memory("a parameter");
  hv_status status = HV_OK;
  for (hv_param_id id = 0; id < hv_params_count(what->params) && !status; id++) {
    const hv_param *param = hv_params_get(what->params, id);
    status = hv_param_read(what->params, id, what->dtype, values, stream);
    if (!status) status = hv_safetensors_writer_write(writer, values, (size_t)(param->rows * param->cols) * width);
  }
  for (int32_t i = 0; what->carry && i < hv_safetensors_count(what->carry) && !status; i++) {
    const hv_file_tensor *tensor = hv_safetensors_get(what->carry, i);
    if (is_carried(what->params, tensor)) status = hv_safetensors_writer_write(writer, tensor->data, tensor->size);
  }
  free(values);
  return status;
}

static hv_status save_tensors(const char *path, const hv_model_save *what, hv_stream *stream) {
  hv_safetensors_writer *writer;
  HV_TRY(hv_safetensors_writer_open(path, &writer));
  hv_status status = declare_tensors(what, writer);
  if (!status) status = write_tensors(what, writer, stream);
  if (status) {
    hv_safetensors_writer_abort(writer);
    return status;
  }
  return hv_safetensors_writer_commit(writer);
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
  char *config = hv_path_join(directory, "config.json"), *tensors = hv_path_join(directory, "model.safetensors");
  char *tokenizer = hv_model_directory_tokenizer(directory), *statistics = hv_model_directory_statistics(directory);
  hv_status status = HV_OK;
  if (!config || !tensors || !tokenizer || !statistics) {
    status = hv_error_memory(directory);
    goto done;
  }
  HV_CHECK(hv_model_config_save(config, what->model));
  HV_CHECK(save_tensors(tensors, what, stream));
  if (what->tokenizer_path) HV_CHECK(copy_file(what->tokenizer_path, tokenizer));
  if (what->statistics) HV_CHECK(hv_json_save(statistics, what->statistics));
  status = hv_sync_directory(directory);
done:
  free(config);
  free(tensors);
  free(tokenizer);
  free(statistics);
  return status;
}

/* `path` without slashes at its end, with a suffix; on the heap, NULL without memory. */
static char *with_suffix(const char *path, const char *suffix) {
  size_t length = strlen(path);
  while (length > 1 && path[length - 1] == '/') length--;
  char *name = malloc(length + strlen(suffix) + 1);
  if (name) sprintf(name, "%.*s%s", (int)length, path, suffix);
  return name;
}

hv_status hv_model_directory_save(const char *path, const hv_model_save *what, hv_stream *stream) {
  char *partial = with_suffix(path, ".partial");
  if (!partial) return hv_error_memory(path);
  hv_status status = HV_OK;
  /* Left by a process that was killed while it saved. */
  HV_CHECK(hv_remove_tree(partial));
  HV_CHECK(hv_make_directories(partial));
  status = write_directory(partial, what, stream);
  if (!status) status = hv_replace_directory(partial, path);
  if (status) status = hv_status_first(status, hv_remove_tree(partial));
done:
  free(partial);
  return hv_error_context(status, "cannot save the model");
}

static hv_status sync_parent(const char *path) {
  char *copy = strdup(path);
  if (!copy) return hv_error_memory(path);
  hv_status status = hv_sync_directory(dirname(copy));
  free(copy);
  return status;
}

/* For file systems without an atomic swap. */
static hv_status move_aside(const char *fresh, const char *path) {
  char *old = with_suffix(path, ".old");
  if (!old) return hv_error_memory(path);
  hv_status status = HV_OK;
  HV_CHECK(hv_remove_tree(old));
  if (rename(path, old) != 0) {
    status = hv_error_errno(errno, "cannot rename %s to %s", path, old);
  } else if (rename(fresh, path) != 0) {
    status = hv_error_errno(errno, "cannot rename %s to %s", fresh, path);
    if (rename(old, path) != 0) status = hv_error_context(status, "%s now lies in %s", path, old);
  } else {
    status = sync_parent(path);
    if (!status) status = hv_remove_tree(old);
  }
done:
  free(old);
  return status;
}

hv_status hv_replace_directory(const char *fresh, const char *path) {
  struct stat info;
  if (lstat(path, &info) == 0 && !S_ISDIR(info.st_mode)) {
    return hv_error(HV_ERR_INPUT, "%s exists and is not a directory", path);
  }
  if (renameat2(AT_FDCWD, fresh, AT_FDCWD, path, RENAME_EXCHANGE) == 0) {
    HV_TRY(sync_parent(path));
    return hv_remove_tree(fresh);
  }
  if (errno == EINVAL || errno == ENOSYS) return move_aside(fresh, path);
  if (errno == ENOENT && rename(fresh, path) == 0) return sync_parent(path);
  return hv_error_errno(errno, "cannot rename %s to %s", fresh, path);
}
