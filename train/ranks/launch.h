/* How this process was started: alone, or as one of several by mpirun, srun or torchrun. */
#ifndef HV_TRAIN_RANKS_LAUNCH_H
#define HV_TRAIN_RANKS_LAUNCH_H

#include "core/tensor/comm.h"

typedef struct hv_launch {
  int32_t rank, size;   /* 0 and 1 when alone */
  int32_t local_rank;   /* among the ranks on this machine: which card is its own */
  const char *rank_key; /* the environment variable that gave the rank; NULL when alone */
  char run[128];        /* the launcher's unique name for this run, the same on all its ranks; "": it gives none */
} hv_launch;

/* Reads the environment: Open MPI's, PMI's (MPICH, Intel MPI), SLURM's (a job step of several tasks), torchrun's.
 * Values that are no numbers, or a rank outside the size, are HV_ERR_INPUT. */
HV_NODISCARD hv_status hv_launch_read(hv_launch *out);

/* What connects ranks. */
typedef enum hv_transport {
  HV_TRANSPORT_AUTO, /* what the device brings, NCCL on CUDA; else MPI */
  HV_TRANSPORT_NCCL,
  HV_TRANSPORT_MPI,
} hv_transport;

/* The communicator of this process: `single` alone, else what `transport` says; rank 0 tells the log who runs where.
 * NCCL's ranks meet where MASTER_ADDR and MASTER_PORT lead, else on the first node of a SLURM job, else where MPI says.
 * HV_ERR_INPUT if two ranks have the same card. HV_ERR_DEVICE if several ranks were started that this build, made
 * without MPI, cannot connect: otherwise each would take itself for the only one. `timeout`: seconds to wait for a
 * rank. */
HV_NODISCARD hv_status hv_launch_open_comm(const hv_launch *launch, hv_device *device, hv_transport transport,
                                           double timeout, hv_comm **out);

#endif
