/* Where the ranks of a run meet before they are connected. */
#ifndef HV_TRAIN_RANKS_MEETING_PLACE_H
#define HV_TRAIN_RANKS_MEETING_PLACE_H

#include "train/ranks/launch.h"

typedef struct hv_meeting_place {
  char host[256]; /* of rank 0 */
  int port;
  int listener; /* rank 0: a socket that listens on the port already; -1: none */
} hv_meeting_place;

/* MASTER_ADDR and MASTER_PORT where they are set; else, in a SLURM job step, the step's first node and a port made from
 * the job's number; else what rank 0 tells the others over MPI. HV_ERR_INPUT if none of these is available. */
HV_NODISCARD hv_status hv_meeting_place_find(const hv_launch *launch, hv_meeting_place *out);

/* The first host of a SLURM node list: "node03" of "node[03-07,11],other1". */
void hv_slurm_first_host(const char *list, char *out, size_t size);

/* The last of these ways: starts MPI for this one message, and finalises it. */
HV_NODISCARD hv_status hv_meeting_place_over_mpi(const hv_launch *launch, hv_meeting_place *out);

#endif
