#include "train/watch/pace.h"

#include <stdlib.h>
#include <string.h>

#include "core/base/median.h"
#include "train/watch/rank_figures.h"

static double lower_median(double *values, int32_t count) {
  hv_sort_values(values, (size_t)count);
  return values[(count - 1) / 2];
}

static void summarize(const double *values, int32_t ranks, double *mean, double *max) {
  *mean = *max = 0;
  for (int32_t r = 0; r < ranks; r++) {
    *mean += values[r] / ranks;
    if (values[r] > *max) *max = values[r];
  }
}

/* `sorted` is scratch for a number of each rank. */
static void find_slowest(const double *own, const double *wait, int32_t ranks, double *sorted, hv_pace *out) {
  size_t bytes = (size_t)ranks * sizeof *sorted;
  for (int32_t r = 0; r < ranks; r++) {
    if (own[r] > own[out->slowest]) out->slowest = r;
  }
  memcpy(sorted, wait, bytes);
  double lost_to_data = wait[out->slowest] - lower_median(sorted, ranks);
  memcpy(sorted, own, bytes);
  out->median = lower_median(sorted, ranks);
  out->slow_data = 2 * lost_to_data > own[out->slowest] - out->median;
}

hv_status hv_pace_compare(const double *own, const double *wait, int32_t ranks, hv_pace *out) {
  *out = (hv_pace){.ranks = ranks};
  double *sorted = malloc((size_t)ranks * sizeof *sorted);
  if (!sorted) return hv_error_memory("the ranks' times");
  summarize(own, ranks, &out->own, &out->own_max);
  summarize(wait, ranks, &out->wait, &out->wait_max);
  find_slowest(own, wait, ranks, sorted, out);
  free(sorted);
  return HV_OK;
}

hv_status hv_pace_measure(hv_comm *comm, const hv_pace_sums *sums, hv_pace *out) {
  enum { OWN, WAIT, FIGURES };
  int32_t ranks = comm ? comm->size : 1;
  double steps = (double)sums->steps;
  double mine[FIGURES] = {sums->own / steps, sums->wait / steps};
  double *all = malloc((size_t)ranks * 2 * FIGURES * sizeof *all);
  if (!all) return hv_error_memory("the ranks' times");
  double *own = all + (size_t)ranks * FIGURES, *wait = own + ranks;
  hv_status status = hv_rank_figures_gather(comm, "the ranks' times", mine, FIGURES, all);
  for (int32_t r = 0; r < ranks && !status; r++) {
    own[r] = all[r * FIGURES + OWN];
    wait[r] = all[r * FIGURES + WAIT];
  }
  if (!status) status = hv_pace_compare(own, wait, ranks, out);
  out->step = sums->step / steps;
  free(all);
  return status;
}

bool hv_pace_alarm_ring(hv_pace_alarm *alarm, const hv_pace *pace) {
  static const double much = 1.3; /* times the median */
  enum { PATIENCE = 3 /* measurements */ };
  if (pace->own_max <= much * pace->median) {
    alarm->in_a_row = 0;
    return false;
  }
  alarm->in_a_row = alarm->rank == pace->slowest ? alarm->in_a_row + 1 : 1;
  alarm->rank = pace->slowest;
  return alarm->in_a_row == PATIENCE;
}
