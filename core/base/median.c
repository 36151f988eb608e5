#include "core/base/median.h"

#include <stdlib.h>

static int compare(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

void hv_sort_values(double *values, size_t count) {
  qsort(values, count, sizeof *values, compare);
}

double hv_median(double *values, size_t count) {
  hv_sort_values(values, count);
  return (values[(count - 1) / 2] + values[count / 2]) / 2;
}
