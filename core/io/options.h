/* Options: one table of keys drives parsing, types, ranges, defaults, nearest names, help and documentation.
 *
 * The same kind of table describes the keys of a run configuration (dotted keys of a YAML file, overridden by
 * `--set key=value`) and the long options of a command line. A caller writes a struct and a table of its fields:
 *
 *   typedef struct settings { int64_t steps; double lr; char *name; int32_t schedule; } settings;
 *   static const char *const schedules[] = {"constant", "cosine", NULL};
 *   static const hv_option table[] = {
 *     {.key = "train.steps", .type = HV_OPTION_INT, .offset = offsetof(settings, steps), .fallback = "1000", .min = 1,
 *      .max = 1e9, .doc = "Optimizer steps to run."},
 *     {.key = "train.lr", .type = HV_OPTION_FLOAT, .offset = offsetof(settings, lr), .fallback = "2e-5", …},
 *     {.key = "train.schedule", .type = HV_OPTION_ENUM, .choices = schedules, .fallback = "constant", …},
 *   };
 *
 * All mistakes of one document are reported together, each with its key, what was found and what would be right.
 */
#ifndef HV_IO_OPTIONS_H
#define HV_IO_OPTIONS_H

#include <jansson.h>
#include <stdint.h>

#include "core/base/status.h"
#include "core/base/string_list.h"
#include "core/base/text.h"

typedef struct hv_int_list {
  int64_t *items; /* owned, NULL if empty */
  size_t count;
} hv_int_list;

/* A mapping of strings in the order written: `cameras: {front: agentview_image}`. */
typedef struct hv_string_map {
  char **names, **values; /* owned, NULL if empty */
  size_t count;
} hv_string_map;

/* A mapping of names to numbers in the order written. */
typedef struct hv_number_map {
  char **names;   /* owned, NULL if empty */
  double *values; /* owned, NULL if empty */
  size_t count;
} hv_number_map;

/* The comment is the C type of the field at `offset`. */
typedef enum hv_option_type {
  HV_OPTION_INT,         /* int64_t */
  HV_OPTION_FLOAT,       /* double; an integer is accepted */
  HV_OPTION_BOOL,        /* bool; on a command line a flag without a value */
  HV_OPTION_STRING,      /* char *, owned; NULL for null */
  HV_OPTION_PATH,        /* char *, owned; NULL for null */
  HV_OPTION_ENUM,        /* int32_t, index into `choices` */
  HV_OPTION_STRING_LIST, /* hv_string_list; one string counts as a list of one; on a command line the option repeats */
  HV_OPTION_INT_LIST,    /* hv_int_list; one integer counts as a list of one */
  HV_OPTION_STRING_MAP,  /* hv_string_map; in a document only */
  HV_OPTION_NUMBER_MAP,  /* hv_number_map; in a document only */
  HV_OPTION_OPAQUE,      /* json_t *, owned reference, NULL for null or absent: a mapping that is passed on unread */
} hv_option_type;

typedef struct hv_option {
  const char *key; /* dotted path in a document; "ddim-steps" (without the dashes) on a command line */
  hv_option_type type;
  size_t offset;
  const char *fallback;       /* default in YAML spelling ("4", "null", "[]"); NULL: must be given */
  double min, max;            /* of INT, FLOAT and the items of INT_LIST and NUMBER_MAP, inclusive; both 0: no range */
  const char *const *choices; /* ENUM: NULL-terminated names */
  const char *elsewhere;      /* ENUM: the error's hint for an unknown value, instead of the nearest name; or NULL */
  const char *unit;           /* in a document the unit ("steps"), on a command line the placeholder ("DIR"); or NULL */
  const char *doc;            /* a sentence or two for people */
} hv_option;

/* Reads `document` (a mapping; NULL counts as empty) and then `sets`, each "key=value", into *out, a struct whose
 * fields are zeroed first. `where` names the document in errors. `--set` values are YAML (for STRING and PATH the bare
 * text, or one in quotes), and reach into opaque mappings: "model.llm.hidden_size=64", "model.vision.0.width=32".
 * After an error *out holds nothing. */
HV_NODISCARD hv_status hv_options_parse(const hv_option *table, size_t count, const json_t *document, const char *where,
                                        const char *const *sets, size_t num_sets, void *out);

/* Frees what the struct's fields own and zeroes them. */
void hv_options_free(const hv_option *table, size_t count, void *values);

/* The struct as a nested document in the order of the table, defaults filled in: what a run keeps as its resolved
 * configuration. Null opaque fields are left out. *out is owned by the caller. */
HV_NODISCARD hv_status hv_options_to_json(const hv_option *table, size_t count, const void *values, json_t **out);

/* A Markdown table: key, type with range or choices, default, meaning. */
void hv_options_document(const hv_option *table, size_t count, hv_text *out);

#endif
