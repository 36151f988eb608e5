/* The seeded order in which blocks and threads take their turns. Whatever the seed, results must be the same. */
#ifndef HV_CUDA_EMU_ORDER_H
#define HV_CUDA_EMU_ORDER_H

#include <stdint.h>

static inline uint64_t hv_order_random(uint64_t *state) {
  uint64_t z = *state += 0x9e3779b97f4a7c15u;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
  z = (z ^ z >> 27) * 0x94d049bb133111ebu;
  return z ^ z >> 31;
}

/* A seeded order of 0 … count − 1: start, start + stride, … modulo count. */
typedef struct hv_order {
  unsigned start, stride, count;
} hv_order;

static inline unsigned hv_order_common_divisor(unsigned a, unsigned b) {
  while (b) {
    unsigned rest = a % b;
    a = b;
    b = rest;
  }
  return a;
}

static inline hv_order hv_order_make(unsigned count, uint64_t *seed) {
  uint64_t random = hv_order_random(seed);
  hv_order o = {(unsigned)(random % count), (unsigned)(random >> 32) % count, count};
  while (hv_order_common_divisor(o.stride, count) != 1) o.stride = (o.stride + 1) % count;
  return o;
}

static inline unsigned hv_order_at(const hv_order *o, unsigned i) {
  return (unsigned)((o->start + (uint64_t)i * o->stride) % o->count);
}

/* Successive calls return hv_order_at(o, 0), hv_order_at(o, 1), … */
static inline unsigned hv_order_next(hv_order *o) {
  unsigned here = o->start, next = here + o->stride;
  o->start = next < o->count ? next : next - o->count;
  return here;
}

#endif
