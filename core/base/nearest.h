/* "Did you mean …?": the known name nearest to a mistyped one. */
#ifndef HV_BASE_NEAREST_H
#define HV_BASE_NEAREST_H

#include <stddef.h>

/* Damerau–Levenshtein distance (optimal string alignment: insert, delete, substitute, swap neighbours). Names longer
 * than 127 bytes count as infinitely far. */
int hv_edit_distance(const char *a, const char *b);

/* Keeps the nearest of the names that are offered one by one. Start with {.name = <the mistyped one>}. */
typedef struct hv_nearest {
  const char *name; /* the mistyped one */
  const char *best; /* the nearest so far, NULL if none is near enough to be meant */
  int distance;
} hv_nearest;

void hv_nearest_offer(hv_nearest *nearest, const char *candidate);

#endif
