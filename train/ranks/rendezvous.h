/* The side channel between ranks over TCP: every rank is connected to rank 0, which forwards what concerns all.
 *
 * At the start ranks meet at an address that the launcher gave (MASTER_ADDR and MASTER_PORT, as torchrun sets them) and
 * make sure that they belong together. Later a thread of each rank listens: a rank that ends without closing is seen
 * by its connection, at once where its process died, within half a minute where its machine did.
 */
#ifndef HV_TRAIN_RANKS_RENDEZVOUS_H
#define HV_TRAIN_RANKS_RENDEZVOUS_H

#include "core/tensor/peers.h"

typedef struct hv_rendezvous_options {
  int32_t rank, size;
  const char *run;  /* the name of the run (hv_launch); "" or NULL: it has none */
  const char *host; /* of rank 0 */
  int port;
  int listener;   /* rank 0: a socket of hv_rendezvous_listen, which is closed here; -1: one is opened on `port` */
  double timeout; /* seconds for all ranks to arrive */
} hv_rendezvous_options;

/* Meets the other ranks. A rank of a run with another name is refused, and does not disturb this run. HV_ERR_DEVICE
 * names the ranks that did not arrive, the foreign program that answered, or the address that cannot be reached. */
HV_NODISCARD hv_status hv_rendezvous_open(const hv_rendezvous_options *options, hv_peers **out);

/* Opens a listening socket for rank 0 on `port`; 0: any free port. */
HV_NODISCARD hv_status hv_rendezvous_listen(int port, int *out_socket, int *out_port);

#endif
