#include "core/io/dataset_statistics.h"

#include <stdlib.h>
#include <string.h>

#include "core/base/file.h"
#include "core/io/json.h"

enum { NUM_ARRAYS = 6, MAX_DIMS = 4096 };

static const char *const array_names[NUM_ARRAYS] = {"mean", "std", "min", "max", "q01", "q99"};

/* The arrays in the order of array_names. */
static void list_arrays(const hv_value_statistics *values, double *arrays[NUM_ARRAYS]) {
  arrays[0] = values->mean;
  arrays[1] = values->std;
  arrays[2] = values->min;
  arrays[3] = values->max;
  arrays[4] = values->q01;
  arrays[5] = values->q99;
}

hv_status hv_value_statistics_allocate(int32_t dims, hv_value_statistics *out) {
  *out = (hv_value_statistics){0};
  size_t n = (size_t)dims;
  double *block = calloc(NUM_ARRAYS * n + 1, sizeof *block);
  bool *mask = malloc(n + 1);
  if (!block || !mask) {
    free(block);
    free(mask);
    return hv_error_memory("statistics");
  }
  memset(mask, true, n + 1);
  *out = (hv_value_statistics){.dims = dims,
                               .mean = block,
                               .std = block + n,
                               .min = block + 2 * n,
                               .max = block + 3 * n,
                               .q01 = block + 4 * n,
                               .q99 = block + 5 * n,
                               .mask = mask};
  return HV_OK;
}

void hv_value_statistics_free(hv_value_statistics *values) {
  free(values->mean);
  free(values->mask);
  *values = (hv_value_statistics){0};
}

static hv_status read_array(const json_t *entry, const char *name, int32_t dims, double *out) {
  const json_t *array = json_object_get(entry, name);
  if (!array) return hv_error(HV_ERR_INPUT, "\"%s\" is missing", name);
  if (json_array_size(array) != (size_t)dims) {
    return hv_error(HV_ERR_INPUT, "\"%s\" must be a list of %d numbers, as \"q01\" is", name, dims);
  }
  for (int32_t i = 0; i < dims; i++) {
    const json_t *item = json_array_get(array, (size_t)i);
    if (!json_is_number(item))
      return hv_error(HV_ERR_INPUT, "\"%s\"[%d] must be a number, not %s", name, i, hv_json_kind(item));
    out[i] = json_number_value(item);
  }
  return HV_OK;
}

static hv_status read_mask(const json_t *entry, int32_t dims, bool *out) {
  const json_t *mask = json_object_get(entry, "mask");
  if (!mask) return HV_OK;
  if (json_array_size(mask) != (size_t)dims) {
    return hv_error(HV_ERR_INPUT, "\"mask\" must be a list of %d values, each true or false", dims);
  }
  for (int32_t i = 0; i < dims; i++) {
    const json_t *item = json_array_get(mask, (size_t)i);
    if (!json_is_boolean(item)) return hv_error(HV_ERR_INPUT, "\"mask\"[%d] must be true or false", i);
    out[i] = json_is_true(item);
  }
  return HV_OK;
}

static hv_status read_values(const json_t *entry, hv_value_statistics *out) {
  if (!json_is_object(entry)) return hv_error(HV_ERR_INPUT, "must be a mapping, not %s", hv_json_kind(entry));
  const json_t *q01 = json_object_get(entry, "q01");
  size_t dims = json_array_size(q01);
  if (dims == 0 || dims > MAX_DIMS) {
    return hv_error(HV_ERR_INPUT, "\"q01\" must be a list of 1 to %d numbers, not %s", MAX_DIMS, hv_json_kind(q01));
  }
  HV_TRY(hv_value_statistics_allocate((int32_t)dims, out));
  double *arrays[NUM_ARRAYS];
  list_arrays(out, arrays);
  for (int i = 0; i < NUM_ARRAYS; i++) HV_TRY(read_array(entry, array_names[i], out->dims, arrays[i]));
  return read_mask(entry, out->dims, out->mask);
}

static hv_status read_count(const json_t *entry, const char *name, int64_t *out) {
  const json_t *value = json_object_get(entry, name);
  *out = 0;
  if (!value) return HV_OK;
  if (!json_is_integer(value) || json_integer_value(value) < 0) {
    return hv_error(HV_ERR_INPUT, "\"%s\" must be a count, not %s", name, hv_json_kind(value));
  }
  *out = json_integer_value(value);
  return HV_OK;
}

static hv_status read_gripper_dims(const json_t *dims, int32_t count, bool *out) {
  if (!json_is_array(dims)) return hv_error(HV_ERR_INPUT, "\"dims\" must be a list, not %s", hv_json_kind(dims));
  size_t index;
  json_t *item;
  json_array_foreach(dims, index, item) {
    json_int_t dim = json_is_integer(item) ? json_integer_value(item) : -1;
    if (dim < 0 || dim >= count) {
      return hv_error(HV_ERR_INPUT, "\"dims\"[%zu] must be an integer from 0 to %d", index, count - 1);
    }
    out[dim] = true;
  }
  return HV_OK;
}

static hv_status read_gripper(const json_t *gripper, int32_t dims, hv_robot_gripper *out) {
  if (!gripper || json_is_null(gripper)) return HV_OK;
  const json_t *open = json_object_get(gripper, "open"), *closed = json_object_get(gripper, "closed");
  if (!json_is_number(open) || !json_is_number(closed)) {
    return hv_error(HV_ERR_INPUT, "must hold \"dims\" and the numbers \"open\" and \"closed\"");
  }
  out->open = json_number_value(open);
  out->closed = json_number_value(closed);
  out->dims = calloc((size_t)dims, sizeof *out->dims);
  if (!out->dims) return hv_error_memory("statistics");
  return read_gripper_dims(json_object_get(gripper, "dims"), dims, out->dims);
}

static hv_status read_entry(const json_t *entry, hv_dataset_statistics *out) {
  if (!json_is_object(entry)) return hv_error(HV_ERR_INPUT, "must be a mapping, not %s", hv_json_kind(entry));
  const json_t *action = json_object_get(entry, "action"), *proprio = json_object_get(entry, "proprio");
  if (!action) return hv_error(HV_ERR_INPUT, "\"action\" is missing");
  HV_TRY(hv_error_context(read_values(action, &out->action), "action"));
  if (proprio && !json_is_null(proprio)) HV_TRY(hv_error_context(read_values(proprio, &out->proprio), "proprio"));
  HV_TRY(hv_error_context(read_gripper(json_object_get(entry, "gripper"), out->action.dims, &out->gripper), "gripper"));
  HV_TRY(read_count(entry, "num_transitions", &out->num_transitions));
  HV_TRY(read_count(entry, "num_trajectories", &out->num_trajectories));
  out->document = json_deep_copy(entry);
  return out->document ? HV_OK : hv_error_memory("statistics");
}

/* An error that lists the keys of the file: "lift, drawer". */
static hv_status key_error(const json_t *document, const char *where, const char *key) {
  hv_text keys = {0};
  const char *name;
  json_t *entry;
  json_object_foreach((json_t *)(uintptr_t)document, name, entry) {
    hv_text_add(&keys, "%s%s", keys.length ? ", " : "", name);
  }
  hv_status status;
  if (keys.length == 0) {
    status = hv_error(HV_ERR_INPUT, "%s is empty; it must hold statistics under a key", where);
  } else if (key) {
    status = hv_error(HV_ERR_INPUT, "%s has no key %s; it has %s", where, key, keys.data);
  } else {
    status = hv_error(HV_ERR_INPUT, "%s has several keys, choose one: %s", where, keys.data);
  }
  hv_text_free(&keys);
  return status;
}

hv_status hv_dataset_statistics_from_json(const json_t *document, const char *where, const char *key,
                                          hv_dataset_statistics *out) {
  *out = (hv_dataset_statistics){0};
  if (!json_is_object(document)) {
    return hv_error(HV_ERR_INPUT, "%s must hold a mapping of keys to statistics, not %s", where,
                    hv_json_kind(document));
  }
  if (!key && json_object_size(document) == 1) {
    key = json_object_iter_key(json_object_iter((json_t *)(uintptr_t)document));
  }
  const json_t *entry = key ? json_object_get(document, key) : NULL;
  if (!entry) return key_error(document, where, key);
  out->key = strdup(key);
  hv_status status = out->key ? read_entry(entry, out) : hv_error_memory("statistics");
  if (status) hv_dataset_statistics_free(out);
  return hv_error_context(status, "%s: %s", where, key);
}

hv_status hv_dataset_statistics_load(const char *path, const char *key, hv_dataset_statistics *out) {
  *out = (hv_dataset_statistics){0};
  json_t *document;
  HV_TRY(hv_json_load(path, &document));
  hv_status status = hv_dataset_statistics_from_json(document, path, key, out);
  json_decref(document);
  return status;
}

void hv_dataset_statistics_free(hv_dataset_statistics *statistics) {
  free(statistics->key);
  hv_value_statistics_free(&statistics->action);
  hv_value_statistics_free(&statistics->proprio);
  free(statistics->gripper.dims);
  json_decref(statistics->document);
  *statistics = (hv_dataset_statistics){0};
}

/* Writes the arrays into `entry`, whose other members stay. */
static bool put_values(json_t *entry, const hv_value_statistics *values) {
  double *arrays[NUM_ARRAYS];
  list_arrays(values, arrays);
  bool good = entry != NULL;
  for (int i = 0; i < NUM_ARRAYS && good; i++) {
    json_t *array = json_array();
    for (int32_t d = 0; d < values->dims && good; d++) {
      good = json_array_append_new(array, json_real(arrays[i][d])) == 0;
    }
    good = json_object_set_new(entry, array_names[i], array) == 0 && good;
  }
  json_t *mask = json_array();
  for (int32_t d = 0; d < values->dims; d++) {
    good = json_array_append_new(mask, json_boolean(values->mask[d])) == 0 && good;
  }
  return json_object_set_new(entry, "mask", mask) == 0 && good;
}

/* The member `name`; one that is missing or not a mapping is replaced by an empty mapping. */
static json_t *member(json_t *entry, const char *name) {
  if (!json_is_object(json_object_get(entry, name))) json_object_set_new(entry, name, json_object());
  return json_object_get(entry, name);
}

static bool is_utf8(const char *text) {
  json_t *string = json_string(text);
  json_decref(string);
  return string != NULL;
}

hv_status hv_dataset_statistics_to_json(const hv_dataset_statistics *statistics, json_t **out) {
  *out = NULL;
  if (!is_utf8(statistics->key)) {
    return hv_error(HV_ERR_INPUT, "the statistics' key %s is not valid UTF-8, which JSON requires", statistics->key);
  }
  json_t *entry = statistics->document ? json_deep_copy(statistics->document) : json_object();
  bool good = entry && put_values(member(entry, "action"), &statistics->action);
  if (good && statistics->proprio.dims > 0) good = put_values(member(entry, "proprio"), &statistics->proprio);
  good = good && json_object_set_new(entry, "num_transitions", json_integer(statistics->num_transitions)) == 0 &&
         json_object_set_new(entry, "num_trajectories", json_integer(statistics->num_trajectories)) == 0;
  *out = good ? json_pack("{s:O}", statistics->key, entry) : NULL;
  json_decref(entry);
  /* jansson refuses values that are not finite, and does not tell that from missing memory. */
  return *out ? HV_OK
              : hv_error(HV_ERR_INTERNAL,
                         "the statistics of %s cannot be written as JSON: a value is not finite, or memory ran out",
                         statistics->key);
}

static bool equal_values(const hv_value_statistics *a, const hv_value_statistics *b) {
  double *left[NUM_ARRAYS], *right[NUM_ARRAYS];
  if (a->dims != b->dims) return false;
  list_arrays(a, left);
  list_arrays(b, right);
  for (int32_t dim = 0; dim < a->dims; dim++) {
    if (a->mask[dim] != b->mask[dim]) return false;
    for (int i = 0; i < NUM_ARRAYS; i++) {
      if (left[i][dim] != right[i][dim]) return false;
    }
  }
  return true;
}

bool hv_dataset_statistics_equal(const hv_dataset_statistics *a, const hv_dataset_statistics *b) {
  return a->num_transitions == b->num_transitions && a->num_trajectories == b->num_trajectories &&
         equal_values(&a->action, &b->action) && equal_values(&a->proprio, &b->proprio);
}

hv_status hv_dataset_statistics_save(const char *path, const hv_dataset_statistics *statistics) {
  json_t *added = NULL, *document = NULL;
  hv_status status = HV_OK;
  if (hv_file_exists(path)) {
    HV_CHECK(hv_json_load(path, &document));
    if (!json_is_object(document)) {
      status =
          hv_error(HV_ERR_INPUT, "%s must hold a mapping of keys to statistics, not %s", path, hv_json_kind(document));
      goto done;
    }
  } else {
    document = json_object();
  }
  HV_CHECK(hv_dataset_statistics_to_json(statistics, &added));
  if (json_object_update(document, added) != 0) {
    status = hv_error_memory(path);
    goto done;
  }
  status = hv_json_save(path, document);
done:
  json_decref(added);
  json_decref(document);
  return status;
}

double hv_normalize_value(const hv_value_statistics *statistics, int32_t dim, double x) {
  if (statistics->min[dim] == statistics->max[dim]) return 0;
  if (!statistics->mask[dim]) return x;
  double q01 = statistics->q01[dim], q99 = statistics->q99[dim];
  return 2 * (x - q01) / (q99 - q01 + 1e-8) - 1;
}

static double clip(double x) {
  return x < -1 ? -1 : x > 1 ? 1 : x;
}

void hv_normalize(const hv_value_statistics *statistics, const double *values, float *out) {
  for (int32_t d = 0; d < statistics->dims; d++) {
    double scaled = hv_normalize_value(statistics, d, values[d]);
    out[d] = (float)(statistics->mask[d] ? clip(scaled) : scaled);
  }
}

void hv_unnormalize(const hv_value_statistics *statistics, const float *values, double *out) {
  for (int32_t d = 0; d < statistics->dims; d++) {
    double x = clip((double)values[d]);
    double q01 = statistics->q01[d], q99 = statistics->q99[d];
    out[d] = statistics->mask[d] ? 0.5 * (x + 1) * (q99 - q01) + q01 : x >= 0.5;
  }
}

void hv_restore_gripper(const hv_dataset_statistics *statistics, double *action) {
  const hv_robot_gripper *gripper = &statistics->gripper;
  if (!gripper->dims) return;
  for (int32_t d = 0; d < statistics->action.dims; d++) {
    if (gripper->dims[d]) action[d] = gripper->closed + action[d] * (gripper->open - gripper->closed);
  }
}
