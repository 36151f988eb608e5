#include "core/text/prompt.h"

#include <stdlib.h>
#include <string.h>

#include "core/base/text.h"

/* Puts `<s>` in front, and `empty` at the end unless the text already ends in it. */
static hv_status frame(const hv_token_list *inner, const hv_config *config, hv_token_list *out) {
  out->ids = malloc((inner->count + 2) * sizeof *out->ids);
  if (!out->ids) return hv_error_memory("token ids");
  out->ids[0] = config->token_bos;
  memcpy(out->ids + 1, inner->ids, inner->count * sizeof *out->ids);
  out->count = inner->count + 1;
  if (config->token_empty >= 0 && out->ids[out->count - 1] != config->token_empty) {
    out->ids[out->count++] = config->token_empty;
  }
  return HV_OK;
}

hv_status hv_prompt_encode(const hv_tokenizer *tokenizer, const hv_config *config, const char *instruction,
                           hv_token_list *out) {
  *out = (hv_token_list){0};
  size_t size = strlen(instruction);
  if (size > HV_MAX_INSTRUCTION) {
    return hv_error(HV_ERR_INPUT, "the instruction has %zu bytes; at most %d are allowed", size, HV_MAX_INSTRUCTION);
  }
  char *lower;
  HV_TRY(hv_error_context(hv_lower_case(instruction, size, &lower), "the instruction"));
  hv_text prompt = {0};
  hv_token_list inner = {0};
  hv_text_add(&prompt, "In: What action should the robot take to %s?\nOut: ", lower);
  free(lower);
  hv_status status = HV_OK;
  if (prompt.failed) {
    status = hv_error_memory("a prompt");
    goto done;
  }
  HV_CHECK(hv_tokenizer_encode(tokenizer, prompt.data, prompt.length, &inner));
  for (size_t i = 0; i < inner.count; i++) {
    if (inner.ids[i] < config->llm.vocab_size) continue;
    status = hv_error(
        HV_ERR_INPUT,
        "the instruction has token id %d, but the model's vocabulary has %d ids: the tokenizer is not this model's",
        inner.ids[i], config->llm.vocab_size);
    goto done;
  }
  status = frame(&inner, config, out);
done:
  hv_token_list_free(&inner);
  hv_text_free(&prompt);
  return status;
}

hv_status hv_prompt_check_tokenizer(const hv_tokenizer *tokenizer, const hv_config *config, const char *path) {
  int32_t size = hv_tokenizer_size(tokenizer);
  if (size > config->llm.vocab_size) {
    return hv_error(HV_ERR_INPUT, "%s has %d pieces, but the model's llm.vocab_size is %d", path, size,
                    config->llm.vocab_size);
  }
  if (config->token_bod < size || config->token_eod < size || config->token_pad < size) {
    return hv_error(HV_ERR_INPUT,
                    "%s has %d pieces, so special_tokens pad %d, bod %d and eod %d must be at least %d: no text may "
                    "contain them",
                    path, size, config->token_pad, config->token_bod, config->token_eod, size);
  }
  if (config->token_empty >= size) {
    return hv_error(HV_ERR_INPUT, "%s has %d pieces, so special_tokens.empty must be below that, not %d", path, size,
                    config->token_empty);
  }
  return HV_OK;
}
