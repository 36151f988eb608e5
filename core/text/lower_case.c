#include <stdlib.h>
#include <string.h>

#include <unicase.h>
#include <unistr.h>

#include "core/text/prompt.h"

hv_status hv_lower_case(const char *text, size_t size, char **out) {
  *out = NULL;
  const uint8_t *bytes = (const uint8_t *)text;
  const uint8_t *bad = u8_check(bytes, size);
  if (bad) return hv_error(HV_ERR_INPUT, "text must be UTF-8; byte %td is not", bad - bytes);
  size_t length = 0;
  /* Without a language the mapping does not depend on the user's locale; without a normalisation form code points
   * that have no lower case stay as they are. */
  uint8_t *lower = u8_tolower(bytes, size, NULL, NULL, NULL, &length);
  if (!lower) return hv_error_memory("a text");
  uint8_t *terminated = realloc(lower, length + 1);
  if (!terminated) {
    free(lower);
    return hv_error_memory("a text");
  }
  terminated[length] = '\0';
  *out = (char *)terminated;
  return HV_OK;
}
