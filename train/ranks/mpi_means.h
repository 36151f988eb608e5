/* Whether all ranks that mpirun started go on by the same means. */
#ifndef HV_TRAIN_RANKS_MPI_MEANS_H
#define HV_TRAIN_RANKS_MPI_MEANS_H

#include <stdbool.h>

#include "core/base/status.h"

/* Each rank decides by its own device whether it connects by NCCL, for which MPI only tells where the ranks meet, or by
 * MPI, and would wait for ever for one that has decided otherwise. Called by all as the first thing after MPI's start;
 * HV_ERR_INPUT on all where they differ. */
HV_NODISCARD hv_status hv_mpi_agree_on_means(bool by_nccl);

#endif
