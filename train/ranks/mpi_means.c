#include "train/ranks/mpi_means.h"

#include <mpi.h>

hv_status hv_mpi_agree_on_means(bool by_nccl) {
  int own[2] = {by_nccl, !by_nccl}, all[2];
  if (MPI_Allreduce(own, all, 2, MPI_INT, MPI_SUM, MPI_COMM_WORLD) != MPI_SUCCESS) {
    return hv_error(HV_ERR_DEVICE, "MPI_Allreduce failed to compare how the ranks would connect");
  }
  if (all[0] == 0 || all[1] == 0) return HV_OK;
  return hv_error(HV_ERR_INPUT,
                  "%d of the ranks would connect by NCCL and %d by MPI, because their devices differ: give all the "
                  "same device, or set parallel.transport to mpi",
                  all[0], all[1]);
}
