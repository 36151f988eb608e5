#include "core/tensor/comm.h"

#include <stdlib.h>
#include <string.h>

const char *hv_collective_name(hv_collective collective) {
  static const char *const names[] = {"all_reduce", "reduce_scatter", "all_gather", "broadcast", "barrier"};
  return names[collective];
}

hv_status hv_comm_start(hv_comm *comm, const char *name, const hv_comm_methods *methods, hv_device *device,
                        int32_t rank, int32_t size) {
  *comm = (hv_comm){.name = name, .methods = methods, .device = device, .rank = rank, .size = size};
  hv_status status = HV_OK;
  size_t bytes = HV_COMM_MAX_SUM * sizeof *comm->host;
  void *memory;
  HV_CHECK(hv_stream_open(device, &comm->stream));
  HV_CHECK(hv_device_allocate_host(device, bytes, "the communicator's numbers", &memory));
  comm->host = memory;
  HV_CHECK(hv_device_allocate(device, HV_MEMORY_COMMUNICATION, bytes, "the communicator's numbers", &memory));
  comm->on_device = memory;
done:
  if (status) hv_comm_finish(comm);
  return status;
}

void hv_comm_finish(hv_comm *comm) {
  hv_status_free(comm->error);
  comm->error = HV_OK;
  hv_device_release_host(comm->device, comm->host);
  hv_device_release(comm->device, comm->on_device);
  hv_stream_close(comm->stream);
  comm->host = comm->on_device = NULL;
  comm->stream = NULL;
}

static void close_single(hv_comm *comm) {
  hv_comm_finish(comm);
  free(comm);
}

/* With one rank every collective leaves the whole as it is, and the share is the whole. */
static hv_status run_single(hv_comm *comm, const hv_comm_call *call, hv_stream *stream) {
  (void)comm;
  (void)stream;
  bool shared = call->collective == HV_REDUCE_SCATTER || call->collective == HV_ALL_GATHER;
  if (!shared || call->share.data == call->whole.data) return HV_OK;
  return hv_error(HV_ERR_INTERNAL, "%s of %s: on one rank the share must be the whole",
                  hv_collective_name(call->collective), call->what);
}

hv_status hv_comm_single_open(hv_device *device, hv_comm **out) {
  static const hv_comm_methods methods = {.close = close_single, .run = run_single};
  hv_comm *comm = calloc(1, sizeof *comm);
  *out = comm;
  if (!comm) return hv_error_memory("the communicator");
  *comm = (hv_comm){.name = "single", .methods = &methods, .device = device, .size = 1};
  return HV_OK;
}

hv_status hv_comm_device_open(hv_device *device, const hv_comm_options *options, hv_comm **out) {
  *out = NULL;
  if (device->methods->comm_open) return device->methods->comm_open(device, options, out);
  hv_peers_close(options->peers);
  return hv_error(HV_ERR_DEVICE, "ranks on the device \"%s\" can only be connected by MPI, which this run does not use",
                  device->name);
}

void hv_comm_close(hv_comm *comm) {
  if (comm) comm->methods->close(comm);
}

static bool is_row(hv_tensor t) {
  return hv_present(t) && t.rows == 1 && t.cols > 0;
}

static hv_status check_call(const hv_comm *comm, const hv_comm_call *call) {
  const char *name = hv_collective_name(call->collective);
  if (call->collective == HV_BARRIER) return HV_OK;
  hv_dtype dtype = call->whole.dtype;
  if (!is_row(call->whole)) return hv_error(HV_ERR_INTERNAL, "%s of %s: the tensor must be one row", name, call->what);
  bool sums = call->collective == HV_ALL_REDUCE || call->collective == HV_REDUCE_SCATTER;
  if (sums && dtype != HV_F32 && dtype != HV_BF16 && dtype != HV_F64 && dtype != HV_I64) {
    return hv_error(HV_ERR_INTERNAL, "%s of %s: %s cannot be summed", name, call->what, hv_dtype_name(dtype));
  }
  if (call->collective == HV_BROADCAST && (call->root < 0 || call->root >= comm->size)) {
    return hv_error(HV_ERR_INTERNAL, "%s of %s: there is no rank %d among %d ranks", name, call->what, call->root,
                    comm->size);
  }
  if (call->collective != HV_REDUCE_SCATTER && call->collective != HV_ALL_GATHER) return HV_OK;
  if (!is_row(call->share) || call->share.dtype != dtype || call->share.cols * comm->size != call->whole.cols) {
    return hv_error(HV_ERR_INTERNAL, "%s of %s: a share of %lld %s does not fit %lld %s on %d ranks", name, call->what,
                    (long long)call->share.cols, hv_dtype_name(call->share.dtype), (long long)call->whole.cols,
                    hv_dtype_name(dtype), comm->size);
  }
  return HV_OK;
}

static hv_ticket run(hv_comm *comm, hv_comm_call call, hv_stream *stream) {
  if (comm->error) return 0;
  if (comm->record) {
    bool data = call.collective != HV_BARRIER;
    hv_text_add(comm->record, "%s %s %lld %s\n", hv_collective_name(call.collective),
                data ? hv_dtype_name(call.whole.dtype) : "-", data ? (long long)call.whole.cols : 0, call.what);
  }
  comm->error = check_call(comm, &call);
  if (comm->error) return 0;
  call.ticket = ++comm->calls;
  comm->error = comm->methods->run(comm, &call, stream);
  return call.ticket;
}

hv_ticket hv_comm_all_reduce(hv_comm *comm, const char *what, hv_tensor whole, hv_stream *stream) {
  return run(comm, (hv_comm_call){.collective = HV_ALL_REDUCE, .what = what, .whole = whole}, stream);
}

hv_ticket hv_comm_reduce_scatter(hv_comm *comm, const char *what, hv_tensor whole, hv_tensor share, hv_stream *stream) {
  return run(comm, (hv_comm_call){.collective = HV_REDUCE_SCATTER, .what = what, .whole = whole, .share = share},
             stream);
}

hv_ticket hv_comm_all_gather(hv_comm *comm, const char *what, hv_tensor share, hv_tensor whole, hv_stream *stream) {
  return run(comm, (hv_comm_call){.collective = HV_ALL_GATHER, .what = what, .whole = whole, .share = share}, stream);
}

hv_ticket hv_comm_broadcast(hv_comm *comm, const char *what, int32_t root, hv_tensor whole, hv_stream *stream) {
  return run(comm, (hv_comm_call){.collective = HV_BROADCAST, .what = what, .whole = whole, .root = root}, stream);
}

void hv_comm_wait(hv_comm *comm, hv_ticket ticket, hv_stream *stream) {
  if (ticket > 0 && comm->methods->wait) comm->methods->wait(comm, ticket, stream);
}

hv_status hv_comm_status(hv_comm *comm) {
  if (!comm->error && comm->methods->failure) comm->error = comm->methods->failure(comm);
  if (!comm->error) return HV_OK;
  return hv_error(hv_status_code(comm->error), "%s", hv_status_message(comm->error));
}

/* Waits on the host for a call of the communicator's own stream. */
static hv_status finish(hv_comm *comm, hv_ticket ticket) {
  if (!comm->stream) return hv_comm_status(comm);
  hv_comm_wait(comm, ticket, comm->stream);
  hv_status status = hv_stream_synchronize(comm->stream);
  return hv_status_first(hv_comm_status(comm), status);
}

hv_status hv_comm_barrier(hv_comm *comm, const char *what) {
  return finish(comm, run(comm, (hv_comm_call){.collective = HV_BARRIER, .what = what}, comm->stream));
}

hv_status hv_comm_sum(hv_comm *comm, const char *what, double *values, int count) {
  if (count < 1 || count > HV_COMM_MAX_SUM) {
    return hv_error(HV_ERR_INTERNAL, "the sum of %s has %d numbers; 1 to %d are possible", what, count,
                    HV_COMM_MAX_SUM);
  }
  if (!comm->stream) {
    hv_comm_all_reduce(comm, what, hv_tensor_make(values, HV_F64, 1, count), NULL);
    return hv_comm_status(comm);
  }
  size_t bytes = (size_t)count * sizeof *values;
  memcpy(comm->host, values, bytes);
  hv_upload(comm->stream, comm->on_device, comm->host, bytes);
  hv_tensor whole = hv_tensor_make(comm->on_device, HV_F64, 1, count);
  hv_ticket ticket = hv_comm_all_reduce(comm, what, whole, comm->stream);
  hv_comm_wait(comm, ticket, comm->stream);
  hv_download(comm->stream, comm->host, comm->on_device, bytes);
  HV_TRY(finish(comm, ticket));
  memcpy(values, comm->host, bytes);
  return HV_OK;
}

hv_status hv_comm_gather(hv_comm *comm, const char *what, const void *own, size_t bytes, void *all) {
  if (!comm->stream) {
    memcpy(all, own, bytes);
    return HV_OK;
  }
  void *memory;
  hv_status status = HV_OK;
  int64_t each = (int64_t)(bytes + sizeof(int16_t) - 1) / (int64_t)sizeof(int16_t);
  size_t stride = (size_t)each * sizeof(int16_t);
  char *host = calloc((size_t)comm->size, stride);
  if (!host) return hv_error_memory(what);
  HV_CHECK(hv_device_allocate(comm->device, HV_MEMORY_COMMUNICATION, (size_t)comm->size * stride, what, &memory));
  hv_tensor whole = hv_tensor_make(memory, HV_I16, 1, each * comm->size), share = hv_comm_share(comm, whole);
  memcpy(host, own, bytes);
  hv_upload(comm->stream, share.data, host, stride);
  hv_ticket ticket = hv_comm_all_gather(comm, what, share, whole, comm->stream);
  status = finish(comm, ticket);
  hv_download(comm->stream, host, memory, (size_t)comm->size * stride);
  status = hv_status_first(status, hv_stream_synchronize(comm->stream));
  hv_device_release(comm->device, memory);
  for (int32_t r = 0; r < comm->size && !status; r++) {
    memcpy((char *)all + (size_t)r * bytes, host + (size_t)r * stride, bytes);
  }
done:
  free(host);
  return status;
}

enum { BYTES_EACH = 6 /* a double holds them exactly */, MOST_SAID = HV_COMM_MAX_SUM * BYTES_EACH };

/* Sends the text of one rank (`own`, NULL on the others) to all, as a sum to which only that rank adds. Longer texts
 * are cut off. */
static hv_status tell_all(hv_comm *comm, const char *what, const char *own, char said[MOST_SAID + 1]) {
  double numbers[HV_COMM_MAX_SUM] = {0};
  size_t length = own ? strlen(own) : 0;
  for (size_t i = 0; i < length && i < MOST_SAID; i++) {
    numbers[i / BYTES_EACH] += (double)((uint64_t)(uint8_t)own[i] << 8 * (i % BYTES_EACH));
  }
  HV_TRY(hv_comm_sum(comm, what, numbers, HV_COMM_MAX_SUM));
  for (size_t i = 0; i < MOST_SAID; i++) said[i] = (char)((uint64_t)numbers[i / BYTES_EACH] >> 8 * (i % BYTES_EACH));
  said[MOST_SAID] = '\0';
  return HV_OK;
}

hv_status hv_comm_agree(hv_comm *comm, const char *what, hv_status own) {
  double failed = own ? 1 : 0;
  hv_status status = hv_comm_sum(comm, what, &failed, 1);
  bool any = !status && failed > 0;
  int32_t lowest = -1;
  for (int32_t r = 0; any && !status && lowest < 0; r++) {
    failed = own && comm->rank == r ? 1 : 0;
    status = hv_comm_sum(comm, what, &failed, 1);
    if (!status && failed > 0) lowest = r;
  }
  char said[MOST_SAID + 1] = "";
  if (lowest >= 0) status = tell_all(comm, what, comm->rank == lowest ? hv_status_message(own) : NULL, said);
  comm->all_know = any && !status;
  if (own) {
    hv_status_free(status);
    return own;
  }
  if (status || !any) return status;
  return hv_error(HV_ERR_DEVICE, "%s failed on rank %d: %s", what, lowest, said);
}

void hv_comm_set_timeout(hv_comm *comm, double seconds) {
  if (comm->methods->set_timeout) comm->methods->set_timeout(comm, seconds);
}

void hv_comm_abort(hv_comm *comm, int exit_code) {
  if (comm->methods->abort) comm->methods->abort(comm, exit_code);
}

void hv_comm_record(hv_comm *comm, hv_text *text) {
  comm->record = text;
}
