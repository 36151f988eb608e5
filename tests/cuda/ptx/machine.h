/* Runs nvcc's own code on a machine without a card. The emulator (cuda/emu) shows that the kernels are right as C++;
 * this shows that they still are after nvcc, up to PTX, the assembly that the driver or ptxas turns into a card's
 * instructions. translate.py makes C++ functions of PTX; machine.cc runs them, each thread of a block as a fiber, its
 * warps meeting at shuffles and tensor-core products; runtime.cc takes the place of the CUDA runtime, so that
 * cuda/runtime.cu, cuda/launch.h and nvcc's launch stubs run as on a card. The device module made of it all is
 * libhvla-ptx.so, opened by --device ptx.
 *
 * It finds: access to memory that is not allocated or not aligned, of device memory and of shared memory; lanes of a
 * warp that meet at different instructions; barriers that not all threads reach; asynchronous copies that nobody waited
 * for (they land at the wait); use of what was never written (new memory, shared memory and registers hold NaN); the
 * host touching device memory (it ends with SIGSEGV); launches and captures that CUDA would refuse. A fault ends its
 * launch and is returned by the next synchronisation of a stream. It does not find races, and runs a stream's work at
 * once, in order: both are the emulator's business.
 *
 * Included by translated kernels, by machine.cc and runtime.cc, and by the stand-in for cuBLASLt. */
#ifndef HV_TESTS_PTX_MACHINE_H
#define HV_TESTS_PTX_MACHINE_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <functional>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

struct ptx_dim {
  uint32_t x, y, z;
};

enum : uint32_t { PTX_SHARED_BASE = 1024 /* address of a block's first byte of shared memory; 0 is nobody's */ };

struct ptx_block;
struct ptx_request;

/* The most recently used allocation of device memory. */
struct ptx_range {
  uint64_t from, to;
};

/* A cp.async that has not landed, or the mark at the end of a group of them. */
struct ptx_copy {
  uint32_t to;
  const void *from;
  bool ends_group;
};

/* A thread, as its kernel's function sees it. `line` is the line of the PTX, which a fault names; for operations of a
 * warp it also tells one instruction from another. */
struct ptx_thread {
  ptx_dim tid, ntid, ctaid, nctaid;
  uint32_t laneid;

  /* The bytes at an address, after the checks. `size` is the access's alignment as well. */
  uint8_t *global(int line, uint64_t address, uint32_t size) {
    if (address % size != 0) fault(line, "a misaligned address of device memory", address);
    if (address < recent.from || address + size > recent.to) find(line, address, size);
    return (uint8_t *)(address + view);
  }
  uint8_t *shared(int line, uint64_t address, uint32_t size) {
    if (address % size != 0) fault(line, "a misaligned address of shared memory", address);
    if (address < PTX_SHARED_BASE || address + size > PTX_SHARED_BASE + (uint64_t)shared_bytes) {
      fault(line, "outside of shared memory", address);
    }
    return shared_memory + (address - PTX_SHARED_BASE);
  }
  /* Of the kernel's parameters, or of a thread's own memory. */
  static uint8_t *own(uint64_t address) {
    return (uint8_t *)address;
  }

  void barrier();
  void copy_async(int line, uint32_t to, uint64_t from, uint32_t bytes);
  void copy_commit();
  void copy_wait(int groups_in_flight);

  /* Operations of a warp. shuffle: `mode` 'u' (up), 'd' (down), 'b' (bfly) or 'i' (idx), b and c as in PTX; *valid
   * tells whether the lane that was asked for takes part. */
  uint32_t shuffle(int line, char mode, uint32_t value, uint32_t b, uint32_t c, uint32_t mask, bool *valid);
  uint32_t ballot(int line, bool vote, uint32_t mask);
  void matrix_multiply(int line, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const float (&c)[4]);
  void load_matrices(int line, uint32_t (&r)[4], uint32_t address, bool transposed);

  [[noreturn]] void fault(int line, const char *what, uint64_t value);

  /* For machine.cc alone. */
  void find(int line, uint64_t address, uint32_t size);
  void meet(int line, ptx_request *request);
  uint8_t *shared_memory;
  uint32_t shared_bytes;
  uint64_t view;
  ptx_range recent;
  ptx_block *block;
  int index;
  enum { READY, WAITS, ENDED } state;
  ptx_request *request;
  std::vector<ptx_copy> copies;
};

struct ptx_parameter {
  uint32_t offset, size;
};

/* A translated kernel. */
struct ptx_kernel {
  const char *name; /* mangled */
  void (*run)(ptx_thread &t, uint8_t *parameters);
  const ptx_parameter *parameters;
  size_t parameter_count;
};

/* What translated files do before main: they name their kernels and their constants in memory. */
void ptx_add_kernel(const ptx_kernel *kernel);
void ptx_add_constant(const void *data, size_t bytes);

/* Allocates device memory: an address that the host cannot touch. NULL if there is no room. ptx_view gives the host a
 * view of `bytes` bytes there, or NULL if they are not in one allocation; memory of the host is its own view. */
void *ptx_allocate(size_t bytes);
bool ptx_release(void *memory);
void *ptx_view(const void *memory, size_t bytes);
void ptx_room(size_t *available, size_t *all);

/* Runs a launch to its end. A fault is told in *message, which is empty otherwise. */
void ptx_run(const char *kernel, const std::vector<uint8_t> &parameters, ptx_dim grid, ptx_dim block,
             uint32_t shared_bytes, std::string *message);
const ptx_kernel *ptx_find_kernel(const char *name);

/* Runs `work` as a part of the stream: at once, or in a capture, whenever it is replayed. `stream` is a cudaStream_t.
 */
void ptx_queue(void *stream, std::function<void()> work);

/* The arithmetic of PTX where C++ has none or another. ptx_as gives bits of a register another type. */
template <typename To, typename From> static inline To ptx_as(From from) {
  static_assert(sizeof(To) == sizeof(From), "they have as many bits");
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}
template <typename T> static inline T ptx_load(const uint8_t *from) {
  T value;
  memcpy(&value, from, sizeof value);
  return value;
}
template <typename T> static inline void ptx_store(uint8_t *to, T value) {
  memcpy(to, &value, sizeof value);
}

/* Shifts by the register's width or more leave nothing but the sign. */
template <typename T> static inline T ptx_shift_left(T x, uint32_t by) {
  return by < 8 * sizeof(T) ? (T)(x << by) : 0;
}
template <typename T> static inline T ptx_shift_right(T x, uint32_t by) {
  return by < 8 * sizeof(T) ? (T)(x >> by) : (T)(x < 0 ? -1 : 0);
}

/* The number, if the other is none; -0 is less than +0. */
static inline float ptx_max(float a, float b) {
  if (isnan(a) || isnan(b)) return isnan(a) ? b : a;
  return a > b || (a == b && !signbit(a)) ? a : b;
}
static inline float ptx_min(float a, float b) {
  if (isnan(a) || isnan(b)) return isnan(a) ? b : a;
  return a < b || (a == b && signbit(a)) ? a : b;
}

/* .ftz and .sat. */
static inline float ptx_flush(float x) {
  return fabsf(x) < std::numeric_limits<float>::min() ? copysignf(0, x) : x;
}
static inline float ptx_saturate(float x) {
  return x > 0 ? fminf(x, 1) : 0;
}

static inline uint16_t ptx_bf16(float x) {
  uint32_t bits = ptx_as<uint32_t>(x);
  return isnan(x) ? 0x7fff : (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* A rounded number as an integer: the nearest there is, 0 for NaN. */
template <typename T> static inline T ptx_integer(double x) {
  typedef std::numeric_limits<T> limits;
  if (isnan(x)) return 0;
  if (x <= (double)limits::min()) return limits::min();
  return x >= (double)limits::max() ? limits::max() : (T)x;
}

/* fma.rm: rounded down. */
float ptx_fma_down(float a, float b, float c);

/* prmt: byte i of the result is byte (selector >> 4 i) % 8 of b:a, or its sign eight times. */
static inline uint32_t ptx_permute(uint32_t a, uint32_t b, uint32_t selector) {
  uint64_t from = (uint64_t)b << 32 | a;
  uint32_t out = 0;
  for (int i = 0; i < 4; i++) {
    uint32_t select = selector >> (4 * i) & 0xf;
    uint32_t byte = (uint32_t)(from >> (8 * (select & 7))) & 0xff;
    if (select & 8) byte = byte & 0x80 ? 0xff : 0;
    out |= byte << (8 * i);
  }
  return out;
}

#endif
