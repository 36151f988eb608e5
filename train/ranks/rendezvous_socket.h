/* TCP sockets that carry whole messages of fixed size, with time-outs. */
#ifndef HV_TRAIN_RANKS_RENDEZVOUS_SOCKET_H
#define HV_TRAIN_RANKS_RENDEZVOUS_SOCKET_H

#include <stddef.h>

#include "core/base/status.h"

/* Connects, trying again while the name is not known or nobody listens at any of its addresses. */
HV_NODISCARD hv_status hv_socket_connect(const char *host, int port, double seconds, int *out);

/* Accepts the next connection; *out is -1 after the time-out, or if the other side is gone already. */
HV_NODISCARD hv_status hv_socket_accept(int listener, double seconds, int *out);

/* `seconds` are for the whole message. A socket that took only a part of one is shut down. */
HV_NODISCARD hv_status hv_socket_send(int socket, const void *bytes, size_t size, double seconds);
HV_NODISCARD hv_status hv_socket_receive(int socket, void *bytes, size_t size, double seconds);

typedef enum hv_socket_state { HV_SOCKET_SILENT, HV_SOCKET_MESSAGE, HV_SOCKET_LOST } hv_socket_state;

/* Reads what has arrived of a message, without waiting, after the first *received bytes. HV_SOCKET_LOST leaves the
 * reason in errno; 0: the other side has closed. */
hv_socket_state hv_socket_take(int socket, void *bytes, size_t size, size_t *received);

/* Receives a message if one has begun to arrive, waiting up to `seconds` for the rest. A socket of -1 counts as silent.
 */
hv_socket_state hv_socket_receive_ready(int socket, void *bytes, size_t size, double seconds);

void hv_socket_close(int *socket); /* -1 is allowed; leaves -1 */

#endif
