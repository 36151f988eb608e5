#include <cblas.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "core/base/clock.h"
#include "core/base/host_memory.h"
#include "core/cpu/cpu.h"
#include "core/cpu/instructions.h"
#include "core/cpu/parallel.h"
#include "core/tensor/ops.h"

/* What openblas_get_parallel answers for a build whose threads are OpenMP's. */
enum { OPENBLAS_PARALLEL_OPENMP = 2 };

enum { MEMORY_ALIGNMENT = 256, HUGE_PAGE = 2 << 20, COPY_PIECE = 2 << 20 };

typedef struct cpu_device {
  hv_device head;
  hv_cpu_pool pool;
} cpu_device;

typedef struct cpu_stream {
  hv_stream head;
  hv_status error; /* the first since the last synchronisation */
} cpu_stream;

static hv_cpu_pool *pool_of(hv_stream *stream) {
  return &((cpu_device *)stream->device)->pool;
}

static void close_device(hv_device *device) {
  cpu_device *cpu = (cpu_device *)device;
  hv_cpu_pool_close(&cpu->pool);
  free(cpu);
}

/* The address of the block from the C library is kept just before the memory that is returned. For large blocks calloc
 * leaves the zeroing to the kernel, at the first use of each page. */
static hv_status allocate(hv_device *device, size_t bytes, const char *what, void **out) {
  (void)device;
  *out = NULL;
  size_t alignment = bytes >= HUGE_PAGE ? HUGE_PAGE : MEMORY_ALIGNMENT, size;
  char *block = NULL;
  if (!__builtin_add_overflow(bytes, alignment + sizeof block, &size)) block = calloc(1, size);
  if (!block) return hv_error(HV_ERR_MEMORY, "out of memory: %s needs %zu bytes on the CPU", what, bytes);
  uintptr_t begin = ((uintptr_t)block + sizeof block + alignment - 1) / alignment * alignment;
  memcpy((char *)begin - sizeof block, &block, sizeof block);
  /* Only advice: large pages save page faults and address look-ups if the kernel has them. */
  if (bytes >= HUGE_PAGE) (void)madvise((void *)begin, bytes / HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE);
  *out = (void *)begin;
  return HV_OK;
}

static void release(hv_device *device, void *memory) {
  (void)device;
  char *block;
  memcpy(&block, (char *)memory - sizeof block, sizeof block);
  free(block);
}

static hv_device_room room(hv_device *device) {
  (void)device;
  size_t available = hv_host_memory_available();
  if (available == SIZE_MAX) return (hv_device_room){0};
  return (hv_device_room){.available = available,
                          .all = (size_t)sysconf(_SC_PHYS_PAGES) * (size_t)sysconf(_SC_PAGESIZE)};
}

static hv_status stream_open(hv_device *device, hv_stream **out) {
  cpu_stream *stream = calloc(1, sizeof *stream);
  if (!stream) return hv_error_memory("a stream of the CPU device");
  stream->head.device = device;
  *out = &stream->head;
  return HV_OK;
}

static void stream_close(hv_stream *stream) {
  cpu_stream *cpu = (cpu_stream *)stream;
  hv_status_free(cpu->error);
  free(cpu);
}

static hv_status stream_synchronize(hv_stream *stream) {
  cpu_stream *cpu = (cpu_stream *)stream;
  hv_cpu_pool *pool = pool_of(stream);
  hv_status error = hv_status_first(cpu->error, pool->error);
  cpu->error = HV_OK;
  pool->error = HV_OK;
  return error;
}

/* Work is done when it is queued, so an event has no state. */
static hv_status event_open(hv_device *device, hv_event **out) {
  (void)device;
  *out = malloc(1);
  return *out ? HV_OK : hv_error_memory("an event of the CPU device");
}

static void event_close(hv_event *event) {
  free(event);
}

static void event_record(hv_stream *stream, hv_event *event) {
  (void)stream;
  (void)event;
}

static hv_status event_synchronize(hv_event *event) {
  (void)event;
  return HV_OK;
}

static void stamp(hv_stream *stream, double *out) {
  (void)stream;
  *out = hv_clock_seconds();
}

typedef struct copy_context {
  char *to;
  const char *from;
  size_t bytes;
} copy_context;

static void copy_pieces(const void *context, int64_t first, int64_t last, void *scratch) {
  (void)scratch;
  const copy_context *c = context;
  size_t begin = (size_t)first * COPY_PIECE, end = (size_t)last * COPY_PIECE;
  if (end > c->bytes) end = c->bytes;
  memcpy(c->to + begin, c->from + begin, end - begin);
}

/* All threads share a large copy: the first touch of a page costs more than the copy. */
static void copy(hv_stream *stream, void *to, const void *from, size_t bytes) {
  copy_context context = {.to = to, .from = from, .bytes = bytes};
  hv_cpu_for(pool_of(stream), (int64_t)((bytes + COPY_PIECE - 1) / COPY_PIECE), 1, copy_pieces, &context);
}

static const hv_device_methods methods = {
    .close = close_device,
    .allocate = allocate,
    .release = release,
    .room = room,
    .allocate_host = allocate,
    .release_host = release,
    .stream_open = stream_open,
    .stream_close = stream_close,
    .stream_synchronize = stream_synchronize,
    .event_open = event_open,
    .event_close = event_close,
    .event_record = event_record,
    .event_wait = event_record,
    .event_synchronize = event_synchronize,
    .stamp = stamp,
    .upload = copy,
    .download = copy,
};

/* An operation whose operands are wrong is not run; its error is what the stream's next synchronisation returns. */
static bool admit(hv_stream *stream, hv_status error) {
  if (!error) return true;
  cpu_stream *cpu = (cpu_stream *)stream;
  cpu->error = hv_status_first(cpu->error, error);
  return false;
}

/* Every operation once, with the operand whose dtype tells whether it runs in double. */
#define KEY_OPERANDS(X)                                                                                                \
  X(linear, x)                                                                                                         \
  X(linear_backward_input, dy)                                                                                         \
  X(linear_backward_weight, dy)                                                                                        \
  X(activation_backward, dy)                                                                                           \
  X(norm, x)                                                                                                           \
  X(norm_backward, dy)                                                                                                 \
  X(residual_add, x)                                                                                                   \
  X(residual_scale_backward, dy)                                                                                       \
  X(swiglu, y)                                                                                                         \
  X(linear_swiglu, y)                                                                                                  \
  X(swiglu_backward, dy)                                                                                               \
  X(rotary, cos_sin)                                                                                                   \
  X(attention, q)                                                                                                      \
  X(attention_backward, q)                                                                                             \
  X(gather_rows, src)                                                                                                  \
  X(scatter_add_rows, src)                                                                                             \
  X(patchify, y)                                                                                                       \
  X(vit_embed, y)                                                                                                      \
  X(vit_embed_backward, dy)                                                                                            \
  X(sinusoid, y)                                                                                                       \
  X(q_sample, y)                                                                                                       \
  X(sampler_step, x)                                                                                                   \
  X(diffusion_loss, loss)                                                                                              \
  X(cross_entropy, loss)                                                                                               \
  X(best_of_range, logits)                                                                                             \
  X(draw_normal, y)                                                                                                    \
  X(draw_below, y)                                                                                                     \
  X(convert, src)                                                                                                      \
  X(fill, dst)                                                                                                         \
  X(sum_squares, y)                                                                                                    \
  X(clip_factor, sum_squares)                                                                                          \
  X(adamw, dynamic)                                                                                                    \
  X(average, average)                                                                                                  \
  X(exchange, average)

/* run_<op>_<variant>: the kernels of a variant for float, and those of f64 for double. */
#define DECLARE(name, key) void hv_cpu_##name##_f64(hv_cpu_pool *pool, const hv_##name##_args *args);
#define RUN(name, key, variant)                                                                                        \
  void hv_cpu_##name##_##variant(hv_cpu_pool *pool, const hv_##name##_args *args);                                     \
  static void run_##name##_##variant(hv_stream *stream, const hv_##name##_args *args) {                                \
    if (!admit(stream, hv_check_##name(args))) return;                                                                 \
    if (args->key.dtype == HV_F64) {                                                                                   \
      hv_cpu_##name##_f64(pool_of(stream), args);                                                                      \
    } else {                                                                                                           \
      hv_cpu_##name##_##variant(pool_of(stream), args);                                                                \
    }                                                                                                                  \
  }
KEY_OPERANDS(DECLARE)

#define RUN_F32(name, key) RUN(name, key, f32)
#define ENTRY_F32(name) .name = run_##name##_f32,
KEY_OPERANDS(RUN_F32)
static const hv_op_table baseline = {HV_OPS(ENTRY_F32)};

#ifdef HV_CPU_X86_VARIANTS
#define RUN_AVX512(name, key) RUN(name, key, f32_avx512)
#define ENTRY_AVX512(name) .name = run_##name##_f32_avx512,
KEY_OPERANDS(RUN_AVX512)
static const hv_op_table avx512 = {HV_OPS(ENTRY_AVX512)};

#define RUN_AMX(name, key) RUN(name, key, f32_amx)
#define ENTRY_AMX(name) .name = run_##name##_f32_amx,
KEY_OPERANDS(RUN_AMX)
static const hv_op_table amx = {HV_OPS(ENTRY_AMX)};

static const hv_op_table *const operations[] = {
    [HV_CPU_BASELINE] = &baseline, [HV_CPU_AVX512] = &avx512, [HV_CPU_AMX] = &amx};
#else
static const hv_op_table *const operations[] = {[HV_CPU_BASELINE] = &baseline};
#endif

/* If OpenBLAS cannot get a buffer for a thread that multiplies, it retries forever. */
static hv_status check_address_space(int threads) {
  enum { BUFFER = 128 << 20 }; /* of its builds for x86-64 and ARM servers */
  size_t needed = (size_t)threads * BUFFER, left = hv_host_address_space_left();
  if (left >= needed) return HV_OK;
  return hv_error(HV_ERR_MEMORY,
                  "out of memory: %d threads of the CPU device need %zu MB of address space for matrix products, and "
                  "the limit (ulimit -v) leaves %zu MB; use fewer threads or raise it",
                  threads, needed >> 20, left >> 20);
}

static hv_status open_device(const hv_device_options *options, hv_cpu_instructions instructions, hv_device **out) {
  *out = NULL;
  if (openblas_get_parallel() != OPENBLAS_PARALLEL_OPENMP) {
    return hv_error(HV_ERR_DEVICE,
                    "the OpenBLAS linked into this program is not its OpenMP build, so its threads would "
                    "compete with OpenMP's; build with libopenblas-openmp-dev installed");
  }
  /* Products are split into tiles over OpenMP's threads here, so OpenBLAS must use one. Setting that would also change
   * OpenMP's number of threads. */
  int outside = hv_cpu_alone_begin();
  openblas_set_num_threads(1);
  hv_cpu_alone_end(outside);
  int threads = options ? options->threads : 0;
  if (threads < 0)
    return hv_error(HV_ERR_INPUT, "the CPU device cannot use %d threads; give 1 or more, or 0 for all", threads);
  if (threads == 0) threads = outside;
  HV_TRY(check_address_space(threads));
  cpu_device *cpu = calloc(1, sizeof *cpu);
  if (!cpu) return hv_error_memory("the CPU device");
  cpu->head = (hv_device){
      .name = "cpu", .methods = &methods, .ops = operations[instructions], .host_memory = true, .zeroes_memory = true};
  hv_status status = hv_cpu_pool_open(threads, &cpu->pool);
  if (status) {
    free(cpu);
    return status;
  }
  *out = &cpu->head;
  return HV_OK;
}

hv_status hv_cpu_device_open(const hv_device_options *options, hv_device **out) {
  *out = NULL;
  hv_cpu_instructions instructions;
  HV_TRY(hv_cpu_instructions_limit(hv_cpu_instructions_detect(), &instructions));
  return open_device(options, instructions, out);
}

hv_status hv_cpu_device_open_with(const hv_device_options *options, hv_cpu_instructions instructions, hv_device **out) {
  *out = NULL;
  if (instructions > hv_cpu_instructions_detect()) {
    return hv_error(HV_ERR_DEVICE, "this processor or its operating system lacks the requested instructions");
  }
  return open_device(options, instructions, out);
}
