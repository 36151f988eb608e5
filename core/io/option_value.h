/* One option's value: from and to JSON and text. The inside of options.h, shared by documents and command lines. */
#ifndef HV_IO_OPTION_VALUE_H
#define HV_IO_OPTION_VALUE_H

#include "core/io/options.h"

/* Puts `value` into the field, replacing what it held. The error says what the value must be, without the key. */
HV_NODISCARD hv_status hv_option_set(const hv_option *option, const json_t *value, void *values);

/* The same from what a person typed: the bare text for strings, paths and choices ("null" is no string), else YAML. */
HV_NODISCARD hv_status hv_option_set_text(const hv_option *option, const char *text, void *values);

/* What hv_option_set_text would set, as a JSON value for a document. *out is owned by the caller. */
HV_NODISCARD hv_status hv_option_text_to_json(const hv_option *option, const char *text, json_t **out);

/* Zeroes the field, as in memory that never held a value; and frees what it owns, then zeroes it. */
void hv_option_zero(const hv_option *option, void *values);
void hv_option_clear(const hv_option *option, void *values);

/* The field as JSON, owned by the caller; NULL without memory. */
json_t *hv_option_get(const hv_option *option, const void *values);

/* "an integer from 1 to 10", "one of a, b, c". */
void hv_option_describe(const hv_option *option, hv_text *out);

#endif
