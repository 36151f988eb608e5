/* The device's NCCL communicator with a single rank: every collective really runs (on a card in NCCL itself), and keeps
 * the rank's data. test_comm_alone [DEVICE], by default emu. */
#include "core/tensor/comm.h"
#include "tests/cuda/under_test.h"
#include "train/ranks/rendezvous.h"

enum { COUNT = 5000 };

typedef struct alone {
  hv_device *device;
  hv_stream *stream;
  hv_comm *comm;
  char *memory; /* two buffers of 8 COUNT bytes */
} alone;

static alone open_alone(void) {
  alone a;
  void *memory;
  hv_peers *peers;
  assert_ok(hv_device_load(under_test, &(hv_device_options){.index = 0}, &a.device));
  assert_ok(hv_stream_open(a.device, &a.stream));
  assert_ok(hv_device_allocate(a.device, HV_MEMORY_WORKSPACE, (size_t)16 * COUNT, "test data", &memory));
  assert_ok(hv_rendezvous_open(&(hv_rendezvous_options){.size = 1, .host = "127.0.0.1", .listener = -1, .timeout = 10},
                               &peers));
  assert_ok(hv_comm_device_open(a.device, &(hv_comm_options){.peers = peers, .timeout = 30}, &a.comm));
  a.memory = memory;
  return a;
}

static void close_alone(alone *a) {
  hv_comm_close(a->comm);
  hv_device_release(a->device, a->memory);
  hv_stream_close(a->stream);
  hv_device_close(a->device);
}

/* A collective from one buffer to another; with one rank both are whole, and the bytes must be the same. */
static void expect_kept(alone *a, hv_dtype dtype, hv_collective collective) {
  size_t bytes = COUNT * hv_dtype_size(dtype);
  float values[COUNT];
  char given[8 * COUNT], found[8 * COUNT];
  hv_tensor from = hv_tensor_make(a->memory, dtype, 1, COUNT), to = hv_tensor_make(a->memory + bytes, dtype, 1, COUNT);
  for (int i = 0; i < COUNT; i++) values[i] = (float)(i - 2500) * 0.37f;
  if (dtype == HV_I64 || dtype == HV_I16) {
    for (size_t i = 0; i < bytes; i++) given[i] = (char)(i * 7);
  } else {
    hv_dtype_convert(dtype, given, HV_F32, values, COUNT);
  }
  hv_upload(a->stream, from.data, given, bytes);
  hv_ticket ticket = 0;
  if (collective == HV_ALL_REDUCE) ticket = hv_comm_all_reduce(a->comm, "values", from, a->stream);
  if (collective == HV_BROADCAST) ticket = hv_comm_broadcast(a->comm, "values", 0, from, a->stream);
  if (collective == HV_REDUCE_SCATTER) ticket = hv_comm_reduce_scatter(a->comm, "values", from, to, a->stream);
  if (collective == HV_ALL_GATHER) ticket = hv_comm_all_gather(a->comm, "values", from, to, a->stream);
  bool in_place = collective == HV_ALL_REDUCE || collective == HV_BROADCAST;
  hv_comm_wait(a->comm, ticket, a->stream);
  hv_download(a->stream, found, in_place ? from.data : to.data, bytes);
  assert_ok(hv_stream_synchronize(a->stream));
  assert_ok(hv_comm_status(a->comm));
  assert_memory_equal(given, found, bytes);
}

static void every_collective_keeps_what_one_rank_has(void **state) {
  (void)state;
  static const hv_dtype dtypes[] = {HV_F32, HV_BF16, HV_F64, HV_I64, HV_I16};
  alone a = open_alone();
  for (size_t d = 0; d < sizeof dtypes / sizeof dtypes[0]; d++) {
    for (int c = HV_ALL_REDUCE; c < HV_BARRIER; c++) {
      bool sums = c == HV_ALL_REDUCE || c == HV_REDUCE_SCATTER;
      if (!sums || dtypes[d] != HV_I16) expect_kept(&a, dtypes[d], (hv_collective)c);
    }
  }
  double values[2] = {0.25, 3e100};
  assert_ok(hv_comm_barrier(a.comm, "the end"));
  assert_ok(hv_comm_sum(a.comm, "numbers", values, 2));
  assert_true(values[0] == 0.25 && values[1] == 3e100);
  close_alone(&a);
}

/* More calls at a time than the communicator keeps apart. */
static void many_calls_may_be_under_way(void **state) {
  (void)state;
  alone a = open_alone();
  float one = 1, found = 0;
  hv_tensor value = hv_tensor_make(a.memory, HV_F32, 1, 1);
  hv_upload(a.stream, value.data, &one, sizeof one);
  hv_ticket first = hv_comm_all_reduce(a.comm, "a value", value, a.stream);
  for (int i = 0; i < 600; i++) (void)hv_comm_all_reduce(a.comm, "a value", value, a.stream);
  hv_comm_wait(a.comm, first, a.stream);
  hv_comm_wait(a.comm, hv_comm_last(a.comm), a.stream);
  hv_download(a.stream, &found, value.data, sizeof found);
  assert_ok(hv_stream_synchronize(a.stream));
  assert_ok(hv_comm_status(a.comm));
  assert_true(found == 1);
  close_alone(&a);
}

int main(int argc, char **argv) {
  choose_device(argc, argv);
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(every_collective_keeps_what_one_rank_has),
      cmocka_unit_test(many_calls_may_be_under_way),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
