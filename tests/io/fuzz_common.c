#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/file.h"
#include "tests/io/fuzz.h"

void fuzz_fail(const char *condition, const char *file, int line) {
  fprintf(stderr, "%s:%d: the parser broke a promise: %s is false\n", file, line, condition);
  abort();
}

bool fuzz_seed_text(const char *text, uint8_t **data, size_t *size) {
  *size = strlen(text);
  *data = (uint8_t *)strdup(text);
  FUZZ_CHECK(*data);
  return true;
}

bool fuzz_seed_file(const char *path, uint8_t **data, size_t *size) {
  char *text;
  hv_status status = hv_read_text(path, 1 << 24, &text, size);
  FUZZ_CHECK(!status);
  *data = (uint8_t *)text;
  return true;
}
