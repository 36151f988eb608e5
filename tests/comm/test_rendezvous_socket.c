/* Connections of the rendezvous under difficulties: names that are not known yet, addresses that do not answer, kernels
 * without IPv6, slow or dead peers. getaddrinfo, socket and connect are replaced here to bring these about. */
#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <sys/time.h>

#include "core/base/clock.h"
#include "tests/check.h"
#include "train/ranks/rendezvous.h"
#include "train/ranks/rendezvous_socket.h"

enum { MESSAGE = 568, SILENT_PORTS = 8 };

/* For getaddrinfo below: how many more times a name is unknown; and if not 0, the silent port of an address that is
 * given before the real one. */
static int unknown_for, silent_port;

/* Replaces the system's function, which it calls. */
int getaddrinfo(const char *name, const char *service, const struct addrinfo *hints, struct addrinfo **out) {
  int (*own)(const char *, const char *, const struct addrinfo *, struct addrinfo **) = NULL;
  *(void **)&own = dlsym(RTLD_NEXT, "getaddrinfo");
  assert_non_null(own);
  if (unknown_for > 0) {
    unknown_for--;
    return EAI_AGAIN;
  }
  struct addrinfo *second = NULL;
  int failure = own(name, service, hints, out);
  if (failure || silent_port == 0) return failure;
  failure = own(name, service, hints, &second);
  if (failure) return failure;
  ((struct sockaddr_in *)(void *)(*out)->ai_addr)->sin_port = htons((uint16_t)silent_port);
  (*out)->ai_next = second;
  return 0;
}

/* Replaces the system's function; with `without_ipv6`, as of a kernel without IPv6. */
static bool without_ipv6;
int socket(int family, int type, int protocol) {
  int (*own)(int, int, int) = NULL;
  *(void **)&own = dlsym(RTLD_NEXT, "socket");
  assert_non_null(own);
  if (family != AF_INET6 || !without_ipv6) return own(family, type, protocol);
  errno = EAFNOSUPPORT;
  return -1;
}

static int listen_somewhere(int *port) {
  int listener;
  assert_ok(hv_rendezvous_listen(0, &listener, port));
  return listener;
}

static double seconds_to_connect(const char *host, int port, double seconds) {
  int connected;
  double start = hv_clock_seconds();
  assert_ok(hv_socket_connect(host, port, seconds, &connected));
  hv_socket_close(&connected);
  return hv_clock_seconds() - start;
}

static void a_name_may_become_known_late(void **state) {
  (void)state;
  int port, listener = listen_somewhere(&port);
  unknown_for = 3;
  (void)seconds_to_connect("127.0.0.1", port, 10);
  assert_int_equal(unknown_for, 0);
  unknown_for = 1000;
  int none;
  assert_error(hv_socket_connect("127.0.0.1", port, 0.5, &none), "cannot resolve rank 0's host \"127.0.0.1\"");
  unknown_for = 0;
  hv_socket_close(&listener);
}

static void rank_0_is_found_by_both_versions_of_ip(void **state) {
  (void)state;
  int port, listener = listen_somewhere(&port), six = socket(AF_INET6, SOCK_STREAM, 0);
  struct sockaddr_in6 loopback = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
  (void)seconds_to_connect("127.0.0.1", port, 5);
  bool there = six >= 0 && bind(six, (struct sockaddr *)&loopback, sizeof loopback) == 0;
  hv_socket_close(&six);
  if (there) (void)seconds_to_connect("::1", port, 1);
  hv_socket_close(&listener);
  if (!there) skip();
}

static void rank_0_is_found_where_there_is_no_ipv6(void **state) {
  (void)state;
  int port;
  without_ipv6 = true;
  int listener = listen_somewhere(&port);
  (void)seconds_to_connect("127.0.0.1", port, 5);
  hv_socket_close(&listener);
}

static int option_of(int s, int level, int option) {
  int value = 0;
  socklen_t length = sizeof value;
  assert_int_equal(getsockopt(s, level, option, &value, &length), 0);
  return value;
}

/* A machine that loses power sends nothing. Keep-alive probes are set on both sides, so that each gives up within a
 * minute. */
static void both_sides_notice_a_machine_that_is_gone(void **state) {
  (void)state;
  int port, ends[2], listener = listen_somewhere(&port);
  assert_ok(hv_socket_connect("127.0.0.1", port, 5, &ends[0]));
  assert_ok(hv_socket_accept(listener, 5, &ends[1]));
  for (int i = 0; i < 2; i++) {
    assert_int_equal(option_of(ends[i], SOL_SOCKET, SO_KEEPALIVE), 1);
    int idle = option_of(ends[i], IPPROTO_TCP, TCP_KEEPIDLE), interval = option_of(ends[i], IPPROTO_TCP, TCP_KEEPINTVL);
    assert_in_range(idle + interval * option_of(ends[i], IPPROTO_TCP, TCP_KEEPCNT), 5, 60);
    assert_in_range(option_of(ends[i], IPPROTO_TCP, TCP_USER_TIMEOUT), 5000, 60000);
    hv_socket_close(&ends[i]);
  }
  (void)close(listener);
}

/* Listening on a port that is taken is an error, whichever version of IP it is taken with. */
static void a_port_that_is_taken_is_no_place_to_meet(void **state) {
  (void)state;
  for (int i = 0; i < 2; i++) {
    without_ipv6 = i == 1;
    int port, other, none, listener = listen_somewhere(&port);
    without_ipv6 = false;
    assert_error(hv_rendezvous_listen(port, &other, &none), "rank 0 cannot listen for the others on port");
    hv_socket_close(&listener);
  }
  /* A port that another program has by IPv6 only must not be used by IPv4 either: ranks that connect by IPv6 would
   * reach that program. */
  int taken = socket(AF_INET6, SOCK_STREAM, 0), alone = 1, other, none;
  struct sockaddr_in6 address = {.sin6_family = AF_INET6};
  socklen_t length = sizeof address;
  if (taken < 0) return;
  assert_int_equal(setsockopt(taken, IPPROTO_IPV6, IPV6_V6ONLY, &alone, sizeof alone), 0);
  assert_int_equal(bind(taken, (struct sockaddr *)&address, length), 0);
  assert_int_equal(listen(taken, 1), 0);
  assert_int_equal(getsockname(taken, (struct sockaddr *)&address, &length), 0);
  assert_error(hv_rendezvous_listen(ntohs(address.sin6_port), &other, &none), "rank 0 cannot listen", "on port");
  hv_socket_close(&taken);
}

/* A listener with a full queue does not answer, like a host behind a firewall. */
static void an_address_that_does_not_answer_is_passed_over(void **state) {
  (void)state;
  int waiting[SILENT_PORTS], silent = socket(AF_INET, SOCK_STREAM, 0), port, listener = listen_somewhere(&port);
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t length = sizeof address;
  assert_int_equal(bind(silent, (struct sockaddr *)&address, length), 0);
  assert_int_equal(listen(silent, 0), 0);
  assert_int_equal(getsockname(silent, (struct sockaddr *)&address, &length), 0);
  for (int i = 0; i < SILENT_PORTS; i++) {
    waiting[i] = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    (void)connect(waiting[i], (struct sockaddr *)&address, length);
  }
  silent_port = ntohs(address.sin_port);
  double took = seconds_to_connect("127.0.0.1", port, 20);
  silent_port = 0;
  if (took < 1 || took > 15) fail_msg("it took %.1f s", took);
  for (int i = 0; i < SILENT_PORTS; i++) hv_socket_close(&waiting[i]);
  hv_socket_close(&silent);
  hv_socket_close(&listener);
}

/* Replaces the system's function. The system chooses the local port of a connection; with `from_its_own_port` it is the
 * one that is connected to. */
static bool from_its_own_port;
int connect(int socket, const struct sockaddr *address, socklen_t length) {
  int (*own)(int, const struct sockaddr *, socklen_t) = NULL;
  *(void **)&own = dlsym(RTLD_NEXT, "connect");
  assert_non_null(own);
  if (from_its_own_port) assert_int_equal(bind(socket, address, length), 0);
  from_its_own_port = false; /* once only, because the port stays taken for a while */
  return own(socket, address, length);
}

/* TCP can connect a socket to itself if nobody listens on the port and the local port happens to be the same. */
static void nobody_is_taken_for_rank_0_by_itself(void **state) {
  (void)state;
  int connected, port, listener = listen_somewhere(&port);
  hv_socket_close(&listener);
  from_its_own_port = true;
  assert_error(hv_socket_connect("127.0.0.1", port, 0.2, &connected), "rank 0 at 127.0.0.1:", "did not answer");
  assert_false(from_its_own_port);
}

typedef struct writer {
  int socket, bytes, pause_ms;
  atomic_bool stop;
} writer;

/* Sends one byte at a time. */
static void *trickle(void *argument) {
  writer *w = argument;
  for (int i = 0; i < w->bytes && !atomic_load(&w->stop); i++) {
    (void)nanosleep(&(struct timespec){.tv_nsec = w->pause_ms * 1000000L}, NULL);
    if (send(w->socket, "x", 1, MSG_NOSIGNAL) != 1) break;
  }
  return NULL;
}

/* Receives a message that comes byte by byte; returns the status, and in *took the seconds. */
static hv_status receive_trickle(int pause_ms, double seconds, double *took) {
  int pair[2];
  char message[MESSAGE];
  pthread_t thread;
  assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
  writer w = {.socket = pair[1], .bytes = MESSAGE, .pause_ms = pause_ms};
  assert_int_equal(pthread_create(&thread, NULL, trickle, &w), 0);
  double start = hv_clock_seconds();
  hv_status status = hv_socket_receive(pair[0], message, sizeof message, seconds);
  *took = hv_clock_seconds() - start;
  atomic_store(&w.stop, true);
  pthread_join(thread, NULL);
  hv_socket_close(&pair[0]);
  hv_socket_close(&pair[1]);
  return status;
}

static void the_time_is_that_of_the_whole_message(void **state) {
  (void)state;
  double took;
  assert_error(receive_trickle(20, 0.5, &took), "no message came for");
  if (took < 0.5 || took > 3) fail_msg("it took %.1f s", took);
}

static void on_alarm(int number) {
  (void)number;
}

static void a_signal_does_not_end_the_time(void **state) {
  (void)state;
  double took;
  struct itimerval often = {.it_interval.tv_usec = 5000, .it_value.tv_usec = 5000}, never = {0};
  struct sigaction action = {.sa_handler = on_alarm}, before;
  assert_int_equal(sigaction(SIGALRM, &action, &before), 0);
  assert_int_equal(setitimer(ITIMER_REAL, &often, NULL), 0);
  hv_status status = receive_trickle(1, 30, &took);
  assert_int_equal(setitimer(ITIMER_REAL, &never, NULL), 0);
  assert_int_equal(sigaction(SIGALRM, &before, NULL), 0);
  assert_ok(status);
}

/* After half a message nothing more may be sent, since it would be taken for the other half: the connection is lost. */
static void nothing_follows_half_a_message(void **state) {
  (void)state;
  int pair[2], whole = 0;
  char message[MESSAGE] = {0};
  size_t received = 0;
  assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
  hv_status status = HV_OK;
  while (!status) status = hv_socket_send(pair[1], message, sizeof message, 0.2);
  assert_error(status, "it has taken no message");
  while (hv_socket_take(pair[0], message, sizeof message, &received) == HV_SOCKET_MESSAGE) {
    whole++;
    received = 0;
  }
  assert_true(whole > 0);
  hv_status_free(hv_socket_send(pair[1], message, sizeof message, 0.2));
  assert_int_equal(hv_socket_take(pair[0], message, sizeof message, &received), HV_SOCKET_LOST);
  hv_socket_close(&pair[0]);
  hv_socket_close(&pair[1]);
}

static int begin(void **state) {
  (void)state;
  unknown_for = silent_port = 0;
  from_its_own_port = without_ipv6 = false;
  return 0;
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup(a_name_may_become_known_late, begin),
      cmocka_unit_test_setup(rank_0_is_found_by_both_versions_of_ip, begin),
      cmocka_unit_test_setup(rank_0_is_found_where_there_is_no_ipv6, begin),
      cmocka_unit_test_setup(both_sides_notice_a_machine_that_is_gone, begin),
      cmocka_unit_test_setup(a_port_that_is_taken_is_no_place_to_meet, begin),
      cmocka_unit_test_setup(an_address_that_does_not_answer_is_passed_over, begin),
      cmocka_unit_test_setup(nobody_is_taken_for_rank_0_by_itself, begin),
      cmocka_unit_test_setup(the_time_is_that_of_the_whole_message, begin),
      cmocka_unit_test_setup(a_signal_does_not_end_the_time, begin),
      cmocka_unit_test_setup(nothing_follows_half_a_message, begin),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
