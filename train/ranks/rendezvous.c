#include "train/ranks/rendezvous.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/base/clock.h"
#include "core/base/log.h"
#include "train/ranks/rendezvous_socket.h"

enum { LISTEN_MS = 50, PROGRESS_EVERY_MS = 200, NEWCOMERS = 64, NEWCOMER_MS = 10 };

static const double send_seconds = 10, hello_seconds = 5;

typedef enum message_kind { HELLO = 1, WELCOME, GATHERED, PROGRESS, LATE, FAILED, BYE } message_kind;

/* Every message has this one size. */
typedef struct message {
  uint64_t magic;
  int32_t kind, rank, size; /* of the sender */
  int32_t length;           /* of `bytes` */
  int64_t call;             /* PROGRESS, LATE */
  double seconds;           /* LATE */
  char bytes[512];
} message;

static const uint64_t magic = 0x68766c6170656572u; /* "hvlapeer" */

/* The bytes of a HELLO. */
typedef struct greeting {
  char place[96]; /* "process 4711 on node1" */
  char run[128];
} greeting;

/* A process that has connected and not yet sent its HELLO. */
typedef struct newcomer {
  int socket; /* -1: nobody */
  double until;
  size_t received; /* bytes of `hello` */
  message hello;
} newcomer;

/* A rank as rank 0 sees it; the other ranks use entry 0 alone, for rank 0. */
typedef struct peer {
  int socket;    /* -1: none, or closed; once the thread runs, only it closes the socket, under the mutex */
  int64_t calls; /* number of the last collective call that it reported */
  char place[96];
} peer;

typedef struct rendezvous {
  hv_peers head;
  double timeout;
  peer *peers; /* [size] */
  greeting own;
  pthread_t thread;
  bool watching;
  atomic_bool closing;
  atomic_llong calls; /* of this rank */
  pthread_mutex_t mutex;
  int64_t asked;     /* the call last reported to rank 0 as late; 0: none */
  hv_status failure; /* the first */
} rendezvous;

static hv_status failure(hv_peers *head) {
  rendezvous *self = (rendezvous *)head;
  pthread_mutex_lock(&self->mutex);
  hv_status status = self->failure ? hv_error(HV_ERR_DEVICE, "%s", hv_status_message(self->failure)) : HV_OK;
  pthread_mutex_unlock(&self->mutex);
  return status;
}

static message compose(const rendezvous *self, message_kind kind, const void *bytes, size_t length) {
  message m = {.magic = magic, .kind = kind, .rank = self->head.rank, .size = self->head.size};
  m.length = (int32_t)(length < sizeof m.bytes ? length : sizeof m.bytes);
  if (m.length > 0) memcpy(m.bytes, bytes, (size_t)m.length);
  return m;
}

/* Sends to a peer and ignores errors: that a peer is gone shows when receiving. Called under the mutex once the thread
 * runs. */
static void tell(const rendezvous *self, int32_t rank, const message *m) {
  if (self->peers[rank].socket >= 0)
    hv_status_free(hv_socket_send(self->peers[rank].socket, m, sizeof *m, send_seconds));
}

/* Remembers the first failure, and sends it to every rank that this one is connected to. */
static void spread(rendezvous *self, const char *text) {
  pthread_mutex_lock(&self->mutex);
  if (!self->failure) {
    self->failure = hv_error(HV_ERR_DEVICE, "%s", text);
    message m = compose(self, FAILED, text, strlen(text) + 1);
    m.bytes[sizeof m.bytes - 1] = '\0';
    int32_t last = self->head.rank == 0 ? self->head.size : 1;
    for (int32_t r = 0; r < last; r++) tell(self, r, &m);
  }
  pthread_mutex_unlock(&self->mutex);
}

static void report(hv_peers *head, const char *text) {
  spread((rendezvous *)head, text);
}

static void progress(hv_peers *head, int64_t calls) {
  atomic_store(&((rendezvous *)head)->calls, calls);
}

/* On rank 0: reports which rank has kept `rank` waiting in `call`, or that none has. */
static void judge(rendezvous *self, int32_t rank, int64_t call, const char *operation, double seconds) {
  int32_t slowest = 0;
  pthread_mutex_lock(&self->mutex);
  self->peers[0].calls = atomic_load(&self->calls);
  for (int32_t r = 1; r < self->head.size; r++) {
    if (self->peers[r].calls < self->peers[slowest].calls) slowest = r;
  }
  bool missing = self->peers[slowest].calls < call;
  pthread_mutex_unlock(&self->mutex);
  char text[512];
  if (missing) {
    snprintf(text, sizeof text, "rank %d (%s) did not come for %.0f s: %.200s cannot end on rank %d", slowest,
             self->peers[slowest].place, seconds, operation, rank);
  } else {
    snprintf(
        text, sizeof text,
        "%.200s did not end for %.0f s on rank %d (%s), though all ranks have reached it: a card or the network hangs",
        operation, seconds, rank, self->peers[rank].place);
  }
  spread(self, text);
}

static void late(hv_peers *head, int64_t call, const char *operation, double seconds) {
  rendezvous *self = (rendezvous *)head;
  if (head->rank == 0) {
    judge(self, 0, call, operation, seconds);
    return;
  }
  message m = compose(self, LATE, operation, strlen(operation) + 1);
  m.bytes[sizeof m.bytes - 1] = '\0';
  m.call = call;
  m.seconds = seconds;
  pthread_mutex_lock(&self->mutex);
  bool again = self->asked == call;
  self->asked = call;
  tell(self, 0, &m);
  pthread_mutex_unlock(&self->mutex);
  if (!again) return;
  char text[512];
  snprintf(text, sizeof text, "rank 0 (%s) has been silent for %.0f s: %.200s cannot end on rank %d",
           self->peers[0].place, seconds, operation, head->rank);
  spread(self, text);
}

static void note_progress(rendezvous *self, int32_t rank, int64_t calls) {
  pthread_mutex_lock(&self->mutex);
  self->peers[rank].calls = calls;
  pthread_mutex_unlock(&self->mutex);
}

static void forget(rendezvous *self, int32_t rank) {
  pthread_mutex_lock(&self->mutex);
  hv_socket_close(&self->peers[rank].socket);
  pthread_mutex_unlock(&self->mutex);
}

static void hear(rendezvous *self, int32_t rank, const message *m) {
  switch (m->kind) {
  case PROGRESS: note_progress(self, rank, m->call); break;
  case LATE: judge(self, rank, m->call, m->bytes, m->seconds); break;
  case FAILED: spread(self, m->bytes); break;
  case BYE: forget(self, rank); break;
  default: break;
  }
}

static void lost(rendezvous *self, int32_t rank) {
  char text[256];
  forget(self, rank);
  snprintf(text, sizeof text, "rank %d (%s) has died", rank, self->peers[rank].place);
  spread(self, text);
}

static void *watch_peers(void *argument) {
  rendezvous *self = argument;
  int32_t last = self->head.rank == 0 ? self->head.size : 1;
  int64_t told = -1;
  double told_at = 0;
  while (!atomic_load(&self->closing)) {
    for (int32_t r = 0; r < last; r++) {
      message m;
      hv_socket_state state = hv_socket_receive_ready(self->peers[r].socket, &m, sizeof m, send_seconds);
      m.bytes[sizeof m.bytes - 1] = '\0';
      if (state == HV_SOCKET_MESSAGE && m.magic == magic) hear(self, r, &m);
      if (state == HV_SOCKET_LOST) lost(self, r);
    }
    int64_t calls = atomic_load(&self->calls);
    double now = hv_clock_seconds();
    if (self->head.rank > 0 && calls != told && now - told_at > 1e-3 * PROGRESS_EVERY_MS) {
      message m = compose(self, PROGRESS, NULL, 0);
      m.call = calls;
      pthread_mutex_lock(&self->mutex);
      tell(self, 0, &m);
      pthread_mutex_unlock(&self->mutex);
      told = calls;
      told_at = now;
    }
    usleep(1000 * LISTEN_MS);
  }
  return NULL;
}

/* Starts the thread with all signals blocked, so that they go to the thread that waits for them. */
static hv_status watch(hv_peers *head) {
  rendezvous *self = (rendezvous *)head;
  sigset_t all, before;
  sigfillset(&all);
  (void)pthread_sigmask(SIG_SETMASK, &all, &before);
  int problem = pthread_create(&self->thread, NULL, watch_peers, self);
  (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
  if (problem) return hv_error_errno(problem, "cannot start the thread that listens to the other ranks");
  self->watching = true;
  return HV_OK;
}

static void close_rendezvous(hv_peers *head) {
  rendezvous *self = (rendezvous *)head;
  atomic_store(&self->closing, true);
  if (self->watching) pthread_join(self->thread, NULL);
  message m = compose(self, BYE, NULL, 0);
  for (int32_t r = 0; r < head->size; r++) {
    tell(self, r, &m);
    hv_socket_close(&self->peers[r].socket);
  }
  hv_status_free(self->failure);
  pthread_mutex_destroy(&self->mutex);
  free(self->peers);
  free(self);
}

/* The next message from a rank, which must be of that kind. */
static hv_status expect(const rendezvous *self, int32_t rank, message_kind kind, const char *what, message *out) {
  hv_status status = hv_socket_receive(self->peers[rank].socket, out, sizeof *out, self->timeout);
  if (status) return hv_error_context(status, "%s: rank %d (%s)", what, rank, self->peers[rank].place);
  if (out->magic == magic && out->kind == (int32_t)kind) return HV_OK;
  out->bytes[sizeof out->bytes - 1] = '\0';
  if (out->magic == magic && out->kind == FAILED) return hv_error(HV_ERR_DEVICE, "%s", out->bytes);
  bool gone = out->magic == magic && out->kind == BYE;
  return hv_error(HV_ERR_DEVICE, "%s: rank %d (%s) %s", what, rank, self->peers[rank].place,
                  gone ? "has given up: its own message says why" : "sent an unexpected message");
}

/* Sends a message to a rank. */
static hv_status hand_to(const rendezvous *self, int32_t rank, const char *what, const message *m) {
  return hv_error_context(hv_socket_send(self->peers[rank].socket, m, sizeof *m, send_seconds), "%s: rank %d (%s)",
                          what, rank, self->peers[rank].place);
}

static hv_status gather_as_first(rendezvous *self, const char *what, size_t bytes, char *all) {
  for (int32_t r = 1; r < self->head.size; r++) {
    message m;
    HV_TRY(expect(self, r, GATHERED, what, &m));
    memcpy(all + (size_t)r * bytes, m.bytes, bytes);
  }
  for (int32_t r = 1; r < self->head.size; r++) {
    for (int32_t of = 0; of < self->head.size; of++) {
      message m = compose(self, GATHERED, all + (size_t)of * bytes, bytes);
      HV_TRY(hand_to(self, r, what, &m));
    }
  }
  return HV_OK;
}

static hv_status gather_as_other(rendezvous *self, const char *what, const void *own, size_t bytes, char *all) {
  message m = compose(self, GATHERED, own, bytes);
  hv_status status = hand_to(self, 0, what, &m);
  for (int32_t r = 0; r < self->head.size; r++) {
    /* Receives even if sending failed: rank 0 may have sent the reason. */
    hv_status heard = expect(self, 0, GATHERED, what, &m);
    if (heard) {
      hv_status_free(status);
      return heard;
    }
    memcpy(all + (size_t)r * bytes, m.bytes, bytes);
  }
  return status;
}

static hv_status gather(hv_peers *head, const char *what, const void *own, size_t bytes, void *all) {
  rendezvous *self = (rendezvous *)head;
  if (bytes > HV_PEERS_MOST_BYTES) return hv_error(HV_ERR_INTERNAL, "%s: %zu bytes are too many", what, bytes);
  memcpy((char *)all + (size_t)head->rank * bytes, own, bytes);
  hv_status status =
      head->rank == 0 ? gather_as_first(self, what, bytes, all) : gather_as_other(self, what, own, bytes, all);
  if (status) spread(self, hv_status_message(status));
  return status;
}

static void refuse(const rendezvous *self, int socket, const char *why) {
  message refusal = compose(self, FAILED, why, strlen(why) + 1);
  hv_status_free(hv_socket_send(socket, &refusal, sizeof refusal, send_seconds));
  (void)close(socket);
}

/* Accepts or refuses a process by its HELLO. */
static hv_status admit(rendezvous *self, int socket, const message *m) {
  int32_t size = self->head.size;
  greeting from;
  char text[512];
  if (m->magic != magic || m->kind != HELLO) {
    (void)close(socket); /* a stranger: a port scan, another program */
    return HV_OK;
  }
  memcpy(&from, m->bytes, sizeof from);
  from.place[sizeof from.place - 1] = from.run[sizeof from.run - 1] = '\0';
  if (from.run[0] && self->own.run[0] && strcmp(from.run, self->own.run) != 0) {
    snprintf(text, sizeof text, "rank %d of %d (%s) belongs to the run %s, not to %s, which meets at the same port",
             m->rank, m->size, from.place, from.run, self->own.run);
    hv_log_warning("refused: %s", text);
    refuse(self, socket, text);
    return HV_OK;
  }
  bool fits = m->size == size && m->rank > 0 && m->rank < size && self->peers[m->rank].socket < 0;
  if (fits) {
    self->peers[m->rank].socket = socket;
    memcpy(self->peers[m->rank].place, from.place, sizeof from.place);
    message welcome = compose(self, WELCOME, self->own.place, strlen(self->own.place) + 1);
    return hand_to(self, m->rank, "accepting it", &welcome);
  }
  snprintf(text, sizeof text, "rank %d of %d (%s) connected to a run of %d ranks%s", m->rank, m->size, from.place, size,
           m->size == size ? " that already has this rank: does another run meet at the same port?" : "");
  refuse(self, socket, text);
  return hv_error(HV_ERR_INPUT, "%s", text);
}

/* Receives what a newcomer sends, without waiting. One that has not sent its whole HELLO in time is a stranger, too. */
static hv_status hear_out(rendezvous *self, newcomer *who) {
  hv_socket_state state = hv_socket_take(who->socket, &who->hello, sizeof who->hello, &who->received);
  if (state == HV_SOCKET_SILENT && hv_clock_seconds() < who->until) return HV_OK;
  int socket = who->socket;
  who->socket = -1;
  if (state == HV_SOCKET_MESSAGE) return admit(self, socket, &who->hello);
  (void)close(socket);
  return HV_OK;
}

static hv_status missing_ranks(const rendezvous *self) {
  char list[128] = "";
  int32_t missing = 0;
  for (int32_t r = 1; r < self->head.size; r++) {
    size_t used = strlen(list);
    if (self->peers[r].socket >= 0) continue;
    if (used < sizeof list - 16) snprintf(list + used, sizeof list - used, "%s%d", missing ? ", " : "", r);
    missing++;
  }
  return hv_error(HV_ERR_DEVICE, "%d of %d ranks did not connect within %.0f s: %s", missing, self->head.size,
                  self->timeout, list);
}

static bool all_are_there(const rendezvous *self) {
  for (int32_t r = 1; r < self->head.size; r++) {
    if (self->peers[r].socket < 0) return false;
  }
  return true;
}

/* Waits briefly for a process to connect, if there is room for one. */
static hv_status look_out(int listener, newcomer *newcomers) {
  for (int i = 0; i < NEWCOMERS; i++) {
    if (newcomers[i].socket >= 0) continue;
    newcomers[i] = (newcomer){.until = hv_clock_seconds() + hello_seconds};
    return hv_socket_accept(listener, 1e-3 * NEWCOMER_MS, &newcomers[i].socket);
  }
  usleep(1000 * NEWCOMER_MS);
  return HV_OK;
}

static hv_status meet_as_first(rendezvous *self, int listener) {
  hv_status status = HV_OK;
  double until = hv_clock_seconds() + self->timeout;
  newcomer *newcomers = calloc(NEWCOMERS, sizeof *newcomers);
  if (!newcomers) return hv_error_memory("the meeting of ranks");
  for (int i = 0; i < NEWCOMERS; i++) newcomers[i].socket = -1;
  while (!status && !all_are_there(self)) {
    status = hv_clock_seconds() < until ? look_out(listener, newcomers) : missing_ranks(self);
    for (int i = 0; i < NEWCOMERS && !status; i++) {
      if (newcomers[i].socket >= 0) status = hear_out(self, &newcomers[i]);
    }
  }
  for (int i = 0; i < NEWCOMERS; i++) hv_socket_close(&newcomers[i].socket);
  free(newcomers);
  if (status) spread(self, hv_status_message(status));
  return status;
}

static hv_status meet_as_other(rendezvous *self, const hv_rendezvous_options *options) {
  HV_TRY(hv_socket_connect(options->host, options->port, options->timeout, &self->peers[0].socket));
  message m = compose(self, HELLO, &self->own, sizeof self->own);
  snprintf(self->peers[0].place, sizeof self->peers[0].place, "at %.80s:%d", options->host, options->port);
  hv_status status = hv_socket_send(self->peers[0].socket, &m, sizeof m, send_seconds);
  if (!status) status = hv_socket_receive(self->peers[0].socket, &m, sizeof m, self->timeout);
  if (status) return hv_error_context(status, "rank 0 at %s:%d", options->host, options->port);
  if (m.magic != magic) {
    return hv_error(HV_ERR_INPUT, "%s:%d is not a rank of this program: check MASTER_ADDR and MASTER_PORT",
                    options->host, options->port);
  }
  m.bytes[sizeof m.bytes - 1] = '\0';
  if (m.kind != WELCOME) return hv_error(HV_ERR_INPUT, "rank 0 refuses this process: %s", m.bytes);
  snprintf(self->peers[0].place, sizeof self->peers[0].place, "%.95s", m.bytes);
  return HV_OK;
}

static hv_status meet(rendezvous *self, const hv_rendezvous_options *options) {
  if (options->rank > 0) return meet_as_other(self, options);
  int listener = options->listener, port;
  if (listener < 0) HV_TRY(hv_rendezvous_listen(options->port, &listener, &port));
  hv_status status = meet_as_first(self, listener);
  (void)close(listener);
  return status;
}

static const hv_peers_methods methods = {.gather = gather,
                                         .watch = watch,
                                         .progress = progress,
                                         .late = late,
                                         .report = report,
                                         .failure = failure,
                                         .close = close_rendezvous};

hv_status hv_rendezvous_open(const hv_rendezvous_options *options, hv_peers **out) {
  *out = NULL;
  rendezvous *self = calloc(1, sizeof *self);
  peer *peers = calloc((size_t)options->size, sizeof *peers);
  if (!self || !peers) {
    free(self);
    free(peers);
    return hv_error_memory("the meeting of ranks");
  }
  self->head = (hv_peers){.methods = &methods, .rank = options->rank, .size = options->size};
  self->timeout = options->timeout;
  self->peers = peers;
  for (int32_t r = 0; r < options->size; r++) peers[r].socket = -1;
  pthread_mutex_init(&self->mutex, NULL);
  char host[64] = "?";
  (void)gethostname(host, sizeof host - 1);
  snprintf(self->own.place, sizeof self->own.place, "process %lld on %s", (long long)getpid(), host);
  snprintf(self->own.run, sizeof self->own.run, "%s", options->run ? options->run : "");
  if (options->rank == 0) memcpy(peers[0].place, self->own.place, sizeof self->own.place);
  hv_status status = meet(self, options);
  if (status) {
    close_rendezvous(&self->head);
    return status;
  }
  *out = &self->head;
  return HV_OK;
}
