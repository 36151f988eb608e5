#include "train/watch/format_figure.h"

#include <math.h>
#include <stdio.h>

void hv_format_figure(double value, char out[HV_FIGURE_SIZE]) {
  static const double large = 1e6; /* whose digits nobody reads */
  snprintf(out, HV_FIGURE_SIZE, fabs(value) >= large ? "%.4e" : "%.4f", value);
}
