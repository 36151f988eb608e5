#include <stdlib.h>
#include <string.h>

#include <unicase.h>
#include <unictype.h>
#include <unistr.h>

#include "core/base/text.h"
#include "core/text/prompt.h"

enum { SIGMA_SIZE = 2 /* bytes of UTF-8, of all three */ };

static const char capital_sigma[] = "\xce\xa3", small_sigma[] = "\xcf\x83", final_sigma[] = "\xcf\x82";

/* The first code point from `at` on (or, backwards, before it) that is not case-ignorable; 0 at the end of the text. */
static ucs4_t neighbour(const uint8_t *text, size_t size, const uint8_t *at, bool backwards) {
  ucs4_t c;
  const uint8_t *end = text + size;
  for (;;) {
    if (backwards) {
      at = u8_prev(&c, at, text);
      if (!at) return 0;
    } else {
      if (at == end) return 0;
      at += u8_mbtouc_unsafe(&c, at, (size_t)(end - at));
    }
    if (!uc_is_property(c, UC_PROPERTY_CASE_IGNORABLE)) return c;
  }
}

/* Unicode's Final_Sigma: a cased letter comes before it, and none after it. u8_tolower has this rule too, but takes
 * modifier letters and the apostrophe differently from Unicode's definition, which Python follows. */
static bool is_final(const uint8_t *text, size_t size, const uint8_t *sigma) {
  return uc_is_property(neighbour(text, size, sigma, true), UC_PROPERTY_CASED) &&
         !uc_is_property(neighbour(text, size, sigma + SIGMA_SIZE, false), UC_PROPERTY_CASED);
}

static const uint8_t *find_sigma(const uint8_t *from, const uint8_t *end) {
  const uint8_t *found = memmem(from, (size_t)(end - from), capital_sigma, SIGMA_SIZE);
  return found ? found : end;
}

/* Text without a capital sigma: no other letter's lower case depends on its neighbours, and without a language none
 * depends on the user's locale. */
static hv_status add_lower(const uint8_t *text, size_t size, hv_text *out) {
  size_t length;
  uint8_t *lower = u8_tolower(text, size, NULL, NULL, NULL, &length);
  if (!lower) return hv_error_memory("a text");
  hv_text_add_bytes(out, (const char *)lower, length);
  free(lower);
  return HV_OK;
}

hv_status hv_lower_case(const char *text, size_t size, char **out) {
  *out = NULL;
  const uint8_t *bytes = (const uint8_t *)text, *end = bytes + size;
  const uint8_t *bad = u8_check(bytes, size);
  if (bad) return hv_error(HV_ERR_INPUT, "text must be UTF-8; byte %td is not", bad - bytes);
  hv_text lower = {0};
  hv_status status = HV_OK;
  for (const uint8_t *at = bytes; !status; at += SIGMA_SIZE) {
    const uint8_t *sigma = find_sigma(at, end);
    status = add_lower(at, (size_t)(sigma - at), &lower);
    at = sigma;
    if (sigma == end) break;
    hv_text_add_bytes(&lower, is_final(bytes, size, sigma) ? final_sigma : small_sigma, SIGMA_SIZE);
  }
  if (!status && lower.failed) status = hv_error_memory("a text");
  if (status) {
    hv_text_free(&lower);
    return status;
  }
  *out = lower.data;
  return HV_OK;
}
