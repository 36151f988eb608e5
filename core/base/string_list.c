#include "core/base/string_list.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/text.h"

/* Takes ownership of `item`; NULL means that there was no memory for it. */
static hv_status append_owned(hv_string_list *list, char *item) {
  char **items = item ? realloc(list->items, (list->count + 1) * sizeof *items) : NULL;
  if (!items) {
    free(item);
    return hv_error_memory("a list of strings");
  }
  list->items = items;
  list->items[list->count++] = item;
  return HV_OK;
}

hv_status hv_string_list_append(hv_string_list *list, const char *item) {
  return append_owned(list, strdup(item));
}

hv_status hv_string_list_append_format(hv_string_list *list, const char *format, ...) {
  char *item;
  va_list arguments;
  va_start(arguments, format);
  if (vasprintf(&item, format, arguments) < 0) item = NULL;
  va_end(arguments);
  return append_owned(list, item);
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
