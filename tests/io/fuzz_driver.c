/* Runs a fuzz target on every seed, on every seed cut short, and on mutations, which are the same in every run.
 *
 *   fuzz_<parser> [rounds]     that many mutations of each seed, by default 400
 *   fuzz_<parser> - < FILE     one input from standard input, to repeat a failure
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/io/fuzz.h"

enum { MAX_SIZE = 1 << 20, CUTS = 200 };

static uint32_t random_state = 1;

static uint32_t below(uint32_t limit) {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 17;
  random_state ^= random_state << 5;
  return random_state % limit;
}

static void run(const uint8_t *data, size_t size) {
  /* A copy of the exact size, so that a sanitizer reports the first byte read past the end. */
  uint8_t *copy = malloc(size ? size : 1);
  FUZZ_CHECK(copy);
  memcpy(copy, data, size);
  LLVMFuzzerTestOneInput(copy, size);
  free(copy);
}

static void insert(uint8_t *data, size_t *size, size_t at, const void *bytes, size_t count) {
  if (*size + count > MAX_SIZE) return;
  memmove(data + at + count, data + at, *size - at);
  memcpy(data + at, bytes, count);
  *size += count;
}

static void mutate(uint8_t *data, size_t *size) {
  static const char *const words[] = {"-1",
                                      "0",
                                      "1e999",
                                      "null",
                                      "true",
                                      "{",
                                      "}",
                                      "[",
                                      "]",
                                      ":",
                                      ",",
                                      "\"",
                                      "\\u0000",
                                      "99999999999999999999",
                                      "9223372036854775807",
                                      "\n",
                                      " ",
                                      "&a",
                                      "*a",
                                      "\xff"};
  uint32_t at = *size ? below((uint32_t)*size) : 0;
  const char *word = words[below(sizeof words / sizeof *words)];
  switch (*size ? below(7) : 0) {
  case 0: insert(data, size, at, word, strlen(word)); break;
  case 1: data[at] ^= (uint8_t)(1u << below(8)); break;
  case 2: data[at] = (uint8_t)below(256); break;
  case 3: *size = at; break;
  case 4: {
    size_t count = 1 + below((uint32_t)(*size - at));
    memmove(data + at, data + at + count, *size - at - count);
    *size -= count;
    break;
  }
  case 5: {
    uint8_t piece[64];
    size_t count = 1 + below(sizeof piece);
    if (count > *size - at) count = *size - at;
    memcpy(piece, data + at, count);
    insert(data, size, below((uint32_t)*size + 1), piece, count);
    break;
  }
  default: {
    static const uint32_t edges[] = {0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0xffff, 0x7fffffff, 0xffffffff};
    uint32_t value = edges[below(sizeof edges / sizeof *edges)];
    size_t count = *size - at < 4 ? *size - at : 4;
    memcpy(data + at, &value, count);
  }
  }
}

static void fuzz(const uint8_t *seed, size_t seed_size, long rounds) {
  uint8_t *data = malloc(MAX_SIZE);
  FUZZ_CHECK(data && seed_size <= MAX_SIZE);
  run(seed, seed_size);
  size_t step = seed_size / CUTS + 1;
  for (size_t size = 0; size < seed_size; size += step) run(seed, size);
  for (long i = 0; i < rounds; i++) {
    size_t size = seed_size;
    memcpy(data, seed, size);
    for (uint32_t count = 1 + below(6); count > 0; count--) mutate(data, &size);
    run(data, size);
  }
  free(data);
}

static int run_standard_input(void) {
  uint8_t *data = malloc(MAX_SIZE);
  FUZZ_CHECK(data);
  run(data, fread(data, 1, MAX_SIZE, stdin));
  free(data);
  return 0;
}

int main(int argc, char **argv) {
  if (argc > 1 && strcmp(argv[1], "-") == 0) return run_standard_input();
  long rounds = argc > 1 ? strtol(argv[1], NULL, 10) : 400;
  uint8_t *seed;
  size_t size;
  int seeds = 0;
  for (; fuzz_seed(seeds, &seed, &size); seeds++) {
    fuzz(seed, size, rounds);
    free(seed);
  }
  printf("%d seeds, %ld mutations of each\n", seeds, rounds);
  return seeds == 0;
}
