#include "core/tensor/plan_comm.h"

#include <stdlib.h>
#include <string.h>

enum { REMEMBERED = 1 << 12 /* calls whose end is still known: far more than are ever under way */ };

typedef struct plan_comm {
  hv_comm head;
  hv_plan_links links;
  hv_plan_traffic traffic[HV_COLLECTIVES];
  double end; /* of the last call */
  double ends[REMEMBERED];
} plan_comm;

static void plan_close(hv_comm *comm) {
  hv_comm_finish(comm);
  free(comm);
}

/* Bytes per second of a ring's slowest link. */
static double ring_rate(const hv_plan_links *links, int32_t ranks) {
  double rate = links->node_bytes_per_s, network = links->network_bytes_per_s * links->node_ranks;
  if (ranks > links->node_ranks && network < rate) rate = network;
  return rate * links->efficiency;
}

static hv_status plan_run(hv_comm *comm, const hv_comm_call *call, hv_stream *stream) {
  plan_comm *plan = (plan_comm *)comm;
  double whole = (double)call->whole.cols * (double)hv_dtype_size(call->whole.dtype);
  double ranks = comm->size, steps = ranks - 1;
  if (call->collective == HV_ALL_REDUCE) steps *= 2;
  double bytes = whole * steps / ranks;
  double rate = ring_rate(&plan->links, comm->size);
  double seconds = steps * plan->links.hop_s + (rate > 0 ? bytes / rate : 0);
  double start = hv_plan_stream_end(stream);
  if (plan->end > start) start = plan->end;
  plan->end = plan->ends[call->ticket % REMEMBERED] = start + seconds;
  hv_plan_traffic *traffic = &plan->traffic[call->collective];
  traffic->calls++;
  traffic->bytes += bytes;
  traffic->seconds += seconds;
  return HV_OK;
}

static void plan_wait(hv_comm *comm, hv_ticket ticket, hv_stream *stream) {
  const plan_comm *plan = (const plan_comm *)comm;
  if (ticket > comm->calls - REMEMBERED && ticket > 0) hv_plan_stream_delay(stream, plan->ends[ticket % REMEMBERED]);
}

hv_status hv_plan_comm_open(hv_device *plan, int32_t rank, int32_t size, const hv_plan_links *links, hv_comm **out) {
  static const hv_comm_methods methods = {.close = plan_close, .run = plan_run, .wait = plan_wait};
  *out = NULL;
  plan_comm *comm = calloc(1, sizeof *comm);
  if (!comm) return hv_error_memory("the communicator");
  comm->links = *links;
  hv_status status = hv_comm_start(&comm->head, "plan", &methods, plan, rank, size);
  if (status) {
    free(comm);
    return status;
  }
  *out = &comm->head;
  return HV_OK;
}

void hv_plan_comm_traffic(const hv_comm *comm, hv_plan_traffic *out) {
  memcpy(out, ((const plan_comm *)comm)->traffic, sizeof((const plan_comm *)comm)->traffic);
}

void hv_plan_comm_reset(hv_comm *comm) {
  memset(((plan_comm *)comm)->traffic, 0, sizeof((plan_comm *)comm)->traffic);
}
