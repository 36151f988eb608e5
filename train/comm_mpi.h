/* The communicator over MPI: messages between hosts, through host memory on any device.
 *
 * Sums do not use MPI's own reductions, whose order may depend on timing and on the library: each rank receives its
 * part from all others and adds in the order of ranks. Data moves in pieces through page-locked buffers of fixed size,
 * so a collective allocates nothing; it waits for the stream and is done when it returns.
 *
 * A rank that has died on this machine is seen within milliseconds by its process id, any other by the time-out.
 */
#ifndef HV_TRAIN_COMM_MPI_H
#define HV_TRAIN_COMM_MPI_H

#include "core/tensor/comm.h"

typedef struct hv_comm_mpi_options {
  double timeout;     /* seconds that a collective may wait for other ranks; > 0 */
  size_t piece_bytes; /* of one rank's part in one message; 0: 1 MiB */
} hv_comm_mpi_options;

/* Starts MPI, once a process, among the processes that mpirun (or srun) started together. Called by one thread, which
 * is the one that uses it; it is ended when the communicator is closed. */
HV_NODISCARD hv_status hv_comm_mpi_open(hv_device *device, const hv_comm_mpi_options *options, hv_comm **out);

#endif
