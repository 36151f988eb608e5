#include "train/ranks/launch.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/log.h"
#include "train/ranks/meeting_place.h"
#include "train/ranks/rank_place.h"
#include "train/ranks/rendezvous.h"

#ifdef HVLA_HAVE_MPI
#include "train/ranks/comm_mpi.h"
#endif

enum { MEETING_SECONDS = 55 };

/* The variables that each launcher sets, the most reliable first: under mpirun inside a SLURM job there are both kinds.
 */
static const struct launcher {
  const char *rank, *size, *local_rank;
  const char *run[2]; /* variables that together identify a run; NULL: there is none */
} launchers[] = {
    {"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", {"PMIX_NAMESPACE"}},
    {"PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", {NULL}},
    {"RANK", "WORLD_SIZE", "LOCAL_RANK", {"TORCHELASTIC_RUN_ID"}},
    {"SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", {"SLURM_JOB_ID", "SLURM_STEP_ID"}},
};
enum { SLURM = sizeof launchers / sizeof launchers[0] - 1 };

/* Reads a number from 0 to limit − 1. */
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

static bool is_same(const char *key, const char *other) {
  const char *text = getenv(key), *other_text = getenv(other);
  return text && other_text && strcmp(text, other_text) == 0;
}

/* Whether srun has set this other launcher's variables (--mpi=pmi2). Then its own are used, which also tell the local
 * rank and where to meet. */
static bool is_of_slurm(const struct launcher *launcher) {
  return launcher != &launchers[SLURM] && !getenv(launcher->local_rank) &&
         is_same(launcher->rank, launchers[SLURM].rank) && is_same(launcher->size, launchers[SLURM].size);
}

/* The run's identity, or "". torchrun calls a run without a name "none"; the parts of a heterogeneous SLURM job, which
 * may be one run, have different numbers. */
static void read_run(const struct launcher *launcher, char *out, size_t size) {
  bool parts = launcher == &launchers[SLURM] && getenv("SLURM_HET_SIZE");
  out[0] = '\0';
  for (int i = 0; i < 2 && launcher->run[i] && !parts; i++) {
    const char *text = getenv(launcher->run[i]);
    size_t used = strlen(out);
    if (!text || strcmp(text, "none") == 0) continue;
    snprintf(out + used, size - used, "%s%s=%s", used > 0 ? " " : "", launcher->run[i], text);
  }
}

hv_status hv_launch_read(hv_launch *out) {
  enum { MOST_RANKS = 1 << 20 };
  *out = (hv_launch){.size = 1};
  for (size_t i = 0; i < sizeof launchers / sizeof launchers[0]; i++) {
    const struct launcher *launcher = &launchers[i];
    if (!getenv(launcher->rank) || !getenv(launcher->size) || is_of_slurm(launcher)) continue;
    HV_TRY(read_number(launcher->size, MOST_RANKS, &out->size));
    if (out->size < 1) return hv_error(HV_ERR_INPUT, "the launcher's %s is 0", launcher->size);
    HV_TRY(read_number(launcher->rank, out->size, &out->rank));
    out->rank_key = launcher->rank;
    read_run(launcher, out->run, sizeof out->run);
    if (getenv(launcher->local_rank)) return read_number(launcher->local_rank, out->size, &out->local_rank);
    return HV_OK;
  }
  return HV_OK;
}

/* MPI's ranks must be the launcher's: under the mpirun of a different MPI each process is a rank 0. */
static hv_status open_mpi(const hv_launch *launch, hv_device *device, double timeout, hv_comm **out) {
#ifdef HVLA_HAVE_MPI
  HV_TRY(hv_comm_mpi_open(device, &(hv_comm_mpi_options){.timeout = timeout}, out));
  if ((*out)->size == launch->size && (*out)->rank == launch->rank) return HV_OK;
  hv_status status = hv_error(HV_ERR_INPUT,
                              "%s makes this rank %d of %d, but MPI says rank %d of %d: start the program with the "
                              "mpirun of the MPI that it was built with",
                              launch->rank_key, launch->rank, launch->size, (*out)->rank, (*out)->size);
  hv_comm_close(*out);
  *out = NULL;
  return status;
#else
  (void)device;
  (void)timeout;
  *out = NULL;
  return hv_error(HV_ERR_DEVICE,
                  "%s says that this is one of %d ranks, but the program was built without MPI; build it with "
                  "HVLA_MPI=ON, or start a single process",
                  launch->rank_key, launch->size);
#endif
}

/* Connects to the other ranks, and checks that each has a card of its own before NCCL starts. */
static hv_status meet(const hv_launch *launch, const hv_device *device, hv_peers **out) {
  hv_meeting_place place;
  HV_TRY(hv_meeting_place_find(launch, &place));
  HV_TRY(hv_rendezvous_open(&(hv_rendezvous_options){.rank = launch->rank,
                                                     .size = launch->size,
                                                     .run = launch->run,
                                                     .host = place.host,
                                                     .port = place.port,
                                                     .listener = place.listener,
                                                     .timeout = MEETING_SECONDS},
                            out));
  hv_rank_place own = hv_rank_place_own(device), *places = calloc((size_t)launch->size, sizeof *places);
  hv_status status = places ? HV_OK : hv_error_memory("where ranks run");
  if (!status) status = (*out)->methods->gather(*out, "exchanging where ranks run", &own, sizeof own, places);
  if (!status) status = hv_rank_places_check(places, launch->size);
  free(places);
  if (!status) return HV_OK;
  hv_peers_close(*out);
  *out = NULL;
  return status;
}

static hv_status open_nccl(const hv_launch *launch, hv_device *device, double timeout, hv_comm **out) {
  hv_peers *peers;
  *out = NULL;
  if (!device->methods->comm_open) {
    return hv_error(HV_ERR_INPUT, "NCCL connects cards, not the device \"%s\": parallel.transport must be auto or mpi",
                    device->name);
  }
  HV_TRY(meet(launch, device, &peers));
  return hv_comm_device_open(device, &(hv_comm_options){.peers = peers, .timeout = timeout}, out);
}

/* Checks that each rank has a card of its own, and logs which ranks run where. */
static hv_status describe(hv_comm *comm) {
  hv_rank_place own = hv_rank_place_own(comm->device), *places = calloc((size_t)comm->size, sizeof *places);
  if (!places) return hv_error_memory("where ranks run");
  hv_text text = {0};
  hv_status status = hv_comm_gather(comm, "where ranks run", &own, sizeof own, places);
  if (!status) status = hv_rank_places_check(places, comm->size);
  if (!status) {
    hv_rank_places_describe(places, comm->size, &text);
    if (comm->rank == 0)
      hv_log_info("%s; connected by %s%s%s", hv_text_string(&text), comm->name, comm->version[0] ? " " : "",
                  comm->version);
  }
  hv_text_free(&text);
  free(places);
  return status;
}

hv_status hv_launch_open_comm(const hv_launch *launch, hv_device *device, hv_transport transport, double timeout,
                              hv_comm **out) {
  if (launch->size == 1) return hv_comm_single_open(device, out);
  bool own = transport == HV_TRANSPORT_NCCL || (transport == HV_TRANSPORT_AUTO && device->methods->comm_open);
  hv_comm *comm;
  HV_TRY(own ? open_nccl(launch, device, timeout, &comm) : open_mpi(launch, device, timeout, &comm));
  hv_status status = comm ? describe(comm) : HV_OK;
  *out = status ? NULL : comm;
  if (status) hv_comm_close(comm);
  return status;
}
