#include <mpi.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "train/ranks/meeting_place.h"
#include "train/ranks/mpi_means.h"
#include "train/ranks/rendezvous.h"

/* The address that rank 0 broadcasts; port 0: it cannot listen. */
typedef struct address {
  char host[256];
  int port;
} address;

static hv_status broadcast(const hv_launch *launch, address *told) {
  int rank = -1, size = 0;
  if (MPI_Comm_rank(MPI_COMM_WORLD, &rank) != MPI_SUCCESS || MPI_Comm_size(MPI_COMM_WORLD, &size) != MPI_SUCCESS ||
      rank != launch->rank || size != launch->size) {
    return hv_error(
        HV_ERR_INPUT,
        "%s makes this rank %d of %d, but MPI says rank %d of %d: start the program with the mpirun of the MPI that "
        "it was built with, or set MASTER_ADDR and MASTER_PORT",
        launch->rank_key, launch->rank, launch->size, rank, size);
  }
  if (MPI_Bcast(told, sizeof *told, MPI_BYTE, 0, MPI_COMM_WORLD) == MPI_SUCCESS) return HV_OK;
  return hv_error(HV_ERR_DEVICE, "MPI_Bcast failed to tell the ranks where they meet");
}

hv_status hv_meeting_place_over_mpi(const hv_launch *launch, hv_meeting_place *out) {
  address told = {0}, own = {0};
  hv_status status = HV_OK;
  (void)gethostname(own.host, sizeof own.host - 1);
  if (launch->rank == 0) {
    told = own;
    status = hv_rendezvous_listen(0, &out->listener, &told.port);
  }
  if (MPI_Init(NULL, NULL) != MPI_SUCCESS) {
    status = hv_status_first(status, hv_error(HV_ERR_DEVICE, "MPI_Init failed"));
  } else {
    hv_status agreed = hv_mpi_agree_on_means(true);
    status = hv_status_first(status, agreed ? agreed : broadcast(launch, &told));
    (void)MPI_Finalize();
  }
  if (!status && told.port == 0)
    status = hv_error(HV_ERR_DEVICE, "rank 0 cannot listen for the other ranks; its own message says why");
  if (status) {
    if (out->listener >= 0) (void)close(out->listener);
    return status;
  }
  /* A machine's own name need not resolve to it. */
  snprintf(out->host, sizeof out->host, "%s", strcmp(told.host, own.host) == 0 ? "127.0.0.1" : told.host);
  out->port = told.port;
  return HV_OK;
}
