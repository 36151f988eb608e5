/* The data of a run: demonstrations of both splits, their statistics, tokenized instructions, and batches with the
 * divisors of the losses. */
#ifndef HV_TRAIN_RUN_RUN_DATA_H
#define HV_TRAIN_RUN_RUN_DATA_H

#include "data/demonstrations.h"
#include "data/loader.h"
#include "train/config.h"
#include "train/trainer.h"

/* Instructions as the loader wants them: [instructions, stride], −1 after the end of each. */
typedef struct hv_prompt_table {
  int32_t *ids; /* owned */
  int32_t stride;
} hv_prompt_table;

typedef struct hv_run_data {
  const hv_train_config *config; /* not owned */
  hv_config model;
  hv_demonstrations *train, *valid; /* owned; valid is NULL without a held-out split */
  hv_dataset_statistics statistics; /* of the training split; owned */
  json_t *statistics_document;      /* dataset_statistics.json: this key, and those of init_from; owned */
  char *tokenizer_path;             /* owned */
  bool *absolute;                   /* [action_dim]; owned */
  hv_prompt_table train_prompts, valid_prompts;
  int32_t rank, ranks;
} hv_run_data;

/* Opens and checks everything that one of the ranks of a run reads. `config` must outlive it. */
HV_NODISCARD hv_status hv_run_data_open(const hv_train_config *config, const hv_config *model, int32_t rank,
                                        int32_t ranks, hv_run_data *out);
void hv_run_data_close(hv_run_data *data); /* leaves it empty */

/* For a resumed run: warns if the demonstrations' statistics differ from those in RUN/model, by which actions were
 * scaled so far, or if those are missing or cannot be read. If they lack this key, there is no warning.
 */
HV_NODISCARD hv_status hv_run_data_report_changes(const hv_run_data *data);

/* Tokens of the longest prompt of either split, <s> included. */
int32_t hv_run_data_longest_prompt(const hv_run_data *data);

/* The global frame of sample number `sample` of the run. */
int64_t hv_run_data_frame(const hv_run_data *data, int64_t sample);

/* This rank's micro-batches of the training split in the run's order, from global sample `first_sample` on. */
HV_NODISCARD hv_status hv_run_data_open_training(const hv_run_data *data, int64_t first_sample, hv_loader **out);

/* validation.samples of the held-out frames once, in order, in batches of at most a micro-batch. */
HV_NODISCARD hv_status hv_run_data_open_validation(const hv_run_data *data, hv_loader **out);

/* A batch source for the trainer that reads from a loader. It sets the divisors of the whole batch that a micro-batch
 * is part of. */
typedef struct hv_loader_source {
  hv_batch_source source; /* first: what the trainer is given */
  hv_loader *loader;      /* not owned */
  const hv_config *model;
  int32_t branches;
  const hv_loader_batch *loaded;
  hv_batch batch;
  double waited; /* seconds that the trainer waited for data; whoever reads it resets it */
} hv_loader_source;

hv_loader_source hv_loader_source_make(hv_loader *loader, const hv_config *model, int32_t branches);

#endif
