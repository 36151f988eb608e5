/* The order in which a pass over a model uses its parameter groups, learnt from one pass and expected of the next, so
 * that a group's values can be fetched before they are asked for. */
#ifndef HV_NN_USE_ORDER_H
#define HV_NN_USE_ORDER_H

#include "core/nn/params.h"

typedef struct hv_use_order {
  hv_group_id *groups; /* owned */
  int32_t count, capacity;
  int32_t at;     /* uses of this pass that were as expected */
  bool learning;  /* this pass is noted down */
  bool surprised; /* this pass goes another way: the next one is noted down */
} hv_use_order;

/* Room for passes of up to `capacity` uses; what goes beyond is not expected. Learns the first pass. */
HV_NODISCARD hv_status hv_use_order_open(int32_t capacity, hv_use_order *out);
void hv_use_order_close(hv_use_order *order); /* a zeroed one is allowed */

/* A pass begins, and ends: uses in between two passes are not looked at. Begin returns the group that is expected
 * first; -1: not known. */
hv_group_id hv_use_order_begin(hv_use_order *order);
void hv_use_order_end(hv_use_order *order);

/* Notes a use; returns the group that is expected next, -1: not known, or the pass ends. */
hv_group_id hv_use_order_next(hv_use_order *order, hv_group_id group);

#endif
