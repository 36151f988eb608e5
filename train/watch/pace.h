/* Which rank of a run holds up the others, and whether its data or its computing is slow. */
#ifndef HV_TRAIN_WATCH_PACE_H
#define HV_TRAIN_WATCH_PACE_H

#include <stdbool.h>
#include <stdint.h>

#include "core/tensor/comm.h"

/* What one rank adds up over some steps. */
typedef struct hv_pace_sums {
  int64_t steps;
  double step; /* seconds from the beginning of a step to its end, the same on all ranks but for a hair */
  double own;  /* of those, what the rank took before it waited for the others */
  double wait; /* of those, what it waited for data */
} hv_pace_sums;

/* Seconds a step. */
typedef struct hv_pace {
  double step;
  double own, own_max;   /* mean over ranks, and the slowest rank's */
  double wait, wait_max; /* mean over ranks, and the most */
  double median;         /* of the ranks' own; of an even number the lower one of the two in the middle */
  int32_t ranks, slowest;
  bool slow_data; /* more of what the slowest lost to the median rank was waiting for data than computing */
} hv_pace;

/* `own` and `wait` hold a number of each rank. */
HV_NODISCARD hv_status hv_pace_compare(const double *own, const double *wait, int32_t ranks, hv_pace *out);

/* Brings together what the ranks added up; all call it alike, after at least one step. `comm` NULL: one rank. */
HV_NODISCARD hv_status hv_pace_measure(hv_comm *comm, const hv_pace_sums *sums, hv_pace *out);

/* Tells when one rank has been much slower than the median in several measurements in a row. Zero-initialise. */
typedef struct hv_pace_alarm {
  int32_t rank;
  int in_a_row;
} hv_pace_alarm;

/* Whether a person should be told now: once, as long as it stays the same rank. */
bool hv_pace_alarm_ring(hv_pace_alarm *alarm, const hv_pace *pace);

#endif
