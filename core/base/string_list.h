/* A list of strings on the heap. */
#ifndef HV_BASE_STRING_LIST_H
#define HV_BASE_STRING_LIST_H

#include <stdbool.h>
#include <stddef.h>

#include "core/base/status.h"

/* Zero-initialise before use. */
typedef struct hv_string_list {
  char **items; /* owned, NULL if empty */
  size_t count;
} hv_string_list;

HV_NODISCARD hv_status hv_string_list_append(hv_string_list *list, const char *item); /* copies the item */
HV_NODISCARD hv_status hv_string_list_append_format(hv_string_list *list, const char *format, ...) HV_PRINTF(2, 3);
void hv_string_list_free(hv_string_list *list); /* leaves it empty and usable */
bool hv_string_list_contains(const hv_string_list *list, const char *item);

/* "a, b, c" on the heap for a message; beyond `limit` items ", … (N in all)"; "none" while empty; NULL without memory.
 */
char *hv_string_list_join(const hv_string_list *list, size_t limit);

#endif
