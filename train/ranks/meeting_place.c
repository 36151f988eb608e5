#include "train/ranks/meeting_place.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { FIRST_JOB_PORT = 20000, JOB_PORTS = 10000, MOST_PORTS = 65535 };

/* MASTER_ADDR always comes with MASTER_PORT. torchrun may keep a store of its own on that port; then ranks use the next
 * one. */
static hv_status find_master(hv_meeting_place *out) {
  const char *text = getenv("MASTER_PORT"), *store = getenv("TORCHELASTIC_USE_AGENT_STORE");
  char *end = NULL;
  errno = 0;
  long port = text ? strtol(text, &end, 10) : 0;
  if (!text || end == text || *end || errno || port < 1 || port >= MOST_PORTS) {
    return hv_error(HV_ERR_INPUT, "MASTER_ADDR is set and MASTER_PORT is \"%s\"; a port from 1 to %d is needed",
                    text ? text : "(not set)", MOST_PORTS - 1);
  }
  snprintf(out->host, sizeof out->host, "%s", getenv("MASTER_ADDR"));
  out->port = (int)port + (store && strcmp(store, "True") == 0);
  return HV_OK;
}

void hv_slurm_first_host(const char *list, char *out, size_t size) {
  size_t used = 0;
  out[0] = '\0';
  for (const char *at = list; at && *at && *at != ',';) {
    bool numbers = *at == '[';
    const char *part = at + numbers;
    size_t length = strcspn(part, numbers ? "-,]" : "[,");
    if (used < size) used += (size_t)snprintf(out + used, size - used, "%.*s", (int)length, part);
    at = part + length;
    if (numbers && (at = strchr(at, ']'))) at++;
  }
}

static bool find_slurm(hv_meeting_place *out) {
  const char *nodes = getenv("SLURM_STEP_NODELIST"), *job = getenv("SLURM_JOB_ID"), *step = getenv("SLURM_STEP_ID");
  const char *address = getenv("SLURM_LAUNCH_NODE_IPADDR");
  if (!nodes) nodes = getenv("SLURM_JOB_NODELIST");
  if (!job || (!nodes && !address)) return false;
  if (nodes) {
    hv_slurm_first_host(nodes, out->host, sizeof out->host);
  } else {
    snprintf(out->host, sizeof out->host, "%s", address);
  }
  unsigned long number = 7 * strtoul(job, NULL, 10) + (step ? strtoul(step, NULL, 10) : 0);
  out->port = FIRST_JOB_PORT + (int)(number % JOB_PORTS);
  return true;
}

hv_status hv_meeting_place_find(const hv_launch *launch, hv_meeting_place *out) {
  *out = (hv_meeting_place){.listener = -1};
  if (getenv("MASTER_ADDR")) return find_master(out);
  /* Not under mpirun inside a SLURM job: rank 0 need not be on the job's first node. */
  bool slurm = launch->rank_key && strcmp(launch->rank_key, "SLURM_PROCID") == 0;
  if (slurm && find_slurm(out)) return HV_OK;
#ifdef HVLA_HAVE_MPI
  if (!slurm && (getenv("OMPI_COMM_WORLD_RANK") || getenv("PMI_RANK"))) return hv_meeting_place_over_mpi(launch, out);
#endif
  return hv_error(HV_ERR_INPUT,
                  "%s makes this rank %d of %d, but nothing says where the ranks meet: set MASTER_ADDR to the host of "
                  "rank 0 and MASTER_PORT to a free port there",
                  launch->rank_key, launch->rank, launch->size);
}
