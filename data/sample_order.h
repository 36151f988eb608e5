/* The shuffled order of a data set as a function: which frame comes at position `index` of an epoch. Every epoch has
 * its own permutation of the n frames. Nothing is stored, so a run can resume anywhere and every rank can compute all
 * of it.
 *
 * A Feistel network over the smallest 2k-bit domain that holds n, with Philox as its round function; a value >= n is
 * permuted again until it is below n (cycle walking, four rounds at most on average).
 */
#ifndef HV_DATA_SAMPLE_ORDER_H
#define HV_DATA_SAMPLE_ORDER_H

#include <stdint.h>

#include "core/base/random.h"

static inline int64_t hv_sample_order(uint64_t seed, uint64_t epoch, int64_t n, int64_t index) {
  enum { ROUNDS = 6 };
  uint64_t key = hv_random_key(seed, HV_RANDOM_SHUFFLE, epoch);
  int half = 1;
  while (half < 31 && (int64_t)1 << (2 * half) < n) half++;
  uint32_t mask = (1u << half) - 1;
  uint64_t value = (uint64_t)index;
  do {
    uint32_t left = (uint32_t)(value >> half), right = (uint32_t)value & mask;
    for (uint32_t round = 0; round < ROUNDS; round++) {
      uint32_t mixed = left ^ (hv_random_words(key, right, round, 0).word[0] & mask);
      left = right;
      right = mixed;
    }
    value = (uint64_t)left << half | right;
  } while (value >= (uint64_t)n);
  return (int64_t)value;
}

#endif
