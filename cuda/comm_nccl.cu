#include "cuda/comm_nccl.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <new>

#include "core/base/clock.h"
#include "cuda/nccl_library.h"

enum { POLL_US = 10000, OPENING_SECONDS = 55 };

/* The number of collectives whose ends can be waited for. It must exceed the number that a step makes, or a wait for an
 * early one would wait for a later one that reuses its place. */
enum { RING = 256 };

/* Pauses between two queries whether NCCL has accepted a call. That takes it some ten microseconds, and a step makes
 * hundreds of calls. */
enum { FIRST_PAUSE_US = 10, LONGEST_PAUSE_US = 1000 };

/* How long to wait for the side channel to name the rank behind an error that NCCL does not explain, in seconds. */
static const double naming_seconds = 2;

/* A collective, for error messages, and the mark recorded behind it. */
struct past_call {
  char what[128]; /* a copy, cut if longer: the caller's text may be gone by then */
  hv_collective collective;
  hv_mark *over;
};

struct nccl_comm {
  hv_comm head;
  hv_runtime *runtime;
  hv_peers *peers; /* owned */
  hv_nccl_library nccl;
  hv_stream *lane; /* the stream of collectives */
  hv_mark *ready;  /* the caller's stream when it made a call; the lane waits for it */
  past_call calls[RING];
  std::atomic<int64_t> queued; /* the last ticket whose mark is recorded */
  std::atomic<double> timeout;

  pthread_t watcher;
  bool watched;
  std::atomic<bool> closing, failed;
  pthread_mutex_t api; /* guards comm and calls: NCCL allows one call of a communicator at a time */
  ncclComm_t comm;     /* NULL after a failure */
  pthread_mutex_t mutex;
  hv_status failure; /* the first one; guarded by mutex */
};

static void sleep_us(long us) {
  timespec pause = {us / 1000000, us % 1000000 * 1000};
  nanosleep(&pause, nullptr);
}

/* "all_reduce of values of llm.layer.3" */
static void describe(nccl_comm *self, hv_ticket ticket, char *out, size_t size) {
  const past_call *call = &self->calls[ticket % RING];
  pthread_mutex_lock(&self->api);
  snprintf(out, size, "%s of %s", hv_collective_name(call->collective), call->what[0] ? call->what : "nothing");
  pthread_mutex_unlock(&self->api);
}

/* Keeps the first failure and aborts the communicator, so that streams that wait for it go on. Takes ownership. */
static void fail_with(nccl_comm *self, hv_status failure) {
  pthread_mutex_lock(&self->mutex);
  self->failure = hv_status_first(self->failure, failure);
  pthread_mutex_unlock(&self->mutex);
  self->failed = true;
  pthread_mutex_lock(&self->api);
  if (self->comm) (void)self->nccl.CommAbort(self->comm);
  self->comm = nullptr;
  pthread_mutex_unlock(&self->api);
}

/* A failure that the side channel reports, with the operation that this rank was at. */
static hv_status peers_failure(nccl_comm *self, const char *operation) {
  hv_status failure = self->peers->methods->failure(self->peers);
  if (!failure || !operation[0]) return failure;
  hv_status with = hv_error(hv_status_code(failure), "%s (rank %d was at %s)", hv_status_message(failure),
                            self->head.rank, operation);
  hv_status_free(failure);
  return with;
}

/* The error of a failed call. If a rank has ended, the side channel names it, for which it may need a moment; else
 * NCCL's own words. */
static hv_status explain(nccl_comm *self, const char *operation, ncclResult_t result) {
  double start = hv_clock_seconds();
  while (self->head.size > 1 && hv_clock_seconds() - start < naming_seconds) {
    hv_status failure = peers_failure(self, operation);
    if (failure) return failure;
    sleep_us(POLL_US);
  }
  return hv_error(HV_ERR_DEVICE, "NCCL, %s on rank %d: %s", operation, self->head.rank,
                  self->nccl.GetErrorString(result));
}

/* The state of the communicator; ncclInProgress while NCCL has not accepted the last call yet. */
static ncclResult_t async_state(nccl_comm *self) {
  ncclResult_t state = ncclSuccess;
  pthread_mutex_lock(&self->api);
  ncclResult_t asked = self->comm ? self->nccl.CommGetAsyncError(self->comm, &state) : ncclSuccess;
  pthread_mutex_unlock(&self->api);
  return asked == ncclSuccess ? state : asked;
}

/* If NCCL has met an asynchronous error, fails and tells the other ranks. */
static void check_async(nccl_comm *self, const char *operation) {
  ncclResult_t state = async_state(self);
  if (state == ncclSuccess || state == ncclInProgress) return;
  hv_status failure = explain(self, operation, state);
  self->peers->methods->report(self->peers, hv_status_message(failure));
  fail_with(self, failure);
}

/* Checks once for everything that may have gone wrong. *done: the last collective that has ended; *since: when *done
 * last changed, or nothing was pending. */
static void look(nccl_comm *self, hv_ticket *done, double *since) {
  char operation[160] = "";
  hv_ticket queued = self->queued;
  if (*done < queued - RING + 1) *done = queued - RING + 1;
  hv_ticket before = *done;
  /* Not by hv_stream_queue, which changes the stream's state: that belongs to the thread that queues. */
  const hv_queue *lane = ((const hv_cuda_stream *)self->lane)->queue;
  while (*done < queued && hv_mark_passed(lane, self->calls[(*done + 1) % RING].over)) ++*done;
  double now = hv_clock_seconds();
  if (*done == queued || *done > before) *since = now;
  if (queued > 0) describe(self, *done < queued ? *done + 1 : queued, operation, sizeof operation);
  self->peers->methods->progress(self->peers, queued);
  hv_status failure = peers_failure(self, operation);
  if (failure) {
    fail_with(self, failure);
    return;
  }
  check_async(self, operation);
  if (now - *since > self->timeout) {
    self->peers->methods->late(self->peers, *done + 1, operation, self->timeout);
    *since = now; /* the side channel's answer will be the failure */
  }
}

static void *watch(void *argument) {
  nccl_comm *self = (nccl_comm *)argument;
  hv_ticket done = 0;
  double since = hv_clock_seconds();
  hv_runtime_use(self->runtime);
  while (!self->closing) {
    sleep_us(POLL_US);
    if (!self->failed) look(self, &done, &since);
  }
  return nullptr;
}

/* Waits until NCCL has accepted the last call. Communicators are non-blocking, so that a missing rank cannot block us
 * inside NCCL. */
static hv_status settle(nccl_comm *self, ncclResult_t result, const char *operation, double seconds) {
  double start = hv_clock_seconds();
  long pause = FIRST_PAUSE_US;
  while (result == ncclInProgress && !self->failed) {
    if (hv_clock_seconds() - start > seconds) {
      return hv_error(HV_ERR_DEVICE, "NCCL, %s on rank %d: no answer for %.0f s", operation, self->head.rank, seconds);
    }
    hv_status failure = peers_failure(self, operation);
    if (failure) return failure;
    sleep_us(pause);
    if (pause < LONGEST_PAUSE_US) pause *= 2;
    result = async_state(self);
  }
  if (result == ncclSuccess || self->failed) return HV_OK;
  return explain(self, operation, result);
}

static ncclDataType_t type_of(hv_dtype dtype) {
  if (dtype == HV_F32) return ncclFloat32;
  if (dtype == HV_BF16) return ncclBfloat16;
  if (dtype == HV_F64) return ncclFloat64;
  return ncclInt64;
}

/* Collectives that only copy send bytes, whatever the dtype. */
static ncclResult_t queue_call(nccl_comm *self, const hv_comm_call *call) {
  const hv_nccl_library *nccl = &self->nccl;
  ncclComm_t comm = self->comm;
  cudaStream_t lane = (cudaStream_t)hv_stream_queue(self->lane);
  ncclDataType_t type = type_of(call->whole.dtype);
  void *whole = call->whole.data, *share = call->share.data;
  size_t width = hv_dtype_size(call->whole.dtype), count = (size_t)call->whole.cols, part = (size_t)call->share.cols;
  switch (call->collective) {
  case HV_ALL_REDUCE: return nccl->AllReduce(whole, whole, count, type, ncclSum, comm, lane);
  case HV_REDUCE_SCATTER: return nccl->ReduceScatter(whole, share, part, type, ncclSum, comm, lane);
  case HV_ALL_GATHER: return nccl->AllGather(share, whole, part * width, ncclInt8, comm, lane);
  case HV_BROADCAST: return nccl->Broadcast(whole, whole, count * width, ncclInt8, call->root, comm, lane);
  case HV_BARRIER:
    return nccl->AllReduce(self->head.on_device, self->head.on_device, 1, ncclFloat64, ncclSum, comm, lane);
  }
  return ncclInvalidUsage;
}

static hv_status run(hv_comm *head, const hv_comm_call *call, hv_stream *stream) {
  nccl_comm *self = (nccl_comm *)head;
  past_call *place = &self->calls[call->ticket % RING];
  hv_queue *lane = hv_stream_queue(self->lane);
  hv_runtime_use(self->runtime);
  HV_TRY(hv_mark_record(hv_stream_queue(stream), self->ready));
  HV_TRY(hv_mark_wait(lane, self->ready));
  pthread_mutex_lock(&self->api);
  snprintf(place->what, sizeof place->what, "%s", call->what);
  place->collective = call->collective;
  hv_span *span = hv_trace_begin(self->head.trace, HV_TRACE_COMMUNICATION, hv_collective_name(call->collective),
                                 call->what, self->lane);
  ncclResult_t result = self->comm ? queue_call(self, call) : ncclSuccess;
  pthread_mutex_unlock(&self->api);
  HV_TRY(settle(self, result, hv_collective_name(call->collective), self->timeout));
  hv_trace_end(span, self->lane); /* NCCL queues the call from a thread of its own: only now is it in the lane */
  HV_TRY(hv_mark_record(lane, place->over));
  self->queued = call->ticket;
  return HV_OK;
}

static void wait_for_call(hv_comm *head, hv_ticket ticket, hv_stream *stream) {
  nccl_comm *self = (nccl_comm *)head;
  hv_stream_fail(stream, hv_mark_wait(hv_stream_queue(stream), self->calls[ticket % RING].over));
}

static hv_status failure(hv_comm *head) {
  nccl_comm *self = (nccl_comm *)head;
  hv_status status = HV_OK;
  char operation[160];
  describe(self, self->queued, operation, sizeof operation);
  if (!self->failed) check_async(self, operation);
  pthread_mutex_lock(&self->mutex);
  if (self->failure) status = hv_error(hv_status_code(self->failure), "%s", hv_status_message(self->failure));
  pthread_mutex_unlock(&self->mutex);
  return status;
}

static void set_timeout(hv_comm *head, double seconds) {
  ((nccl_comm *)head)->timeout = seconds;
}

static void abort_all(hv_comm *head, int exit_code) {
  nccl_comm *self = (nccl_comm *)head;
  char text[160];
  snprintf(text, sizeof text, "rank %d has ended with an error: its own message says why", head->rank);
  if (!self->failed) self->peers->methods->report(self->peers, text);
  (void)fflush(nullptr);
  _exit(exit_code);
}

static void stop_watching(nccl_comm *self) {
  self->closing = true;
  if (self->watched) pthread_join(self->watcher, nullptr);
  self->watched = false;
}

static void close_comm(hv_comm *head) {
  nccl_comm *self = (nccl_comm *)head;
  if (self->lane) hv_status_free(hv_stream_synchronize(self->lane));
  stop_watching(self);
  if (self->comm && head->error) (void)self->nccl.CommAbort(self->comm);
  if (self->comm && !head->error) (void)self->nccl.CommDestroy(self->comm);
  hv_comm_finish(head);
  hv_stream_close(self->lane);
  hv_mark_close(self->ready);
  for (int i = 0; i < RING; i++) hv_mark_close(self->calls[i].over);
  hv_nccl_library_close(&self->nccl);
  hv_peers_close(self->peers);
  hv_status_free(self->failure);
  pthread_mutex_destroy(&self->api);
  pthread_mutex_destroy(&self->mutex);
  delete self;
}

static const hv_comm_methods methods = {
    .close = close_comm,
    .run = run,
    .wait = wait_for_call,
    .failure = failure,
    .set_timeout = set_timeout,
    .abort = abort_all,
};

/* The watcher blocks all signals: they belong to the thread that waits for them. */
static hv_status start_watching(nccl_comm *self) {
  sigset_t all, before;
  sigfillset(&all);
  (void)pthread_sigmask(SIG_SETMASK, &all, &before);
  int problem = pthread_create(&self->watcher, nullptr, watch, self);
  (void)pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (problem) return hv_error_errno(problem, "cannot start the thread that watches NCCL");
  self->watched = true;
  return HV_OK;
}

static hv_status open_marks(nccl_comm *self) {
  HV_TRY(hv_stream_open(self->head.device, &self->lane));
  HV_TRY(hv_mark_open(self->runtime, &self->ready));
  for (int i = 0; i < RING; i++) HV_TRY(hv_mark_open(self->runtime, &self->calls[i].over));
  return HV_OK;
}

/* Rank 0 makes the unique identifier; all ranks join the group of that identifier. */
static hv_status join(nccl_comm *self) {
  hv_peers *peers = self->peers;
  ncclUniqueId own = {}, *all = (ncclUniqueId *)calloc((size_t)peers->size, sizeof own);
  if (!all) return hv_error_memory("NCCL's identifiers");
  ncclResult_t made = peers->rank == 0 ? self->nccl.GetUniqueId(&own) : ncclSuccess;
  hv_status status = HV_OK;
  if (made != ncclSuccess) {
    status = hv_error(HV_ERR_DEVICE, "NCCL cannot make a unique identifier: %s", self->nccl.GetErrorString(made));
  }
  if (!status) status = peers->methods->gather(peers, "NCCL's identifier", &own, sizeof own, all);
  if (!status) status = peers->methods->watch(peers);
  if (!status) {
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    ncclResult_t result = self->nccl.CommInitRankConfig(&self->comm, peers->size, all[0], peers->rank, &config);
    status = settle(self, result, "connecting the ranks", OPENING_SECONDS);
  }
  free(all);
  return status;
}

static hv_status open_all(nccl_comm *self, hv_device *device, const hv_comm_options *options) {
  int version = 0;
  HV_TRY(hv_nccl_library_open(&self->nccl));
  (void)self->nccl.GetVersion(&version);
  HV_TRY(hv_comm_start(&self->head, "nccl", &methods, device, options->peers->rank, options->peers->size));
  snprintf(self->head.version, sizeof self->head.version, "%d.%d.%d", version / 10000, version / 100 % 100,
           version % 100);
  HV_TRY(open_marks(self));
  HV_TRY(join(self));
  return start_watching(self);
}

/* Tells the other ranks, which wait for this one, why it does not come. If one of them reported the failure first, the
 * side channel does not repeat it. */
static void tell_why(const nccl_comm *self, hv_status status) {
  char text[512];
  snprintf(text, sizeof text, "rank %d cannot be connected: %s", self->peers->rank, hv_status_message(status));
  self->peers->methods->report(self->peers, text);
}

hv_status hv_comm_nccl_open(hv_device *device, hv_runtime *runtime, const hv_comm_options *options, hv_comm **out) {
  *out = nullptr;
  nccl_comm *self = new (std::nothrow) nccl_comm{};
  if (!self) {
    hv_peers_close(options->peers);
    return hv_error_memory("the communicator");
  }
  self->head.device = device;
  self->runtime = runtime;
  self->peers = options->peers;
  self->timeout = options->timeout;
  pthread_mutex_init(&self->api, nullptr);
  pthread_mutex_init(&self->mutex, nullptr);
  hv_runtime_use(runtime);
  hv_status status = open_all(self, device, options);
  if (status) {
    tell_why(self, status);
    self->head.error = hv_error(HV_ERR_INTERNAL, "not open");
    close_comm(&self->head);
    return status;
  }
  *out = &self->head;
  return HV_OK;
}
