#include "core/io/model_config.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/nearest.h"
#include "core/io/json.h"
#include "core/io/model_config_fields.h"

/* Collects what is wrong; `prefix` is where in the document the reader stands ("vision[0]."). */
typedef struct reader {
  const char *where;
  char prefix[32];
  hv_text problems;
  size_t count;
} reader;

static void enter(reader *r, const char *prefix, int index) {
  if (index >= 0) {
    snprintf(r->prefix, sizeof r->prefix, "%s[%d].", prefix, index);
  } else {
    snprintf(r->prefix, sizeof r->prefix, "%s%s", prefix, *prefix ? "." : "");
  }
}

static void HV_PRINTF(3, 4) problem(reader *r, const char *key, const char *format, ...) {
  char text[512];
  va_list args;
  va_start(args, format);
  vsnprintf(text, sizeof text, format, args);
  va_end(args);
  hv_text_add(&r->problems, "%s%s: %s%s %s", r->count++ ? "\n" : "", r->where, r->prefix, key, text);
}

static void *at_offset(void *base, const hv_field *field) {
  return (char *)base + field->offset;
}

static void read_int(reader *r, const hv_field *field, const json_t *value, int32_t *out) {
  json_int_t number = json_integer_value(value);
  if (!json_is_integer(value) || (double)number < field->min || (double)number > field->max) {
    problem(r, field->key, "must be an integer from %.0f to %.0f", field->min, field->max);
  } else {
    *out = (int32_t)number;
  }
}

/* Sets *out if the value is a number that the field accepts. */
static bool take_real(const hv_field *field, const json_t *value, double *out) {
  double number = json_number_value(value);
  if (!json_is_number(value) || !(number > field->min)) return false;
  *out = number;
  return true;
}

static void read_real(reader *r, const hv_field *field, const json_t *value, double *out) {
  if (!take_real(field, value, out)) problem(r, field->key, "must be a number above %g", field->min);
}

static void list_choices(const hv_choice *choices, hv_text *out) {
  for (int i = 0; choices[i].name; i++) hv_text_add(out, "%s%s", i ? ", " : "", choices[i].name);
}

static void read_choice(reader *r, const hv_field *field, const json_t *value, int32_t *out) {
  const char *name = json_string_value(value);
  for (const hv_choice *choice = field->choices; choice->name; choice++) {
    if (!name || strcmp(name, choice->name) != 0) continue;
    *out = choice->value;
    return;
  }
  hv_text names = {0};
  list_choices(field->choices, &names);
  problem(r, field->key, "must be one of %s, not %.40s", hv_text_string(&names), name ? name : hv_json_kind(value));
  hv_text_free(&names);
}

static void read_constant(reader *r, const hv_field *field, const json_t *value) {
  const char *name = json_string_value(value), *only = field->choices[0].name;
  if (!name) {
    problem(r, field->key, "must be \"%s\", not %s", only, hv_json_kind(value));
  } else if (strcmp(name, only) != 0) {
    problem(r, field->key, "\"%.40s\" is not supported by this version; supported is \"%s\"", name, only);
  }
}

static void read_name(reader *r, const hv_field *field, const json_t *value, char *out) {
  const char *name = json_string_value(value);
  size_t size = (size_t)field->max;
  if (!name || !*name || strlen(name) >= size) {
    problem(r, field->key, "must be a string of 1 to %zu bytes", size - 1);
  } else {
    memcpy(out, name, strlen(name) + 1);
  }
}

static void read_colour(reader *r, const hv_field *field, const json_t *value, double out[3]) {
  bool good = json_array_size(value) == 3;
  for (size_t i = 0; i < 3 && good; i++) good = take_real(field, json_array_get(value, i), &out[i]);
  if (!good) problem(r, field->key, "must be a list of 3 numbers above %g (red, green, blue)", field->min);
}

/* The upper bound is checked against the vocabulary later. */
static void read_token(reader *r, const hv_field *field, const json_t *value, int32_t *out) {
  json_int_t id = json_integer_value(value);
  if (json_is_null(value) && field->min < 0) {
    *out = -1;
  } else if (!json_is_integer(value)) {
    problem(r, field->key, "must be a token id%s, not %s", field->min < 0 ? " or null" : "", hv_json_kind(value));
  } else if (id < 0 || id > INT32_MAX) {
    problem(r, field->key, "must be a token id%s, not %lld", field->min < 0 ? " or null" : "", (long long)id);
  } else {
    *out = (int32_t)id;
  }
}

static void read_field(reader *r, const hv_field *field, const json_t *value, void *base) {
  void *out = at_offset(base, field);
  switch (field->kind) {
  case HV_FIELD_INT: read_int(r, field, value, out); break;
  case HV_FIELD_REAL: read_real(r, field, value, out); break;
  case HV_FIELD_BOOL:
    if (!json_is_boolean(value)) problem(r, field->key, "must be true or false, not %s", hv_json_kind(value));
    *(bool *)out = json_is_true(value);
    break;
  case HV_FIELD_CHOICE: read_choice(r, field, value, out); break;
  case HV_FIELD_NAME: read_name(r, field, value, out); break;
  case HV_FIELD_COLOUR: read_colour(r, field, value, out); break;
  case HV_FIELD_CONSTANT: read_constant(r, field, value); break;
  case HV_FIELD_TOKEN: read_token(r, field, value, out); break;
  }
}

static void read_section(reader *r, const hv_section *section, const json_t *object, void *base) {
  for (int i = 0; i < section->count; i++) {
    const hv_field *field = &section->fields[i];
    const json_t *value = json_object_get(object, field->key);
    if (value) {
      read_field(r, field, value, base);
    } else if (!field->optional) {
      problem(r, field->key, "is missing");
    } else if (field->kind == HV_FIELD_CHOICE) {
      memcpy(at_offset(base, field), &field->choices[0].value, sizeof field->choices[0].value);
    }
  }
}

/* A sub-mapping of the top level, or NULL with the problem noted. */
static const json_t *sub_mapping(reader *r, const json_t *document, const char *key) {
  enter(r, "", -1);
  const json_t *object = json_object_get(document, key);
  if (!object) {
    problem(r, key, "is missing");
  } else if (!json_is_object(object)) {
    problem(r, key, "must be a mapping, not %s", hv_json_kind(object));
    object = NULL;
  }
  enter(r, key, -1);
  return object;
}

static void read_cameras(reader *r, const json_t *document, hv_config *config) {
  const json_t *cameras = json_object_get(document, "cameras");
  size_t count = json_array_size(cameras);
  if (!cameras) {
    problem(r, "cameras", "is missing");
    return;
  }
  if (count == 0 || count > HV_MAX_CAMERAS) {
    problem(r, "cameras", "must be a list of 1 to %d names", HV_MAX_CAMERAS);
    return;
  }
  for (size_t i = 0; i < count; i++) {
    const char *name = json_string_value(json_array_get(cameras, i));
    if (!name || !*name || strlen(name) >= HV_NAME_SIZE) {
      problem(r, "cameras", "must hold names of 1 to %d bytes", HV_NAME_SIZE - 1);
      return;
    }
    for (size_t j = 0; j < i; j++) {
      if (strcmp(config->cameras[j], name) == 0) problem(r, "cameras", "names %s twice", name);
    }
    memcpy(config->cameras[i], name, strlen(name) + 1);
  }
  config->num_cameras = (int32_t)count;
}

static void check_head_dim(reader *r, const char *key, int32_t head_dim) {
  if (head_dim > HV_MAX_HEAD_DIM) {
    problem(r, key, "gives a head size of %d; at most %d is supported", head_dim, HV_MAX_HEAD_DIM);
  }
}

static void check_tower(reader *r, const hv_vision_config *tower, const hv_vision_config *first) {
  if (tower->num_heads > 0 && tower->width % tower->num_heads != 0) {
    problem(r, "num_heads", "must divide the width %d, which %d does not", tower->width, tower->num_heads);
  }
  check_head_dim(r, "num_heads", tower->width / tower->num_heads);
  if (tower->patch_size > 0 && tower->image_size % tower->patch_size != 0) {
    problem(r, "image_size", "must be a multiple of patch_size %d, not %d", tower->patch_size, tower->image_size);
  }
  if (tower->image_size != first->image_size || tower->patch_size != first->patch_size) {
    problem(r, "image_size", "and patch_size must be those of vision[0] (%d and %d), not %d and %d", first->image_size,
            first->patch_size, tower->image_size, tower->patch_size);
  }
  if (tower != first && strcmp(tower->prefix, first->prefix) == 0) {
    problem(r, "prefix", "must differ from that of vision[0]");
  }
}

static void read_vision(reader *r, const json_t *document, hv_config *config) {
  const json_t *towers = json_object_get(document, "vision");
  size_t count = json_array_size(towers);
  if (!towers) {
    problem(r, "vision", "is missing");
    return;
  }
  size_t mappings = 0;
  while (mappings < count && json_is_object(json_array_get(towers, mappings))) mappings++;
  if (count == 0 || count > HV_MAX_TOWERS || mappings < count) {
    problem(r, "vision", "must be a list of 1 to %d mappings", HV_MAX_TOWERS);
    return;
  }
  config->num_towers = (int32_t)count;
  for (size_t i = 0; i < count; i++) {
    hv_vision_config *tower = &config->vision[i];
    size_t before = r->count;
    enter(r, "vision", (int)i);
    read_section(r, &hv_section_vision, json_array_get(towers, i), tower);
    if (r->count == before) check_tower(r, tower, &config->vision[0]);
    tower->patch_bias = !tower->pre_norm;
    tower->class_position = tower->class_token && tower->pre_norm;
  }
}

/* Keys of Hugging Face that would change what the model computes. */
static void check_llm_extras(reader *r, const json_t *object, const hv_llm_config *llm) {
  static const char *const must_be_off[] = {"attention_bias", "mlp_bias", "tie_word_embeddings", "rope_scaling"};
  for (size_t i = 0; i < sizeof must_be_off / sizeof *must_be_off; i++) {
    const json_t *value = json_object_get(object, must_be_off[i]);
    if (value && !json_is_false(value) && !json_is_null(value)) {
      problem(r, must_be_off[i], "is not supported by this version; it must be absent, null or false");
    }
  }
  const json_t *head_dim = json_object_get(object, "head_dim");
  if (head_dim && !json_is_null(head_dim) &&
      json_integer_value(head_dim) != llm->hidden_size / llm->num_attention_heads) {
    problem(r, "head_dim", "must be hidden_size / num_attention_heads = %d",
            llm->hidden_size / llm->num_attention_heads);
  }
}

static void read_llm(reader *r, const json_t *document, hv_llm_config *llm) {
  const json_t *object = sub_mapping(r, document, "llm");
  if (!object) return;
  size_t before = r->count;
  const json_t *type = json_object_get(object, "model_type");
  if (type) read_constant(r, &hv_section_llm.fields[0], type);
  if (r->count != before) return; /* another architecture has other keys */
  read_section(r, &hv_section_llm, object, llm);
  if (r->count != before) return;
  int32_t heads = llm->num_attention_heads, kv_heads = llm->num_key_value_heads;
  if (llm->hidden_size % heads != 0) {
    problem(r, "num_attention_heads", "must divide hidden_size %d, which %d does not", llm->hidden_size, heads);
  } else if (llm->hidden_size / heads % 2 != 0) {
    problem(r, "num_attention_heads", "gives a head size of %d; rotary embeddings need an even size",
            llm->hidden_size / heads);
  }
  check_head_dim(r, "num_attention_heads", llm->hidden_size / heads);
  if (heads % kv_heads != 0) {
    problem(r, "num_key_value_heads", "must divide num_attention_heads %d, which %d does not", heads, kv_heads);
  }
  check_llm_extras(r, object, llm);
}

static void check_token_ids(reader *r, const hv_config *config) {
  int32_t vocabulary = config->llm.vocab_size;
  enter(r, "special_tokens", -1);
  for (int i = 0; i < hv_section_tokens.count; i++) {
    const hv_field *field = &hv_section_tokens.fields[i];
    int32_t id = *(const int32_t *)((const char *)config + field->offset);
    if (id >= vocabulary) problem(r, field->key, "must be below llm.vocab_size %d, not %d", vocabulary, id);
  }
  enter(r, "action_tokens", -1);
  if (config->action_base > vocabulary) {
    problem(r, "base", "must be at most llm.vocab_size %d, not %d: the action ids end at base - 1", vocabulary,
            config->action_base);
  }
  if (config->action_base < config->action_bins) {
    problem(r, "base", "must be at least bins (%d), not %d: the action ids begin at base - bins", config->action_bins,
            config->action_base);
  }
}

static void read_document(reader *r, const json_t *document, hv_config *config) {
  read_section(r, &hv_section_top, document, config);
  if (!json_object_get(document, "state_dim")) config->state_dim = config->action_dim;
  read_cameras(r, document, config);
  read_vision(r, document, config);
  read_llm(r, document, &config->llm);
  const json_t *object = sub_mapping(r, document, "diffusion");
  if (object) read_section(r, &hv_section_diffusion, object, config);
  object = sub_mapping(r, document, "action_tokens");
  if (object) read_section(r, &hv_section_action_tokens, object, config);
  object = sub_mapping(r, document, "special_tokens");
  if (object) read_section(r, &hv_section_tokens, object, config);
  if (r->count == 0) check_token_ids(r, config);
}

static void refuse_unknown(reader *r, const hv_section *section, const json_t *object) {
  const char *key;
  json_t *value;
  json_object_foreach((json_t *)(uintptr_t)object, key, value) {
    hv_nearest nearest = {.name = key};
    bool known = false;
    for (int i = 0; i < section->count && !known; i++) {
      known = strcmp(section->fields[i].key, key) == 0;
      hv_nearest_offer(&nearest, section->fields[i].key);
    }
    for (int i = 0; section->others[i] && !known; i++) {
      known = strcmp(section->others[i], key) == 0;
      hv_nearest_offer(&nearest, section->others[i]);
    }
    if (known) continue;
    problem(r, key, "is not a known key%s%s%s", nearest.best ? "; did you mean " : "", nearest.best ? nearest.best : "",
            nearest.best ? "?" : "");
  }
}

static void refuse_all_unknown(reader *r, const json_t *document) {
  static const struct {
    const char *key;
    const hv_section *section;
  } subs[] = {{"llm", &hv_section_llm},
              {"diffusion", &hv_section_diffusion},
              {"action_tokens", &hv_section_action_tokens},
              {"special_tokens", &hv_section_tokens}};
  enter(r, "", -1);
  refuse_unknown(r, &hv_section_top, document);
  size_t index;
  const json_t *tower;
  json_array_foreach(json_object_get(document, "vision"), index, tower) {
    enter(r, "vision", (int)(index < 1000 ? index : 1000));
    refuse_unknown(r, &hv_section_vision, tower);
  }
  for (size_t i = 0; i < sizeof subs / sizeof *subs; i++) {
    enter(r, subs[i].key, -1);
    refuse_unknown(r, subs[i].section, json_object_get(document, subs[i].key));
  }
  enter(r, "", -1);
}

/* Frees the reader; an error if there was any problem. */
static hv_status finish(reader *r) {
  hv_status status = HV_OK;
  if (r->count > 0) status = hv_error(HV_ERR_INPUT, "%s", hv_text_string(&r->problems));
  hv_text_free(&r->problems);
  return status;
}

hv_status hv_model_config_from_json(const json_t *document, const char *where, hv_unknown_keys unknown,
                                    hv_model_config *out) {
  *out = (hv_model_config){0};
  if (!json_is_object(document)) {
    return hv_error(HV_ERR_INPUT, "%s must hold a mapping, not %s", where, hv_json_kind(document));
  }
  reader r = {.where = where};
  read_document(&r, document, &out->config);
  if (unknown == HV_UNKNOWN_REFUSE) refuse_all_unknown(&r, document);
  hv_status status = finish(&r);
  if (!status) {
    out->document = json_deep_copy(document);
    if (!out->document) status = hv_error_memory(where);
  }
  if (status) *out = (hv_model_config){0};
  return status;
}

hv_status hv_model_config_load(const char *path, hv_model_config *out) {
  *out = (hv_model_config){0};
  json_t *document;
  HV_TRY(hv_json_load(path, &document));
  hv_status status = hv_model_config_from_json(document, path, HV_UNKNOWN_KEEP, out);
  json_decref(document);
  return status;
}

hv_status hv_model_config_override(const hv_model_config *base, const json_t *changes, const char *where,
                                   hv_model_config *out) {
  *out = (hv_model_config){0};
  if (!json_is_object(changes)) {
    return hv_error(HV_ERR_INPUT, "%s must hold a mapping, not %s", where, hv_json_kind(changes));
  }
  reader r = {.where = where};
  refuse_all_unknown(&r, changes);
  HV_TRY(finish(&r));
  json_t *merged = json_deep_copy(base->document);
  if (!merged || json_object_update_recursive(merged, (json_t *)(uintptr_t)changes) != 0) {
    json_decref(merged);
    return hv_error_memory(where);
  }
  /* The default of state_dim is action_dim, which may have changed. */
  if (!json_object_get(merged, "state_dim")) {
    int failed = json_object_set_new(merged, "state_dim", json_integer(base->config.state_dim));
    if (failed) {
      json_decref(merged);
      return hv_error_memory(where);
    }
  }
  hv_status status = hv_model_config_from_json(merged, where, HV_UNKNOWN_KEEP, out);
  json_decref(merged);
  if (status || json_object_get(changes, "vision")) return status;
  for (int i = 0; i < base->config.num_towers; i++) {
    out->config.vision[i].patch_bias = base->config.vision[i].patch_bias;
    out->config.vision[i].class_position = base->config.vision[i].class_position;
  }
  return HV_OK;
}

static json_t *choice_to_json(const hv_choice *choices, int32_t value) {
  for (; choices->name; choices++) {
    if (choices->value == value) return json_string(choices->name);
  }
  return NULL;
}

static json_t *field_to_json(const hv_field *field, const void *base) {
  const void *at = (const char *)base + field->offset;
  switch (field->kind) {
  case HV_FIELD_INT: return json_integer(*(const int32_t *)at);
  case HV_FIELD_REAL: return json_real(*(const double *)at);
  case HV_FIELD_BOOL: return json_boolean(*(const bool *)at);
  case HV_FIELD_CHOICE: return choice_to_json(field->choices, *(const int32_t *)at);
  case HV_FIELD_NAME: return json_string(at);
  case HV_FIELD_COLOUR: {
    const double *colour = at;
    return json_pack("[f, f, f]", colour[0], colour[1], colour[2]);
  }
  case HV_FIELD_CONSTANT: return json_string(field->choices[0].name);
  case HV_FIELD_TOKEN: {
    int32_t id = *(const int32_t *)at;
    return id < 0 ? json_null() : json_integer(id);
  }
  }
  return NULL;
}

static bool write_section(const hv_section *section, const void *base, json_t *object) {
  bool good = object != NULL;
  for (int i = 0; i < section->count && good; i++) {
    good = json_object_set_new(object, section->fields[i].key, field_to_json(&section->fields[i], base)) == 0;
  }
  return good;
}

/* The member of `object` as a mapping; one that is missing or not a mapping is replaced by an empty mapping. */
static json_t *mapping_at(json_t *object, const char *key) {
  if (!json_is_object(json_object_get(object, key))) json_object_set_new(object, key, json_object());
  return json_object_get(object, key);
}

static bool write_cameras(const hv_config *config, json_t *document) {
  json_t *cameras = json_array();
  bool good = true;
  for (int i = 0; i < config->num_cameras && good; i++) {
    good = json_array_append_new(cameras, json_string(config->cameras[i])) == 0;
  }
  return json_object_set_new(document, "cameras", cameras) == 0 && good;
}

static bool write_towers(const hv_config *config, json_t *document) {
  json_t *towers = json_object_get(document, "vision");
  if (json_array_size(towers) != (size_t)config->num_towers) {
    if (json_object_set_new(document, "vision", json_array()) != 0) return false;
    towers = json_object_get(document, "vision");
    for (int i = 0; i < config->num_towers; i++) {
      if (json_array_append_new(towers, json_object()) != 0) return false;
    }
  }
  for (int i = 0; i < config->num_towers; i++) {
    if (!write_section(&hv_section_vision, &config->vision[i], json_array_get(towers, (size_t)i))) return false;
  }
  return true;
}

hv_status hv_model_config_to_json(const hv_model_config *model, json_t **out) {
  const hv_config *config = &model->config;
  json_t *document = model->document ? json_deep_copy(model->document) : json_object();
  bool good = write_section(&hv_section_top, config, document) && write_cameras(config, document) &&
              write_towers(config, document) &&
              write_section(&hv_section_llm, &config->llm, mapping_at(document, "llm")) &&
              write_section(&hv_section_diffusion, config, mapping_at(document, "diffusion")) &&
              write_section(&hv_section_action_tokens, config, mapping_at(document, "action_tokens")) &&
              write_section(&hv_section_tokens, config, mapping_at(document, "special_tokens"));
  *out = good ? document : NULL;
  if (!good) json_decref(document);
  return good ? HV_OK : hv_error_memory("a model's configuration");
}

hv_status hv_model_config_save(const char *path, const hv_model_config *model) {
  json_t *document;
  HV_TRY(hv_model_config_to_json(model, &document));
  hv_status status = hv_json_save(path, document);
  json_decref(document);
  return status;
}

void hv_model_config_free(hv_model_config *model) {
  json_decref(model->document);
  *model = (hv_model_config){0};
}

const char *hv_objective_name(hv_objective objective) {
  return hv_objective_choices[objective].name;
}
