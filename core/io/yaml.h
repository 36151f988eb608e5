/* YAML run configurations through libyaml, as jansson values.
 *
 * One document, a mapping at the top. Plain scalars follow YAML 1.2's core schema: null, true/false, integers
 * (decimal, 0x, 0o), reals (1e-5 too), anything else a string; quoted ones are strings. Anchors, aliases, tags other
 * than !!str, duplicate keys, non-finite numbers and nesting deeper than 64 are errors. Errors name `where`, line and
 * column.
 */
#ifndef HV_IO_YAML_H
#define HV_IO_YAML_H

#include <jansson.h>

#include "core/base/status.h"
#include "core/base/text.h"

enum { HV_YAML_LIMIT = 4 << 20 /* bytes of a YAML file */ };

/* *out is owned by the caller (json_decref). */
HV_NODISCARD hv_status hv_yaml_load(const char *path, json_t **out);
HV_NODISCARD hv_status hv_yaml_parse(const char *text, size_t size, const char *where, json_t **out);

/* A single value (scalar, or a flow list or mapping), as in `--set key=VALUE`. Empty text is null. */
HV_NODISCARD hv_status hv_yaml_parse_value(const char *text, const char *where, json_t **out);

/* Block style, keys in order, short lists of scalars in flow style; strings that would read as something else are
 * quoted. What is formatted parses to an equal value. */
HV_NODISCARD hv_status hv_yaml_format(const json_t *document, hv_text *out);

/* Writes the file atomically. `comment`: its first line, without the "# "; NULL: none. */
HV_NODISCARD hv_status hv_yaml_save(const char *path, const char *comment, const json_t *document);

#endif
