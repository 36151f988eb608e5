/* Checks that all ranks that mpirun started will use the same transport. */
#ifndef HV_TRAIN_RANKS_MPI_MEANS_H
#define HV_TRAIN_RANKS_MPI_MEANS_H

#include <stdbool.h>

#include "core/base/status.h"

/* Each rank decides by its own device between NCCL (for which MPI only exchanges the meeting place) and MPI, and would
 * wait forever for a rank that decided otherwise. All ranks call it right after MPI has started; HV_ERR_INPUT on all if
 * they differ. */
HV_NODISCARD hv_status hv_mpi_agree_on_means(bool by_nccl);

#endif
