#include "tests/cuda/ptx/machine.h"

#include <errno.h>
#include <fcntl.h>
#include <fenv.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <map>

#include "core/tensor/dtype.h"
#include "cuda/emu/fiber.h"

namespace {

enum : uint32_t { WARP = 32, MOST_THREADS = 1024, MOST_SHARED = 227 << 10 };
enum : size_t {
  STACK = 512 << 10, /* a kernel has thousands of registers, each a variable */
  PAGE = 4096,
  ADDRESSES = (size_t)1 << 38, /* never given twice */
  MEMORY = (size_t)16 << 30,
};

[[noreturn]] void give_up(const char *doing) {
  fprintf(stderr, "the PTX machine, %s: %s\n", doing, strerror(errno));
  abort();
}

/* Device memory is mapped twice: where its addresses are, without any right to touch it, and as the machine's view. */
struct memory {
  int file = -1;
  char *addresses = nullptr, *view = nullptr;
  size_t next = 0, used = 0;
  std::map<uint64_t, ptx_range> allocations, constants; /* by their ends */

  void open() {
    file = memfd_create("hvla-ptx", MFD_CLOEXEC);
    if (file < 0 || ftruncate(file, (off_t)ADDRESSES) != 0) give_up("making device memory");
    addresses = (char *)mmap(nullptr, ADDRESSES, PROT_NONE, MAP_SHARED | MAP_NORESERVE, file, 0);
    view = (char *)mmap(nullptr, ADDRESSES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, file, 0);
    if (addresses == MAP_FAILED || view == MAP_FAILED) give_up("mapping device memory");
  }

  static const ptx_range *find(const std::map<uint64_t, ptx_range> &in, uint64_t address, size_t bytes) {
    auto at = in.upper_bound(address);
    return at != in.end() && at->second.from <= address && bytes <= at->second.to - address ? &at->second : nullptr;
  }
};

/* What translated files add is in another library, whose constructors run after this one's. */
memory device;
std::map<std::string, const ptx_kernel *> kernels;

size_t pages(size_t bytes) {
  return (bytes + PAGE - 1) / PAGE * PAGE;
}

} // namespace

void ptx_add_kernel(const ptx_kernel *kernel) {
  kernels[kernel->name] = kernel;
}

void ptx_add_constant(const void *data, size_t bytes) {
  uint64_t address = (uint64_t)data;
  device.constants[address + bytes] = {address, address + bytes};
}

const ptx_kernel *ptx_find_kernel(const char *name) {
  auto at = kernels.find(name);
  return at == kernels.end() ? nullptr : at->second;
}

void *ptx_allocate(size_t bytes) {
  if (!device.addresses) device.open();
  size_t room = pages(bytes) + PAGE; /* a page that is nobody's between neighbours */
  if (device.used + room > MEMORY || device.next + room > ADDRESSES) return nullptr;
  uint64_t address = (uint64_t)(device.addresses + device.next);
  memset(device.view + device.next, 0xff, bytes);
  device.allocations[address + bytes] = {address, address + bytes};
  device.next += room;
  device.used += room;
  return (void *)address;
}

bool ptx_release(void *memory) {
  const ptx_range *found = memory::find(device.allocations, (uint64_t)memory, 1);
  if (!found || found->from != (uint64_t)memory) return false;
  size_t bytes = pages(found->to - found->from);
  off_t at = (char *)memory - device.addresses;
  if (fallocate(device.file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at, (off_t)bytes) != 0) {
    give_up("releasing device memory");
  }
  device.allocations.erase(found->to);
  device.used -= bytes + PAGE;
  return true;
}

void *ptx_view(const void *memory, size_t bytes) {
  uint64_t address = (uint64_t)memory, begin = (uint64_t)device.addresses;
  if (!device.addresses || address < begin || address >= begin + ADDRESSES) return (void *)memory;
  if (!memory::find(device.allocations, address, bytes)) return nullptr;
  return device.view + (address - begin);
}

void ptx_room(size_t *available, size_t *all) {
  *all = MEMORY;
  *available = MEMORY - device.used;
}

/* What a lane asks for when its warp meets, and what it is given. */
struct ptx_request {
  enum { SHUFFLE, BALLOT, MULTIPLY, LOAD, LOAD_TRANSPOSED } kind;
  int line;
  uint32_t mask;
  char mode;
  uint32_t in[10], out[4];
  bool valid;
};

struct ptx_block {
  std::vector<ptx_thread> threads;
  uint32_t met[MOST_THREADS / WARP]; /* by warp: the lanes whose request is open */
  const ptx_kernel *kernel;
  uint8_t *parameters;
  uint32_t running, at_barrier;
  hv_fiber scheduler;
  ptx_thread *chosen;
  std::string *message;
};

namespace {

hv_fiber fibers[MOST_THREADS];

/* Back to the scheduler, until it chooses this thread again. */
void yield(ptx_thread &t) {
  hv_fiber_switch(&fibers[t.index], &t.block->scheduler);
}

void live(void *argument) {
  hv_fiber_entered();
  ptx_block *block = (ptx_block *)argument;
  ptx_thread &t = *block->chosen;
  block->kernel->run(t, block->parameters);
  for (const ptx_copy &copy : t.copies) {
    if (!copy.ends_group) t.fault(0, "the thread ends before a copy to shared memory landed", copy.to);
  }
  t.state = ptx_thread::ENDED;
  block->running--;
  hv_fiber_leave(&fibers[t.index], &block->scheduler);
}

float bf16_at(uint32_t pair, int half) {
  return hv_bf16_to_float((uint16_t)(pair >> (16 * half)));
}

/* The PTX instruction set's tables of mma.m16n8k16: the row and the column of element i of a lane's fragment. */
void multiply(ptx_request *const (&lanes)[WARP]) {
  float a[16][16], b[16][8], d[16][8];
  for (int lane = 0; lane < (int)WARP; lane++) {
    const uint32_t *in = lanes[lane]->in;
    int group = lane / 4, in_group = lane % 4;
    for (int i = 0; i < 8; i++) {
      bool lower = i % 4 >= 2, right = i >= 4;
      a[group + 8 * lower][2 * in_group + i % 2 + 8 * right] = bf16_at(in[i / 2], i % 2);
    }
    for (int i = 0; i < 4; i++) b[2 * in_group + i % 2 + 8 * (i >= 2)][group] = bf16_at(in[4 + i / 2], i % 2);
    for (int i = 0; i < 4; i++) d[group + 8 * (i >= 2)][2 * in_group + i % 2] = ptx_as<float>(in[6 + i]);
  }
  for (int i = 0; i < 16; i++) {
    for (int j = 0; j < 8; j++) {
      double sum = 0;
      for (int k = 0; k < 16; k++) sum += (double)a[i][k] * (double)b[k][j];
      d[i][j] = (float)(sum + (double)d[i][j]);
    }
  }
  for (int lane = 0; lane < (int)WARP; lane++) {
    for (int i = 0; i < 4; i++) {
      lanes[lane]->out[i] = ptx_as<uint32_t>(d[lane / 4 + 8 * (i >= 2)][2 * (lane % 4) + i % 2]);
    }
  }
}

/* ldmatrix.x4: lane 8 m + i has the address of row i of matrix m. */
void load(ptx_thread &t, ptx_request *const (&lanes)[WARP], bool transposed) {
  for (int lane = 0; lane < (int)WARP; lane++) {
    for (int matrix = 0; matrix < 4; matrix++) {
      uint32_t pair = 0;
      for (int half = 0; half < 2; half++) {
        int row = lane / 4, col = 2 * (lane % 4) + half;
        if (transposed) std::swap(row, col);
        uint32_t address = lanes[8 * matrix + row]->in[0] + 2 * (uint32_t)col;
        pair |= (uint32_t)ptx_load<uint16_t>(t.shared(lanes[lane]->line, address, 2)) << (16 * half);
      }
      lanes[lane]->out[matrix] = pair;
    }
  }
}

/* shfl: the lane whose value it takes, as PTX's description of the instruction computes it. */
uint32_t source_lane(const ptx_request *r, uint32_t lane, bool *valid) {
  uint32_t b = r->in[1] & 31, clamp = r->in[2] & 31, segment = r->in[2] >> 8 & 31;
  uint32_t least = lane & segment, most = (lane & segment) | (clamp & ~segment), from = 0;
  switch (r->mode) {
  case 'u':
    from = lane - b;
    *valid = (int32_t)from >= (int32_t)most;
    break;
  case 'd':
    from = lane + b;
    *valid = from <= most;
    break;
  case 'b':
    from = lane ^ b;
    *valid = from <= most;
    break;
  default: from = least | (b & ~segment); *valid = from <= most;
  }
  return *valid ? from : lane;
}

void shuffle(ptx_thread &t, ptx_request *const (&lanes)[WARP], uint32_t mask) {
  for (uint32_t lane = 0; lane < WARP; lane++) {
    if (!(mask >> lane & 1)) continue;
    uint32_t from = source_lane(lanes[lane], lane, &lanes[lane]->valid);
    if (!(mask >> from & 1)) t.fault(lanes[lane]->line, "a shuffle from a lane that takes no part", from);
    lanes[lane]->out[0] = lanes[from]->in[0];
  }
}

void ballot(ptx_request *const (&lanes)[WARP], uint32_t mask) {
  uint32_t votes = 0;
  for (uint32_t lane = 0; lane < WARP; lane++) {
    if (mask >> lane & 1) votes |= lanes[lane]->in[0] << lane;
  }
  for (uint32_t lane = 0; lane < WARP; lane++) {
    if (mask >> lane & 1) lanes[lane]->out[0] = votes;
  }
}

} // namespace

void ptx_thread::fault(int line, const char *what, uint64_t value) {
  char text[512];
  snprintf(text, sizeof text, "%s: %s (0x%llx), in thread %u of block (%u, %u, %u), line %d of its PTX",
           block->kernel->name, what, (unsigned long long)value, tid.x, ctaid.x, ctaid.y, ctaid.z, line);
  *block->message = text;
  hv_fiber_leave(&fibers[index], &block->scheduler);
  abort(); /* the launch has ended */
}

void ptx_thread::find(int line, uint64_t address, uint32_t size) {
  const ptx_range *found = memory::find(device.allocations, address, size);
  view = (uint64_t)(device.view - device.addresses);
  if (!found) {
    found = memory::find(device.constants, address, size);
    view = 0;
  }
  if (!found) fault(line, "not in allocated device memory", address);
  recent = *found;
}

void ptx_thread::barrier() {
  state = WAITS;
  block->at_barrier++;
  yield(*this);
}

/* Until it lands, nobody may use what is there. */
void ptx_thread::copy_async(int line, uint32_t to, uint64_t from, uint32_t bytes) {
  if (bytes != 0 && bytes != 16) fault(line, "a copy of neither 0 nor 16 bytes", bytes);
  memset(shared(line, to, 16), 0xff, 16);
  copies.push_back({to, bytes ? global(line, from, 16) : nullptr, false});
}

void ptx_thread::copy_commit() {
  copies.push_back({0, nullptr, true});
}

void ptx_thread::copy_wait(int groups_in_flight) {
  auto groups = std::count_if(copies.begin(), copies.end(), [](const ptx_copy &copy) { return copy.ends_group; });
  auto copy = copies.begin();
  for (; groups > groups_in_flight; copy++) {
    if (copy->ends_group) {
      groups--;
      continue;
    }
    uint8_t *to = shared(0, copy->to, 16);
    if (copy->from) {
      memcpy(to, copy->from, 16);
    } else {
      memset(to, 0, 16);
    }
  }
  copies.erase(copies.begin(), copy);
}

/* Waits for all lanes of the mask. The last one to come does the work for all. */
void ptx_thread::meet(int line, ptx_request *own) {
  size_t first = (size_t)index - laneid, lanes_here = block->threads.size() - first;
  uint32_t &met = block->met[(uint32_t)index / WARP];
  if (!(own->mask >> laneid & 1)) fault(line, "a lane that its own mask leaves out", own->mask);
  if (lanes_here < WARP && own->mask >> lanes_here != 0) fault(line, "a mask of lanes that the block lacks", own->mask);
  own->line = line;
  request = own;
  state = WAITS;
  met |= 1u << laneid;
  if (own->mask & ~met) return yield(*this);
  ptx_request *lanes[WARP] = {};
  for (uint32_t lane = 0; lane < WARP; lane++) {
    if (!(own->mask >> lane & 1)) continue;
    lanes[lane] = block->threads[first + lane].request;
    if (lanes[lane]->line == line && lanes[lane]->mask == own->mask) continue;
    fault(line, "lanes meet at different instructions; the other's line", (uint64_t)lanes[lane]->line);
  }
  if (own->kind == ptx_request::SHUFFLE) ::shuffle(*this, lanes, own->mask);
  if (own->kind == ptx_request::BALLOT) ::ballot(lanes, own->mask);
  if (own->kind == ptx_request::MULTIPLY) multiply(lanes);
  if (own->kind == ptx_request::LOAD) load(*this, lanes, false);
  if (own->kind == ptx_request::LOAD_TRANSPOSED) load(*this, lanes, true);
  met &= ~own->mask;
  for (uint32_t lane = 0; lane < WARP; lane++) {
    if (lanes[lane]) block->threads[first + lane].state = READY;
  }
}

uint32_t ptx_thread::shuffle(int line, char mode, uint32_t value, uint32_t b, uint32_t c, uint32_t mask, bool *valid) {
  ptx_request own = {ptx_request::SHUFFLE, 0, mask, mode, {value, b, c}, {}, false};
  meet(line, &own);
  *valid = own.valid;
  return own.out[0];
}

uint32_t ptx_thread::ballot(int line, bool vote, uint32_t mask) {
  ptx_request own = {ptx_request::BALLOT, 0, mask, 0, {vote}, {}, false};
  meet(line, &own);
  return own.out[0];
}

void ptx_thread::matrix_multiply(int line, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                 const float (&c)[4]) {
  ptx_request own = {ptx_request::MULTIPLY, 0, 0xffffffff, 0, {a[0], a[1], a[2], a[3], b[0], b[1]}, {}, false};
  memcpy(own.in + 6, c, sizeof c);
  meet(line, &own);
  memcpy(d, own.out, sizeof d);
}

void ptx_thread::load_matrices(int line, uint32_t (&r)[4], uint32_t address, bool transposed) {
  shared(line, address, 16);
  ptx_request own = {
      transposed ? ptx_request::LOAD_TRANSPOSED : ptx_request::LOAD, 0, 0xffffffff, 0, {address}, {}, false};
  meet(line, &own);
  memcpy(r, own.out, sizeof r);
}

float ptx_fma_down(float a, float b, float c) {
  volatile float x = a, y = b, z = c; /* neither computed earlier nor kept for later */
  int before = fegetround();
  fesetround(FE_DOWNWARD);
  volatile float sum = fmaf(x, y, z);
  fesetround(before);
  return sum;
}

namespace {

/* Runs the threads in turn until all have ended or one has failed. */
void run_block(ptx_block *block) {
  while (block->running > 0) {
    bool moved = false;
    for (ptx_thread &t : block->threads) {
      if (t.state != ptx_thread::READY) continue;
      moved = true;
      block->chosen = &t;
      hv_fiber_switch(&block->scheduler, &fibers[t.index]);
      if (!block->message->empty()) return;
    }
    if (block->at_barrier > 0 && block->at_barrier == block->running) {
      block->at_barrier = 0;
      for (ptx_thread &t : block->threads) {
        if (t.state == ptx_thread::WAITS) t.state = ptx_thread::READY;
      }
    } else if (!moved) {
      *block->message = std::string(block->kernel->name) + ": its threads wait for each other at different places";
      return;
    }
  }
}

ptx_thread thread_of(ptx_block *block, uint32_t index, ptx_dim block_dim, ptx_dim grid, ptx_dim at) {
  ptx_thread t = {};
  t.tid = {index % block_dim.x, index / block_dim.x % block_dim.y, index / block_dim.x / block_dim.y};
  t.ntid = block_dim;
  t.ctaid = at;
  t.nctaid = grid;
  t.laneid = index % WARP;
  t.block = block;
  t.index = (int)index;
  return t;
}

} // namespace

void ptx_run(const char *kernel, const std::vector<uint8_t> &parameters, ptx_dim grid, ptx_dim block_dim,
             uint32_t shared_bytes, std::string *message) {
  alignas(1024) static uint8_t shared[MOST_SHARED];
  uint32_t count = block_dim.x * block_dim.y * block_dim.z;
  ptx_block block = {};
  block.kernel = ptx_find_kernel(kernel);
  block.message = message;
  hv_fiber_adopt_thread(&block.scheduler);
  for (uint64_t i = 0; i < (uint64_t)grid.x * grid.y * grid.z && message->empty(); i++) {
    ptx_dim at = {(uint32_t)(i % grid.x), (uint32_t)(i / grid.x % grid.y), (uint32_t)(i / grid.x / grid.y)};
    std::vector<uint8_t> own(parameters); /* a kernel may take the address of a parameter */
    block.parameters = own.data();
    block.running = count;
    block.at_barrier = 0;
    memset(block.met, 0, sizeof block.met);
    block.threads.clear();
    memset(shared, 0xff, shared_bytes);
    for (uint32_t j = 0; j < count; j++) {
      block.threads.push_back(thread_of(&block, j, block_dim, grid, at));
      block.threads[j].shared_memory = shared;
      block.threads[j].shared_bytes = shared_bytes;
      if (!fibers[j].stack) {
        hv_status status = hv_fiber_open(STACK, &fibers[j]);
        if (status) give_up(hv_status_message(status));
      }
      hv_fiber_start(&fibers[j], live, &block);
    }
    run_block(&block);
  }
}
