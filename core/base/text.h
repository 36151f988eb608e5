/* A string that grows: messages that list several findings, help texts, JSON lines. */
#ifndef HV_BASE_TEXT_H
#define HV_BASE_TEXT_H

#include <stdbool.h>
#include <stddef.h>

#include "core/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Zero-initialise before use. `data` is NUL-terminated, or NULL while empty. Without memory, or where an addition
 * cannot be made, `failed` is set and later ones do nothing, so that a caller checks once at the end. */
typedef struct hv_text {
  char *data;
  size_t length, capacity;
  bool failed;
} hv_text;

void hv_text_add(hv_text *text, const char *format, ...) HV_PRINTF(2, 3);
void hv_text_add_list(hv_text *text, const char *format, va_list args) HV_PRINTF(2, 0); /* as vprintf to printf */
void hv_text_add_bytes(hv_text *text, const char *bytes, size_t size);
void hv_text_free(hv_text *text); /* leaves it empty and usable */

/* The string, or "" while empty; valid until the next addition. */
static inline const char *hv_text_string(const hv_text *text) {
  return text->data ? text->data : "";
}

#ifdef __cplusplus
}
#endif

#endif
