/* The README.md of an exported model: what it is, how it is used, and how it was trained as far as that is known. */
#ifndef HV_INFER_MODEL_CARD_H
#define HV_INFER_MODEL_CARD_H

#include "core/io/model_directory.h"
#include "infer/run_record.h"

typedef struct hv_model_card {
  const hv_model_directory *directory; /* the model that is exported */
  const json_t *statistics;            /* its dataset_statistics.json */
  const hv_run_record *run;
  const char *source_card; /* its own README.md, whose section on training is kept if there is no run; NULL: none */
  const char *dtype;       /* of the exported tensors: "bf16"; NULL: as they are stored */
  const char *usage;       /* text of the section on usage; NULL: usage with hvla-infer */
} hv_model_card;

/* The key of the statistics to use in examples and in predictions of --verify: the first whose action and state have
 * the model's widths (an older key may be another robot's); else the first. NULL: there is none. */
const char *hv_model_card_key(const json_t *statistics, int32_t action_dim, int32_t state_dim);

/* Deterministic: the same model gives the same text. */
HV_NODISCARD hv_status hv_model_card_format(const hv_model_card *card, hv_text *out);

#endif
