/* How cuda/runtime.cu deals with machines that the test does not run on: the CUDA runtime is replaced by functions that
 * report the cards and errors described in `machine`. What it does with a real card is tested on a card. */
#include <cuda_runtime.h>

#include "cuda/runtime.h"
#include "tests/check.h"

static struct machine {
  int driver, runtime, cards; /* versions of driver and runtime; number of cards */
  cudaError_t count_error;
  int major, minor;
  size_t free_bytes, all_bytes;
  cudaError_t memory_error;
  cudaError_t event; /* what cudaEventQuery returns */
  cudaError_t kernel_error;
  int made_for;     /* the compute capability for which a kernel's PTX was made */
  int chosen;       /* the card chosen by cudaSetDevice */
  bool error_kept;  /* nobody has fetched the last error */
  size_t asked_for; /* bytes, by cudaMalloc or cudaMallocHost */
  cudaError_t waiting_error;
  int streams, idle; /* open streams; those waited for since the last release of memory */
  bool waited_wrongly;
  int released;
  cudaError_t ending_error; /* error of ending a recording */
  int graphs;               /* that exist, including executable ones */
} machine;

static void *anything = &machine;

cudaError_t cudaDriverGetVersion(int *version) {
  *version = machine.driver;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int *version) {
  *version = machine.runtime;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int *count) {
  *count = machine.cards;
  return machine.count_error;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *properties, int index) {
  memset(properties, 0, sizeof *properties);
  snprintf(properties->name, sizeof properties->name, "Card %d", index);
  properties->major = machine.major;
  properties->minor = machine.minor;
  properties->multiProcessorCount = 132;
  properties->totalGlobalMem = machine.all_bytes;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetPCIBusId(char *bus, int length, int index) {
  snprintf(bus, (size_t)length, "0000:%02x:00.0", index + 1);
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int index) {
  machine.chosen = index;
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t *available, size_t *all) {
  *available = machine.free_bytes;
  *all = machine.all_bytes;
  return cudaSuccess;
}
/* As in CUDA, an error is kept until somebody fetches the last error. */
static cudaError_t keep(cudaError_t error) {
  machine.error_kept |= error != cudaSuccess;
  return error;
}
static cudaError_t allocate(void **out, size_t bytes) {
  machine.asked_for = bytes;
  *out = machine.memory_error == cudaSuccess ? anything : nullptr;
  return keep(machine.memory_error);
}
cudaError_t cudaMalloc(void **out, size_t bytes) {
  return allocate(out, bytes);
}
cudaError_t cudaMallocHost(void **out, size_t bytes) {
  return allocate(out, bytes);
}
cudaError_t cudaGetLastError() {
  machine.error_kept = false;
  return machine.memory_error;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *out, unsigned flags) {
  if (flags != cudaStreamNonBlocking)
    return cudaErrorInvalidValue; /* or the default stream of other threads would wait */
  *out = (cudaStream_t)((char *)anything + machine.streams++);
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t) {
  machine.streams--;
  return cudaSuccess;
}
/* There is no cudaDeviceSynchronize here, because it would spoil what other threads are recording. */
cudaError_t cudaStreamSynchronize(cudaStream_t) {
  machine.idle++;
  return keep(machine.waiting_error);
}
static cudaError_t release() {
  machine.waited_wrongly |= machine.idle != machine.streams;
  machine.idle = 0;
  machine.released++;
  return cudaSuccess;
}
cudaError_t cudaFree(void *) {
  return release();
}
cudaError_t cudaFreeHost(void *) {
  return release();
}
cudaError_t cudaEventQuery(cudaEvent_t) {
  return keep(machine.event);
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *attributes, const void *) {
  memset(attributes, 0, sizeof *attributes);
  attributes->ptxVersion = machine.made_for;
  attributes->binaryVersion = 90; /* what the driver compiled for the card */
  return keep(machine.kernel_error);
}
const char *cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorNoDevice ? "no CUDA-capable device is detected" : "some failure";
}
const char *cudaGetErrorName(cudaError_t) {
  return "cudaErrorOfSomeKind";
}

/* Only the mode in which calls of other threads do not disturb a recording is accepted. */
cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode mode) {
  return mode == cudaStreamCaptureModeThreadLocal ? cudaSuccess : cudaErrorInvalidValue;
}
cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t *out) {
  *out = machine.ending_error == cudaSuccess ? (cudaGraph_t)anything : nullptr;
  machine.graphs += *out != nullptr;
  return keep(machine.ending_error);
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *out, cudaGraph_t graph, unsigned long long) {
  if (!graph) return keep(cudaErrorInvalidValue);
  if (machine.memory_error != cudaSuccess) return keep(machine.memory_error);
  *out = (cudaGraphExec_t)anything;
  machine.graphs++;
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t) {
  machine.graphs--;
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t) {
  machine.graphs--;
  return cudaSuccess;
}

/* Functions that are linked but not called here. */
#define ABSENT(name, ...)                                                                                              \
  cudaError_t name(__VA_ARGS__) {                                                                                      \
    return cudaErrorNotSupported;                                                                                      \
  }
ABSENT(cudaStreamWaitEvent, cudaStream_t, cudaEvent_t, unsigned)
ABSENT(cudaMemcpyAsync, void *, const void *, size_t, cudaMemcpyKind, cudaStream_t)
ABSENT(cudaLaunchHostFunc, cudaStream_t, cudaHostFn_t, void *)
ABSENT(cudaGraphLaunch, cudaGraphExec_t, cudaStream_t)
ABSENT(cudaEventCreate, cudaEvent_t *)
ABSENT(cudaEventCreateWithFlags, cudaEvent_t *, unsigned)
ABSENT(cudaEventDestroy, cudaEvent_t)
ABSENT(cudaEventRecord, cudaEvent_t, cudaStream_t)
ABSENT(cudaEventSynchronize, cudaEvent_t)
ABSENT(cudaEventElapsedTime, float *, cudaEvent_t, cudaEvent_t)

/* Two cards of compute capability 9.0, and a driver as new as the runtime. */
static int good_machine(void **) {
  machine = {};
  machine.driver = machine.runtime = CUDART_VERSION;
  machine.cards = 2;
  machine.major = 9;
  machine.all_bytes = 80000000000;
  machine.free_bytes = 1500000000;
  machine.chosen = -1;
  return 0;
}

static hv_status open_card(int index, hv_runtime **out) {
  hv_device_options options = {};
  options.index = index;
  return hv_runtime_open(&options, out);
}

/* Fails unless the error is one line that contains the words. */
static void assert_told(hv_status status, const char *words) {
  assert_non_null(status);
  if (!strstr(hv_status_message(status), words))
    fail_msg("expected \"%s\", the message is: %s", words, hv_status_message(status));
  assert_null(strchr(hv_status_message(status), '\n'));
  hv_status_free(status);
}

static void assert_refused(int index, const char *words) {
  hv_runtime *runtime;
  assert_told(open_card(index, &runtime), words);
  assert_null(runtime);
  assert_int_equal(machine.chosen, -1);
}

static void a_card_is_opened_and_described(void **) {
  hv_runtime *runtime;
  assert_ok(open_card(1, &runtime));
  assert_int_equal(machine.chosen, 1);
  const hv_card *card = hv_runtime_card(runtime);
  assert_string_equal(card->name, "Card 1");
  assert_string_equal(card->bus, "0000:02:00.0");
  assert_int_equal(card->major, 9);
  assert_int_equal(card->minor, 0);
  assert_int_equal(card->multiprocessors, 132);
  assert_int_equal(card->memory_bytes, 80000000000);
  hv_runtime_close(runtime);
}

static void the_oldest_capability_is_8_0(void **) {
  hv_runtime *runtime;
  machine.major = 8;
  assert_ok(open_card(0, &runtime));
  hv_runtime_close(runtime);
  machine.chosen = -1;
  machine.major = 7;
  machine.minor = 5;
  assert_refused(1, "CUDA card 1 (Card 1) has compute capability 7.5; 8.0 or newer is needed, or --device cpu");
}

static bool card_begins_early(void) {
  hv_runtime *runtime;
  assert_ok(open_card(0, &runtime));
  bool early = hv_runtime_card(runtime)->starts_early;
  hv_runtime_close(runtime);
  return early;
}

static void launches_begin_early_where_graphs_can_hold_them(void **) {
  assert_true(card_begins_early());
  assert_int_equal(setenv("HVLA_EARLY", "0", 1), 0);
  assert_false(card_begins_early());
  assert_int_equal(setenv("HVLA_EARLY", "1", 1), 0);
  assert_true(card_begins_early());
  machine.runtime = machine.driver = 12030;
  assert_true(card_begins_early());
  machine.driver = 12020;
  assert_false(card_begins_early());
  machine.runtime = 12020;
  machine.driver = 12030;
  assert_false(card_begins_early());
  machine.runtime = 12030;
  machine.major = 8;
  machine.minor = 9;
  assert_false(card_begins_early());
}

/* Kernels built for 8.0 run on a card of 9.0 too, but contain no instruction that waits for earlier launches: they must
 * not be begun early. */
static void kernels_made_for_older_cards_do_not_wait(void **) {
  machine.made_for = 90;
  assert_true(hv_kernel_waits(anything));
  machine.made_for = 100;
  assert_true(hv_kernel_waits(anything));
  machine.made_for = 89;
  assert_false(hv_kernel_waits(anything));
  machine.made_for = 90;
  machine.kernel_error = cudaErrorNoKernelImageForDevice;
  assert_false(hv_kernel_waits(anything));
  assert_false(machine.error_kept);
}

static void a_card_that_is_not_there_is_told(void **) {
  assert_refused(2, "CUDA card 2 was asked for; this machine has 0 … 1");
  assert_refused(-1, "CUDA card -1 was asked for");
}

/* A scheduler may show each process only its own card, whatever local rank the process has. */
static void the_only_visible_card_serves_every_index(void **) {
  hv_runtime *runtime;
  machine.cards = 1;
  assert_ok(open_card(3, &runtime));
  assert_int_equal(machine.chosen, 0);
  hv_runtime_close(runtime);
}

static void a_missing_driver_or_card_is_told(void **) {
  machine.driver = 0;
  assert_refused(0, "no CUDA driver is installed on this machine; --device cpu runs everything without one");
  good_machine(nullptr);
  machine.driver = 12090;
  assert_refused(0, "the CUDA driver is for CUDA 12.9, this build needs ");
  good_machine(nullptr);
  machine.cards = 0;
  assert_refused(0, "no CUDA card is visible (the driver lists none)");
  machine.count_error = cudaErrorNoDevice;
  assert_refused(0, "no CUDA card is visible (no CUDA-capable device is detected)");
}

static void memory_that_is_not_there_is_told(void **) {
  hv_runtime *runtime;
  void *memory;
  assert_ok(open_card(0, &runtime));
  assert_ok(hv_runtime_allocate(runtime, 0, "nothing", &memory));
  assert_int_equal(machine.asked_for, 1);
  machine.memory_error = cudaErrorMemoryAllocation;
  assert_told(hv_runtime_allocate(runtime, 2000000000, "the gradients", &memory),
              "out of memory on CUDA card 0 (Card 0): the gradients needs 2.000 GB, 1.500 of 80.000 GB are free");
  assert_null(memory);
  assert_false(machine.error_kept); /* else the next launch would seem to have failed */
  assert_told(hv_runtime_allocate_host(runtime, 4096, "a batch", &memory),
              "out of memory: a batch needs 4096 bytes of page-locked host memory");
  assert_false(machine.error_kept);
  machine.memory_error = cudaErrorIllegalAddress;
  assert_told(hv_runtime_allocate(runtime, 16, "the gradients", &memory), "CUDA, allocating memory: some failure");
  assert_false(machine.error_kept);
  hv_runtime_close(runtime);
}

static void releasing_waits_for_what_is_queued(void **) {
  hv_runtime *runtime;
  hv_queue *queues[3];
  assert_ok(open_card(0, &runtime));
  for (hv_queue *&queue : queues) assert_ok(hv_queue_open(runtime, &queue));
  hv_runtime_release(runtime, anything);
  machine.waiting_error = cudaErrorIllegalAddress; /* the error of a stream, which releasing must not pass on */
  hv_runtime_release_host(runtime, anything);
  hv_runtime_release(runtime, nullptr);
  hv_runtime_release_host(runtime, nullptr);
  hv_queue_close(runtime, queues[1]);
  machine.idle = 0;
  hv_runtime_release(runtime, anything);
  assert_int_equal(machine.released, 3);
  assert_false(machine.waited_wrongly);
  assert_false(machine.error_kept);
  hv_queue_close(runtime, queues[0]);
  hv_queue_close(runtime, queues[2]);
  assert_int_equal(machine.streams, 0);
  hv_runtime_close(runtime);
}

/* Calls of other threads can spoil a recording. The error is one of the device, and the caller may go on without a
 * recording. */
static void recordings_end_well_or_are_lost(void **) {
  hv_runtime *runtime;
  hv_queue *queue;
  hv_recording *recording;
  assert_ok(open_card(0, &runtime));
  assert_ok(hv_queue_open(runtime, &queue));
  assert_ok(hv_queue_record_begin(queue));
  assert_ok(hv_queue_record_end(queue, &recording));
  assert_non_null(recording);
  hv_queue_recording_close(recording);
  for (int end = 0; end < 2; end++) {
    machine.ending_error = end == 0 ? cudaErrorStreamCaptureInvalidated : cudaSuccess;
    machine.memory_error = end == 0 ? cudaSuccess : cudaErrorMemoryAllocation;
    assert_ok(hv_queue_record_begin(queue));
    hv_status status = hv_queue_record_end(queue, &recording);
    assert_non_null(status);
    assert_int_equal(hv_status_code(status), HV_ERR_DEVICE);
    assert_told(status, end == 0 ? "CUDA, ending a graph: some failure" : "CUDA, preparing a graph: some failure");
    assert_null(recording);
    assert_int_equal(machine.graphs, 0);
    assert_false(machine.error_kept);
  }
  hv_queue_close(runtime, queue);
  hv_runtime_close(runtime);
}

/* cudaEventQuery returns an error code if the event is not over yet. */
static void an_event_that_is_not_over_is_no_error(void **) {
  machine.event = cudaErrorNotReady;
  assert_false(hv_mark_passed(nullptr, (hv_mark *)anything));
  assert_false(machine.error_kept);
  machine.event = cudaSuccess;
  assert_true(hv_mark_passed(nullptr, (hv_mark *)anything));
}

int main() {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup(a_card_is_opened_and_described, good_machine),
      cmocka_unit_test_setup(the_oldest_capability_is_8_0, good_machine),
      cmocka_unit_test_setup(launches_begin_early_where_graphs_can_hold_them, good_machine),
      cmocka_unit_test_setup(kernels_made_for_older_cards_do_not_wait, good_machine),
      cmocka_unit_test_setup(a_card_that_is_not_there_is_told, good_machine),
      cmocka_unit_test_setup(the_only_visible_card_serves_every_index, good_machine),
      cmocka_unit_test_setup(a_missing_driver_or_card_is_told, good_machine),
      cmocka_unit_test_setup(memory_that_is_not_there_is_told, good_machine),
      cmocka_unit_test_setup(releasing_waits_for_what_is_queued, good_machine),
      cmocka_unit_test_setup(recordings_end_well_or_are_lost, good_machine),
      cmocka_unit_test_setup(an_event_that_is_not_over_is_no_error, good_machine),
  };
  return cmocka_run_group_tests(tests, nullptr, nullptr);
}
