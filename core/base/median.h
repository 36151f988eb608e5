/* The order of measured numbers. */
#ifndef HV_BASE_MEDIAN_H
#define HV_BASE_MEDIAN_H

#include <stddef.h>

/* Ascending; none of the values is NaN. */
void hv_sort_values(double *values, size_t count);

/* Sorts the values, at least one; of an even number of them the median is the mean of the two in the middle. */
double hv_median(double *values, size_t count);

#endif
