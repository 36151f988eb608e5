#include "core/io/options.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/nearest.h"
#include "core/io/option_value.h"

enum { KEY_SIZE = 256 };

typedef struct parser {
  const hv_option *table;
  size_t count;
  const char *where;
  const char *const *sets;
  size_t num_sets;
  hv_text problems; /* one a line */
  size_t num_problems;
} parser;

static void add_problem(parser *p, const char *source, const char *key, const char *problem) {
  hv_text_add(&p->problems, "%s%s: %s%s%s", p->num_problems++ ? "\n" : "", source, key, *key ? " " : "", problem);
}

/* Takes the status. Memory errors count as problems too: the caller ends with an error either way. */
static void add_status(parser *p, const char *source, const char *key, hv_status status) {
  if (status) add_problem(p, source, key, hv_status_message(status));
  hv_status_free(status);
}

static bool is_below(const char *key, const char *parent) {
  size_t length = strlen(parent);
  return strncmp(key, parent, length) == 0 && key[length] == '.';
}

/* Whether the value is a mapping whose keys are not in the table. */
static bool holds_mapping(const hv_option *option) {
  return option->type == HV_OPTION_OPAQUE || option->type == HV_OPTION_STRING_MAP ||
         option->type == HV_OPTION_NUMBER_MAP;
}

/* The option that `key` names, or in whose mapping it lies. */
static const hv_option *find_option(const parser *p, const char *key) {
  for (size_t i = 0; i < p->count; i++) {
    const hv_option *option = &p->table[i];
    if (strcmp(option->key, key) == 0 || (holds_mapping(option) && is_below(key, option->key))) return option;
  }
  return NULL;
}

static bool is_section(const parser *p, const char *key) {
  for (size_t i = 0; i < p->count; i++) {
    if (is_below(p->table[i].key, key)) return true;
  }
  return false;
}

/* The first words of a dotted key, as many as `like` has. */
static void same_depth(const char *key, const char *like, char out[KEY_SIZE]) {
  const char *end = key + strcspn(key, ".");
  for (const char *dot = strchr(like, '.'); dot && *end; dot = strchr(dot + 1, '.')) end += 1 + strcspn(end + 1, ".");
  snprintf(out, KEY_SIZE, "%.*s", (int)(end - key), key);
}

static const char *last_word(const char *key) {
  const char *dot = strrchr(key, '.');
  return dot ? dot + 1 : key;
}

/* Suggests a key with the same last word in another section, else the section or key of the same depth with the nearest
 * spelling. */
static void suggest(const parser *p, const char *key, char out[KEY_SIZE]) {
  out[0] = '\0';
  for (size_t i = 0; i < p->count; i++) {
    if (strcmp(last_word(p->table[i].key), last_word(key)) != 0) continue;
    snprintf(out, KEY_SIZE, "%s", p->table[i].key);
    return;
  }
  char candidate[KEY_SIZE];
  hv_nearest nearest = {.name = key};
  for (size_t i = 0; i < p->count; i++) {
    same_depth(p->table[i].key, key, candidate);
    int before = nearest.best ? nearest.distance : INT_MAX;
    hv_nearest_offer(&nearest, candidate);
    if (nearest.best && nearest.distance < before) memcpy(out, candidate, KEY_SIZE);
  }
}

static void add_unknown(parser *p, const char *source, const char *key) {
  char nearest[KEY_SIZE];
  suggest(p, key, nearest);
  hv_text problem = {0};
  hv_text_add(&problem, "is not a known key");
  if (*nearest) hv_text_add(&problem, "; did you mean %s?", nearest);
  add_problem(p, source, key, hv_text_string(&problem));
  hv_text_free(&problem);
}

/* Refuses a dotted name: mappings of a document are nested, so nothing would look it up. */
static void add_dotted(parser *p, const char *key, const char *name) {
  size_t length = strcspn(name, ".");
  hv_text problem = {0};
  hv_text_add(&problem, "has a dot, which only --set allows; write it as a mapping, %.*s: {%s: …}", (int)length, name,
              name + length + 1);
  add_problem(p, p->where, key, hv_text_string(&problem));
  hv_text_free(&problem);
}

/* Reports every key of the document that is not in the table. */
static void check_known(parser *p, const json_t *mapping, const char *prefix) {
  const char *name;
  json_t *member;
  json_object_foreach((json_t *)(uintptr_t)mapping, name, member) {
    char key[KEY_SIZE];
    int length = snprintf(key, sizeof key, "%s%s%s", prefix, *prefix ? "." : "", name);
    if (length < 0 || (size_t)length >= sizeof key) {
      add_problem(p, p->where, "", "holds a key of more than 255 bytes");
    } else if (strchr(name, '.')) {
      add_dotted(p, key, name);
    } else if (find_option(p, key)) {
      continue;
    } else if (!is_section(p, key)) {
      add_unknown(p, p->where, key);
    } else if (json_is_object(member)) {
      check_known(p, member, key);
    } else if (!json_is_null(member)) {
      add_problem(p, p->where, key, "must be a mapping");
    }
  }
}

static const json_t *look_up(const json_t *document, const char *key) {
  char copy[KEY_SIZE];
  snprintf(copy, sizeof copy, "%s", key);
  char *rest = copy;
  for (const char *word = strsep(&rest, "."); word; word = strsep(&rest, "."))
    document = json_object_get(document, word);
  return document;
}

/* A list's index as a word of a key. */
static bool read_index(const char *word, size_t *out) {
  char *end;
  *out = strtoul(word, &end, 10);
  return *word >= '0' && *word <= '9' && *end == '\0';
}

/* The member `word` of a mapping, or item `word` of a list. A member that is neither a mapping nor a list is replaced
 * by an empty mapping. */
static json_t *descend(json_t *parent, const char *word) {
  size_t index;
  if (json_is_array(parent)) return read_index(word, &index) ? json_array_get(parent, index) : NULL;
  json_t *member = json_object_get(parent, word);
  if (json_is_object(member) || json_is_array(member)) return member;
  if (json_object_set_new(parent, word, json_object()) != 0) return NULL;
  return json_object_get(parent, word);
}

/* Takes the value. False if the key leads to a missing list item or into a value that is not a mapping. */
static bool put(json_t *document, const char *key, json_t *value) {
  char copy[KEY_SIZE];
  snprintf(copy, sizeof copy, "%s", key);
  char *rest = copy;
  json_t *at = document;
  const char *word = strsep(&rest, ".");
  for (; rest && at; word = strsep(&rest, ".")) at = descend(at, word);
  size_t index;
  if (json_is_array(at) && read_index(word, &index)) return json_array_set_new(at, index, value) == 0;
  if (json_is_object(at)) return json_object_set_new(at, word, value) == 0;
  json_decref(value);
  return false;
}

static bool is_quoted(const char *text) {
  size_t length = strlen(text);
  return length >= 2 && (*text == '"' || *text == '\'') && text[length - 1] == *text;
}

static void apply_set(parser *p, json_t *document, const char *set) {
  const char *equals = strchr(set, '=');
  size_t length = equals ? (size_t)(equals - set) : 0;
  if (length == 0 || length >= KEY_SIZE) {
    add_problem(p, "--set", set, "must be written key=value");
    return;
  }
  char key[KEY_SIZE];
  memcpy(key, set, length);
  key[length] = '\0';
  const hv_option *option = find_option(p, key);
  if (!option) {
    if (is_section(p, key)) {
      add_problem(p, "--set", key, "is a section; set one of its keys");
    } else {
      add_unknown(p, "--set", key);
    }
    return;
  }
  json_t *value = NULL;
  static const hv_option inner = {.key = "", .type = HV_OPTION_OPAQUE};
  bool typed = strcmp(option->key, key) == 0 && !is_quoted(equals + 1);
  hv_status status = hv_option_text_to_json(typed ? option : &inner, equals + 1, &value);
  if (status) {
    add_status(p, "--set", key, status);
  } else if (!put(document, key, value)) {
    add_problem(p, "--set", key, "names a missing list item, or a key inside a value that is not a mapping");
  }
}

/* The source of an option's value, for messages: `--set` if one sets it or a part of it, else the document. */
static const char *source_of(const parser *p, const hv_option *option) {
  size_t length = strlen(option->key);
  for (size_t i = p->num_sets; i > 0; i--) {
    const char *set = p->sets[i - 1];
    if (strncmp(set, option->key, length) == 0 && (set[length] == '=' || set[length] == '.')) return "--set";
  }
  return p->where;
}

static void fill(parser *p, const json_t *document, void *out) {
  for (size_t i = 0; i < p->count; i++) {
    const hv_option *option = &p->table[i];
    const json_t *value = look_up(document, option->key);
    if (value) {
      add_status(p, source_of(p, option), option->key, hv_option_set(option, value, out));
    } else if (option->fallback) {
      add_status(p, "default", option->key, hv_option_set_text(option, option->fallback, out));
    } else {
      hv_text problem = {0};
      hv_text_add(&problem, "is missing; it must be ");
      hv_option_describe(option, &problem);
      add_problem(p, p->where, option->key, hv_text_string(&problem));
      hv_text_free(&problem);
    }
  }
}

hv_status hv_options_parse(const hv_option *table, size_t count, const json_t *document, const char *where,
                           const char *const *sets, size_t num_sets, void *out) {
  parser p = {.table = table, .count = count, .where = where, .sets = sets, .num_sets = num_sets};
  for (size_t i = 0; i < count; i++) hv_option_zero(&table[i], out);
  json_t *merged = document ? json_deep_copy(document) : json_object();
  if (!merged) return hv_error_memory(where);
  check_known(&p, merged, "");
  for (size_t i = 0; i < num_sets; i++) apply_set(&p, merged, sets[i]);
  fill(&p, merged, out);
  json_decref(merged);
  hv_status status = HV_OK;
  if (p.num_problems > 0) {
    status = hv_error(HV_ERR_INPUT, "%s", hv_text_string(&p.problems));
    hv_options_free(table, count, out);
  }
  hv_text_free(&p.problems);
  return status;
}

void hv_options_free(const hv_option *table, size_t count, void *values) {
  for (size_t i = 0; i < count; i++) hv_option_clear(&table[i], values);
}

hv_status hv_options_to_json(const hv_option *table, size_t count, const void *values, json_t **out) {
  json_t *document = json_object();
  *out = NULL;
  if (!document) return hv_error_memory("a configuration");
  for (size_t i = 0; i < count; i++) {
    json_t *value = hv_option_get(&table[i], values);
    if (table[i].type == HV_OPTION_OPAQUE && json_is_null(value)) continue;
    if (value && put(document, table[i].key, value)) continue;
    json_decref(document);
    return hv_error_memory("a configuration");
  }
  *out = document;
  return HV_OK;
}

void hv_options_document(const hv_option *table, size_t count, hv_text *out) {
  hv_text_add(out, "| key | value | default | meaning |\n|---|---|---|---|\n");
  for (size_t i = 0; i < count; i++) {
    const hv_option *option = &table[i];
    hv_text_add(out, "| `%s` | ", option->key);
    hv_option_describe(option, out);
    if (option->unit) hv_text_add(out, " (%s)", option->unit);
    hv_text_add(out, option->fallback ? " | `%s` | " : " | required%s | ", option->fallback ? option->fallback : "");
    hv_text_add(out, "%s |\n", option->doc);
  }
}
