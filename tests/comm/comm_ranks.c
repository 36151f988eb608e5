/* One rank of the tests test_comm and test_nccl: `comm_ranks MODE [ARGUMENT [DEVICE [TRANSPORT]]]`. The modes are
 * `collectives FOLDER`, `late`, `astray`, `dies MILLISECONDS`, `fails`, `poor` and `traced FOLDER`; see the functions.
 * Ends with 0 if all is right, else with 2 and a message. */
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "core/base/clock.h"
#include "core/base/file.h"
#include "core/base/random.h"
#include "tests/device.h"
#include "train/ranks/comm_mpi.h"
#include "train/ranks/launch.h"
#include "train/run/interrupt.h"

enum { SMALL_PIECE = 1000 /* bytes, so that the largest cases need many pieces */, MOST_ELEMENTS = 4096 };

typedef struct ranks {
  hv_device *device;
  hv_stream *stream;
  hv_comm *comm;
  bool rounds_always; /* BF16 sums are rounded at every addition */
} ranks;

static void sleep_ms(int64_t ms) {
  nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000}, NULL);
}

/* Element i of a rank's data, in the dtype. Magnitudes are very different, so that another order of adding up shows. */
static void element(hv_dtype dtype, int32_t rank, int64_t i, void *out) {
  float x = hv_random_normal(11, HV_RANDOM_INIT, 0, (uint64_t)rank, 0, (uint32_t)i);
  x *= i % 3 == 0 ? 1e4f : 1e-2f;
  if (dtype == HV_I64) {
    *(int64_t *)out = (int64_t)(x * 1e6f) * (1 << 20);
  } else if (dtype == HV_I16) {
    *(int16_t *)out = (int16_t)(rank * 1000 + i % 1000);
  } else {
    hv_dtype_convert(dtype, out, HV_F32, &x, 1);
  }
}

/* Element i of the sum over ranks, to the bit: added up in the order of ranks. */
static void expected_sum(hv_dtype dtype, int32_t size, bool rounds_always, int64_t i, void *out) {
  double wide = 0;
  float narrow = 0;
  int64_t whole = 0;
  for (int32_t r = 0; r < size; r++) {
    char bytes[8];
    float x = 0;
    element(dtype, r, i, bytes);
    if (dtype == HV_F64) {
      wide = r == 0 ? *(double *)(void *)bytes : wide + *(double *)(void *)bytes;
    } else if (dtype == HV_I64) {
      whole += *(int64_t *)(void *)bytes;
    } else {
      hv_dtype_convert(HV_F32, &x, dtype, bytes, 1);
      narrow = r == 0 ? x : narrow + x;
      if (rounds_always && dtype == HV_BF16) narrow = hv_bf16_to_float(hv_bf16_from_float(narrow));
    }
  }
  if (dtype == HV_F64) {
    memcpy(out, &wide, sizeof wide);
  } else if (dtype == HV_I64) {
    memcpy(out, &whole, sizeof whole);
  } else {
    hv_dtype_convert(dtype, out, HV_F32, &narrow, 1);
  }
}

typedef struct buffers {
  hv_tensor whole; /* on the device */
  _Alignas(8) char host[8 * MOST_ELEMENTS];
  _Alignas(8) char want[8 * MOST_ELEMENTS];
} buffers;

static hv_status open_buffers(ranks *r, hv_dtype dtype, int64_t count, buffers *out) {
  void *memory;
  size_t bytes = (size_t)count * hv_dtype_size(dtype);
  HV_TRY(hv_device_allocate(r->device, HV_MEMORY_WORKSPACE, bytes, "test data", &memory));
  out->whole = hv_tensor_make(memory, dtype, 1, count);
  return HV_OK;
}

static void close_buffers(ranks *r, buffers *b) {
  hv_device_release(r->device, b->whole.data);
}

static hv_status compare(ranks *r, buffers *b, hv_tensor got, int64_t first, const char *what) {
  size_t width = hv_dtype_size(got.dtype), bytes = (size_t)got.cols * width;
  hv_download(r->stream, b->host, got.data, bytes);
  HV_TRY(hv_stream_synchronize(r->stream));
  for (int64_t i = 0; i < got.cols; i++) {
    if (memcmp(b->host + (size_t)i * width, b->want + (size_t)(first + i) * width, width) == 0) continue;
    return hv_error(HV_ERR_NO, "%s of %lld %s: element %" PRId64 " is wrong on rank %d of %d", what,
                    (long long)b->whole.cols, hv_dtype_name(got.dtype), first + i, r->comm->rank, r->comm->size);
  }
  return HV_OK;
}

static void fill(ranks *r, buffers *b, int32_t rank) {
  size_t width = hv_dtype_size(b->whole.dtype);
  for (int64_t i = 0; i < b->whole.cols; i++) element(b->whole.dtype, rank, i, b->host + (size_t)i * width);
  hv_upload(r->stream, b->whole.data, b->host, (size_t)b->whole.cols * width);
}

static hv_status check_sums(ranks *r, hv_dtype dtype, int64_t count) {
  buffers b;
  hv_comm *comm = r->comm;
  HV_TRY(open_buffers(r, dtype, count, &b));
  size_t width = hv_dtype_size(dtype);
  for (int64_t i = 0; i < count; i++) expected_sum(dtype, comm->size, r->rounds_always, i, b.want + (size_t)i * width);
  fill(r, &b, comm->rank);
  hv_comm_wait(comm, hv_comm_all_reduce(comm, "test data", b.whole, r->stream), r->stream);
  hv_status status = hv_comm_status(comm);
  if (!status) status = compare(r, &b, b.whole, 0, "all_reduce");
  if (!status && count % comm->size == 0) {
    hv_tensor share = hv_comm_share(comm, b.whole);
    fill(r, &b, comm->rank);
    hv_comm_wait(comm, hv_comm_reduce_scatter(comm, "test data", b.whole, share, r->stream), r->stream);
    status = hv_comm_status(comm);
    if (!status) status = compare(r, &b, share, share.cols * comm->rank, "reduce_scatter");
  }
  close_buffers(r, &b);
  return status;
}

static hv_status check_copies(ranks *r, hv_dtype dtype, int64_t count) {
  buffers b;
  hv_comm *comm = r->comm;
  HV_TRY(open_buffers(r, dtype, count, &b));
  size_t width = hv_dtype_size(dtype);
  hv_status status = HV_OK;
  for (int32_t root = 0; root < comm->size && !status; root++) {
    for (int64_t i = 0; i < count; i++) element(dtype, root, i, b.want + (size_t)i * width);
    fill(r, &b, comm->rank);
    hv_comm_wait(comm, hv_comm_broadcast(comm, "test data", root, b.whole, r->stream), r->stream);
    status = hv_comm_status(comm);
    if (!status) status = compare(r, &b, b.whole, 0, "broadcast");
  }
  if (!status && count % comm->size == 0) {
    int64_t part = count / comm->size;
    for (int64_t i = 0; i < count; i++) element(dtype, (int32_t)(i / part), i, b.want + (size_t)i * width);
    fill(r, &b, comm->rank);
    hv_comm_wait(comm, hv_comm_all_gather(comm, "test data", hv_comm_share(comm, b.whole), b.whole, r->stream),
                 r->stream);
    status = hv_comm_status(comm);
    if (!status) status = compare(r, &b, b.whole, 0, "all_gather");
  }
  close_buffers(r, &b);
  return status;
}

/* A call works on what its stream has done before it, even if the first to wait is another stream, for a later call. */
static hv_status check_order(ranks *r) {
  enum { COUNT = 100 };
  buffers b;
  hv_comm *comm = r->comm;
  HV_TRY(open_buffers(r, HV_F64, COUNT, &b));
  for (int64_t i = 0; i < COUNT; i++) {
    expected_sum(HV_F64, comm->size, r->rounds_always, i, b.want + (size_t)i * sizeof(double));
  }
  fill(r, &b, comm->rank);
  hv_ticket ticket = hv_comm_all_reduce(comm, "test data", b.whole, r->stream);
  hv_status status = hv_comm_barrier(comm, "the call behind it");
  hv_comm_wait(comm, ticket, r->stream);
  if (!status) status = compare(r, &b, b.whole, 0, "all_reduce before a barrier");
  close_buffers(r, &b);
  return status;
}

/* No rank leaves a barrier before the last has reached it. */
static hv_status check_barrier(hv_comm *comm) {
  enum { LATE_MS = 200 };
  HV_TRY(hv_comm_barrier(comm, "the start"));
  double start = hv_clock_seconds();
  if (comm->rank == comm->size - 1) sleep_ms(LATE_MS);
  HV_TRY(hv_comm_barrier(comm, "the late rank"));
  double waited = hv_clock_seconds() - start;
  if (waited >= 0.75e-3 * LATE_MS) return HV_OK;
  return hv_error(HV_ERR_NO, "rank %d left a barrier after %.3f s", comm->rank, waited);
}

/* Gathers an odd number of bytes, as texts may have. */
static hv_status check_gather(hv_comm *comm) {
  enum { EACH = 3, MOST_RANKS = 16 };
  char own[EACH] = {'a', 'b', (char)('c' + comm->rank)}, all[MOST_RANKS * EACH];
  if (comm->size > MOST_RANKS) return hv_error(HV_ERR_INTERNAL, "%d ranks", comm->size);
  HV_TRY(hv_comm_gather(comm, "texts", own, EACH, all));
  for (int32_t r = 0; r < comm->size; r++) {
    own[EACH - 1] = (char)('c' + r);
    if (memcmp(all + (size_t)r * EACH, own, EACH) != 0) return hv_error(HV_ERR_NO, "the text of rank %d is wrong", r);
  }
  return HV_OK;
}

static hv_status check_numbers(hv_comm *comm) {
  double values[2] = {comm->rank + 1, 0.5};
  HV_TRY(hv_comm_sum(comm, "numbers", values, 2));
  if (values[0] != comm->size * (comm->size + 1) / 2.0 || values[1] != 0.5 * comm->size) {
    return hv_error(HV_ERR_NO, "the sums are %g and %g", values[0], values[1]);
  }
  HV_TRY(check_gather(comm));
  HV_TRY(hv_comm_agree(comm, "a shared task", HV_OK));
  if (hv_comm_all_know(comm)) return hv_error(HV_ERR_NO, "rank %d takes success for an error", comm->rank);
  bool fails = comm->rank == 1 || comm->rank == comm->size - 1;
  hv_status status = hv_comm_agree(comm, "a shared task", fails ? hv_error(HV_ERR_IO, "my disk is full") : HV_OK);
  const char *want = fails ? "my disk is full" : "a shared task failed on rank 1: my disk is full";
  bool right = status && strstr(hv_status_message(status), want) && hv_comm_all_know(comm);
  if (!right) return hv_error(HV_ERR_NO, "rank %d hears \"%s\"", comm->rank, hv_status_message(status));
  hv_status_free(status);
  return hv_comm_status(comm);
}

static hv_status write_record(const ranks *r, const char *folder, const hv_text *record) {
  char path[512];
  snprintf(path, sizeof path, "%s/record-%d.txt", folder, r->comm->rank);
  return hv_write_file_atomic(path, hv_text_string(record), record->length);
}

static hv_status check_collectives(ranks *r, const char *folder) {
  static const int64_t counts[] = {1, 7, 8, 1024, 3000, 4096};
  static const hv_dtype dtypes[] = {HV_F32, HV_BF16, HV_F64, HV_I64};
  hv_text record = {0};
  hv_status status = HV_OK;
  hv_comm_record(r->comm, &record);
  for (size_t c = 0; c < sizeof counts / sizeof counts[0]; c++) {
    for (size_t d = 0; d < sizeof dtypes / sizeof dtypes[0]; d++) {
      HV_CHECK(check_sums(r, dtypes[d], counts[c]));
      HV_CHECK(check_copies(r, dtypes[d], counts[c]));
    }
    HV_CHECK(check_copies(r, HV_I16, counts[c]));
  }
  HV_CHECK(check_barrier(r->comm));
  HV_CHECK(check_order(r));
  HV_CHECK(check_numbers(r->comm));
  status = write_record(r, folder, &record);
done:
  hv_comm_record(r->comm, NULL);
  hv_text_free(&record);
  return status;
}

/* late: all ranks but the first two sleep instead of joining the call. */
static hv_status come_late(ranks *r) {
  hv_comm_set_timeout(r->comm, 1.0);
  if (r->comm->rank >= 2) sleep_ms(20000);
  double value = 1;
  return hv_comm_sum(r->comm, "what is awaited", &value, 1);
}

/* astray: rank 1 makes another call than the rest. */
static hv_status go_astray(ranks *r) {
  hv_comm_set_timeout(r->comm, 1.0);
  double values[2] = {1, 1};
  return hv_comm_sum(r->comm, "what all should do", values, r->comm->rank == 1 ? 2 : 1);
}

/* dies: rank 1 kills itself after some milliseconds of endless calls. */
static hv_status die(ranks *r, int64_t ms) {
  double start = hv_clock_seconds();
  for (;;) {
    double values[HV_COMM_MAX_SUM] = {0};
    HV_TRY(hv_comm_sum(r->comm, "endless numbers", values, HV_COMM_MAX_SUM));
    if (r->comm->rank == 1 && hv_clock_seconds() - start > 1e-3 * (double)ms) (void)kill(getpid(), SIGKILL);
  }
}

/* fails: rank 1 has an error that the others do not know of. */
static hv_status fail_alone(ranks *r) {
  if (r->comm->rank == 1) return hv_error(HV_ERR_IO, "rank 1 has no disk");
  return hv_comm_barrier(r->comm, "the end");
}

/* traced: the last rank joins a call 0.2 s late; each rank writes a trace of the call. */
static hv_status trace_a_call(ranks *r, const char *folder) {
  hv_trace *trace;
  char path[512];
  snprintf(path, sizeof path, "%s/trace.json", folder);
  HV_TRY(hv_trace_open(path, r->comm->rank, &trace));
  r->comm->trace = trace;
  if (r->comm->rank == r->comm->size - 1) sleep_ms(200);
  hv_status status = hv_comm_barrier(r->comm, "a late rank");
  r->comm->trace = NULL;
  return hv_status_first(status, hv_trace_close(trace));
}

/* MPI is used in small pieces, NCCL as in real runs. */
static hv_status open_comm(ranks *r, const hv_launch *launch, const char *transport) {
  if (strcmp(transport, "mpi") == 0) {
    return hv_comm_mpi_open(r->device, &(hv_comm_mpi_options){.timeout = 30, .piece_bytes = SMALL_PIECE}, &r->comm);
  }
  r->rounds_always = true;
  return hv_launch_open_comm(launch, r->device, HV_TRANSPORT_NCCL, 30, &r->comm);
}

static hv_status run_mode(ranks *r, int argc, char **argv) {
  const char *mode = argv[1];
  if (strcmp(mode, "collectives") == 0 && argc > 2) return check_collectives(r, argv[2]);
  if (strcmp(mode, "late") == 0) return come_late(r);
  if (strcmp(mode, "astray") == 0) return go_astray(r);
  if (strcmp(mode, "dies") == 0 && argc > 2) return die(r, strtol(argv[2], NULL, 10));
  if (strcmp(mode, "fails") == 0) return fail_alone(r);
  if (strcmp(mode, "traced") == 0 && argc > 2) return trace_a_call(r, argv[2]);
  return hv_error(HV_ERR_INPUT, "no mode %s", mode);
}

int main(int argc, char **argv) {
  ranks r = {0};
  hv_launch launch = {0};
  hv_interrupt *interrupt = NULL;
  hv_status status = HV_OK;
  if (argc < 2) return 2;
  /* As in hvla-train: SIGTERM, which a launcher sends when another rank has died, must not end this one at once. */
  HV_CHECK(hv_interrupt_open(&interrupt));
  HV_CHECK(hv_launch_read(&launch));
  /* poor: the emulated card of rank 1 has no room for a communicator. */
  if (strcmp(argv[1], "poor") == 0 && launch.rank == 1) (void)setenv("HVLA_EMU_MEMORY", "100", 1);
  HV_CHECK(open_device(argc > 3 ? argv[3] : "cpu", 1, &r.device));
  HV_CHECK(hv_stream_open(r.device, &r.stream));
  HV_CHECK(open_comm(&r, &launch, argc > 4 ? argv[4] : "mpi"));
  if (r.comm->rank != launch.rank || r.comm->size != launch.size) {
    status = hv_error(HV_ERR_NO, "the launcher says rank %d of %d", launch.rank, launch.size);
    goto done;
  }
  HV_CHECK(run_mode(&r, argc, argv));
done:
  if (status) {
    fprintf(stderr, "rank %d: %s\n", launch.rank, hv_status_message(status));
    hv_status_free(status);
    if (r.comm) hv_comm_abort(r.comm, 2);
    return 2;
  }
  hv_comm_close(r.comm);
  hv_stream_close(r.stream);
  hv_device_close(r.device);
  hv_interrupt_close(interrupt);
  return 0;
}
