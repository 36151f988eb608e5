#include "train/watch/rank_figures.h"

#include <string.h>

hv_status hv_rank_figures_gather(hv_comm *comm, const char *what, const double *own, int count, double *all) {
  int ranks = comm ? comm->size : 1, total = ranks * count;
  memset(all, 0, (size_t)total * sizeof *all);
  memcpy(all + (size_t)(comm ? comm->rank : 0) * (size_t)count, own, (size_t)count * sizeof *all);
  /* What one rank fills in, the others leave 0: the sum is a gather. */
  for (int first = 0; comm && first < total; first += HV_COMM_MAX_SUM) {
    int rest = total - first;
    HV_TRY(hv_comm_sum(comm, what, all + first, rest < HV_COMM_MAX_SUM ? rest : HV_COMM_MAX_SUM));
  }
  return HV_OK;
}
