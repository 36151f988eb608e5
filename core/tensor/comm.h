/* A communicator: the ranks of one run and the collectives between them, on device memory.
 *
 * Every rank makes the same calls in the same order, and they run one after the other in that order. A call is
 * asynchronous: it starts after the work already queued on its stream, and overlaps work queued there later.
 * hv_comm_wait makes a stream wait for it, before the result is read or an operand is changed. Calls return a ticket
 * and no error: the first failure (a rank that died, or did not arrive within the time-out) is remembered, all later
 * calls do nothing, and hv_comm_status names the rank and the operation. A call allocates nothing.
 *
 * `single` and MPI take sums in the order of ranks, in F32 for F32 and BF16 and in the type itself for F64 and I64,
 * rounded once: a given number of ranks gives the same bytes every time, on every rank. NCCL's order is its own, fixed
 * for a number of ranks on given machines, and it rounds BF16 at every addition.
 *
 * Implementations: `single`, one rank that has nothing to do (here); MPI (train/ranks/comm_mpi.h); NCCL, which the CUDA
 * device brings (hv_comm_device_open; cuda/comm_nccl.cu). Used by one thread.
 */
#ifndef HV_TENSOR_COMM_H
#define HV_TENSOR_COMM_H

#include "core/base/text.h"
#include "core/tensor/device.h"
#include "core/tensor/peers.h"
#include "core/tensor/trace.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum hv_collective {
  HV_ALL_REDUCE,     /* whole = Σ over ranks of whole */
  HV_REDUCE_SCATTER, /* share = this rank's part of Σ over ranks of whole */
  HV_ALL_GATHER,     /* whole = the shares of all ranks, one after the other */
  HV_BROADCAST,      /* whole = the root's whole */
  HV_BARRIER,        /* is over when all ranks have come */
} hv_collective;
enum { HV_COLLECTIVES = HV_BARRIER + 1 };

/* The number of a call, counted from 1; 0: nothing to wait for. */
typedef int64_t hv_ticket;

/* "all_reduce", … */
const char *hv_collective_name(hv_collective collective);

/* One collective. Tensors are one row without gaps; a share is the 1/size of the whole that belongs to the rank, and
 * may lie in its place there. */
typedef struct hv_comm_call {
  hv_collective collective;
  const char *what; /* names the data in messages: "gradients of llm.layer.3"; stays until the call is over */
  hv_tensor whole;  /* [1, n]; a barrier has none */
  hv_tensor share;  /* [1, n / size]; reduce_scatter and all_gather */
  int32_t root;     /* broadcast */
  hv_ticket ticket;
} hv_comm_call;

typedef struct hv_comm hv_comm;

/* Methods that an implementation does not need are NULL; close and run are required. */
typedef struct hv_comm_methods {
  void (*close)(hv_comm *comm);
  /* Queues a checked call behind what the stream holds; called while no call is known to have failed. */
  hv_status (*run)(hv_comm *comm, const hv_comm_call *call, hv_stream *stream);
  /* Later work of the stream starts after the call. */
  void (*wait)(hv_comm *comm, hv_ticket ticket, hv_stream *stream);
  /* The first failure of a call since it was queued, as a new error. */
  hv_status (*failure)(hv_comm *comm);
  void (*set_timeout)(hv_comm *comm, double seconds);
  /* Ends the processes of all ranks, this one included. */
  void (*abort)(hv_comm *comm, int exit_code);
} hv_comm_methods;

/* Implementations put their own state behind this head. Rank and size may be read; the rest is comm.c's. */
struct hv_comm {
  const char *name; /* "single", "mpi", "nccl" */
  const hv_comm_methods *methods;
  char version[24]; /* of the library behind it; "" */
  hv_device *device;
  int32_t rank, size;
  hv_ticket calls;   /* made so far */
  hv_status error;   /* the first failure; kept until the communicator is closed */
  bool all_know;     /* hv_comm_all_know */
  hv_text *record;   /* not owned; NULL: nothing is recorded */
  hv_trace *trace;   /* not owned; may be set between calls; NULL: none */
  double *host;      /* page-locked buffer of hv_comm_sum */
  double *on_device; /* the same on the device */
  hv_stream *stream; /* of hv_comm_sum; NULL where one rank has nothing to do */
};

enum { HV_COMM_MAX_SUM = 64 /* numbers in one hv_comm_sum */ };

/* The communicator of a single rank. The device must outlive it. */
HV_NODISCARD hv_status hv_comm_single_open(hv_device *device, hv_comm **out);

typedef struct hv_comm_options {
  hv_peers *peers; /* owned by the communicator, and closed also if opening fails */
  double timeout;  /* seconds that a collective may wait for other ranks; > 0 */
} hv_comm_options;

/* The device's own communicator between the ranks of `options`; HV_ERR_DEVICE where it has none. */
HV_NODISCARD hv_status hv_comm_device_open(hv_device *device, const hv_comm_options *options, hv_comm **out);

/* For implementations: fill the head, and release what it holds. */
HV_NODISCARD hv_status hv_comm_start(hv_comm *comm, const char *name, const hv_comm_methods *methods, hv_device *device,
                                     int32_t rank, int32_t size);
void hv_comm_finish(hv_comm *comm);

/* After a failure this returns at once and leaves the other ranks to their time-out: hv_comm_abort ends them. */
void hv_comm_close(hv_comm *comm); /* NULL is allowed */

hv_ticket hv_comm_all_reduce(hv_comm *comm, const char *what, hv_tensor whole, hv_stream *stream);
hv_ticket hv_comm_reduce_scatter(hv_comm *comm, const char *what, hv_tensor whole, hv_tensor share, hv_stream *stream);
hv_ticket hv_comm_all_gather(hv_comm *comm, const char *what, hv_tensor share, hv_tensor whole, hv_stream *stream);
hv_ticket hv_comm_broadcast(hv_comm *comm, const char *what, int32_t root, hv_tensor whole, hv_stream *stream);

/* Work queued on the stream later starts after the call of this ticket and all calls before it. On a device whose
 * streams run at once (the CPU), the host waits here. */
void hv_comm_wait(hv_comm *comm, hv_ticket ticket, hv_stream *stream);

/* The ticket of the last call. */
static inline hv_ticket hv_comm_last(const hv_comm *comm) {
  return comm->calls;
}

/* The first failure known so far, each time it is asked; HV_ERR_DEVICE names the rank and the operation. Failures of a
 * call are known for certain after a stream has waited for it and has been synchronised. */
HV_NODISCARD hv_status hv_comm_status(hv_comm *comm);

/* Waits for all ranks. */
HV_NODISCARD hv_status hv_comm_barrier(hv_comm *comm, const char *what);

/* Replaces `count` <= HV_COMM_MAX_SUM host numbers by their sums over ranks, and waits for them. */
HV_NODISCARD hv_status hv_comm_sum(hv_comm *comm, const char *what, double *values, int count);

/* Tells all ranks whether something succeeded on every rank. Each rank passes its own outcome. If any failed, all ranks
 * return an error: a failed rank its own, the others one with the number of the lowest failed rank and the beginning of
 * its message. Takes ownership of `own`. */
HV_NODISCARD hv_status hv_comm_agree(hv_comm *comm, const char *what, hv_status own);

/* Whether the last hv_comm_agree returned an error on all ranks: then all know of it and can still make collective
 * calls. */
static inline bool hv_comm_all_know(const hv_comm *comm) {
  return comm->all_know;
}

/* all[r] = the `bytes` host bytes that rank r gives; waits for them, and allocates: for the start of a run. */
HV_NODISCARD hv_status hv_comm_gather(hv_comm *comm, const char *what, const void *own, size_t bytes, void *all);

/* How long a collective may wait for other ranks from now on. */
void hv_comm_set_timeout(hv_comm *comm, double seconds);

/* Ends the processes of all ranks, this one included; does nothing on a single rank. For a program that is about to end
 * with an error that the other ranks do not know of. */
void hv_comm_abort(hv_comm *comm, int exit_code);

/* From now on appends a line for each call to `text` ("all_gather bf16 4096 values of llm.layer.3"); NULL: stops. The
 * text is the same on all ranks, if they make the same calls. */
void hv_comm_record(hv_comm *comm, hv_text *text);

/* This rank's share of a row; its length must be a multiple of the number of ranks. */
static inline hv_tensor hv_comm_share(const hv_comm *comm, hv_tensor whole) {
  int64_t part = whole.cols / comm->size;
  return hv_tensor_cols(whole, part * comm->rank, part);
}

#ifdef __cplusplus
}
#endif

#endif
