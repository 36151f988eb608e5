#include "train/ranks/mpi_exchange.h"

#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/base/clock.h"
#include "train/ranks/mpi_means.h"
#include "train/ranks/rank_place.h"

enum { DEFAULT_PIECE = 1 << 20, CHECK_EVERY_MS = 20 };

typedef struct message {
  char *data;
  size_t bytes;
} message;

struct hv_mpi_exchange {
  hv_device *device;
  hv_stream *stream; /* of the copies */
  MPI_Comm world;
  int32_t rank, size;
  const atomic_int *give_up; /* not 0: end all ranks with this exit code */
  size_t piece;              /* most bytes of one message, a multiple of 8 */
  char *parts;               /* [size][piece]: the current piece of a tensor, on the host */
  char *received;            /* [size][piece]: the others' versions of this rank's part */
  char *result;              /* [piece]: this rank's part */
  message *give, *get;       /* [size]: the next messages; a rank's own entry is not used */
  const char **terms;        /* [size]: of the next sum */
  MPI_Request *requests;     /* [2 size]: receives by rank, then sends by rank */
  hv_rank_place *places;     /* [size] */
};

static hv_status mpi_error(int code, const char *what) {
  char text[MPI_MAX_ERROR_STRING];
  int length = 0;
  if (MPI_Error_string(code, text, &length) != MPI_SUCCESS) length = 0;
  return hv_error(HV_ERR_DEVICE, "MPI: %s: %.*s", what, length, text);
}

#define MPI_TRY(call, what)                                                                                            \
  do {                                                                                                                 \
    int mpi_code_ = (call);                                                                                            \
    if (mpi_code_ != MPI_SUCCESS) return mpi_error(mpi_code_, what);                                                   \
  } while (0)

/* One collective under way. */
typedef struct exchange {
  hv_mpi_exchange *comm;
  const hv_comm_call *call;
  double timeout;
  int tag;
} exchange;

static hv_status lost_rank(const exchange *at, int32_t rank, const char *why) {
  const hv_rank_place *place = &at->comm->places[rank];
  return hv_error(HV_ERR_DEVICE, "rank %d (process %lld on %s) %s: %s of %s cannot end on rank %d", rank,
                  (long long)place->pid, place->host, why, hv_collective_name(at->call->collective), at->call->what,
                  at->comm->rank);
}

/* Finds the rank that an unfinished exchange waits for: the lowest whose message has not arrived, else the lowest that
 * has not received ours. Other ranks whose message has not arrived are added to `others`: any of them may be the one
 * that all the others wait for. */
static hv_status awaited_ranks(const exchange *at, int32_t *first, char *others, size_t capacity) {
  int32_t size = at->comm->size;
  size_t used = 0;
  *first = -1;
  *others = '\0';
  for (int32_t i = 0; i < 2 * size; i++) {
    int done = 1;
    MPI_TRY(MPI_Test(&at->comm->requests[i], &done, MPI_STATUS_IGNORE), at->call->what);
    if (done) continue;
    if (*first < 0) {
      *first = i % size;
    } else if (i < size && used < capacity) {
      used += (size_t)snprintf(others + used, capacity - used, ", nor did rank %d", i);
    }
  }
  return HV_OK;
}

static hv_status timed_out(const exchange *at) {
  int32_t rank;
  char others[128], why[256];
  HV_TRY(awaited_ranks(at, &rank, others, sizeof others));
  if (rank < 0) return HV_OK;
  int waiting = 0;
  MPI_TRY(MPI_Iprobe(rank, MPI_ANY_TAG, at->comm->world, &waiting, MPI_STATUS_IGNORE), at->call->what);
  snprintf(why, sizeof why, "%s for %.0f s%s", waiting ? "was in another operation" : "did not come", at->timeout,
           waiting ? "" : others);
  return lost_rank(at, rank, why);
}

static hv_status check_alive(const exchange *at) {
  const hv_rank_place *places = at->comm->places;
  for (int32_t r = 0; r < at->comm->size; r++) {
    if (hv_rank_place_gone(&places[at->comm->rank], &places[r])) return lost_rank(at, r, "has died");
  }
  return HV_OK;
}

/* Waits for all requests without burning the processor that a slower rank may need. */
static hv_status wait_all(const exchange *at) {
  double start = hv_clock_seconds(), checked = start;
  for (long pause = 1000;; pause = pause < 500000 ? pause + pause / 4 : pause) {
    int done = 0;
    int code = MPI_Testall(2 * at->comm->size, at->comm->requests, &done, MPI_STATUSES_IGNORE);
    if (code != MPI_SUCCESS) {
      hv_status dead = check_alive(at);
      return dead ? dead : mpi_error(code, at->call->what);
    }
    if (done) return HV_OK;
    if (atomic_load(at->comm->give_up)) hv_mpi_exchange_abort(at->comm);
    double now = hv_clock_seconds();
    if (now - checked > CHECK_EVERY_MS * 1e-3) {
      HV_TRY(check_alive(at));
      checked = now;
    }
    if (now - start > at->timeout) HV_TRY(timed_out(at));
    nanosleep(&(struct timespec){.tv_nsec = pause}, NULL);
  }
}

/* One message to and one from each other rank, as `give` and `get` say. */
static hv_status run_exchange(const exchange *at) {
  hv_mpi_exchange *comm = at->comm;
  int32_t size = comm->size, rank = comm->rank;
  for (int32_t i = 0; i < 2 * size; i++) comm->requests[i] = MPI_REQUEST_NULL;
  for (int32_t step = 1; step < size; step++) {
    int32_t from = (rank + size - step) % size;
    const message *get = &comm->get[from];
    if (!get->data) continue;
    MPI_TRY(MPI_Irecv(get->data, (int)get->bytes, MPI_BYTE, from, at->tag, comm->world, &comm->requests[from]),
            at->call->what);
  }
  for (int32_t step = 1; step < size; step++) {
    int32_t to = (rank + step) % size;
    const message *give = &comm->give[to];
    if (!give->data) continue;
    MPI_TRY(MPI_Isend(give->data, (int)give->bytes, MPI_BYTE, to, at->tag, comm->world, &comm->requests[size + to]),
            at->call->what);
  }
  return wait_all(at);
}

static void sum_f32(const char *const *terms, int32_t count, size_t n, float *sum) {
  memcpy(sum, terms[0], n * sizeof *sum);
  for (int32_t r = 1; r < count; r++) {
    const float *term = (const float *)(const void *)terms[r];
    for (size_t i = 0; i < n; i++) sum[i] += term[i];
  }
}

static void sum_f64(const char *const *terms, int32_t count, size_t n, double *sum) {
  memcpy(sum, terms[0], n * sizeof *sum);
  for (int32_t r = 1; r < count; r++) {
    const double *term = (const double *)(const void *)terms[r];
    for (size_t i = 0; i < n; i++) sum[i] += term[i];
  }
}

static void sum_i64(const char *const *terms, int32_t count, size_t n, int64_t *sum) {
  memcpy(sum, terms[0], n * sizeof *sum);
  for (int32_t r = 1; r < count; r++) {
    const int64_t *term = (const int64_t *)(const void *)terms[r];
    for (size_t i = 0; i < n; i++) sum[i] += term[i];
  }
}

static void sum_bf16(const char *const *terms, int32_t count, size_t n, uint16_t *sum) {
  for (size_t i = 0; i < n; i++) {
    float total = hv_bf16_to_float(((const uint16_t *)(const void *)terms[0])[i]);
    for (int32_t r = 1; r < count; r++) total += hv_bf16_to_float(((const uint16_t *)(const void *)terms[r])[i]);
    sum[i] = hv_bf16_from_float(total);
  }
}

/* result = Σ over ranks, in their order, of n elements: `own` is this rank's term, the others' lie in `received`. */
static void sum_terms(hv_mpi_exchange *comm, hv_dtype dtype, const char *own, size_t n) {
  int32_t size = comm->size;
  for (int32_t r = 0; r < size; r++) {
    comm->terms[r] = r == comm->rank ? own : comm->received + (size_t)r * comm->piece;
  }
  void *result = comm->result;
  if (dtype == HV_F32) {
    sum_f32(comm->terms, size, n, result);
  } else if (dtype == HV_F64) {
    sum_f64(comm->terms, size, n, result);
  } else if (dtype == HV_I64) {
    sum_i64(comm->terms, size, n, result);
  } else {
    sum_bf16(comm->terms, size, n, result);
  }
}

static size_t smaller(size_t a, size_t b) {
  return a < b ? a : b;
}

/* Where part q of a piece of n elements starts; parts are as equal as possible. */
static size_t part_start(const hv_mpi_exchange *comm, size_t n, int32_t q) {
  return n * (size_t)q / (size_t)comm->size;
}

/* Copy from and to the device. If its memory is the host's, this thread copies, which leaves the device's threads to
 * the computation. */
static void fetch(const hv_mpi_exchange *comm, char *to, const char *from, size_t bytes) {
  if (comm->device->host_memory) {
    memcpy(to, from, bytes);
  } else {
    hv_download(comm->stream, to, from, bytes);
  }
}

static void store(const hv_mpi_exchange *comm, char *to, const char *from, size_t bytes) {
  if (comm->device->host_memory) {
    memcpy(to, from, bytes);
  } else {
    hv_upload(comm->stream, to, from, bytes);
  }
}

/* Waits for the copies. */
static hv_status settle(const hv_mpi_exchange *comm) {
  return comm->device->host_memory ? HV_OK : hv_stream_synchronize(comm->stream);
}

/* Sums n elements at `data`: each rank sums one part of them, and sends it to all. */
static hv_status all_reduce_piece(const exchange *at, char *data, size_t n) {
  hv_mpi_exchange *comm = at->comm;
  hv_dtype dtype = at->call->whole.dtype;
  size_t width = hv_dtype_size(dtype);
  size_t own = part_start(comm, n, comm->rank), own_count = part_start(comm, n, comm->rank + 1) - own;
  fetch(comm, comm->parts, data, n * width);
  HV_TRY(settle(comm));
  for (int32_t q = 0; q < comm->size; q++) {
    size_t first = part_start(comm, n, q), count = part_start(comm, n, q + 1) - first;
    comm->give[q] = (message){.data = comm->parts + first * width, .bytes = count * width};
    comm->get[q] = (message){.data = comm->received + (size_t)q * comm->piece, .bytes = own_count * width};
  }
  HV_TRY(run_exchange(at));
  sum_terms(comm, dtype, comm->parts + own * width, own_count);
  memcpy(comm->parts + own * width, comm->result, own_count * width);
  for (int32_t q = 0; q < comm->size; q++) {
    comm->get[q] = comm->give[q];
    comm->give[q] = (message){.data = comm->result, .bytes = own_count * width};
  }
  HV_TRY(run_exchange(at));
  store(comm, data, comm->parts, n * width);
  return settle(comm);
}

static hv_status all_reduce(const exchange *at) {
  hv_mpi_exchange *comm = at->comm;
  size_t width = hv_dtype_size(at->call->whole.dtype), count = (size_t)at->call->whole.cols;
  size_t most = comm->piece / width * (size_t)comm->size;
  for (size_t first = 0; first < count; first += most) {
    char *data = (char *)at->call->whole.data + first * width;
    HV_TRY(all_reduce_piece(at, data, smaller(most, count - first)));
  }
  return HV_OK;
}

/* `bytes` of each rank's share, from `offset` on. */
static hv_status reduce_scatter_piece(const exchange *at, size_t offset, size_t bytes) {
  hv_mpi_exchange *comm = at->comm;
  const hv_comm_call *call = at->call;
  size_t width = hv_dtype_size(call->whole.dtype), share = (size_t)call->share.cols * width;
  for (int32_t q = 0; q < comm->size; q++) {
    char *part = comm->parts + (size_t)q * comm->piece;
    fetch(comm, part, (const char *)call->whole.data + (size_t)q * share + offset, bytes);
    comm->give[q] = (message){.data = part, .bytes = bytes};
    comm->get[q] = (message){.data = comm->received + (size_t)q * comm->piece, .bytes = bytes};
  }
  HV_TRY(settle(comm));
  HV_TRY(run_exchange(at));
  sum_terms(comm, call->whole.dtype, comm->give[comm->rank].data, bytes / width);
  store(comm, (char *)call->share.data + offset, comm->result, bytes);
  return settle(comm);
}

static hv_status all_gather_piece(const exchange *at, size_t offset, size_t bytes) {
  hv_mpi_exchange *comm = at->comm;
  const hv_comm_call *call = at->call;
  size_t share = (size_t)call->share.cols * hv_dtype_size(call->whole.dtype);
  fetch(comm, comm->result, (const char *)call->share.data + offset, bytes);
  HV_TRY(settle(comm));
  for (int32_t q = 0; q < comm->size; q++) {
    comm->give[q] = (message){.data = comm->result, .bytes = bytes};
    comm->get[q] = (message){.data = comm->parts + (size_t)q * comm->piece, .bytes = bytes};
  }
  HV_TRY(run_exchange(at));
  for (int32_t q = 0; q < comm->size; q++) {
    char *to = (char *)call->whole.data + (size_t)q * share + offset;
    /* Not written if it is in its place already: this rank's share may be in use. */
    if (q == comm->rank && to == (char *)call->share.data + offset) continue;
    store(comm, to, q == comm->rank ? comm->result : comm->get[q].data, bytes);
  }
  return settle(comm);
}

static hv_status broadcast_piece(const exchange *at, size_t offset, size_t bytes) {
  hv_mpi_exchange *comm = at->comm;
  const hv_comm_call *call = at->call;
  bool root = comm->rank == call->root;
  char *data = (char *)call->whole.data + offset;
  if (root) fetch(comm, comm->result, data, bytes);
  HV_TRY(settle(comm));
  for (int32_t q = 0; q < comm->size; q++) {
    comm->give[q] = (message){.data = root ? comm->result : NULL, .bytes = bytes};
    comm->get[q] = (message){.data = q == call->root ? comm->result : NULL, .bytes = bytes};
  }
  HV_TRY(run_exchange(at));
  if (!root) store(comm, data, comm->result, bytes);
  return settle(comm);
}

/* Empty messages between all. */
static hv_status barrier(const exchange *at) {
  hv_mpi_exchange *comm = at->comm;
  for (int32_t q = 0; q < comm->size; q++) {
    comm->give[q] = (message){.data = comm->parts};
    comm->get[q] = (message){.data = comm->received};
  }
  return run_exchange(at);
}

static hv_status in_pieces(const exchange *at, hv_tensor what, hv_status (*piece)(const exchange *, size_t, size_t)) {
  size_t bytes = (size_t)what.cols * hv_dtype_size(what.dtype);
  for (size_t offset = 0; offset < bytes; offset += at->comm->piece) {
    HV_TRY(piece(at, offset, smaller(at->comm->piece, bytes - offset)));
  }
  return HV_OK;
}

/* A tag computed from the call: ranks whose calls differ wait, until they time out, instead of taking each other's
 * messages. */
static int tag_of(const hv_comm_call *call) {
  uint64_t key = (uint64_t)call->ticket * 8 + (uint64_t)call->collective;
  key = key * 0x9e3779b97f4a7c15u + (uint64_t)call->whole.cols * 16 + (uint64_t)call->whole.dtype;
  return (int)((key * 0x9e3779b97f4a7c15u) >> 49); /* 15 bits: every MPI has 0 to 32767 */
}

hv_status hv_mpi_exchange_run(hv_mpi_exchange *comm, const hv_comm_call *call, double timeout) {
  exchange at = {.comm = comm, .call = call, .timeout = timeout, .tag = tag_of(call)};
  switch (call->collective) {
  case HV_ALL_REDUCE: return all_reduce(&at);
  case HV_REDUCE_SCATTER: return in_pieces(&at, call->share, reduce_scatter_piece);
  case HV_ALL_GATHER: return in_pieces(&at, call->share, all_gather_piece);
  case HV_BROADCAST: return in_pieces(&at, call->whole, broadcast_piece);
  case HV_BARRIER: return barrier(&at);
  }
  return hv_error(HV_ERR_INTERNAL, "collective %d is unknown", (int)call->collective);
}

void hv_mpi_exchange_abort(hv_mpi_exchange *comm) {
  (void)MPI_Abort(comm->world, atomic_load(comm->give_up));
}

void hv_mpi_exchange_close(hv_mpi_exchange *comm, bool finalize) {
  if (!comm) return;
  hv_device_release_host(comm->device, comm->parts);
  hv_device_release_host(comm->device, comm->received);
  hv_device_release_host(comm->device, comm->result);
  hv_stream_close(comm->stream);
  if (finalize && comm->world != MPI_COMM_NULL) {
    (void)MPI_Comm_free(&comm->world);
    (void)MPI_Finalize();
  }
  free(comm->give);
  free(comm->get);
  free(comm->terms);
  free(comm->requests);
  free(comm->places);
  free(comm);
}

static hv_status open_world(hv_mpi_exchange *comm) {
  int provided, already = 0;
  MPI_TRY(MPI_Initialized(&already), "MPI_Initialized");
  if (already) return hv_error(HV_ERR_INTERNAL, "MPI was already started in this process");
  MPI_TRY(MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &provided), "MPI_Init_thread");
  if (provided < MPI_THREAD_FUNNELED) {
    return hv_error(HV_ERR_DEVICE, "this MPI does not support processes with several threads (MPI_THREAD_FUNNELED)");
  }
  HV_TRY(hv_mpi_agree_on_means(false));
  MPI_TRY(MPI_Comm_dup(MPI_COMM_WORLD, &comm->world), "MPI_Comm_dup");
  MPI_TRY(MPI_Comm_set_errhandler(comm->world, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
  MPI_TRY(MPI_Comm_rank(comm->world, &comm->rank), "MPI_Comm_rank");
  MPI_TRY(MPI_Comm_size(comm->world, &comm->size), "MPI_Comm_size");
  return HV_OK;
}

static hv_status allocate_buffer(hv_device *device, size_t bytes, char **out) {
  void *memory;
  HV_TRY(hv_device_allocate_host(device, bytes, "the communicator's buffers", &memory));
  *out = memory;
  return HV_OK;
}

static hv_status open_buffers(hv_mpi_exchange *comm, size_t piece_bytes) {
  size_t size = (size_t)comm->size;
  comm->piece = ((piece_bytes ? piece_bytes : DEFAULT_PIECE) + 7) / 8 * 8;
  comm->give = calloc(size, sizeof *comm->give);
  comm->get = calloc(size, sizeof *comm->get);
  comm->terms = calloc(size, sizeof *comm->terms);
  comm->requests = calloc(2 * size, sizeof *comm->requests);
  comm->places = calloc(size, sizeof *comm->places);
  if (!comm->give || !comm->get || !comm->terms || !comm->requests || !comm->places) {
    return hv_error_memory("the communicator");
  }
  HV_TRY(allocate_buffer(comm->device, size * comm->piece, &comm->parts));
  HV_TRY(allocate_buffer(comm->device, size * comm->piece, &comm->received));
  HV_TRY(allocate_buffer(comm->device, comm->piece, &comm->result));
  hv_rank_place own = hv_rank_place_own(comm->device);
  MPI_TRY(MPI_Allgather(&own, sizeof own, MPI_BYTE, comm->places, sizeof own, MPI_BYTE, comm->world),
          "exchanging where ranks run");
  return HV_OK;
}

hv_status hv_mpi_exchange_open(hv_device *device, size_t piece_bytes, const atomic_int *give_up,
                               hv_mpi_exchange **out) {
  hv_status status = HV_OK;
  *out = NULL;
  hv_mpi_exchange *comm = calloc(1, sizeof *comm);
  if (!comm) return hv_error_memory("the communicator");
  comm->device = device;
  comm->give_up = give_up;
  comm->world = MPI_COMM_NULL;
  HV_CHECK(open_world(comm));
  HV_CHECK(hv_stream_open(device, &comm->stream));
  HV_CHECK(open_buffers(comm, piece_bytes));
  *out = comm;
  comm = NULL;
done:
  hv_mpi_exchange_close(comm, false);
  return status;
}

int32_t hv_mpi_exchange_rank(const hv_mpi_exchange *comm) {
  return comm->rank;
}

int32_t hv_mpi_exchange_size(const hv_mpi_exchange *comm) {
  return comm->size;
}

hv_stream *hv_mpi_exchange_stream(const hv_mpi_exchange *comm) {
  return comm->stream;
}
