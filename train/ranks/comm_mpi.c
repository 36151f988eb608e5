#include "train/ranks/comm_mpi.h"

#include <pthread.h>
#include <stdlib.h>

#include "core/base/thread_pool.h"
#include "train/ranks/mpi_exchange.h"

enum { MOST_QUEUED = 256 };

typedef struct mpi_comm mpi_comm;

/* A call that is queued or running. */
typedef struct queued_call {
  hv_job job; /* first */
  mpi_comm *comm;
  hv_comm_call call;
  double timeout;
} queued_call;

struct mpi_comm {
  hv_comm head;
  hv_thread_pool *thread; /* one */
  hv_mpi_exchange *exchange;
  size_t piece_bytes;
  double timeout;
  atomic_int give_up;
  hv_event *ready; /* recorded on the call's stream, behind what was queued there */
  hv_job open, close, abort;
  queued_call calls[MOST_QUEUED]; /* by ticket */

  pthread_mutex_t mutex; /* guards what follows */
  pthread_cond_t changed;
  hv_ticket done; /* all calls up to this one have ended */
  bool opened;
  hv_status failure; /* the first error of a call, or of opening */
};

#define COMM_OF(job, member) ((mpi_comm *)(void *)((char *)(job)-offsetof(mpi_comm, member)))

/* Notes that the thread has ended the calls up to `done`, or has opened MPI, and with what error. */
static void advance(mpi_comm *comm, hv_ticket done, hv_status failure) {
  pthread_mutex_lock(&comm->mutex);
  comm->failure = hv_status_first(comm->failure, failure);
  comm->opened = true;
  comm->done = done;
  pthread_cond_broadcast(&comm->changed);
  pthread_mutex_unlock(&comm->mutex);
}

static void open_on_thread(hv_job *job, int worker) {
  (void)worker;
  mpi_comm *comm = COMM_OF(job, open);
  hv_status status = hv_mpi_exchange_open(comm->head.device, comm->piece_bytes, &comm->give_up, &comm->exchange);
  advance(comm, 0, status);
}

static bool has_failed(mpi_comm *comm) {
  pthread_mutex_lock(&comm->mutex);
  bool failed = comm->failure != HV_OK;
  pthread_mutex_unlock(&comm->mutex);
  return failed;
}

static void run_on_thread(hv_job *job, int worker) {
  (void)worker;
  queued_call *queued = (queued_call *)job;
  mpi_comm *comm = queued->comm;
  hv_status status = HV_OK;
  const hv_comm_call *call = &queued->call;
  hv_span *span =
      hv_trace_begin(comm->head.trace, HV_TRACE_COMMUNICATION, hv_collective_name(call->collective), call->what, NULL);
  if (!has_failed(comm)) status = hv_mpi_exchange_run(comm->exchange, call, queued->timeout);
  hv_trace_end(span, NULL);
  advance(comm, call->ticket, status);
}

static void abort_on_thread(hv_job *job, int worker) {
  (void)worker;
  hv_mpi_exchange_abort(COMM_OF(job, abort)->exchange);
}

static void close_on_thread(hv_job *job, int worker) {
  (void)worker;
  mpi_comm *comm = COMM_OF(job, close);
  hv_mpi_exchange_close(comm->exchange, !comm->head.error && !has_failed(comm));
}

static void wait_until_done(mpi_comm *comm, hv_ticket ticket) {
  pthread_mutex_lock(&comm->mutex);
  while (comm->done < ticket) pthread_cond_wait(&comm->changed, &comm->mutex);
  pthread_mutex_unlock(&comm->mutex);
}

static hv_status run(hv_comm *head, const hv_comm_call *call, hv_stream *stream) {
  mpi_comm *comm = (mpi_comm *)head;
  queued_call *queued = &comm->calls[call->ticket % MOST_QUEUED];
  wait_until_done(comm, call->ticket - MOST_QUEUED);
  hv_event_record(stream, comm->ready);
  hv_event_wait(hv_mpi_exchange_stream(comm->exchange), comm->ready);
  *queued = (queued_call){.job.run = run_on_thread, .comm = comm, .call = *call, .timeout = comm->timeout};
  hv_thread_pool_submit(comm->thread, &queued->job);
  if (!head->device->host_memory) wait_until_done(comm, call->ticket);
  return HV_OK;
}

static void wait_for_call(hv_comm *head, hv_ticket ticket, hv_stream *stream) {
  (void)stream;
  wait_until_done((mpi_comm *)head, ticket);
}

static hv_status failure(hv_comm *head) {
  mpi_comm *comm = (mpi_comm *)head;
  pthread_mutex_lock(&comm->mutex);
  hv_status status =
      comm->failure ? hv_error(hv_status_code(comm->failure), "%s", hv_status_message(comm->failure)) : HV_OK;
  pthread_mutex_unlock(&comm->mutex);
  return status;
}

static void set_timeout(hv_comm *head, double seconds) {
  ((mpi_comm *)head)->timeout = seconds;
}

/* A call that waits for other ranks sees `give_up` and aborts; otherwise aborting is the thread's next job. Ends this
 * process. */
static void abort_all(hv_comm *head, int exit_code) {
  mpi_comm *comm = (mpi_comm *)head;
  atomic_store(&comm->give_up, exit_code);
  comm->abort.run = abort_on_thread;
  hv_thread_pool_submit(comm->thread, &comm->abort);
  hv_thread_pool_close(comm->thread);
}

static void close_comm(hv_comm *head) {
  mpi_comm *comm = (mpi_comm *)head;
  if (comm->exchange) {
    comm->close.run = close_on_thread;
    hv_thread_pool_submit(comm->thread, &comm->close);
  }
  hv_thread_pool_close(comm->thread);
  hv_event_close(head->device, comm->ready);
  hv_comm_finish(head);
  hv_status_free(comm->failure);
  pthread_cond_destroy(&comm->changed);
  pthread_mutex_destroy(&comm->mutex);
  free(comm);
}

static const hv_comm_methods methods = {.close = close_comm,
                                        .run = run,
                                        .wait = wait_for_call,
                                        .failure = failure,
                                        .set_timeout = set_timeout,
                                        .abort = abort_all};

/* Starts the thread, and MPI on it. */
static hv_status open_thread(mpi_comm *comm) {
  HV_TRY(hv_thread_pool_open(1, &comm->thread));
  comm->open.run = open_on_thread;
  hv_thread_pool_submit(comm->thread, &comm->open);
  pthread_mutex_lock(&comm->mutex);
  while (!comm->opened) pthread_cond_wait(&comm->changed, &comm->mutex);
  pthread_mutex_unlock(&comm->mutex);
  return failure(&comm->head);
}

hv_status hv_comm_mpi_open(hv_device *device, const hv_comm_mpi_options *options, hv_comm **out) {
  hv_status status = HV_OK;
  *out = NULL;
  mpi_comm *comm = calloc(1, sizeof *comm);
  if (!comm) return hv_error_memory("the communicator");
  comm->head.device = device;
  comm->piece_bytes = options->piece_bytes;
  comm->timeout = options->timeout;
  pthread_mutex_init(&comm->mutex, NULL);
  pthread_cond_init(&comm->changed, NULL);
  HV_CHECK(open_thread(comm));
  HV_CHECK(hv_comm_start(&comm->head, "mpi", &methods, device, hv_mpi_exchange_rank(comm->exchange),
                         hv_mpi_exchange_size(comm->exchange)));
  HV_CHECK(hv_event_open(device, &comm->ready));
  *out = &comm->head;
  comm = NULL;
done:
  if (comm) close_comm(&comm->head);
  return status;
}
