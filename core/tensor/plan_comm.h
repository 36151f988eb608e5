/* The communicator of one rank on a plan device: it moves nothing, counts what each collective would send, and keeps
 * time as rings of ranks would: each collective starts when its stream has come to it and the one before is over, and
 * takes as long as the slowest link of its ring.
 *
 * On R ranks a ring moves (R − 1)/R of the whole from each rank in an all-gather or a reduce-scatter, twice that in an
 * all-reduce, in R − 1 steps (2 (R − 1)). Libraries run one ring a card of a machine, so that all network adapters
 * share the load: between machines a ring is as fast as all the adapters of one machine together (Patarasuk and Yuan
 * 2009; "busbw" in NVIDIA's nccl-tests).
 */
#ifndef HV_TENSOR_PLAN_COMM_H
#define HV_TENSOR_PLAN_COMM_H

#include "core/tensor/comm.h"
#include "core/tensor/plan.h"

typedef struct hv_plan_links {
  int32_t node_ranks;         /* of one machine */
  double node_bytes_per_s;    /* of a rank to others of its machine, in one direction */
  double network_bytes_per_s; /* of a rank to other machines, in one direction */
  double efficiency;          /* the part of these rates that a ring reaches, 0 … 1 */
  double hop_s;               /* latency of one step of a ring */
} hv_plan_links;

/* All calls of one kind since the communicator was opened, or reset. */
typedef struct hv_plan_traffic {
  int64_t calls;
  double bytes;   /* sent by this rank */
  double seconds; /* one after the other */
} hv_plan_traffic;

HV_NODISCARD hv_status hv_plan_comm_open(hv_device *plan, int32_t rank, int32_t size, const hv_plan_links *links,
                                         hv_comm **out);

/* `out` [HV_COLLECTIVES] */
void hv_plan_comm_traffic(const hv_comm *comm, hv_plan_traffic *out);
void hv_plan_comm_reset(hv_comm *comm);

#endif
