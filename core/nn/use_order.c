#include "core/nn/use_order.h"

#include <stdlib.h>

hv_status hv_use_order_open(int32_t capacity, hv_use_order *out) {
  *out = (hv_use_order){.capacity = capacity};
  out->groups = malloc((size_t)capacity * sizeof *out->groups);
  return out->groups ? HV_OK : hv_error_memory("the order of parameter groups");
}

void hv_use_order_close(hv_use_order *order) {
  free(order->groups);
  *order = (hv_use_order){0};
}

hv_group_id hv_use_order_begin(hv_use_order *order) {
  bool known = order->count > 0 && !order->surprised;
  if (!known) order->count = 0;
  order->learning = !known;
  order->surprised = false;
  order->at = 0;
  return known ? order->groups[0] : -1;
}

void hv_use_order_end(hv_use_order *order) {
  order->learning = false;
  order->at = order->count;
}

hv_group_id hv_use_order_next(hv_use_order *order, hv_group_id group) {
  if (order->learning) {
    if (order->count < order->capacity) order->groups[order->count++] = group;
    return -1;
  }
  if (order->surprised || order->at == order->count) return -1;
  if (order->groups[order->at] != group) {
    order->surprised = true;
    return -1;
  }
  order->at++;
  return order->at < order->count ? order->groups[order->at] : -1;
}
