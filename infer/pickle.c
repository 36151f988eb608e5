#include "infer/pickle.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
  PROTO = 0x80,
  PROTOCOL = 2,
  BINUNICODE = 'X',
  BININT1 = 'K',
  BININT2 = 'M',
  BININT = 'J',
  LONG1 = 0x8a,
  GLOBAL = 'c'
};

static void add_number(hv_text *out, uint64_t value, int bytes) {
  char little[8];
  for (int i = 0; i < bytes; i++) little[i] = (char)(value >> (8 * i));
  hv_text_add_bytes(out, little, (size_t)bytes);
}

void hv_pickle_begin(hv_text *out) {
  add_number(out, PROTO, 1);
  add_number(out, PROTOCOL, 1);
}

void hv_pickle_add(hv_text *out, hv_pickle_op op) {
  add_number(out, op, 1);
}

void hv_pickle_add_string(hv_text *out, const char *string) {
  size_t length = strlen(string);
  add_number(out, BINUNICODE, 1);
  add_number(out, length, 4);
  hv_text_add_bytes(out, string, length);
}

void hv_pickle_add_integer(hv_text *out, int64_t value) {
  if (value >= 0 && value <= UINT8_MAX) {
    add_number(out, BININT1, 1);
    add_number(out, (uint64_t)value, 1);
  } else if (value >= 0 && value <= UINT16_MAX) {
    add_number(out, BININT2, 1);
    add_number(out, (uint64_t)value, 2);
  } else if (value >= INT32_MIN && value <= INT32_MAX) {
    add_number(out, BININT, 1);
    add_number(out, (uint64_t)value, 4);
  } else {
    add_number(out, LONG1, 1);
    add_number(out, 8, 1);
    add_number(out, (uint64_t)value, 8);
  }
}

void hv_pickle_add_global(hv_text *out, const char *module, const char *name) {
  hv_text_add(out, "c%s\n%s\n", module, name);
}

/* `found` is the byte before reader->at. */
static hv_status unexpected(const hv_pickle_reader *reader, int found, const char *wanted) {
  return hv_error(HV_ERR_INPUT, "the pickle has opcode 0x%02x at byte %zu, where %s is expected", found, reader->at - 1,
                  wanted);
}

static hv_status read_number(hv_pickle_reader *reader, int bytes, uint64_t *out) {
  if (reader->size - reader->at < (size_t)bytes)
    return hv_error(HV_ERR_INPUT, "the pickle ends at byte %zu", reader->size);
  *out = 0;
  for (int i = 0; i < bytes; i++) *out |= (uint64_t)reader->data[reader->at++] << (8 * i);
  return HV_OK;
}

hv_status hv_pickle_read_begin(hv_pickle_reader *reader) {
  uint64_t version;
  HV_TRY(read_number(reader, 2, &version));
  if (version != (PROTO | PROTOCOL << 8))
    return hv_error(HV_ERR_INPUT, "it does not begin as a pickle of protocol %d", PROTOCOL);
  return HV_OK;
}

hv_status hv_pickle_read(hv_pickle_reader *reader, hv_pickle_op op) {
  uint64_t found;
  char wanted[16];
  HV_TRY(read_number(reader, 1, &found));
  snprintf(wanted, sizeof wanted, "0x%02x", (unsigned)op);
  return found == op ? HV_OK : unexpected(reader, (int)found, wanted);
}

hv_status hv_pickle_read_string(hv_pickle_reader *reader, char **out) {
  uint64_t found, length;
  *out = NULL;
  HV_TRY(read_number(reader, 1, &found));
  if (found != BINUNICODE) return unexpected(reader, (int)found, "a string");
  HV_TRY(read_number(reader, 4, &length));
  if (length > reader->size - reader->at) return hv_error(HV_ERR_INPUT, "the pickle ends inside a string");
  const char *string = (const char *)reader->data + reader->at;
  if (memchr(string, 0, length)) return hv_error(HV_ERR_INPUT, "the pickle has a string with a NUL in it");
  reader->at += length;
  *out = strndup(string, length);
  return *out ? HV_OK : hv_error_memory("a string");
}

/* Compares a string that was read with the expected one, and frees it. */
static hv_status take_expected(char *found, const char *wanted) {
  hv_status status = HV_OK;
  if (strcmp(found, wanted) != 0)
    status = hv_error(HV_ERR_INPUT, "the pickle has %s where %s is expected", found, wanted);
  free(found);
  return status;
}

hv_status hv_pickle_expect_string(hv_pickle_reader *reader, const char *string) {
  char *found;
  HV_TRY(hv_pickle_read_string(reader, &found));
  return take_expected(found, string);
}

hv_status hv_pickle_read_integer(hv_pickle_reader *reader, int64_t *out) {
  uint64_t found, value, length;
  HV_TRY(read_number(reader, 1, &found));
  switch (found) {
  case BININT1: HV_TRY(read_number(reader, 1, &value)); break;
  case BININT2: HV_TRY(read_number(reader, 2, &value)); break;
  case BININT:
    HV_TRY(read_number(reader, 4, &value));
    value = (uint64_t)(int64_t)(int32_t)(uint32_t)value;
    break;
  case LONG1:
    HV_TRY(read_number(reader, 1, &length));
    if (length != 8)
      return hv_error(HV_ERR_INPUT, "the pickle has an integer of %" PRIu64 " bytes; 8 are expected", length);
    HV_TRY(read_number(reader, 8, &value));
    break;
  default: return unexpected(reader, (int)found, "an integer");
  }
  *out = (int64_t)value;
  return HV_OK;
}

/* The rest of a line, without its end; on the heap. */
static hv_status read_line(hv_pickle_reader *reader, char **out) {
  const char *line = (const char *)reader->data + reader->at;
  const char *end = memchr(line, '\n', reader->size - reader->at);
  *out = NULL;
  if (!end) return hv_error(HV_ERR_INPUT, "the pickle ends inside a name");
  reader->at += (size_t)(end - line) + 1;
  *out = strndup(line, (size_t)(end - line));
  return *out ? HV_OK : hv_error_memory("a name");
}

hv_status hv_pickle_expect_global(hv_pickle_reader *reader, const char *module, const char *name) {
  uint64_t found;
  char *line;
  HV_TRY(read_number(reader, 1, &found));
  if (found != GLOBAL) return unexpected(reader, (int)found, module);
  HV_TRY(read_line(reader, &line));
  HV_TRY(take_expected(line, module));
  HV_TRY(read_line(reader, &line));
  return take_expected(line, name);
}
