/* Finds the slowest rank of a run, and whether it waits for data or computes slowly. */
#ifndef HV_TRAIN_WATCH_PACE_H
#define HV_TRAIN_WATCH_PACE_H

#include <stdbool.h>
#include <stdint.h>

#include "core/tensor/comm.h"

/* One rank's sums over some steps. */
typedef struct hv_pace_sums {
  int64_t steps;
  double step; /* seconds from the beginning of a step to its end, nearly the same on all ranks */
  double own;  /* of these, the time before the rank waited for the others */
  double wait; /* of these, waiting for data */
} hv_pace_sums;

/* Seconds a step. */
typedef struct hv_pace {
  double step;
  double own, own_max;   /* mean over ranks, and the slowest rank's */
  double wait, wait_max; /* mean over ranks, and the most */
  double median;         /* of the ranks' own; of an even number the lower one of the two in the middle */
  int32_t ranks, slowest;
  bool slow_data; /* the slowest rank lost more time to waiting for data than to computing, compared with the median
                     rank */
} hv_pace;

/* `own` and `wait` hold a number of each rank. */
HV_NODISCARD hv_status hv_pace_compare(const double *own, const double *wait, int32_t ranks, hv_pace *out);

/* Gathers and compares the sums of all ranks, which all call it, after at least one step. `comm` NULL: one rank. */
HV_NODISCARD hv_status hv_pace_measure(hv_comm *comm, const hv_pace_sums *sums, hv_pace *out);

/* Tells when one rank has been much slower than the median in several measurements in a row. Zero-initialise. */
typedef struct hv_pace_alarm {
  int32_t rank;
  int in_a_row;
} hv_pace_alarm;

/* Whether a person should be told now: once, as long as it stays the same rank. */
bool hv_pace_alarm_ring(hv_pace_alarm *alarm, const hv_pace *pace);

#endif
