/* The SentencePiece tokenizer of Llama models (tokenizer.model), behind a C interface. */
#ifndef HV_TEXT_TOKENIZER_H
#define HV_TEXT_TOKENIZER_H

#include <stddef.h>
#include <stdint.h>

#include "core/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct hv_tokenizer hv_tokenizer;

typedef struct hv_token_list {
  int32_t *ids; /* owned, freed by hv_token_list_free */
  size_t count;
} hv_token_list;

/* A handle may be used from several threads. */
HV_NODISCARD hv_status hv_tokenizer_open(const char *path, hv_tokenizer **out);
void hv_tokenizer_close(hv_tokenizer *tokenizer); /* NULL is allowed */

int32_t hv_tokenizer_size(const hv_tokenizer *tokenizer); /* pieces */

/* Ids of UTF-8 text, nothing added in front or behind; text that looks like a special token is plain text. Bytes that
 * are no valid UTF-8 count as U+FFFD; hv_prompt_encode refuses them. */
HV_NODISCARD hv_status hv_tokenizer_encode(const hv_tokenizer *tokenizer, const char *text, size_t size,
                                           hv_token_list *out);

/* The piece of an id ("▁robot"), valid as long as the tokenizer; NULL outside [0, size). */
const char *hv_tokenizer_piece(const hv_tokenizer *tokenizer, int32_t id);

void hv_token_list_free(hv_token_list *list); /* leaves it empty */

#ifdef __cplusplus
}
#endif

#endif
