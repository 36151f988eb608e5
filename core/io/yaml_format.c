#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <yaml.h>

#include "core/base/file.h"
#include "core/io/json.h"
#include "core/io/yaml.h"
#include "core/io/yaml_scalar.h"

enum { FLOW_LIMIT = 16 /* a list of at most so many scalars is written on one line */ };

static int append_bytes(void *text, unsigned char *bytes, size_t size) {
  hv_text_add_bytes(text, (const char *)bytes, size);
  return !((hv_text *)text)->failed;
}

/* Consumes the event whether or not it can be emitted; `made` is what the event's initialiser returned. */
static hv_status emit(yaml_emitter_t *emitter, yaml_event_t *event, int made) {
  if (!made) return hv_error_memory("a YAML document");
  if (yaml_emitter_emit(emitter, event)) return HV_OK;
  bool full = emitter->error == YAML_WRITER_ERROR; /* append_bytes fails for one reason only */
  if (full || emitter->error == YAML_MEMORY_ERROR) return hv_error_memory("a YAML document");
  return hv_error(HV_ERR_INTERNAL, "cannot write YAML: %s", emitter->problem ? emitter->problem : "unknown reason");
}

static hv_status emit_scalar(yaml_emitter_t *emitter, const char *text, yaml_scalar_style_t style) {
  yaml_event_t event;
  int made =
      yaml_scalar_event_initialize(&event, NULL, NULL, (const yaml_char_t *)text, (int)strlen(text), 1, 1, style);
  return emit(emitter, &event, made);
}

/* Whether a reader of YAML 1.1, as most are, might take a plain `text` for a bool, a date, a number or a merge. */
static bool is_special_in_yaml_1_1(const char *text) {
  static const char *const words[] = {"y", "n", "yes", "no", "on", "off", "=", "<<"};
  for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
    if (strcasecmp(text, words[i]) == 0) return true;
  }
  text += *text == '-' || *text == '+';
  return *text >= '0' && *text <= '9';
}

/* A string that would be read as a number, a bool or null is quoted; the emitter itself quotes what the syntax needs.
 */
static hv_status emit_string(yaml_emitter_t *emitter, const char *text) {
  bool ambiguous = hv_yaml_scalar_type(text) != HV_YAML_STRING || is_special_in_yaml_1_1(text);
  return emit_scalar(emitter, text, ambiguous ? YAML_DOUBLE_QUOTED_SCALAR_STYLE : YAML_ANY_SCALAR_STYLE);
}

static bool is_short_list(const json_t *list) {
  if (json_array_size(list) > FLOW_LIMIT) return false;
  size_t index;
  json_t *item;
  json_array_foreach(list, index, item) {
    if (json_is_array(item) || json_is_object(item)) return false;
  }
  return true;
}

static hv_status emit_value(yaml_emitter_t *emitter, const json_t *value);

static hv_status emit_list(yaml_emitter_t *emitter, const json_t *list) {
  yaml_event_t event;
  yaml_sequence_style_t style = is_short_list(list) ? YAML_FLOW_SEQUENCE_STYLE : YAML_BLOCK_SEQUENCE_STYLE;
  int made = yaml_sequence_start_event_initialize(&event, NULL, NULL, 1, style);
  HV_TRY(emit(emitter, &event, made));
  size_t index;
  json_t *item;
  json_array_foreach(list, index, item) HV_TRY(emit_value(emitter, item));
  made = yaml_sequence_end_event_initialize(&event);
  return emit(emitter, &event, made);
}

static hv_status emit_mapping(yaml_emitter_t *emitter, const json_t *mapping) {
  yaml_event_t event;
  int made = yaml_mapping_start_event_initialize(&event, NULL, NULL, 1, YAML_BLOCK_MAPPING_STYLE);
  HV_TRY(emit(emitter, &event, made));
  const char *key;
  json_t *member;
  json_object_foreach((json_t *)(uintptr_t)mapping, key, member) {
    HV_TRY(emit_string(emitter, key));
    HV_TRY(emit_value(emitter, member));
  }
  made = yaml_mapping_end_event_initialize(&event);
  return emit(emitter, &event, made);
}

static hv_status emit_value(yaml_emitter_t *emitter, const json_t *value) {
  char text[40];
  switch (json_typeof(value)) {
  case JSON_OBJECT: return emit_mapping(emitter, value);
  case JSON_ARRAY: return emit_list(emitter, value);
  case JSON_STRING: return emit_string(emitter, json_string_value(value));
  case JSON_INTEGER:
    snprintf(text, sizeof text, "%" PRId64, (int64_t)json_integer_value(value));
    return emit_scalar(emitter, text, YAML_PLAIN_SCALAR_STYLE);
  case JSON_REAL:
    hv_format_real(json_real_value(value), text, sizeof text);
    return emit_scalar(emitter, text, YAML_PLAIN_SCALAR_STYLE);
  case JSON_TRUE: return emit_scalar(emitter, "true", YAML_PLAIN_SCALAR_STYLE);
  case JSON_FALSE: return emit_scalar(emitter, "false", YAML_PLAIN_SCALAR_STYLE);
  case JSON_NULL: return emit_scalar(emitter, "null", YAML_PLAIN_SCALAR_STYLE);
  }
  return hv_error(HV_ERR_INTERNAL, "a JSON value of unknown kind");
}

static hv_status emit_stream(yaml_emitter_t *emitter, const json_t *document) {
  yaml_event_t event;
  int made = yaml_stream_start_event_initialize(&event, YAML_UTF8_ENCODING);
  HV_TRY(emit(emitter, &event, made));
  made = yaml_document_start_event_initialize(&event, NULL, NULL, NULL, 1);
  HV_TRY(emit(emitter, &event, made));
  HV_TRY(emit_value(emitter, document));
  made = yaml_document_end_event_initialize(&event, 1);
  HV_TRY(emit(emitter, &event, made));
  made = yaml_stream_end_event_initialize(&event);
  return emit(emitter, &event, made);
}

hv_status hv_yaml_format(const json_t *document, hv_text *out) {
  yaml_emitter_t emitter;
  if (!yaml_emitter_initialize(&emitter)) return hv_error_memory("a YAML document");
  yaml_emitter_set_output(&emitter, append_bytes, out);
  yaml_emitter_set_unicode(&emitter, 1);
  yaml_emitter_set_width(&emitter, 120);
  hv_status status = emit_stream(&emitter, document);
  yaml_emitter_delete(&emitter);
  if (!status && out->failed) status = hv_error_memory("a YAML document");
  return status;
}

hv_status hv_yaml_save(const char *path, const char *comment, const json_t *document) {
  hv_text text = {0};
  if (comment) hv_text_add(&text, "# %s\n", comment);
  hv_status status = hv_yaml_format(document, &text);
  if (!status) status = hv_write_file_atomic(path, text.data, text.length);
  hv_text_free(&text);
  return status;
}
