/* JSON files through jansson: read with limits and clear errors, written atomically.
 *
 * Numbers that are written read back to the same double, in as few digits as that takes. Object keys keep their order.
 */
#ifndef HV_IO_JSON_H
#define HV_IO_JSON_H

#include <jansson.h>

#include "core/base/status.h"
#include "core/base/string_list.h"
#include "core/base/text.h"

enum {
  HV_JSON_LIMIT = 64 << 20,      /* bytes of a JSON file */
  HV_JSON_LINES_LIMIT = 1 << 30, /* bytes of a file of JSON lines */
};

/* A whole file, an object or array at the top; duplicate keys are an error. *out is owned by the caller (json_decref).
 */
HV_NODISCARD hv_status hv_json_load(const char *path, json_t **out);

/* A file of one object a line, as metrics.jsonl is, as an array. A last line without a newline, which is being written,
 * and lines that are no objects are left out. */
HV_NODISCARD hv_status hv_json_load_lines(const char *path, json_t **out);

/* One document from memory; `where` names the source in errors. */
HV_NODISCARD hv_status hv_json_parse(const char *text, size_t size, const char *where, json_t **out);

/* Indented by 2 and ending in a newline; hv_json_save writes the file atomically. */
HV_NODISCARD hv_status hv_json_format(const json_t *document, hv_text *out);
HV_NODISCARD hv_status hv_json_save(const char *path, const json_t *document);

/* One line without the newline: metrics and `--json` output. */
HV_NODISCARD hv_status hv_json_format_line(const json_t *document, hv_text *out);

/* A JSON string of any bytes, such as a file's name: those that are not UTF-8 become U+FFFD. NULL without memory. */
json_t *hv_json_text(const char *text);

/* An array of such strings; NULL without memory. */
json_t *hv_json_strings(const hv_string_list *list);

/* The number, null where it is not finite; NULL without memory. */
json_t *hv_json_number(double value);

/* "a mapping", "a string", "an integer", … for messages. */
const char *hv_json_kind(const json_t *value);

/* The shortest decimal form that reads back as `value` (finite). It has a decimal point, without which YAML 1.1 would
 * take "1e-06" for a string. `size` is at least 32. */
void hv_format_real(double value, char *out, size_t size);

#endif
