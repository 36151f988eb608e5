/* Actions as tokens: 256 edges over [−1, 1] make 255 intervals; ids count down from a base (config.json's
 * action_tokens.base; 32000, the number of pieces of Llama's tokenizer). */
#ifndef HV_HYBRIDVLA_ACTION_TOKENS_H
#define HV_HYBRIDVLA_ACTION_TOKENS_H

#include <stdint.h>

/* base − n, where n of the `bins` edges linspace(−1, 1, bins), in double, are <= clip(action, −1, 1). */
int32_t hv_action_token(double action, int32_t base, int32_t bins);

/* The centre of the bin clip(base − token − 1, 0, bins − 2). */
double hv_action_from_token(int32_t token, int32_t base, int32_t bins);

#endif
