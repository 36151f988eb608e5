/* Writes small model directories, for tests of the programs and the library. */
#ifndef HV_TESTS_INFER_TINY_DIRECTORY_H
#define HV_TESTS_INFER_TINY_DIRECTORY_H

#include <stdint.h>

enum { TINY_ACTIONS = 7, TINY_CHUNK = 2, TINY_STATE = 5, TINY_IMAGE = 28, TINY_VALUES = TINY_ACTIONS * TINY_CHUNK };
enum { TINY_ACTION_BASE = 1000 };

#define TINY_TOKENIZER HVLA_SOURCE_DIR "/data/tokenizer/llama2-tokenizer.model"

typedef struct tiny_directory_options {
  const char *objective; /* NULL: hybrid */
  int32_t keys;          /* number of data sets in the statistics: 1 ("lift") or 2 ("lift", "drawer") */
  int32_t no_state;      /* the model takes no state */
  int32_t not_finite;    /* the noise head's bias is NaN */
  int32_t small;         /* 1,024 tokens instead of the real 32,064, which make up nearly all of the model */
} tiny_directory_options;

/* Writes a model directory at `path`: cameras front and wrist, random weights, gripper in the last dimension. Ends the
 * program with a message if that fails. */
void write_tiny_directory(const char *path, const tiny_directory_options *options);

#endif
