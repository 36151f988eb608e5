#include "core/io/option_value.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/nearest.h"
#include "core/io/json.h"
#include "core/io/yaml.h"

static void *field(const hv_option *option, void *values) {
  return (char *)values + option->offset;
}

static bool has_range(const hv_option *option) {
  return option->min != 0 || option->max != 0;
}

static bool is_text(const hv_option *option) {
  return option->type == HV_OPTION_STRING || option->type == HV_OPTION_PATH;
}

static void add_range(const hv_option *option, hv_text *out) {
  if (has_range(option)) hv_text_add(out, " from %.15g to %.15g", option->min, option->max);
}

static void add_choices(const hv_option *option, hv_text *out) {
  hv_text_add(out, "one of ");
  for (int i = 0; option->choices[i]; i++) hv_text_add(out, "%s%s", i ? ", " : "", option->choices[i]);
}

void hv_option_describe(const hv_option *option, hv_text *out) {
  switch (option->type) {
  case HV_OPTION_INT:
    hv_text_add(out, "an integer");
    add_range(option, out);
    break;
  case HV_OPTION_FLOAT:
    hv_text_add(out, "a number");
    add_range(option, out);
    break;
  case HV_OPTION_BOOL: hv_text_add(out, "true or false"); break;
  case HV_OPTION_STRING: hv_text_add(out, "a string"); break;
  case HV_OPTION_PATH: hv_text_add(out, "a path"); break;
  case HV_OPTION_ENUM: add_choices(option, out); break;
  case HV_OPTION_STRING_LIST: hv_text_add(out, "a list of strings"); break;
  case HV_OPTION_INT_LIST:
    hv_text_add(out, "a list of integers");
    add_range(option, out);
    break;
  case HV_OPTION_STRING_MAP: hv_text_add(out, "a mapping of strings"); break;
  case HV_OPTION_NUMBER_MAP:
    hv_text_add(out, "a mapping of numbers");
    add_range(option, out);
    break;
  case HV_OPTION_OPAQUE: hv_text_add(out, "a mapping"); break;
  }
}

/* What to do about a value that was refused: " (put it in quotes)", "; did you mean …?", … or nothing. */
static void advise(const hv_option *option, const json_t *value, hv_text *out) {
  hv_nearest nearest = {.name = json_string_value(value)};
  if (is_text(option) && !json_is_object(value) && !json_is_array(value)) hv_text_add(out, " (put it in quotes)");
  if (option->type == HV_OPTION_INT_LIST && nearest.name && strchr(nearest.name, ','))
    hv_text_add(out, " (put it in brackets: [%.60s])", nearest.name);
  if (option->type != HV_OPTION_ENUM || !nearest.name) return;
  if (option->elsewhere) {
    hv_text_add(out, "; %s", option->elsewhere);
    return;
  }
  for (int i = 0; option->choices[i]; i++) hv_nearest_offer(&nearest, option->choices[i]);
  if (nearest.best) hv_text_add(out, "; did you mean %s?", nearest.best);
}

/* "must be …, not <value>", with advice. */
static hv_status refuse(const hv_option *option, const json_t *value) {
  hv_text expected = {0}, found = {0}, advice = {0};
  hv_option_describe(option, &expected);
  advise(option, value, &advice);
  hv_status status = hv_json_format_line(value, &found);
  if (!status)
    status = hv_error(HV_ERR_INPUT, "must be %s, not %.60s%s", hv_text_string(&expected), hv_text_string(&found),
                      hv_text_string(&advice));
  hv_text_free(&expected);
  hv_text_free(&found);
  hv_text_free(&advice);
  return status;
}

static bool in_range(const hv_option *option, double value) {
  return !has_range(option) || (value >= option->min && value <= option->max);
}

/* Accepts a real without a fraction too: a person writes 1e6 for an integer. */
static bool read_integer(const hv_option *option, const json_t *value, int64_t *out) {
  if (json_is_integer(value)) {
    *out = json_integer_value(value);
  } else if (json_is_real(value) && fabs(json_real_value(value)) <= 0x1p53 &&
             json_real_value(value) == floor(json_real_value(value))) {
    *out = (int64_t)json_real_value(value);
  } else {
    return false;
  }
  return in_range(option, (double)*out);
}

static hv_status set_string(const hv_option *option, const json_t *value, char **out) {
  if (!json_is_null(value) && !json_is_string(value)) return refuse(option, value);
  if (option->type == HV_OPTION_PATH && json_is_string(value) && json_string_length(value) == 0) {
    return hv_error(HV_ERR_INPUT, "must be a path, not an empty string");
  }
  char *copy = json_is_null(value) ? NULL : strdup(json_string_value(value));
  if (!copy && json_is_string(value)) return hv_error_memory(option->key);
  free(*out);
  *out = copy;
  return HV_OK;
}

static hv_status set_enum(const hv_option *option, const json_t *value, int32_t *out) {
  const char *text = json_string_value(value);
  for (int32_t i = 0; text && option->choices[i]; i++) {
    if (strcmp(text, option->choices[i]) != 0) continue;
    *out = i;
    return HV_OK;
  }
  return refuse(option, value);
}

/* The number of items: a lone value counts as a list of one, null as an empty list. */
static size_t item_count(const json_t *value) {
  return json_is_array(value) ? json_array_size(value) : !json_is_null(value);
}

static const json_t *item_at(const json_t *value, size_t index) {
  return json_is_array(value) ? json_array_get(value, index) : value;
}

static hv_status set_string_list(const hv_option *option, const json_t *value, hv_string_list *out) {
  hv_string_list list = {0};
  hv_status status = HV_OK;
  for (size_t i = 0; i < item_count(value) && !status; i++) {
    const char *item = json_string_value(item_at(value, i));
    status = item ? hv_string_list_append(&list, item) : refuse(option, value);
  }
  if (status) {
    hv_string_list_free(&list);
    return status;
  }
  hv_string_list_free(out);
  *out = list;
  return HV_OK;
}

static hv_status set_int_list(const hv_option *option, const json_t *value, hv_int_list *out) {
  size_t count = item_count(value);
  int64_t *items = count ? malloc(count * sizeof *items) : NULL;
  if (count && !items) return hv_error_memory(option->key);
  for (size_t i = 0; i < count; i++) {
    if (read_integer(option, item_at(value, i), &items[i])) continue;
    free(items);
    return refuse(option, value);
  }
  free(out->items);
  *out = (hv_int_list){.items = items, .count = count};
  return HV_OK;
}

static void free_map(hv_string_map *map) {
  for (size_t i = 0; i < map->count; i++) {
    free(map->names[i]);
    free(map->values[i]);
  }
  free(map->names);
  free(map->values);
  *map = (hv_string_map){0};
}

static hv_status add_string(const hv_option *option, const char *name, const char *text, hv_string_map *map) {
  char **names = realloc(map->names, (map->count + 1) * sizeof *names);
  if (names) map->names = names;
  char **values = names ? realloc(map->values, (map->count + 1) * sizeof *values) : NULL;
  if (values) map->values = values;
  char *name_copy = values ? strdup(name) : NULL, *text_copy = values ? strdup(text) : NULL;
  if (!name_copy || !text_copy) {
    free(name_copy);
    free(text_copy);
    return hv_error_memory(option->key);
  }
  map->names[map->count] = name_copy;
  map->values[map->count++] = text_copy;
  return HV_OK;
}

static hv_status set_string_map(const hv_option *option, const json_t *value, hv_string_map *out) {
  if (!json_is_null(value) && !json_is_object(value)) return refuse(option, value);
  hv_string_map map = {0};
  hv_status status = HV_OK;
  const char *name;
  json_t *member;
  json_object_foreach((json_t *)(uintptr_t)value, name, member) {
    const char *text = json_string_value(member);
    status = text ? add_string(option, name, text, &map) : refuse(option, value);
    if (status) break;
  }
  if (status) {
    free_map(&map);
    return status;
  }
  free_map(out);
  *out = map;
  return HV_OK;
}

static void free_number_map(hv_number_map *map) {
  for (size_t i = 0; i < map->count; i++) free(map->names[i]);
  free(map->names);
  free(map->values);
  *map = (hv_number_map){0};
}

static hv_status add_number(const hv_option *option, const char *name, const json_t *number, hv_number_map *map) {
  char **names = realloc(map->names, (map->count + 1) * sizeof *names);
  if (names) map->names = names;
  double *values = names ? realloc(map->values, (map->count + 1) * sizeof *values) : NULL;
  if (values) map->values = values;
  char *copy = values ? strdup(name) : NULL;
  if (!copy) return hv_error_memory(option->key);
  map->names[map->count] = copy;
  map->values[map->count++] = json_number_value(number);
  return HV_OK;
}

static hv_status set_number_map(const hv_option *option, const json_t *value, hv_number_map *out) {
  if (!json_is_null(value) && !json_is_object(value)) return refuse(option, value);
  hv_number_map map = {0};
  hv_status status = HV_OK;
  const char *name;
  json_t *member;
  json_object_foreach((json_t *)(uintptr_t)value, name, member) {
    bool fits = json_is_number(member) && in_range(option, json_number_value(member));
    status = fits ? add_number(option, name, member, &map) : refuse(option, value);
    if (status) break;
  }
  if (status) {
    free_number_map(&map);
    return status;
  }
  free_number_map(out);
  *out = map;
  return HV_OK;
}

static hv_status set_opaque(const hv_option *option, const json_t *value, json_t **out) {
  if (!json_is_null(value) && !json_is_object(value)) return refuse(option, value);
  json_t *copy = json_is_null(value) ? NULL : json_deep_copy(value);
  if (!copy && !json_is_null(value)) return hv_error_memory(option->key);
  json_decref(*out);
  *out = copy;
  return HV_OK;
}

hv_status hv_option_set(const hv_option *option, const json_t *value, void *values) {
  void *at = field(option, values);
  int64_t integer;
  switch (option->type) {
  case HV_OPTION_INT:
    if (!read_integer(option, value, &integer)) return refuse(option, value);
    *(int64_t *)at = integer;
    return HV_OK;
  case HV_OPTION_FLOAT:
    if (!json_is_number(value) || !in_range(option, json_number_value(value))) return refuse(option, value);
    *(double *)at = json_number_value(value);
    return HV_OK;
  case HV_OPTION_BOOL:
    if (!json_is_boolean(value)) return refuse(option, value);
    *(bool *)at = json_is_true(value);
    return HV_OK;
  case HV_OPTION_STRING:
  case HV_OPTION_PATH: return set_string(option, value, at);
  case HV_OPTION_ENUM: return set_enum(option, value, at);
  case HV_OPTION_STRING_LIST: return set_string_list(option, value, at);
  case HV_OPTION_INT_LIST: return set_int_list(option, value, at);
  case HV_OPTION_STRING_MAP: return set_string_map(option, value, at);
  case HV_OPTION_NUMBER_MAP: return set_number_map(option, value, at);
  case HV_OPTION_OPAQUE: return set_opaque(option, value, at);
  }
  return hv_error(HV_ERR_INTERNAL, "option %s has an unknown type", option->key);
}

hv_status hv_option_text_to_json(const hv_option *option, const char *text, json_t **out) {
  *out = NULL;
  bool bare = option->type == HV_OPTION_ENUM || (is_text(option) && strcmp(text, "null") != 0);
  bool scalar = option->type == HV_OPTION_INT || option->type == HV_OPTION_FLOAT || option->type == HV_OPTION_BOOL;
  hv_status status = bare ? HV_OK : hv_yaml_parse_value(text, "must be written as YAML", out);
  /* A scalar that YAML refuses is kept as a string, so that the error names what was written and what would be right.
   */
  if (status && !(scalar && hv_status_code(status) == HV_ERR_INPUT)) return status;
  hv_status_free(status);
  if (*out) return HV_OK;
  *out = json_string(text);
  return *out ? HV_OK : hv_error(HV_ERR_INPUT, "must be valid UTF-8");
}

hv_status hv_option_set_text(const hv_option *option, const char *text, void *values) {
  json_t *value;
  HV_TRY(hv_option_text_to_json(option, text, &value));
  hv_status status = hv_option_set(option, value, values);
  json_decref(value);
  return status;
}

void hv_option_zero(const hv_option *option, void *values) {
  void *at = field(option, values);
  switch (option->type) {
  case HV_OPTION_INT: *(int64_t *)at = 0; break;
  case HV_OPTION_FLOAT: *(double *)at = 0; break;
  case HV_OPTION_BOOL: *(bool *)at = false; break;
  case HV_OPTION_STRING:
  case HV_OPTION_PATH: *(char **)at = NULL; break;
  case HV_OPTION_ENUM: *(int32_t *)at = 0; break;
  case HV_OPTION_STRING_LIST: *(hv_string_list *)at = (hv_string_list){0}; break;
  case HV_OPTION_INT_LIST: *(hv_int_list *)at = (hv_int_list){0}; break;
  case HV_OPTION_STRING_MAP: *(hv_string_map *)at = (hv_string_map){0}; break;
  case HV_OPTION_NUMBER_MAP: *(hv_number_map *)at = (hv_number_map){0}; break;
  case HV_OPTION_OPAQUE: *(json_t **)at = NULL; break;
  }
}

void hv_option_clear(const hv_option *option, void *values) {
  void *at = field(option, values);
  if (is_text(option)) free(*(char **)at);
  if (option->type == HV_OPTION_STRING_LIST) hv_string_list_free(at);
  if (option->type == HV_OPTION_INT_LIST) free(((hv_int_list *)at)->items);
  if (option->type == HV_OPTION_STRING_MAP) free_map(at);
  if (option->type == HV_OPTION_NUMBER_MAP) free_number_map(at);
  if (option->type == HV_OPTION_OPAQUE) json_decref(*(json_t **)at);
  hv_option_zero(option, values);
}

static json_t *integers_to_json(const hv_int_list *list) {
  json_t *items = json_array();
  for (size_t i = 0; items && i < list->count; i++) {
    if (json_array_append_new(items, json_integer(list->items[i])) == 0) continue;
    json_decref(items);
    return NULL;
  }
  return items;
}

static json_t *map_to_json(const hv_string_map *map) {
  json_t *members = json_object();
  for (size_t i = 0; members && i < map->count; i++) {
    if (json_object_set_new(members, map->names[i], json_string(map->values[i])) == 0) continue;
    json_decref(members);
    return NULL;
  }
  return members;
}

static json_t *numbers_to_json(const hv_number_map *map) {
  json_t *members = json_object();
  for (size_t i = 0; members && i < map->count; i++) {
    if (json_object_set_new(members, map->names[i], json_real(map->values[i])) == 0) continue;
    json_decref(members);
    return NULL;
  }
  return members;
}

json_t *hv_option_get(const hv_option *option, const void *values) {
  const void *at = (const char *)values + option->offset;
  switch (option->type) {
  case HV_OPTION_INT: return json_integer(*(const int64_t *)at);
  case HV_OPTION_FLOAT: return json_real(*(const double *)at);
  case HV_OPTION_BOOL: return json_boolean(*(const bool *)at);
  case HV_OPTION_STRING:
  case HV_OPTION_PATH: {
    const char *text = *(char *const *)at;
    return text ? json_string(text) : json_null();
  }
  case HV_OPTION_ENUM: return json_string(option->choices[*(const int32_t *)at]);
  case HV_OPTION_STRING_LIST: return hv_json_strings(at);
  case HV_OPTION_INT_LIST: return integers_to_json(at);
  case HV_OPTION_STRING_MAP: return map_to_json(at);
  case HV_OPTION_NUMBER_MAP: return numbers_to_json(at);
  case HV_OPTION_OPAQUE: {
    const json_t *opaque = *(json_t *const *)at;
    return opaque ? json_deep_copy(opaque) : json_null();
  }
  }
  return NULL;
}
