/* A few numbers of every rank, on every rank. */
#ifndef HV_TRAIN_WATCH_RANK_FIGURES_H
#define HV_TRAIN_WATCH_RANK_FIGURES_H

#include "core/tensor/comm.h"

/* Fills all[size][count] from each rank's own `count` numbers, which are finite. All ranks call it alike; `what` names
 * the numbers in messages. `comm` NULL: one rank. */
HV_NODISCARD hv_status hv_rank_figures_gather(hv_comm *comm, const char *what, const double *own, int count,
                                              double *all);

#endif
