/* Collectives made of MPI messages through host memory, for any device; run by the communicator's thread (comm_mpi.h).
 *
 * Sums do not use MPI's own reductions, whose order may depend on timing and on the library: each rank receives its
 * part from all others and adds them in the order of ranks. Data moves in pieces through page-locked buffers of fixed
 * size, so a collective allocates nothing.
 *
 * A rank that has died on this machine is seen within milliseconds by its process id, any other by the time-out.
 * Everything is called by one thread, the one that opened it: MPI knows no other.
 */
#ifndef HV_TRAIN_RANKS_MPI_EXCHANGE_H
#define HV_TRAIN_RANKS_MPI_EXCHANGE_H

#include <stdatomic.h>

#include "core/tensor/comm.h"

typedef struct hv_mpi_exchange hv_mpi_exchange;

/* Starts MPI, once a process. `piece_bytes`: of one rank's part in one message; 0: 1 MiB. Once *give_up is not 0, a
 * collective under way ends all ranks with that exit code instead of waiting. */
HV_NODISCARD hv_status hv_mpi_exchange_open(hv_device *device, size_t piece_bytes, const atomic_int *give_up,
                                            hv_mpi_exchange **out);

/* Ends MPI if `finalize` is set. That waits for all ranks, so it is left out after a failure: the launcher ends them
 * when this process ends. NULL is allowed. */
void hv_mpi_exchange_close(hv_mpi_exchange *exchange, bool finalize);

int32_t hv_mpi_exchange_rank(const hv_mpi_exchange *exchange);
int32_t hv_mpi_exchange_size(const hv_mpi_exchange *exchange);
hv_stream *hv_mpi_exchange_stream(const hv_mpi_exchange *exchange); /* of the copies to and from the device */

/* One collective, done when it returns; waits `timeout` seconds for other ranks. */
HV_NODISCARD hv_status hv_mpi_exchange_run(hv_mpi_exchange *exchange, const hv_comm_call *call, double timeout);

/* Ends all ranks with the exit code in *give_up. */
void hv_mpi_exchange_abort(hv_mpi_exchange *exchange);

#endif
