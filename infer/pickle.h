/* The few opcodes of Python's pickle, protocol 2, that a file of tensors needs: written, and read back as exactly that.
 *
 *   opcode       byte  argument                      puts on the stack
 *   PROTO        \x80  version: 2                    nothing; begins the pickle
 *   EMPTY_DICT   }                                   {}
 *   EMPTY_TUPLE  )                                   ()
 *   MARK         (                                   a mark
 *   SETITEMS     u     key, value, … from the mark   the dictionary below the mark with them in it
 *   TUPLE        t     values from the mark          a tuple of them
 *   BINUNICODE   X     u32 length, UTF-8             a string
 *   BININT1      K     u8                            an integer
 *   BININT2      M     u16                           an integer
 *   BININT       J     i32                           an integer
 *   LONG1        \x8a  u8 length, two's complement   an integer
 *   NEWFALSE     \x89                                False
 *   GLOBAL       c     "module\nname\n"              a function or class by its name
 *   BINPERSID    Q     an identifier                 what the reader keeps under it
 *   REDUCE       R     callable, arguments           its result
 *   STOP         .                                   nothing; ends the pickle
 *
 * Numbers are little-endian. There is no memo: the pickle holds nothing twice that a memo could refer to.
 */
#ifndef HV_INFER_PICKLE_H
#define HV_INFER_PICKLE_H

#include <stdint.h>

#include "core/base/text.h"

typedef enum hv_pickle_op {
  HV_PICKLE_EMPTY_DICT = '}',
  HV_PICKLE_EMPTY_TUPLE = ')',
  HV_PICKLE_MARK = '(',
  HV_PICKLE_SETITEMS = 'u',
  HV_PICKLE_TUPLE = 't',
  HV_PICKLE_NEWFALSE = 0x89,
  HV_PICKLE_BINPERSID = 'Q',
  HV_PICKLE_REDUCE = 'R',
  HV_PICKLE_STOP = '.',
} hv_pickle_op;

/* Writing: bytes are added to the text, whose `failed` tells at the end whether there was memory. */
void hv_pickle_begin(hv_text *out);
void hv_pickle_add(hv_text *out, hv_pickle_op op);
void hv_pickle_add_string(hv_text *out, const char *string);
void hv_pickle_add_integer(hv_text *out, int64_t value);
void hv_pickle_add_global(hv_text *out, const char *module, const char *name);

/* Reading: each call reads the item that must come next. HV_ERR_INPUT gives the byte at which something else was found.
 */
typedef struct hv_pickle_reader {
  const uint8_t *data;
  size_t size, at;
} hv_pickle_reader;

HV_NODISCARD hv_status hv_pickle_read_begin(hv_pickle_reader *reader);
HV_NODISCARD hv_status hv_pickle_read(hv_pickle_reader *reader, hv_pickle_op op);
/* *out, on the heap, is the caller's. A string with a NUL in it is refused. */
HV_NODISCARD hv_status hv_pickle_read_string(hv_pickle_reader *reader, char **out);
HV_NODISCARD hv_status hv_pickle_expect_string(hv_pickle_reader *reader, const char *string);
HV_NODISCARD hv_status hv_pickle_read_integer(hv_pickle_reader *reader, int64_t *out);
HV_NODISCARD hv_status hv_pickle_expect_global(hv_pickle_reader *reader, const char *module, const char *name);

#endif
