/* From an instruction to the prompt's token ids. */
#ifndef HV_TEXT_PROMPT_H
#define HV_TEXT_PROMPT_H

#include "core/hybridvla/config.h"
#include "core/text/tokenizer.h"

enum { HV_MAX_INSTRUCTION = 64 << 10 /* bytes */ };

/* Lower case as Python's str.lower gives it (full Unicode mapping, final sigma, no locale); *out on the heap. Invalid
 * UTF-8 is an error. */
HV_NODISCARD hv_status hv_lower_case(const char *text, size_t size, char **out);

/* "In: What action should the robot take to {instruction, lower case}?\nOut: ": with config.token_bos in front and
 * config.token_empty at the end.
 */
HV_NODISCARD hv_status hv_prompt_encode(const hv_tokenizer *tokenizer, const hv_config *config, const char *instruction,
                                        hv_token_list *out);

/* Whether the tokenizer's ids fit the model: its pieces must lie inside the vocabulary and leave <BOD>, <EOD> and <PAD>
 * to the model. `path` names the tokenizer in the error. */
HV_NODISCARD hv_status hv_prompt_check_tokenizer(const hv_tokenizer *tokenizer, const hv_config *config,
                                                 const char *path);

#endif
