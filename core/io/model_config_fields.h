/* The keys of config.json as tables: one row a key, by which it is read, written and recognised. */
#ifndef HV_IO_MODEL_CONFIG_FIELDS_H
#define HV_IO_MODEL_CONFIG_FIELDS_H

#include "core/hybridvla/config.h"

typedef enum hv_field_kind {
  HV_FIELD_INT,      /* int32_t in [min, max] */
  HV_FIELD_REAL,     /* double, above min */
  HV_FIELD_BOOL,     /* bool */
  HV_FIELD_CHOICE,   /* an enum: one of the choices' names */
  HV_FIELD_NAME,     /* char[max], not empty */
  HV_FIELD_COLOUR,   /* double[3], above min */
  HV_FIELD_CONSTANT, /* no field: must be the one supported string, choices[0] */
  HV_FIELD_TOKEN,    /* int32_t: an id, or null for -1 where min is -1 */
} hv_field_kind;

typedef struct hv_choice {
  const char *name; /* NULL ends a list */
  int32_t value;
} hv_choice;

typedef struct hv_field {
  const char *key;
  hv_field_kind kind;
  size_t offset; /* in the section's struct */
  double min, max;
  const hv_choice *choices;
  bool optional; /* absent: the first choice, or what the section's reader says */
} hv_field;

typedef struct hv_section {
  const hv_field *fields;
  int count;
  const char *const *others; /* known keys without a row, NULL-terminated */
} hv_section;

extern const hv_section hv_section_top;           /* of hv_config */
extern const hv_section hv_section_vision;        /* of hv_vision_config */
extern const hv_section hv_section_llm;           /* of hv_llm_config */
extern const hv_section hv_section_diffusion;     /* of hv_config */
extern const hv_section hv_section_action_tokens; /* of hv_config */
extern const hv_section hv_section_tokens;        /* of hv_config */

extern const hv_choice hv_objective_choices[];

#endif
