/* Where a rank runs: machine, process, card. */
#ifndef HV_TRAIN_RANKS_RANK_PLACE_H
#define HV_TRAIN_RANKS_RANK_PLACE_H

#include "core/base/text.h"
#include "core/tensor/device.h"

/* Plain bytes, which ranks exchange. */
typedef struct hv_rank_place {
  char host[64];
  char boot[40];      /* boot id of the machine, since containers may share a name; "" if unknown */
  uint64_t processes; /* its PID namespace; 0 if unknown */
  int64_t pid;
  char device[16];
  char model[64]; /* of the card; "" */
  char card[32];  /* its PCI address; "": ranks may share the device */
} hv_rank_place;

hv_rank_place hv_rank_place_own(const hv_device *device);

/* Whether the process of `other` is known to have ended; that can be known only of a rank on the same machine. */
bool hv_rank_place_gone(const hv_rank_place *own, const hv_rank_place *other);

/* HV_ERR_INPUT names two ranks that have the same card. */
HV_NODISCARD hv_status hv_rank_places_check(const hv_rank_place *places, int32_t count);

/* "4 ranks on 2 hosts: node1 0-1, node2 2-3; cuda (NVIDIA H100 80GB HBM3)" */
void hv_rank_places_describe(const hv_rank_place *places, int32_t count, hv_text *out);

#endif
