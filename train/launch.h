/* How this process was started: alone, or as one of several by mpirun, srun or torchrun. */
#ifndef HV_TRAIN_LAUNCH_H
#define HV_TRAIN_LAUNCH_H

#include "core/tensor/comm.h"

typedef struct hv_launch {
  int32_t rank, size;   /* 0 and 1 when alone */
  int32_t local_rank;   /* among the ranks on this machine: which card is its own */
  const char *rank_key; /* the environment variable that told; NULL when alone */
} hv_launch;

/* Reads the environment: Open MPI's, PMI's (MPICH, Intel MPI), SLURM's (a job step of several tasks), torchrun's.
 * Values that are no numbers, or a rank outside the size, are HV_ERR_INPUT. */
HV_NODISCARD hv_status hv_launch_read(hv_launch *out);

/* The communicator that fits: `single` alone, else MPI. HV_ERR_DEVICE where ranks were started that this build, made
 * without MPI, would not connect: each would believe the run to be its own. `timeout`: seconds to wait for a rank. */
HV_NODISCARD hv_status hv_launch_open_comm(const hv_launch *launch, hv_device *device, double timeout, hv_comm **out);

#endif
