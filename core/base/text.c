#include "core/base/text.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Makes room for `more` bytes and a NUL. */
static bool reserve(hv_text *text, size_t more) {
  if (text->failed) return false;
  size_t needed = text->length + more + 1;
  if (needed <= text->capacity) return true;
  size_t capacity = text->capacity ? text->capacity : 64;
  while (capacity < needed) capacity *= 2;
  char *data = realloc(text->data, capacity);
  if (!data) {
    text->failed = true;
    return false;
  }
  text->data = data;
  text->capacity = capacity;
  return true;
}

void hv_text_add_list(hv_text *text, const char *format, va_list args) {
  va_list measure;
  va_copy(measure, args);
  int length = vsnprintf(NULL, 0, format, measure);
  va_end(measure);
  if (length < 0) text->failed = true; /* more than INT_MAX bytes, say */
  if (length < 0 || !reserve(text, (size_t)length)) return;
  vsnprintf(text->data + text->length, (size_t)length + 1, format, args);
  text->length += (size_t)length;
}

void hv_text_add(hv_text *text, const char *format, ...) {
  va_list args;
  va_start(args, format);
  hv_text_add_list(text, format, args);
  va_end(args);
}

void hv_text_add_bytes(hv_text *text, const char *bytes, size_t size) {
  if (!reserve(text, size)) return;
  if (size > 0) memcpy(text->data + text->length, bytes, size);
  text->length += size;
  text->data[text->length] = '\0';
}

void hv_text_free(hv_text *text) {
  free(text->data);
  *text = (hv_text){0};
}
