#include "cuda/emu/nccl.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <atomic>

#include "core/tensor/dtype.h"
#include "cuda/emu/runtime.h"
#include "cuda/nccl_library.h"

enum { MOST_RANKS = 64, SLOT = 256 << 10 /* bytes of a rank's slot: what it shares with the others at a time */ };

enum operation { ALL_REDUCE, REDUCE_SCATTER, ALL_GATHER, BROADCAST };

/* A collective as a rank asks for it; all ranks must ask for the same. */
struct request {
  operation op;
  size_t count;
  ncclDataType_t type;
  int root;
};

/* The memory that the processes share; it begins as zeros. */
struct meeting {
  std::atomic<int> pids[MOST_RANKS];
  std::atomic<uint64_t> steps[MOST_RANKS]; /* number of meetings that a rank has reached */
  request requests[MOST_RANKS];
  unsigned char slots[][SLOT];
};

struct work_payload {
  ncclComm *comm;
  request asked;
  const unsigned char *from;
  unsigned char *to;
};

struct ncclComm {
  meeting *shared;
  size_t bytes;
  int rank, size;
  std::atomic<int> error; /* an ncclResult_t */
  std::atomic<bool> aborted, finished;
  cudaStream_t lane; /* the stream for `taken`; NULL: no call is pending */
  work_payload taken;
};

static bool is_dead(const ncclComm *comm, int rank) {
  int pid = comm->shared->pids[rank];
  return pid != 0 && kill(pid, 0) != 0 && errno == ESRCH;
}

/* Waits until all ranks have reached this meeting; false if one has died or the communicator has failed or was aborted.
 */
static bool meet(ncclComm *comm) {
  meeting *shared = comm->shared;
  uint64_t step = ++shared->steps[comm->rank];
  long pause = 1000;
  for (int r = 0; r < comm->size;) {
    if (shared->steps[r] >= step) {
      r++;
      continue;
    }
    if (comm->aborted || comm->error != ncclSuccess) return false;
    if (is_dead(comm, r) && shared->steps[r] < step) {
      comm->error = ncclRemoteError;
      return false;
    }
    timespec wait = {0, pause};
    nanosleep(&wait, nullptr);
    pause = pause < 500000 ? pause + pause / 4 : pause;
  }
  return true;
}

static size_t width_of(ncclDataType_t type) {
  return type == ncclInt8 ? 1 : type == ncclFloat32 ? 4 : type == ncclBfloat16 ? 2 : 8;
}

template <typename T> static void add(unsigned char *sum, const unsigned char *term, size_t count) {
  for (size_t i = 0; i < count; i++) {
    T a, b;
    memcpy(&a, sum + i * sizeof a, sizeof a);
    memcpy(&b, term + i * sizeof b, sizeof b);
    a = a + b;
    memcpy(sum + i * sizeof a, &a, sizeof a);
  }
}

static void add_bf16(unsigned char *sum, const unsigned char *term, size_t count) {
  uint16_t *a = (uint16_t *)sum;
  const uint16_t *b = (const uint16_t *)term;
  for (size_t i = 0; i < count; i++) a[i] = hv_bf16_from_float(hv_bf16_to_float(a[i]) + hv_bf16_to_float(b[i]));
}

/* sum = Σ over ranks of the `count` elements at byte `offset` of their slots. */
static void sum_slots(const ncclComm *comm, ncclDataType_t type, size_t offset, size_t count, unsigned char *sum) {
  memcpy(sum, comm->shared->slots[0] + offset, count * width_of(type));
  for (int r = 1; r < comm->size; r++) {
    const unsigned char *term = comm->shared->slots[r] + offset;
    if (type == ncclFloat32) {
      add<float>(sum, term, count);
    } else if (type == ncclFloat64) {
      add<double>(sum, term, count);
    } else if (type == ncclBfloat16) {
      add_bf16(sum, term, count);
    } else {
      add<int64_t>(sum, term, count);
    }
  }
}

static size_t smaller(size_t a, size_t b) {
  return a < b ? a : b;
}

/* Does elements [first, first + n) of a collective: each rank writes its part to its slot, meets the others, and reads
 * what it needs from all slots. False if the ranks did not all meet. */
static bool run_piece(const work_payload *work, size_t first, size_t n) {
  ncclComm *comm = work->comm;
  const request *asked = &work->asked;
  size_t width = width_of(asked->type), bytes = n * width, count = asked->count;
  unsigned char *own = comm->shared->slots[comm->rank];
  if (asked->op == REDUCE_SCATTER) {
    for (size_t r = 0; r < (size_t)comm->size; r++) {
      memcpy(own + r * bytes, work->from + (r * count + first) * width, bytes);
    }
  } else if (asked->op != BROADCAST || comm->rank == asked->root) {
    memcpy(own, work->from + first * width, bytes);
  }
  if (!meet(comm)) return false;
  if (asked->op == ALL_GATHER) {
    for (size_t r = 0; r < (size_t)comm->size; r++) {
      memcpy(work->to + (r * count + first) * width, comm->shared->slots[r], bytes);
    }
  } else if (asked->op == BROADCAST) {
    memcpy(work->to + first * width, comm->shared->slots[asked->root], bytes);
  } else {
    size_t offset = asked->op == REDUCE_SCATTER ? (size_t)comm->rank * bytes : 0;
    sum_slots(comm, asked->type, offset, n, work->to + first * width);
  }
  return meet(comm);
}

static bool same(const request *a, const request *b) {
  return a->op == b->op && a->count == b->count && a->type == b->type && a->root == b->root;
}

/* Runs a collective in its queue, like NCCL's kernels: an error is the communicator's, not the queue's. */
static hv_status run_work(hv_runtime *, const void *payload) {
  const work_payload *work = (const work_payload *)payload;
  ncclComm *comm = work->comm;
  if (comm->aborted || comm->error != ncclSuccess) return HV_OK;
  comm->shared->requests[comm->rank] = work->asked;
  if (!meet(comm)) return HV_OK;
  for (int r = 0; r < comm->size; r++) {
    if (!same(&comm->shared->requests[r], &work->asked)) comm->error = ncclInvalidUsage;
  }
  size_t most = SLOT / width_of(work->asked.type);
  if (work->asked.op == REDUCE_SCATTER) most /= (size_t)comm->size;
  for (size_t first = 0; first < work->asked.count && comm->error == ncclSuccess; first += most) {
    if (!run_piece(work, first, smaller(most, work->asked.count - first))) return HV_OK;
  }
  return HV_OK;
}

/* Keeps the call until ncclCommGetAsyncError asks for it, which queues it: as late as a non-blocking communicator may.
 */
static ncclResult_t queue_work(ncclComm_t comm, const request *asked, const void *from, void *to, cudaStream_t stream) {
  if (comm->error != ncclSuccess) return (ncclResult_t)comm->error.load();
  if (comm->lane) return ncclInvalidUsage;
  comm->taken = {comm, *asked, (const unsigned char *)from, (unsigned char *)to};
  comm->lane = stream;
  return ncclInProgress;
}

ncclResult_t ncclAllReduce(const void *from, void *to, size_t count, ncclDataType_t type, ncclRedOp_t, ncclComm_t comm,
                           cudaStream_t stream) {
  request asked = {ALL_REDUCE, count, type, 0};
  return queue_work(comm, &asked, from, to, stream);
}

ncclResult_t ncclReduceScatter(const void *from, void *to, size_t count, ncclDataType_t type, ncclRedOp_t,
                               ncclComm_t comm, cudaStream_t stream) {
  request asked = {REDUCE_SCATTER, count, type, 0};
  return queue_work(comm, &asked, from, to, stream);
}

ncclResult_t ncclAllGather(const void *from, void *to, size_t count, ncclDataType_t type, ncclComm_t comm,
                           cudaStream_t stream) {
  request asked = {ALL_GATHER, count, type, 0};
  return queue_work(comm, &asked, from, to, stream);
}

ncclResult_t ncclBroadcast(const void *from, void *to, size_t count, ncclDataType_t type, int root, ncclComm_t comm,
                           cudaStream_t stream) {
  request asked = {BROADCAST, count, type, root};
  return queue_work(comm, &asked, from, to, stream);
}

ncclResult_t ncclGetVersion(int *version) {
  *version = 21800;
  return ncclSuccess;
}

const char *ncclGetErrorString(ncclResult_t result) {
  if (result == ncclRemoteError) return "remote process exited or there was a network error";
  if (result == ncclInvalidUsage) return "the ranks' calls differ";
  return result == ncclSuccess ? "no error" : "system error";
}

ncclResult_t ncclGetUniqueId(ncclUniqueId *id) {
  timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  snprintf(id->internal, sizeof id->internal, "/hvla-emu-%d-%lld%09ld", (int)getpid(), (long long)now.tv_sec,
           now.tv_nsec);
  return ncclSuccess;
}

/* Every rank maps the shared memory and enters its pid. The name is removed once all have met. */
static ncclResult_t attach(ncclComm *comm, const char *name) {
  comm->bytes = sizeof(meeting) + (size_t)comm->size * SLOT;
  int file = shm_open(name, O_RDWR | O_CREAT, 0600);
  if (file < 0) return ncclSystemError;
  void *memory = MAP_FAILED;
  if (ftruncate(file, (off_t)comm->bytes) == 0) {
    memory = mmap(nullptr, comm->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  }
  (void)close(file);
  if (memory == MAP_FAILED) return ncclSystemError;
  comm->shared = (meeting *)memory;
  comm->shared->pids[comm->rank] = getpid();
  return ncclSuccess;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t *out, int size, ncclUniqueId id, int rank, ncclConfig_t *) {
  *out = nullptr;
  if (size > MOST_RANKS) return ncclInvalidUsage;
  ncclComm *comm = (ncclComm *)calloc(1, sizeof *comm);
  if (!comm) return ncclSystemError;
  comm->rank = rank;
  comm->size = size;
  ncclResult_t result = attach(comm, id.internal);
  if (result == ncclSuccess && !meet(comm)) result = (ncclResult_t)comm->error.load();
  if (rank == 0) (void)shm_unlink(id.internal);
  *out = comm;
  return result;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *out) {
  if (comm->lane) {
    hv_status status = hv_emu_enqueue(comm->lane, run_work, &comm->taken, sizeof comm->taken);
    if (status) comm->error = ncclSystemError;
    hv_status_free(status);
    comm->lane = nullptr;
  }
  *out = (ncclResult_t)comm->error.load();
  return ncclSuccess;
}

/* Queued work may still use the communicator, so its memory is kept until the process ends. */
ncclResult_t ncclCommAbort(ncclComm_t comm) {
  comm->aborted = true;
  return ncclSuccess;
}

ncclResult_t ncclCommDestroy(ncclComm_t comm) {
  if (comm->shared) (void)munmap(comm->shared, comm->bytes);
  free(comm);
  return ncclSuccess;
}

hv_status hv_nccl_library_open(hv_nccl_library *out) {
  *out = hv_nccl_library{};
#define TAKE(name) out->name = nccl##name;
  HV_NCCL_FUNCTIONS(TAKE)
#undef TAKE
  return HV_OK;
}

void hv_nccl_library_close(hv_nccl_library *) {}
