/* config.json ↔ hv_config; model_config_fields.c lists the keys.
 *
 * The document is kept beside the values, so that keys this version does not know survive a load and a save. A run
 * configuration's `model:` mapping has the same keys and goes through the same functions.
 */
#ifndef HV_IO_MODEL_CONFIG_H
#define HV_IO_MODEL_CONFIG_H

#include <jansson.h>

#include "core/base/status.h"
#include "core/hybridvla/config.h"

typedef struct hv_model_config {
  hv_config config;
  json_t *document; /* owned */
} hv_model_config;

typedef enum hv_unknown_keys {
  HV_UNKNOWN_KEEP,   /* a file's: kept */
  HV_UNKNOWN_REFUSE, /* a person's: an error that names the nearest known key */
} hv_unknown_keys;

HV_NODISCARD hv_status hv_model_config_load(const char *path, hv_model_config *out);

/* `where` names the document in errors ("run.yaml: model"). The document is copied. All findings are reported together:
 * missing keys, wrong types, values that do not fit each other. patch_bias and class_position, which the document does
 * not have, are set for a new model: patch_bias = not pre_norm, class_position = class_token and pre_norm. */
HV_NODISCARD hv_status hv_model_config_from_json(const json_t *document, const char *where, hv_unknown_keys unknown,
                                                 hv_model_config *out);

/* `base` overridden by the keys of `changes`: mappings are merged, lists replaced. */
HV_NODISCARD hv_status hv_model_config_override(const hv_model_config *base, const json_t *changes, const char *where,
                                                hv_model_config *out);

/* The document with the values of `config` written over it. *out is owned by the caller. */
HV_NODISCARD hv_status hv_model_config_to_json(const hv_model_config *model, json_t **out);

HV_NODISCARD hv_status hv_model_config_save(const char *path, const hv_model_config *model); /* atomic */
void hv_model_config_free(hv_model_config *model);                                           /* leaves it empty */

/* "hybrid", "diffusion", "autoregressive". */
const char *hv_objective_name(hv_objective objective);

#endif
