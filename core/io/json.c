#include "core/io/json.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistr.h>

#include "core/base/file.h"

/* Fifteen digits name any decimal number that a person writes; 17 any double. */
enum { SHORTEST = 15 };

hv_status hv_json_parse(const char *text, size_t size, const char *where, json_t **out) {
  json_error_t error;
  *out = json_loadb(text, size, JSON_REJECT_DUPLICATES, &error);
  if (*out) return HV_OK;
  if (!*error.text) return hv_error_memory(where); /* without memory jansson sets neither a text nor an error code */
  return hv_error(HV_ERR_INPUT, "%s is not valid JSON: line %d, column %d: %s", where, error.line, error.column,
                  error.text);
}

hv_status hv_json_load(const char *path, json_t **out) {
  *out = NULL;
  char *text;
  size_t size;
  HV_TRY(hv_read_text(path, HV_JSON_LIMIT, &text, &size));
  hv_status status = hv_json_parse(text, size, path, out);
  free(text);
  return status;
}

hv_status hv_json_load_lines(const char *path, json_t **out) {
  char *text;
  size_t length;
  hv_status status = HV_OK;
  *out = NULL;
  HV_TRY(hv_read_text(path, HV_JSON_LINES_LIMIT, &text, &length));
  json_t *lines = json_array();
  if (!lines) status = hv_error_memory("JSON lines");
  for (const char *line = text, *end; !status; line = end + 1) {
    end = memchr(line, '\n', length - (size_t)(line - text));
    if (!end) break;
    json_t *object = json_loadb(line, (size_t)(end - line), 0, NULL);
    if (json_is_object(object) && json_array_append(lines, object) != 0) status = hv_error_memory("JSON lines");
    json_decref(object);
  }
  free(text);
  if (status) {
    json_decref(lines);
  } else {
    *out = lines;
  }
  return status;
}

void hv_format_real(double value, char *out, size_t size) {
  for (int digits = SHORTEST; digits <= 17; digits++) {
    snprintf(out, size, "%.*g", digits, value);
    if (strtod(out, NULL) == value) break;
  }
  if (strchr(out, '.')) return;
  size_t digits = strspn(out, "-0123456789"), rest = strlen(out + digits) + 1;
  if (digits + rest + 2 > size) return;
  memmove(out + digits + 2, out + digits, rest);
  out[digits] = '.';
  out[digits + 1] = '0';
}

/* jansson writes all reals of a document with one precision: the lowest at which all of them read back unchanged. */
static int real_precision(const json_t *value, int at_least) {
  if (json_is_real(value)) {
    char text[40];
    int digits = at_least;
    for (; digits < 17; digits++) {
      snprintf(text, sizeof text, "%.*g", digits, json_real_value(value));
      if (strtod(text, NULL) == json_real_value(value)) break;
    }
    return digits;
  }
  const char *key;
  json_t *member;
  json_object_foreach((json_t *)(uintptr_t)value, key, member) at_least = real_precision(member, at_least);
  size_t index;
  json_array_foreach(value, index, member) at_least = real_precision(member, at_least);
  return at_least;
}

static int append_bytes(const char *bytes, size_t size, void *text) {
  hv_text_add_bytes(text, bytes, size);
  return ((hv_text *)text)->failed ? -1 : 0;
}

static hv_status format(const json_t *document, size_t flags, hv_text *out) {
  flags |= JSON_REAL_PRECISION(real_precision(document, SHORTEST)) | JSON_ENCODE_ANY;
  if (json_dump_callback(document, append_bytes, out, flags) != 0) return hv_error_memory("a JSON document");
  return HV_OK;
}

hv_status hv_json_format(const json_t *document, hv_text *out) {
  HV_TRY(format(document, JSON_INDENT(2), out));
  hv_text_add(out, "\n");
  return out->failed ? hv_error_memory("a JSON document") : HV_OK;
}

hv_status hv_json_format_line(const json_t *document, hv_text *out) {
  return format(document, 0, out);
}

hv_status hv_json_save(const char *path, const json_t *document) {
  hv_text text = {0};
  hv_status status = hv_json_format(document, &text);
  if (!status) status = hv_write_file_atomic(path, text.data, text.length);
  hv_text_free(&text);
  return status;
}

json_t *hv_json_text(const char *text) {
  json_t *sound = json_string(text);
  if (sound) return sound;
  hv_text out = {0};
  const uint8_t *at = (const uint8_t *)text, *end = at + strlen(text);
  while (at < end) {
    ucs4_t character; /* U+FFFD for bytes that are not UTF-8 */
    uint8_t bytes[6];
    at += u8_mbtouc(&character, at, (size_t)(end - at));
    int size = u8_uctomb(bytes, character, sizeof bytes);
    hv_text_add_bytes(&out, (const char *)bytes, size > 0 ? (size_t)size : 0);
  }
  json_t *repaired = out.failed ? NULL : json_string(hv_text_string(&out));
  hv_text_free(&out);
  return repaired;
}

json_t *hv_json_strings(const hv_string_list *list) {
  json_t *array = json_array();
  for (size_t i = 0; array && i < list->count; i++) {
    if (json_array_append_new(array, hv_json_text(list->items[i])) == 0) continue;
    json_decref(array);
    return NULL;
  }
  return array;
}

json_t *hv_json_number(double value) {
  return isfinite(value) ? json_real(value) : json_null();
}

const char *hv_json_kind(const json_t *value) {
  if (!value) return "nothing";
  switch (json_typeof(value)) {
  case JSON_OBJECT: return "a mapping";
  case JSON_ARRAY: return "a list";
  case JSON_STRING: return "a string";
  case JSON_INTEGER: return "an integer";
  case JSON_REAL: return "a real number";
  case JSON_TRUE: return "true";
  case JSON_FALSE: return "false";
  case JSON_NULL: return "null";
  }
  return "an unknown value";
}
