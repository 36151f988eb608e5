#include <fnmatch.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/random.h"
#include "core/nn/params_store.h"
#include "core/tensor/ops.h"

hv_status hv_params_open(hv_device *device, hv_dtype dtype, hv_params **out) {
  *out = NULL;
  hv_params *params = calloc(1, sizeof *params);
  if (!params) return hv_error_memory("the parameter store");
  params->device = device;
  params->dtype = dtype;
  params->reduce = true;
  hv_status status = hv_stream_open(device, &params->stream);
  if (status) {
    free(params);
    return status;
  }
  *out = params;
  return HV_OK;
}

void hv_params_close(hv_params *params) {
  if (!params) return;
  hv_shards_release(params);
  for (int32_t i = 0; i < params->count; i++) free((char *)(uintptr_t)params->params[i].name);
  for (int32_t i = 0; i < params->group_count; i++) free((char *)(uintptr_t)params->groups[i].info.name);
  free(params->params);
  free(params->groups);
  free(params->blank);
  hv_status_free(params->declaration_error);
  hv_device_release(params->device, params->values);
  hv_device_release(params->device, params->gradients);
  hv_stream_close(params->stream);
  free(params);
}

/* Keeps the first error of the declarations. */
static void declaration_failed(hv_params *params, hv_status error) {
  params->declaration_error = hv_status_first(params->declaration_error, error);
}

static bool grow(void **array, int32_t count, int32_t *capacity, size_t size) {
  if (count < *capacity) return true;
  int32_t larger = *capacity ? 2 * *capacity : 64;
  void *moved = realloc(*array, (size_t)larger * size);
  if (!moved) return false;
  *array = moved;
  *capacity = larger;
  return true;
}

hv_group_id hv_params_begin_group(hv_params *params, const char *name) {
  char *copy = strdup(name);
  if (!copy || !grow((void **)&params->groups, params->group_count, &params->group_capacity, sizeof *params->groups)) {
    free(copy);
    declaration_failed(params, hv_error_memory("the parameter groups"));
    return -1;
  }
  params->groups[params->group_count] =
      (hv_group_state){.info = {.name = copy, .trainable = true, .first = params->count, .end = params->count}};
  return params->group_count++;
}

/* The matrix form of a shape: rank 1 is one row, a leading 1 of three is dropped, a convolution is [out, the rest]. */
static void matrix_form(hv_param *param) {
  int64_t count = 1;
  for (int32_t i = 0; i < param->rank; i++) count *= param->shape[i];
  int32_t row_axis = param->rank == 3 && param->shape[0] == 1 ? 1 : 0;
  param->rows = param->rank == 1 ? 1 : param->shape[row_axis];
  param->cols = param->rows > 0 ? count / param->rows : 0;
}

enum { PARAM_ALIGNMENT = 64 /* elements: 128 bytes of BF16 */ };

/* On the heap; NULL: no memory. */
static char *join_name(const hv_param_spec *spec) {
  char *whole;
  if (!spec->prefix) return strdup(spec->name);
  return asprintf(&whole, "%s.%s", spec->prefix, spec->name) < 0 ? NULL : whole;
}

hv_param_id hv_params_declare_stacked(hv_params *params, const hv_param_spec *specs, int count) {
  hv_param_id first = params->count;
  if (params->group_count == 0) {
    declaration_failed(params, hv_error(HV_ERR_INTERNAL, "parameter %s is in no group", specs[0].name));
    return -1;
  }
  hv_group_state *group = &params->groups[params->group_count - 1];
  int64_t offset = (group->info.count + PARAM_ALIGNMENT - 1) / PARAM_ALIGNMENT * PARAM_ALIGNMENT;
  for (int i = 0; i < count; i++) {
    char *name = join_name(&specs[i]);
    if (!name || !grow((void **)&params->params, params->count, &params->capacity, sizeof *params->params)) {
      free(name);
      declaration_failed(params, hv_error_memory("the parameters"));
      return -1;
    }
    hv_param *param = &params->params[params->count++];
    *param = (hv_param){.name = name,
                        .group = params->group_count - 1,
                        .offset = offset,
                        .init = specs[i].init,
                        .decay = specs[i].decay,
                        .lookup = specs[i].lookup,
                        .linear = specs[i].linear,
                        .stack = first,
                        .trainable = true,
                        .rate = 1.0f};
    while (param->rank < HV_PARAM_MAX_RANK && specs[i].shape[param->rank] > 0) {
      param->shape[param->rank] = specs[i].shape[param->rank];
      param->rank++;
    }
    matrix_form(param);
    group->info.lookup |= param->lookup;
    offset += param->rows * param->cols;
  }
  group->info.count = offset;
  group->info.end = params->count;
  return first;
}

hv_param_id hv_params_declare(hv_params *params, const hv_param_spec *spec) {
  return hv_params_declare_stacked(params, spec, 1);
}

hv_param_id hv_params_declare_matrix(hv_params *params, const char *prefix, const char *name, int64_t rows,
                                     int64_t cols) {
  return hv_params_declare(
      params, &(hv_param_spec){.prefix = prefix, .name = name, .shape = {rows, cols}, .decay = true, .linear = true});
}

hv_param_id hv_params_declare_vector(hv_params *params, const char *prefix, const char *name, int64_t count,
                                     hv_init init) {
  return hv_params_declare(params, &(hv_param_spec){.prefix = prefix, .name = name, .shape = {count}, .init = init});
}

hv_status hv_params_freeze(hv_params *params, const char *const *patterns, int count) {
  for (int p = 0; p < count; p++) {
    bool matched = false;
    for (int32_t i = 0; i < params->count; i++) {
      if (fnmatch(patterns[p], params->params[i].name, 0) != 0) continue;
      params->params[i].trainable = false;
      matched = true;
    }
    if (!matched) {
      return hv_error(HV_ERR_INPUT, "the pattern \"%s\" of parameters to freeze matches none; names look like %s",
                      patterns[p], params->count ? params->params[params->count - 1].name : "(none)");
    }
  }
  for (int32_t i = 0; i < params->count; i++) {
    const hv_param *param = &params->params[i], *first = &params->params[param->stack];
    if (param->trainable == first->trainable) continue;
    return hv_error(HV_ERR_INPUT, "%s and %s are stored as one matrix: freeze both or neither", first->name,
                    param->name);
  }
  return HV_OK;
}

hv_status hv_params_scale_rates(hv_params *params, const char *const *patterns, const double *factors, size_t count) {
  for (size_t p = 0; p < count; p++) {
    bool matched = false, used = false;
    for (int32_t i = 0; i < params->count; i++) {
      hv_param *param = &params->params[i];
      if (fnmatch(patterns[p], param->name, 0) != 0) continue;
      matched = true;
      bool taken = !param->trainable;
      for (size_t earlier = 0; earlier < p && !taken; earlier++) {
        taken = fnmatch(patterns[earlier], param->name, 0) == 0;
      }
      if (taken) continue;
      param->rate = (float)factors[p];
      used = true;
    }
    if (used) continue;
    return hv_error(HV_ERR_INPUT, "the pattern \"%s\" of a learning rate %s", patterns[p],
                    matched ? "has no effect: what it matches is frozen, or an earlier pattern matches it"
                            : "matches no parameter");
  }
  return HV_OK;
}

static int compare_names(const void *a, const void *b) {
  return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* Compares neighbours after sorting: comparing all pairs would be slow for a deep model. */
static hv_status check_names(const hv_params *params) {
  const char **names = malloc(((size_t)params->count + 1) * sizeof *names);
  if (!names) return hv_error_memory("the parameters' names");
  for (int32_t i = 0; i < params->count; i++) names[i] = params->params[i].name;
  qsort(names, (size_t)params->count, sizeof *names, compare_names);
  hv_status status = HV_OK;
  for (int32_t i = 1; i < params->count && !status; i++) {
    if (strcmp(names[i], names[i - 1]) == 0)
      status = hv_error(HV_ERR_INTERNAL, "parameter %s is declared twice", names[i]);
  }
  free(names);
  return status;
}

hv_status hv_params_declared(hv_params *params) {
  hv_status status = params->declaration_error;
  params->declaration_error = HV_OK;
  return status;
}

hv_status hv_params_allocate(hv_params *params) {
  HV_TRY(hv_params_declared(params));
  HV_TRY(check_names(params));
  int64_t elements = 0, gradient_elements = 0;
  for (int32_t g = 0; g < params->group_count; g++) {
    hv_group_state *group = &params->groups[g];
    group->info.count = (group->info.count + HV_GROUP_ALIGNMENT - 1) / HV_GROUP_ALIGNMENT * HV_GROUP_ALIGNMENT;
    group->value_start = elements;
    elements += hv_kept_count(params, group, hv_shards_values(params));
    group->info.trainable = false;
    for (hv_param_id i = group->info.first; i < group->info.end; i++)
      group->info.trainable |= params->params[i].trainable;
    group->gradient_start = gradient_elements;
    if (group->info.trainable) gradient_elements += hv_kept_count(params, group, hv_shards_gradients(params));
  }
  params->gradient_elements = gradient_elements;
  HV_TRY(hv_params_allocate_zeroed(params, HV_MEMORY_WEIGHTS, elements, params->dtype, "parameters", &params->values));
  return hv_shards_allocate_values(params);
}

hv_status hv_params_allocate_gradients(hv_params *params, hv_dtype dtype) {
  params->gradient_dtype = dtype;
  if (params->gradient_elements == 0) return HV_OK;
  params->blank = calloc((size_t)params->count, sizeof *params->blank);
  if (!params->blank) return hv_error_memory("the gradients' states");
  HV_TRY(hv_params_allocate_zeroed(params, HV_MEMORY_GRADIENTS, params->gradient_elements, dtype, "gradients",
                                   &params->gradients));
  return hv_shards_allocate_gradients(params);
}

int32_t hv_params_count(const hv_params *params) {
  return params->count;
}

int32_t hv_params_group_count(const hv_params *params) {
  return params->group_count;
}

const hv_param *hv_params_get(const hv_params *params, hv_param_id id) {
  return &params->params[id];
}

const hv_group *hv_params_group(const hv_params *params, hv_group_id group) {
  return &params->groups[group].info;
}

hv_param_id hv_params_find(const hv_params *params, const char *name) {
  for (int32_t i = 0; i < params->count; i++) {
    if (strcmp(params->params[i].name, name) == 0) return i;
  }
  return -1;
}

hv_dtype hv_params_dtype(const hv_params *params) {
  return params->dtype;
}

hv_device *hv_params_device(const hv_params *params) {
  return params->device;
}

int64_t hv_params_total(const hv_params *params) {
  int64_t total = 0;
  for (int32_t i = 0; i < params->count; i++) total += params->params[i].rows * params->params[i].cols;
  return total;
}

void hv_params_zero_gradients(hv_params *params, hv_stream *stream) {
  if (!params->gradients) return;
  hv_shards_finish_sums(params, stream);
  if (hv_shards_gradients(params)) { /* the kept shares, to which sums are added */
    hv_tensor all = hv_tensor_make(params->gradients, params->gradient_dtype, 1, params->gradient_elements);
    hv_fill(stream, &(hv_fill_args){.dst = all});
    return;
  }
  for (hv_group_id g = 0; g < params->group_count; g++) hv_group_zero_gradients(params, g, stream);
}

static uint64_t name_hash(const char *name) {
  uint64_t hash = 0xcbf29ce484222325u; /* FNV-1a, 64 bits */
  for (; *name; name++) hash = (hash ^ (uint8_t)*name) * 0x100000001b3u;
  return hash;
}

/* Four at a time, since one Philox block gives four normals. */
static void initial_normals(uint64_t seed, uint64_t stream, int64_t count, float *values) {
#pragma omp parallel for schedule(static)
  for (int64_t quad = 0; quad < (count + 3) / 4; quad++) {
    float drawn[4];
    hv_random_normals(hv_random_key(seed, HV_RANDOM_INIT, 0), stream, 0, (uint32_t)quad, drawn);
    for (int64_t i = 4 * quad; i < count && i < 4 * quad + 4; i++) values[i] = 0.02f * drawn[i % 4];
  }
}

static void initial_uniforms(uint64_t seed, uint64_t stream, float bound, int64_t count, float *values) {
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < count; i++) {
    values[i] = bound * (2.0f * hv_random_uniform(seed, HV_RANDOM_INIT, 0, stream, 0, (uint32_t)i) - 1.0f);
  }
}

static void initial_constants(float value, int64_t count, float *values) {
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < count; i++) values[i] = value;
}

void hv_param_initial(const hv_params *params, hv_param_id id, uint64_t seed, float *values) {
  const hv_param *param = &params->params[id];
  int64_t count = param->rows * param->cols;
  uint64_t stream = name_hash(param->name);
  float bound = sqrtf(6.0f / (float)(param->rows + param->cols));
  switch (param->init) {
  case HV_INIT_NORMAL: initial_normals(seed, stream, count, values); break;
  case HV_INIT_XAVIER: initial_uniforms(seed, stream, bound, count, values); break;
  case HV_INIT_ZERO: initial_constants(0.0f, count, values); break;
  case HV_INIT_ONE: initial_constants(1.0f, count, values); break;
  }
}

/* A buffer that fits the values of any parameter; NULL without memory. */
static float *room_for_any(const hv_params *params) {
  int64_t largest = 1;
  for (int32_t i = 0; i < params->count; i++) {
    int64_t count = params->params[i].rows * params->params[i].cols;
    if (count > largest) largest = count;
  }
  return calloc((size_t)largest, sizeof(float));
}

hv_status hv_params_initialize(hv_params *params, uint64_t seed, hv_stream *stream) {
  hv_status status = HV_OK;
  float *values = room_for_any(params);
  if (!values) return hv_error_memory("initial values");
  for (int32_t i = 0; i < params->count; i++) {
    hv_param_initial(params, i, seed, values);
    HV_CHECK(hv_param_write(params, i, HV_F32, values, stream));
  }
done:
  free(values);
  return status;
}

/* Copies a device view to the host, converted to `host_dtype`. */
static hv_status copy_to_host(hv_tensor view_of, hv_dtype host_dtype, void *values, hv_stream *stream) {
  int64_t count = hv_tensor_count(view_of);
  size_t bytes = (size_t)count * hv_dtype_size(view_of.dtype);
  if (view_of.dtype == host_dtype) {
    hv_download(stream, values, view_of.data, bytes);
    return hv_stream_synchronize(stream);
  }
  void *staging = malloc(bytes ? bytes : 1);
  if (!staging) return hv_error_memory("a parameter's copy");
  hv_download(stream, staging, view_of.data, bytes);
  hv_status status = hv_stream_synchronize(stream);
  if (!status) hv_dtype_convert(host_dtype, values, view_of.dtype, staging, count);
  free(staging);
  return status;
}

/* Which elements [first, end) of the parameter this rank keeps; returns the address of the first. */
static char *kept_part(const hv_params *params, const hv_param *param, int64_t *first, int64_t *end) {
  const hv_group_state *group = &params->groups[param->group];
  int64_t kept = hv_kept_count(params, group, hv_shards_values(params));
  int64_t kept_first = hv_shards_values(params) ? kept * params->comm->rank : 0, count = param->rows * param->cols;
  *first = kept_first > param->offset ? kept_first - param->offset : 0;
  *end = kept_first + kept < param->offset + count ? kept_first + kept - param->offset : count;
  int64_t at = group->value_start + param->offset + *first - kept_first;
  return params->values + at * (int64_t)hv_dtype_size(params->dtype);
}

/* Through a small buffer: a copy of a whole parameter would cost as much as the parameter. */
static hv_status convert_to_device(hv_params *params, char *to, hv_dtype dtype, const char *from, int64_t count,
                                   hv_stream *stream) {
  enum { PIECE = 1 << 19 };
  hv_status status = HV_OK;
  size_t from_size = hv_dtype_size(dtype), to_size = hv_dtype_size(params->dtype);
  void *staging = malloc((size_t)(count < PIECE ? count : PIECE) * to_size);
  if (!staging) return hv_error_memory("a parameter's copy");
  for (int64_t first = 0; first < count && !status; first += PIECE) {
    int64_t part = count - first < PIECE ? count - first : PIECE;
    hv_dtype_convert(params->dtype, staging, dtype, from + (size_t)first * from_size, part);
    hv_upload(stream, to + (size_t)first * to_size, staging, (size_t)part * to_size);
    status = hv_stream_synchronize(stream);
  }
  free(staging);
  return status;
}

hv_status hv_param_write(hv_params *params, hv_param_id id, hv_dtype dtype, const void *values, hv_stream *stream) {
  int64_t first, end;
  char *to = kept_part(params, &params->params[id], &first, &end);
  hv_shards_forget(params);
  if (first >= end) return HV_OK;
  const char *from = (const char *)values + (size_t)first * hv_dtype_size(dtype);
  if (params->dtype != dtype) return convert_to_device(params, to, dtype, from, end - first, stream);
  hv_upload(stream, to, from, (size_t)(end - first) * hv_dtype_size(dtype));
  return hv_stream_synchronize(stream);
}

hv_status hv_param_read(const hv_params *params, hv_param_id id, hv_dtype dtype, void *values, hv_stream *stream) {
  /* The cast is safe: fetching a group changes the slots, nothing that a caller can see. */
  if (hv_shards_values(params)) hv_shards_fetch((hv_params *)(uintptr_t)params, params->params[id].group, stream);
  if (params->comm) hv_comm_wait(params->comm, hv_comm_last(params->comm), stream);
  HV_TRY(copy_to_host(hv_param_value(params, id), dtype, values, stream));
  return params->comm ? hv_comm_status(params->comm) : HV_OK;
}

hv_status hv_param_read_gradient(const hv_params *params, hv_param_id id, hv_dtype dtype, void *values,
                                 hv_stream *stream) {
  hv_tensor gradient = hv_param_gradient(params, id);
  if (!hv_present(gradient)) {
    return hv_error(HV_ERR_INTERNAL, "parameter %s has no gradient", params->params[id].name);
  }
  if (params->comm) hv_comm_wait(params->comm, hv_comm_last(params->comm), stream);
  if (params->blank[id]) {
    memset(values, 0, (size_t)hv_tensor_count(gradient) * hv_dtype_size(dtype));
    return HV_OK;
  }
  return copy_to_host(gradient, dtype, values, stream);
}

static hv_status check_finite(const hv_param *param, const float *values) {
  for (int64_t i = 0; i < param->rows * param->cols; i++) {
    if (isfinite(values[i])) continue;
    return hv_error(HV_ERR_INPUT, "the parameters hold values that are not finite: %s has %g at row %lld, column %lld",
                    param->name, (double)values[i], (long long)(i / param->cols), (long long)(i % param->cols));
  }
  return HV_OK;
}

hv_status hv_params_nan_status(const hv_params *params, hv_stream *stream) {
  hv_status status = HV_OK;
  if (!params->device->nan_watch) return HV_OK;
  float *values = room_for_any(params);
  if (!values) return hv_error_memory("the parameters' values");
  for (int32_t i = 0; i < params->count; i++) {
    HV_CHECK(hv_param_read(params, i, HV_F32, values, stream));
    HV_CHECK(check_finite(&params->params[i], values));
  }
done:
  free(values);
  return status;
}
