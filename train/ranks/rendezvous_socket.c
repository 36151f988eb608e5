#include "train/ranks/rendezvous_socket.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "core/base/clock.h"
#include "train/ranks/rendezvous.h"

/* Seconds of silence until a machine that no longer answers counts as gone. */
enum { IDLE = 5, INTERVAL = 5, PROBES = 4, UNANSWERED_MS = 25000, RETRY_MS = 100 };

static void set_option(int socket, int level, int option, int value) {
  (void)setsockopt(socket, level, option, &value, sizeof value); /* a refinement */
}

static void notice_silence(int socket) {
  set_option(socket, SOL_SOCKET, SO_KEEPALIVE, 1);
  set_option(socket, IPPROTO_TCP, TCP_NODELAY, 1);
  set_option(socket, IPPROTO_TCP, TCP_KEEPIDLE, IDLE);
  set_option(socket, IPPROTO_TCP, TCP_KEEPINTVL, INTERVAL);
  set_option(socket, IPPROTO_TCP, TCP_KEEPCNT, PROBES);
  set_option(socket, IPPROTO_TCP, TCP_USER_TIMEOUT, UNANSWERED_MS);
}

hv_status hv_rendezvous_listen(int port, int *out_socket, int *out_port) {
  *out_socket = -1;
  int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (listener < 0) return hv_error_errno(errno, "cannot make a socket for the other ranks");
  set_option(listener, SOL_SOCKET, SO_REUSEADDR, 1);
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
  socklen_t length = sizeof address;
  if (bind(listener, (struct sockaddr *)&address, length) != 0 || listen(listener, SOMAXCONN) != 0 ||
      getsockname(listener, (struct sockaddr *)&address, &length) != 0) {
    hv_status status = hv_error_errno(errno, "rank 0 cannot listen for the others on port %d", port);
    (void)close(listener);
    return status;
  }
  *out_socket = listener;
  *out_port = ntohs(address.sin_port);
  return HV_OK;
}

static hv_status try_to_connect(const struct addrinfo *addresses, int *out) {
  int problem = 0;
  for (const struct addrinfo *a = addresses; a; a = a->ai_next) {
    int s = socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC, a->ai_protocol);
    if (s >= 0 && connect(s, a->ai_addr, a->ai_addrlen) == 0) {
      notice_silence(s);
      *out = s;
      return HV_OK;
    }
    problem = errno;
    if (s >= 0) (void)close(s);
  }
  return hv_error_errno(problem, "no connection");
}

hv_status hv_socket_connect(const char *host, int port, double seconds, int *out) {
  double start = hv_clock_seconds();
  char service[16];
  snprintf(service, sizeof service, "%d", port);
  struct addrinfo want = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM}, *addresses;
  int unknown = getaddrinfo(host, service, &want, &addresses);
  if (unknown) return hv_error(HV_ERR_INPUT, "rank 0's host \"%s\" is not known here: %s", host, gai_strerror(unknown));
  hv_status status = try_to_connect(addresses, out);
  while (status && hv_clock_seconds() - start < seconds) {
    hv_status_free(status);
    usleep(1000 * RETRY_MS);
    status = try_to_connect(addresses, out);
  }
  freeaddrinfo(addresses);
  return hv_error_context(status, "rank 0 at %s:%d did not answer for %.0f s", host, port, seconds);
}

/* Waits until something can be read or written; false when the time is over. */
static bool ready(int socket, short events, double seconds) {
  struct pollfd poller = {.fd = socket, .events = events};
  return poll(&poller, 1, seconds > 0 ? (int)(1e3 * seconds) : 0) > 0;
}

hv_status hv_socket_accept(int listener, double seconds, int *out) {
  *out = -1;
  if (!ready(listener, POLLIN, seconds)) return HV_OK;
  *out = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
  if (*out < 0) return hv_error_errno(errno, "cannot accept another rank");
  notice_silence(*out);
  return HV_OK;
}

hv_status hv_socket_send(int socket, const void *bytes, size_t size, double seconds) {
  for (size_t sent = 0; sent < size;) {
    if (!ready(socket, POLLOUT, seconds)) return hv_error(HV_ERR_DEVICE, "it takes no message for %.0f s", seconds);
    ssize_t n = send(socket, (const char *)bytes + sent, size - sent, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n < 0 && errno != EAGAIN && errno != EINTR) return hv_error_errno(errno, "its connection is broken");
    if (n > 0) sent += (size_t)n;
  }
  return HV_OK;
}

hv_status hv_socket_receive(int socket, void *bytes, size_t size, double seconds) {
  for (size_t received = 0; received < size;) {
    if (!ready(socket, POLLIN, seconds)) return hv_error(HV_ERR_DEVICE, "nothing came for %.0f s", seconds);
    ssize_t n = recv(socket, (char *)bytes + received, size - received, MSG_DONTWAIT);
    if (n == 0) return hv_error(HV_ERR_DEVICE, "it has ended");
    if (n < 0 && errno != EAGAIN && errno != EINTR) return hv_error_errno(errno, "its connection is broken");
    if (n > 0) received += (size_t)n;
  }
  return HV_OK;
}

hv_socket_state hv_socket_receive_ready(int socket, void *bytes, size_t size, double seconds) {
  if (socket < 0 || !ready(socket, POLLIN, 0)) return HV_SOCKET_SILENT;
  hv_status status = hv_socket_receive(socket, bytes, size, seconds);
  hv_status_free(status);
  return status ? HV_SOCKET_LOST : HV_SOCKET_MESSAGE;
}

void hv_socket_close(int *socket) {
  if (*socket >= 0) (void)close(*socket);
  *socket = -1;
}
