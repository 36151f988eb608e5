/* The order in which a pass over a model uses its parameter groups: recorded in one pass and predicted for the next, so
 * that a group's values can be prefetched. */
#ifndef HV_NN_USE_ORDER_H
#define HV_NN_USE_ORDER_H

#include "core/nn/params.h"

typedef struct hv_use_order {
  hv_group_id *groups; /* owned */
  int32_t count, capacity;
  int32_t at;     /* uses of this pass so far that were as predicted */
  bool learning;  /* this pass is being recorded */
  bool surprised; /* this pass deviated: the next one is recorded */
} hv_use_order;

/* For passes of up to `capacity` uses; later uses are not predicted. The first pass is recorded. */
HV_NODISCARD hv_status hv_use_order_open(int32_t capacity, hv_use_order *out);
void hv_use_order_close(hv_use_order *order); /* a zeroed one is allowed */

/* A pass begins, and ends; uses between two passes are ignored. Begin returns the group that is predicted to be used
 * first; -1: not known. */
hv_group_id hv_use_order_begin(hv_use_order *order);
void hv_use_order_end(hv_use_order *order);

/* Notes a use; returns the group that is predicted to be used next; -1: not known, or none. */
hv_group_id hv_use_order_next(hv_use_order *order, hv_group_id group);

#endif
