#include "train/launch.h"

#include <errno.h>
#include <stdlib.h>

#ifdef HVLA_HAVE_MPI
#include "train/comm_mpi.h"
#endif

/* What each launcher tells its processes, the surest first: mpirun inside a SLURM job sets both. */
static const struct launcher {
  const char *rank, *size, *local_rank;
} launchers[] = {
    {"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"},
    {"PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"},
    {"RANK", "WORLD_SIZE", "LOCAL_RANK"},
    {"SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"},
};

/* A number below `limit`. */
static hv_status read_number(const char *key, int32_t limit, int32_t *out) {
  const char *text = getenv(key);
  char *end = NULL;
  errno = 0;
  long value = text ? strtol(text, &end, 10) : 0;
  if (!text || end == text || *end || errno || value < 0 || value >= limit) {
    return hv_error(HV_ERR_INPUT, "the launcher's %s is \"%s\"; a number from 0 to %d is needed", key,
                    text ? text : "(not set)", limit - 1);
  }
  *out = (int32_t)value;
  return HV_OK;
}

hv_status hv_launch_read(hv_launch *out) {
  enum { MOST_RANKS = 1 << 20 };
  *out = (hv_launch){.size = 1};
  for (size_t i = 0; i < sizeof launchers / sizeof launchers[0]; i++) {
    const struct launcher *launcher = &launchers[i];
    if (!getenv(launcher->rank) || !getenv(launcher->size)) continue;
    HV_TRY(read_number(launcher->size, MOST_RANKS, &out->size));
    if (out->size < 1) return hv_error(HV_ERR_INPUT, "the launcher's %s is 0", launcher->size);
    HV_TRY(read_number(launcher->rank, out->size, &out->rank));
    out->rank_key = launcher->rank;
    if (getenv(launcher->local_rank)) return read_number(launcher->local_rank, out->size, &out->local_rank);
    return HV_OK;
  }
  return HV_OK;
}

hv_status hv_launch_open_comm(const hv_launch *launch, hv_device *device, double timeout, hv_comm **out) {
  if (launch->size == 1) return hv_comm_single_open(device, out);
#ifdef HVLA_HAVE_MPI
  HV_TRY(hv_comm_mpi_open(device, &(hv_comm_mpi_options){.timeout = timeout}, out));
  if ((*out)->size == launch->size && (*out)->rank == launch->rank) return HV_OK;
  hv_status status = hv_error(HV_ERR_INPUT,
                              "%s makes this rank %d of %d, MPI rank %d of %d: start the program with the mpirun of "
                              "the MPI that it was built with",
                              launch->rank_key, launch->rank, launch->size, (*out)->rank, (*out)->size);
  hv_comm_close(*out);
  *out = NULL;
  return status;
#else
  (void)timeout;
  *out = NULL;
  return hv_error(HV_ERR_DEVICE,
                  "%s says that this is one of %d ranks, but the program was built without MPI; build it with "
                  "HVLA_MPI=ON, or start it alone",
                  launch->rank_key, launch->size);
#endif
}
