/* The batch file of `hvla-train check` (safetensors): read, checked, and copied into aligned memory. */
#ifndef HV_TRAIN_CHECK_BATCH_H
#define HV_TRAIN_CHECK_BATCH_H

#include "core/hybridvla/sequence.h"
#include "core/io/safetensors.h"

typedef struct hv_file_batch {
  hv_batch batch;
  int32_t branches; /* K; 1 where the file gives no noise because the objective reads none */
  void *copies[7];  /* owned */
  int num_copies;
} hv_file_batch;

/* Missing tensors, wrong dtypes and wrong shapes are listed in one HV_ERR_INPUT; then an action_mask that is neither 0
 * nor 1 is one. Other values are looked at by hv_sequence_build. */
HV_NODISCARD hv_status hv_file_batch_open(const char *path, const hv_config *config, hv_file_batch *out);

/* Warns of a prompt that may have been cut off: no error, since the results are those of the prompt as given, but
 * whoever compares them should know. The batch must have passed hv_sequence_build. */
void hv_file_batch_warn(const hv_file_batch *file, const hv_config *config, const char *path);

void hv_file_batch_close(hv_file_batch *batch); /* leaves it empty */

#endif
