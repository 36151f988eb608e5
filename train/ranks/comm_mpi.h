/* The communicator over MPI: messages through host memory, for any device (mpi_exchange.h).
 *
 * Calls are queued for a thread that runs them one after the other; it alone calls MPI. If the device's memory is host
 * memory, calls are asynchronous, and hv_comm_wait blocks the caller. On any other device, whose streams serve one
 * thread at a time, a call has finished when it returns.
 */
#ifndef HV_TRAIN_RANKS_COMM_MPI_H
#define HV_TRAIN_RANKS_COMM_MPI_H

#include "core/tensor/comm.h"

typedef struct hv_comm_mpi_options {
  double timeout;     /* seconds that a collective may wait for other ranks; > 0 */
  size_t piece_bytes; /* bytes of one rank's part in one message; 0: 1 MiB */
} hv_comm_mpi_options;

/* Starts MPI, once a process, among the processes that mpirun (or srun) started together; it is ended when the
 * communicator is closed. */
HV_NODISCARD hv_status hv_comm_mpi_open(hv_device *device, const hv_comm_mpi_options *options, hv_comm **out);

#endif
