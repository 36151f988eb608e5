#include "core/io/yaml.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

#include "core/base/file.h"
#include "core/io/yaml_scalar.h"

enum { MAX_DEPTH = 64 };

typedef struct reader {
  yaml_parser_t parser;
  const char *where, *text;
} reader;

static bool is_one_of(const char *text, const char *const *words) {
  for (; *words; words++) {
    if (strcmp(text, *words) == 0) return true;
  }
  return false;
}

static bool only(const char *text, const char *characters) {
  return *text && text[strspn(text, characters)] == '\0';
}

/* [-+]? ( \. [0-9]+ | [0-9]+ ( \. [0-9]* )? ) ( [eE] [-+]? [0-9]+ )? */
static bool is_real(const char *text) {
  static const char digits[] = "0123456789";
  text += *text == '-' || *text == '+';
  size_t before = strspn(text, digits);
  text += before;
  if (*text == '.') {
    size_t after = strspn(++text, digits);
    if (before + after == 0) return false;
    text += after;
  } else if (before == 0) {
    return false;
  }
  if (*text == 'e' || *text == 'E') {
    text++;
    text += *text == '-' || *text == '+';
    return only(text, digits);
  }
  return *text == '\0';
}

hv_yaml_type hv_yaml_scalar_type(const char *text) {
  static const char *const nulls[] = {"", "~", "null", "Null", "NULL", NULL};
  static const char *const trues[] = {"true", "True", "TRUE", NULL};
  static const char *const falses[] = {"false", "False", "FALSE", NULL};
  static const char *const non_finite[] = {".inf", ".Inf", ".INF", ".nan", ".NaN", ".NAN", NULL};
  if (is_one_of(text, nulls)) return HV_YAML_NULL;
  if (is_one_of(text, trues)) return HV_YAML_TRUE;
  if (is_one_of(text, falses)) return HV_YAML_FALSE;
  const char *unsigned_text = text + (*text == '-' || *text == '+');
  if (only(unsigned_text, "0123456789")) return HV_YAML_INTEGER;
  if (text[0] == '0' && text[1] == 'x' && only(text + 2, "0123456789abcdefABCDEF")) return HV_YAML_INTEGER;
  if (text[0] == '0' && text[1] == 'o' && only(text + 2, "01234567")) return HV_YAML_INTEGER;
  if (is_real(text)) return HV_YAML_REAL;
  if (is_one_of(unsigned_text, non_finite)) return HV_YAML_NON_FINITE;
  return HV_YAML_STRING;
}

static hv_status error_at(const reader *r, yaml_mark_t mark, const char *problem, const char *text) {
  return hv_error(HV_ERR_INPUT, "%s: line %zu, column %zu: %s%s", r->where, mark.line + 1, mark.column + 1, problem,
                  text ? text : "");
}

/* Line and column of a byte; a character counts once. */
static yaml_mark_t mark_at(const char *text, size_t offset) {
  yaml_mark_t mark = {.index = offset};
  for (size_t i = 0; i < offset; i++) {
    mark.column += (text[i] & 0xc0) != 0x80;
    if (text[i] == '\n') mark = (yaml_mark_t){.index = offset, .line = mark.line + 1};
  }
  return mark;
}

static hv_status parser_error(const reader *r) {
  const yaml_parser_t *parser = &r->parser;
  if (parser->error == YAML_MEMORY_ERROR) return hv_error_memory(r->where);
  /* For bytes that are not text, the library gives only their offset. */
  bool no_text = parser->error == YAML_READER_ERROR;
  yaml_mark_t mark = no_text ? mark_at(r->text, parser->problem_offset) : parser->problem_mark;
  return error_at(r, mark, parser->problem ? parser->problem : "not valid YAML", NULL);
}

static hv_status next(reader *r, yaml_event_t *event) {
  return yaml_parser_parse(&r->parser, event) ? HV_OK : parser_error(r);
}

static hv_status make_integer(const reader *r, yaml_mark_t mark, const char *text, json_t **out) {
  int base = text[0] == '0' && text[1] == 'x' ? 16 : text[0] == '0' && text[1] == 'o' ? 8 : 10;
  errno = 0;
  long long value = strtoll(base == 10 ? text : text + 2, NULL, base);
  if (errno == ERANGE) return error_at(r, mark, "an integer must fit into 64 bits, which this does not: ", text);
  *out = json_integer(value);
  return HV_OK;
}

static hv_status make_real(const reader *r, yaml_mark_t mark, const char *text, json_t **out) {
  double value = strtod(text, NULL);
  if (!isfinite(value)) return error_at(r, mark, "a number must be finite, not ", text);
  *out = json_real(value);
  return HV_OK;
}

static hv_status make_scalar(const reader *r, const yaml_event_t *event, json_t **out) {
  const char *text = (const char *)event->data.scalar.value;
  const char *tag = (const char *)event->data.scalar.tag;
  yaml_mark_t mark = event->start_mark;
  if (event->data.scalar.anchor) return error_at(r, mark, "anchors (&) are not supported", NULL);
  if (strlen(text) != event->data.scalar.length) return error_at(r, mark, "a string must not hold \\0", NULL);
  bool is_string = event->data.scalar.style != YAML_PLAIN_SCALAR_STYLE;
  if (tag && (strcmp(tag, YAML_STR_TAG) == 0 || strcmp(tag, "!") == 0)) {
    is_string = true;
  } else if (tag) {
    return error_at(r, mark, "tags are not supported, except !!str: ", tag);
  }
  hv_status status = HV_OK;
  *out = NULL;
  switch (is_string ? HV_YAML_STRING : hv_yaml_scalar_type(text)) {
  case HV_YAML_STRING: *out = json_string(text); break;
  case HV_YAML_NULL: *out = json_null(); break;
  case HV_YAML_TRUE: *out = json_true(); break;
  case HV_YAML_FALSE: *out = json_false(); break;
  case HV_YAML_INTEGER: status = make_integer(r, mark, text, out); break;
  case HV_YAML_REAL: status = make_real(r, mark, text, out); break;
  case HV_YAML_NON_FINITE: status = error_at(r, mark, "a number must be finite, not ", text); break;
  }
  return status || *out ? status : hv_error_memory(r->where);
}

static hv_status read_value(reader *r, const yaml_event_t *event, int depth, json_t **out);

static hv_status read_list(reader *r, int depth, json_t *list) {
  for (;;) {
    yaml_event_t event;
    HV_TRY(next(r, &event));
    bool end = event.type == YAML_SEQUENCE_END_EVENT;
    json_t *item = NULL;
    hv_status status = end ? HV_OK : read_value(r, &event, depth, &item);
    yaml_event_delete(&event);
    if (status || end) return status;
    if (json_array_append_new(list, item) != 0) return hv_error_memory(r->where);
  }
}

static hv_status check_key(const reader *r, const yaml_event_t *event, const json_t *mapping) {
  yaml_mark_t mark = event->start_mark;
  if (event->type != YAML_SCALAR_EVENT) return error_at(r, mark, "a key must be a plain word", NULL);
  const char *key = (const char *)event->data.scalar.value;
  if (event->data.scalar.anchor) return error_at(r, mark, "anchors (&) are not supported", NULL);
  if (strlen(key) != event->data.scalar.length) return error_at(r, mark, "a key must not hold \\0", NULL);
  if (json_object_get(mapping, key)) return error_at(r, mark, "this mapping has the key twice: ", key);
  return HV_OK;
}

static hv_status read_mapping(reader *r, int depth, json_t *mapping) {
  for (;;) {
    yaml_event_t key, event;
    HV_TRY(next(r, &key));
    if (key.type == YAML_MAPPING_END_EVENT) {
      yaml_event_delete(&key);
      return HV_OK;
    }
    json_t *value = NULL;
    hv_status status = check_key(r, &key, mapping);
    if (!status) status = next(r, &event);
    if (!status) {
      status = read_value(r, &event, depth, &value);
      yaml_event_delete(&event);
    }
    if (!status && json_object_set_new(mapping, (const char *)key.data.scalar.value, value) != 0) {
      status = hv_error_memory(r->where);
    }
    yaml_event_delete(&key);
    HV_TRY(status);
  }
}

static hv_status read_value(reader *r, const yaml_event_t *event, int depth, json_t **out) {
  *out = NULL;
  yaml_mark_t mark = event->start_mark;
  if (depth >= MAX_DEPTH) return error_at(r, mark, "nested deeper than 64 levels", NULL);
  if (event->type == YAML_ALIAS_EVENT) return error_at(r, mark, "aliases (*) are not supported", NULL);
  if (event->type == YAML_SCALAR_EVENT) return make_scalar(r, event, out);
  bool is_list = event->type == YAML_SEQUENCE_START_EVENT;
  if (is_list ? event->data.sequence_start.anchor : event->data.mapping_start.anchor) {
    return error_at(r, mark, "anchors (&) are not supported", NULL);
  }
  const yaml_char_t *tag = is_list ? event->data.sequence_start.tag : event->data.mapping_start.tag;
  if (tag) return error_at(r, mark, "tags are not supported, except !!str: ", (const char *)tag);
  json_t *value = is_list ? json_array() : json_object();
  if (!value) return hv_error_memory(r->where);
  hv_status status = is_list ? read_list(r, depth + 1, value) : read_mapping(r, depth + 1, value);
  if (status) {
    json_decref(value);
    return status;
  }
  *out = value;
  return HV_OK;
}

/* STREAM-START DOCUMENT-START value DOCUMENT-END STREAM-END; *out stays NULL for an empty stream. */
static hv_status read_stream(reader *r, json_t **out) {
  bool in_document = false;
  for (;;) {
    yaml_event_t event;
    HV_TRY(next(r, &event));
    hv_status status = HV_OK;
    bool end = event.type == YAML_STREAM_END_EVENT;
    switch (event.type) {
    case YAML_DOCUMENT_START_EVENT:
      if (in_document) status = error_at(r, event.start_mark, "there must be one document only", NULL);
      in_document = true;
      break;
    case YAML_STREAM_START_EVENT:
    case YAML_DOCUMENT_END_EVENT:
    case YAML_STREAM_END_EVENT:
    case YAML_NO_EVENT: break;
    default: status = read_value(r, &event, 0, out);
    }
    yaml_event_delete(&event);
    if (status || end) return status;
  }
}

static hv_status parse(const char *text, size_t size, const char *where, json_t **out) {
  *out = NULL;
  reader r = {.where = where, .text = text};
  if (!yaml_parser_initialize(&r.parser)) return hv_error_memory(where);
  yaml_parser_set_input_string(&r.parser, (const unsigned char *)text, size);
  hv_status status = read_stream(&r, out);
  yaml_parser_delete(&r.parser);
  if (status) {
    json_decref(*out);
    *out = NULL;
  }
  return status;
}

hv_status hv_yaml_parse(const char *text, size_t size, const char *where, json_t **out) {
  HV_TRY(parse(text, size, where, out));
  if (!*out) return (*out = json_object()) ? HV_OK : hv_error_memory(where);
  if (json_is_object(*out)) return HV_OK;
  json_decref(*out);
  *out = NULL;
  return hv_error(HV_ERR_INPUT, "%s must hold a mapping (lines of \"key: value\") at the top", where);
}

hv_status hv_yaml_load(const char *path, json_t **out) {
  *out = NULL;
  char *text;
  size_t size;
  HV_TRY(hv_read_text(path, HV_YAML_LIMIT, &text, &size));
  hv_status status = hv_yaml_parse(text, size, path, out);
  free(text);
  return status;
}

hv_status hv_yaml_parse_value(const char *text, const char *where, json_t **out) {
  HV_TRY(parse(text, strlen(text), where, out));
  if (!*out) *out = json_null();
  return HV_OK;
}
