#include "core/base/string_list.h"

#include <stdlib.h>
#include <string.h>

#include "core/base/text.h"

hv_status hv_string_list_append(hv_string_list *list, const char *item) {
  char **items = realloc(list->items, (list->count + 1) * sizeof *items);
  if (!items) return hv_error_memory("a list of strings");
  list->items = items;
  char *copy = strdup(item);
  if (!copy) return hv_error_memory("a list of strings");
  list->items[list->count++] = copy;
  return HV_OK;
}

void hv_string_list_free(hv_string_list *list) {
  for (size_t i = 0; i < list->count; i++) free(list->items[i]);
  free(list->items);
  *list = (hv_string_list){0};
}

bool hv_string_list_contains(const hv_string_list *list, const char *item) {
  for (size_t i = 0; i < list->count; i++) {
    if (strcmp(list->items[i], item) == 0) return true;
  }
  return false;
}

char *hv_string_list_join(const hv_string_list *list, size_t limit) {
  hv_text text = {0};
  for (size_t i = 0; i < list->count && i < limit; i++) hv_text_add(&text, "%s%s", i ? ", " : "", list->items[i]);
  if (list->count > limit) hv_text_add(&text, ", … (%zu in all)", list->count);
  if (list->count == 0) hv_text_add(&text, "none");
  if (text.failed) hv_text_free(&text);
  return text.data;
}
