#include "train/ranks/rendezvous_socket.h"

#include <errno.h>
#include <math.h>
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

/* When a machine that no longer answers counts as gone: seconds until the first keepalive probe and between probes,
 * their number, and how long sent data may stay unacknowledged. */
enum { IDLE = 5, INTERVAL = 5, PROBES = 4, UNANSWERED_MS = 25000 };

enum { RETRY_MS = 100, ATTEMPT_SECONDS = 5, MOST_SECONDS = 1000000 };

static void set_option(int socket, int level, int option, int value) {
  (void)setsockopt(socket, level, option, &value, sizeof value); /* works without, too */
}

static void notice_silence(int socket) {
  set_option(socket, SOL_SOCKET, SO_KEEPALIVE, 1);
  set_option(socket, IPPROTO_TCP, TCP_NODELAY, 1);
  set_option(socket, IPPROTO_TCP, TCP_KEEPIDLE, IDLE);
  set_option(socket, IPPROTO_TCP, TCP_KEEPINTVL, INTERVAL);
  set_option(socket, IPPROTO_TCP, TCP_KEEPCNT, PROBES);
  set_option(socket, IPPROTO_TCP, TCP_USER_TIMEOUT, UNANSWERED_MS);
}

/* A socket that listens at every address of the machine, with IPv6 at those of IPv4, too; -1 and errno on failure. */
static int listen_at(int family, int port) {
  struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
  struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_port = htons((uint16_t)port)};
  const struct sockaddr *address = family == AF_INET6 ? (struct sockaddr *)&v6 : (struct sockaddr *)&v4;
  socklen_t length = family == AF_INET6 ? sizeof v6 : sizeof v4;
  int alone = 0, listener = socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (listener < 0) return -1;
  set_option(listener, SOL_SOCKET, SO_REUSEADDR, 1);
  bool both = family != AF_INET6 || setsockopt(listener, IPPROTO_IPV6, IPV6_V6ONLY, &alone, sizeof alone) == 0;
  if (both && bind(listener, address, length) == 0 && listen(listener, SOMAXCONN) == 0) return listener;
  int problem = errno;
  (void)close(listener);
  errno = problem;
  return -1;
}

hv_status hv_rendezvous_listen(int port, int *out_socket, int *out_port) {
  struct sockaddr_in6 address = {0}; /* the port is in the same place as in sockaddr_in */
  socklen_t length = sizeof address;
  int listener = listen_at(AF_INET6, port);
  if (listener < 0 && errno != EADDRINUSE) listener = listen_at(AF_INET, port);
  *out_socket = listener;
  if (listener < 0 || getsockname(listener, (struct sockaddr *)&address, &length) != 0) {
    hv_status status = hv_error_errno(errno, "rank 0 cannot listen for the others on port %d", port);
    hv_socket_close(out_socket);
    return status;
  }
  *out_port = ntohs(address.sin6_port);
  return HV_OK;
}

/* Waits until the socket can be read or written, or is broken; false if that has not happened by `until`. */
static bool ready(int socket, short events, double until) {
  struct pollfd poller = {.fd = socket, .events = events};
  for (;;) {
    double left = until - hv_clock_seconds();
    int found = poll(&poller, 1, left > 0 ? (int)(1e3 * fmin(left, MOST_SECONDS)) + 1 : 0);
    if (found > 0 || (found < 0 && errno != EINTR)) return true;
    if (left <= 0) return false;
  }
}

/* Whether a socket is connected to itself. That happens if nobody listens at a port of this machine and the kernel
 * chooses that very port as the connection's own. */
static bool meets_itself(int socket) {
  struct sockaddr_storage own = {0}, other = {0};
  socklen_t own_length = sizeof own, other_length = sizeof other;
  return getsockname(socket, (struct sockaddr *)&own, &own_length) == 0 &&
         getpeername(socket, (struct sockaddr *)&other, &other_length) == 0 && own_length == other_length &&
         memcmp(&own, &other, own_length) == 0;
}

/* A socket that is connected to the address; -1 and errno if that fails, or has not succeeded by `until`. */
static int connect_to(const struct addrinfo *to, double until) {
  int s = socket(to->ai_family, to->ai_socktype | SOCK_CLOEXEC | SOCK_NONBLOCK, to->ai_protocol), problem = 0;
  socklen_t length = sizeof problem;
  if (s < 0) return -1;
  if (connect(s, to->ai_addr, to->ai_addrlen) != 0) problem = errno;
  if (problem == EINPROGRESS) {
    if (!ready(s, POLLOUT, until)) {
      problem = ETIMEDOUT;
    } else if (getsockopt(s, SOL_SOCKET, SO_ERROR, &problem, &length) != 0) {
      problem = errno;
    }
  }
  if (problem == 0 && meets_itself(s)) problem = ECONNREFUSED;
  if (problem == 0) {
    notice_silence(s);
    return s;
  }
  (void)close(s);
  errno = problem;
  return -1;
}

/* Tries every address that the name resolves to now, which may be more than at the attempt before: a name may become
 * known after the ranks start. */
static hv_status try_to_connect(const char *host, int port, double until, int *out) {
  char service[16];
  snprintf(service, sizeof service, "%d", port);
  struct addrinfo want = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM}, *addresses;
  int unknown = getaddrinfo(host, service, &want, &addresses), problem = 0;
  if (unknown) return hv_error(HV_ERR_INPUT, "cannot resolve rank 0's host \"%s\": %s", host, gai_strerror(unknown));
  *out = -1;
  for (const struct addrinfo *a = addresses; a && *out < 0; a = a->ai_next) {
    *out = connect_to(a, fmin(until, hv_clock_seconds() + ATTEMPT_SECONDS));
    problem = errno;
  }
  freeaddrinfo(addresses);
  return *out >= 0 ? HV_OK : hv_error_errno(problem, "rank 0 at %s:%d did not answer", host, port);
}

hv_status hv_socket_connect(const char *host, int port, double seconds, int *out) {
  double until = hv_clock_seconds() + seconds;
  for (;;) {
    hv_status status = try_to_connect(host, port, until, out);
    if (!status) return HV_OK;
    if (hv_clock_seconds() >= until) return hv_error_context(status, "tried for %.0f s", seconds);
    hv_status_free(status);
    usleep(1000 * RETRY_MS);
  }
}

hv_status hv_socket_accept(int listener, double seconds, int *out) {
  *out = -1;
  if (!ready(listener, POLLIN, hv_clock_seconds() + seconds)) return HV_OK;
  *out = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
  if (*out >= 0) {
    notice_silence(*out);
    return HV_OK;
  }
  bool own = errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM;
  return own ? hv_error_errno(errno, "cannot accept another rank") : HV_OK; /* else the other side is gone already */
}

hv_status hv_socket_send(int socket, const void *bytes, size_t size, double seconds) {
  double until = hv_clock_seconds() + seconds;
  for (size_t sent = 0; sent < size;) {
    if (!ready(socket, POLLOUT, until)) {
      (void)shutdown(socket, SHUT_RDWR); /* nothing may follow half a message */
      return hv_error(HV_ERR_DEVICE, "it has taken no message for %.0f s", seconds);
    }
    ssize_t n = send(socket, (const char *)bytes + sent, size - sent, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n < 0 && errno != EAGAIN && errno != EINTR) return hv_error_errno(errno, "its connection is broken");
    if (n > 0) sent += (size_t)n;
  }
  return HV_OK;
}

hv_socket_state hv_socket_take(int socket, void *bytes, size_t size, size_t *received) {
  while (*received < size) {
    ssize_t n = recv(socket, (char *)bytes + *received, size - *received, MSG_DONTWAIT);
    if (n > 0) *received += (size_t)n;
    if (n == 0) errno = 0;
    if (n < 0 && errno == EAGAIN) return HV_SOCKET_SILENT;
    if (n == 0 || (n < 0 && errno != EINTR)) return HV_SOCKET_LOST;
  }
  return HV_SOCKET_MESSAGE;
}

hv_status hv_socket_receive(int socket, void *bytes, size_t size, double seconds) {
  double until = hv_clock_seconds() + seconds;
  for (size_t received = 0;;) {
    if (!ready(socket, POLLIN, until)) return hv_error(HV_ERR_DEVICE, "no message came for %.0f s", seconds);
    hv_socket_state state = hv_socket_take(socket, bytes, size, &received);
    if (state == HV_SOCKET_MESSAGE) return HV_OK;
    if (state == HV_SOCKET_SILENT) continue;
    return errno ? hv_error_errno(errno, "its connection is broken")
                 : hv_error(HV_ERR_DEVICE, "it closed the connection");
  }
}

hv_socket_state hv_socket_receive_ready(int socket, void *bytes, size_t size, double seconds) {
  if (socket < 0 || !ready(socket, POLLIN, hv_clock_seconds())) return HV_SOCKET_SILENT;
  hv_status status = hv_socket_receive(socket, bytes, size, seconds);
  hv_status_free(status);
  return status ? HV_SOCKET_LOST : HV_SOCKET_MESSAGE;
}

void hv_socket_close(int *socket) {
  if (*socket >= 0) (void)close(*socket);
  *socket = -1;
}
