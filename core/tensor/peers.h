/* The side channel between the ranks of a run: it exchanges a few bytes at the start, and later carries word of
 * failures, which must reach every rank when collectives no longer work. train/ranks/rendezvous.h implements it over
 * TCP; a device's own communicator (hv_device_methods.comm_open) is given it.
 *
 * Order of calls: open → gather, as often as needed → watch → report, progress, late and failure, from any thread →
 * close.
 */
#ifndef HV_TENSOR_PEERS_H
#define HV_TENSOR_PEERS_H

#include <stddef.h>
#include <stdint.h>

#include "core/base/status.h"

enum { HV_PEERS_MOST_BYTES = 256 /* of one rank in a gather */ };

typedef struct hv_peers hv_peers;

typedef struct hv_peers_methods {
  /* Exchanges `bytes` <= HV_PEERS_MOST_BYTES: all[r] becomes what rank r gives. Called by all ranks, in the same order;
   * `what` is for messages. */
  hv_status (*gather)(hv_peers *peers, const char *what, const void *own, size_t bytes, void *all);
  /* From now on a rank that ends without closing is a failure on all others. */
  hv_status (*watch)(hv_peers *peers);
  /* Tells how many collectives this rank has reached. */
  void (*progress)(hv_peers *peers, int64_t calls);
  /* Tells that this rank has waited `seconds` in a collective, number `call` of progress. Rank 0 finds the rank that
   * has not reached it, and reports that as the failure of all. If it is told again for the same call, rank 0 has not
   * answered: then that is the failure. */
  void (*late)(hv_peers *peers, int64_t call, const char *operation, double seconds);
  /* Tells all ranks that the run has failed here; `message` names the rank. Returns when they have been told. */
  void (*report)(hv_peers *peers, const char *message);
  /* The first failure that is known, as a new HV_ERR_DEVICE. */
  hv_status (*failure)(hv_peers *peers);
  void (*close)(hv_peers *peers);
} hv_peers_methods;

/* Implementations put their own state behind this head. */
struct hv_peers {
  const hv_peers_methods *methods;
  int32_t rank, size;
};

static inline void hv_peers_close(hv_peers *peers) {
  if (peers) peers->methods->close(peers);
}

#endif
