/* Sorting and the median of measured values. */
#ifndef HV_BASE_MEDIAN_H
#define HV_BASE_MEDIAN_H

#include <stddef.h>

/* Ascending; none of the values is NaN. */
void hv_sort_values(double *values, size_t count);

/* Sorts the values, of which there must be at least one. With an even count, the median is the mean of the two in the
 * middle. */
double hv_median(double *values, size_t count);

#endif
