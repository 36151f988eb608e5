/* What a device's memory is used for: an account of every allocation by kind, kept in the head of each device
 * (device.h). A forecast on the plan device and a run on a real one keep the same account, so that they can be
 * compared. Not thread-safe.
 */
#ifndef HV_TENSOR_MEMORY_H
#define HV_TENSOR_MEMORY_H

#include <stddef.h>

#include "core/base/text.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Scratch for cuBLASLt on each stream that multiplies, in bytes: what it advises for compute capability 9.0. */
enum { HV_CUDA_WORKSPACE = 32 << 20 };

typedef enum hv_memory_kind {
  HV_MEMORY_WEIGHTS,       /* parameters, or this rank's part of them */
  HV_MEMORY_MASTER,        /* the remainders that restore fp32 master values from bf16 parameters */
  HV_MEMORY_MOMENTS,       /* of the optimizer, and the moving average of the parameters */
  HV_MEMORY_GRADIENTS,     /* or this rank's part of them */
  HV_MEMORY_ACTIVATIONS,   /* the arena of a step or a prediction, and a policy's key-value cache */
  HV_MEMORY_WORKSPACE,     /* batches, constants, scratch of operations */
  HV_MEMORY_COMMUNICATION, /* buffers for whole groups of sharded state, and for data on its way between ranks */
  HV_MEMORY_KINDS,
} hv_memory_kind;

/* "weights", …: the keys of memory_bytes in what `hvla-train plan --json` prints. */
const char *hv_memory_kind_name(hv_memory_kind kind);

typedef struct hv_memory_use {
  size_t bytes[HV_MEMORY_KINDS], total;
} hv_memory_use;

/* All zero while empty. Only `held` and `peak` are for others than memory.c. */
typedef struct hv_memory_account {
  hv_memory_use held;             /* now */
  hv_memory_use peak;             /* when the total was highest */
  struct hv_memory_block *blocks; /* one for each live allocation */
} hv_memory_account;

/* Enters an allocation. HV_ERR_MEMORY: nothing is entered. */
HV_NODISCARD hv_status hv_memory_enter(hv_memory_account *account, hv_memory_kind kind, const void *memory,
                                       size_t bytes);
/* Removes an allocation from the account. Memory that was never entered is ignored. */
void hv_memory_strike(hv_memory_account *account, const void *memory);

/* The peak becomes what is held. */
void hv_memory_reset_peak(hv_memory_account *account);

void hv_memory_close(hv_memory_account *account); /* leaves it empty */

/* A table for a person, one line a kind that is not 0 and one for the total, each after `indent`. */
void hv_memory_table(const hv_memory_use *use, const char *indent, hv_text *out);

#ifdef __cplusplus
}
#endif

#endif
