#include "cuda/emu/block.h"

#include <omp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cuda/emu/fiber.h"
#include "cuda/emu/order.h"
#include "cuda/emu/shadow.h"

/* Launches of fewer threads than this run on one system thread. */
enum { WORTH_SHARING = 1 << 13 };

enum { STACK_BYTES = 256 << 10, POISON = 0xff /* NaN in every floating-point type */ };

enum thread_state { READY, AT_BARRIER, AT_MEETING, FINISHED };

/* An asynchronous copy that has not landed. */
struct pending_copy {
  void *to;
  const void *from;
  size_t bytes;
  int group;
};

struct worker;

struct emu_thread {
  hv_emu_indices indices; /* first: hv_emu_here points at it */
  struct worker *worker;
  hv_fiber *fiber;
  thread_state state;
  int index, warp, lane;
  pending_copy *copies;
  int copy_count, copy_capacity;
  int open_group; /* the group that copies join until the next commit */
};

/* A warp-wide operation at which some lanes wait for the others. */
struct meeting {
  uint32_t mask, arrived;
  hv_emu_combine combine;
  void *operands[HV_EMU_WARP];
};

struct worker {
  hv_fiber scheduler;
  emu_thread threads[HV_EMU_MAX_THREADS];
  hv_fiber fibers[HV_EMU_MAX_THREADS]; /* their stacks; free_fibers lists those not in use */
  int free_fibers[HV_EMU_MAX_THREADS], free_count, fiber_count;
  meeting meetings[HV_EMU_MAX_THREADS / HV_EMU_WARP][HV_EMU_WARP]; /* by the lowest lane of the mask */
  const hv_emu_launch *launch;
  int thread_count, at_barrier, finished;
  hv_order pass; /* the order of turns in one pass over the threads */
  int turns_left;
  bool progress; /* a thread has run in this pass */
  uint64_t seed; /* of the passes */
  unsigned char *shared;
  hv_shadow shadow;
  hv_status fault;
};

struct hv_emu_workers {
  int count;
  worker *workers[]; /* made when first used */
};

static thread_local emu_thread *self;

const hv_emu_indices *hv_emu_here(void) {
  return &self->indices;
}

int hv_emu_lane(void) {
  return self->lane;
}

unsigned char *hv_emu_shared_base(void) {
  return self->worker->shared;
}

static void report(const emu_thread *thread, const char *text) {
  worker *w = thread->worker;
  if (w->fault) return;
  const uint3 *b = &thread->indices.block, *t = &thread->indices.thread;
  w->fault = hv_error(HV_ERR_DEVICE, "kernel %s, block (%u, %u, %u), thread (%u, %u, %u): %s", w->launch->name, b->x,
                      b->y, b->z, t->x, t->y, t->z, text);
}

void hv_emu_fault(const char *format, ...) {
  char text[512];
  va_list args;
  va_start(args, format);
  vsnprintf(text, sizeof text, format, args);
  va_end(args);
  report(self, text);
}

/* The thread whose turn it is. Each pass over the threads has an order of its own. NULL if no thread can go on. */
static emu_thread *next_ready(worker *w) {
  for (;;) {
    for (; w->turns_left > 0; w->turns_left--) {
      emu_thread *thread = &w->threads[hv_order_next(&w->pass)];
      if (thread->state != READY) continue;
      w->turns_left--;
      w->progress = true;
      return thread;
    }
    if (!w->progress) return nullptr;
    w->pass = hv_order_make((unsigned)w->thread_count, &w->seed);
    w->turns_left = w->thread_count;
    w->progress = false;
  }
}

/* Takes a stack for a thread that starts. */
static hv_fiber *take_fiber(worker *w) {
  if (w->free_count == 0) {
    hv_status status = hv_fiber_open(STACK_BYTES, &w->fibers[w->fiber_count]);
    if (status) {
      w->fault = hv_status_first(w->fault, status);
      return nullptr;
    }
    w->free_fibers[w->free_count++] = w->fiber_count++;
  }
  return &w->fibers[w->free_fibers[--w->free_count]];
}

static void thread_main(void *argument);

/* Makes the next thread the running one and returns its fiber, so that threads take turns without going through the
 * scheduler. Returns the scheduler if no thread can go on, or there is no memory to start one. */
static hv_fiber *next_fiber(worker *w) {
  emu_thread *thread = next_ready(w);
  if (!thread) return &w->scheduler;
  if (!thread->fiber) {
    thread->fiber = take_fiber(w);
    if (!thread->fiber) return &w->scheduler;
    hv_fiber_start(thread->fiber, thread_main, thread);
  }
  self = thread;
  return thread->fiber;
}

/* Lets other threads run until it is the running thread's turn again. */
static void give_way(void) {
  hv_fiber *own = self->fiber, *next = next_fiber(self->worker);
  if (next != own) hv_fiber_switch(own, next);
}

/* Ends the running thread after a fault that leaves it nothing sensible to do. */
[[noreturn]] static void stop_thread(void) {
  self->state = FINISHED;
  self->worker->finished++;
  for (;;) give_way();
}

/* An access of the running thread, and whether it lies in its block's shared memory. */
struct checked_access {
  hv_shadow_access access;
  bool inside;
};

static inline checked_access access_to(const void *address, size_t bytes) {
  const worker *w = self->worker;
  size_t offset = (size_t)((const unsigned char *)address - w->shared); /* wraps to a huge offset below it */
  bool inside = offset < w->launch->shared_bytes && bytes <= w->launch->shared_bytes - offset;
  return {{self->index, self->warp, offset, bytes}, inside};
}

static void report_outside(const hv_shadow_access *access, const char *does) {
  hv_emu_fault("%s %zu bytes at offset %td, outside its %zu bytes of shared memory", does, access->bytes,
               (ptrdiff_t)access->offset, self->worker->launch->shared_bytes);
}

/* Returns false if the access is outside. Templates, as this runs for every access: NOTE records the access and returns
 * whether it is allowed, DESCRIBE says what is wrong. */
template <auto NOTE, auto DESCRIBE>
static inline bool check_access(const void *address, size_t bytes, const char *does) {
  hv_shadow *shadow = &self->worker->shadow;
  checked_access a = access_to(address, bytes);
  if (!a.inside) {
    report_outside(&a.access, does);
  } else if (!NOTE(shadow, &a.access)) {
    char text[256];
    DESCRIBE(shadow, &a.access, text, sizeof text);
    report(self, text);
  }
  return a.inside;
}

bool hv_emu_shared_read(const void *address, size_t bytes) {
  return check_access<hv_shadow_read, hv_shadow_describe_read>(address, bytes, "reads");
}

bool hv_emu_shared_write(void *address, size_t bytes) {
  return check_access<hv_shadow_write, hv_shadow_describe_write>(address, bytes, "writes");
}

void hv_emu_device_access(const void *address) {
  if (self->indices.waited) return;
  hv_emu_fault("reads or writes device memory at %p before it has waited for the launches before it", address);
}

void hv_emu_wait_for_previous(void) {
  self->indices.waited = true;
}

static bool is_ahead(const hv_emu_launch *launch, const void *from, size_t bytes) {
  const char *at = (const char *)from, *begin = (const char *)launch->ahead;
  return begin && at >= begin && at + bytes <= begin + launch->ahead_bytes;
}

void hv_emu_barrier(void) {
  worker *w = self->worker;
  self->state = AT_BARRIER;
  w->at_barrier++;
  if (w->at_barrier == w->thread_count) {
    for (int i = 0; i < w->thread_count; i++) w->threads[i].state = READY;
    w->at_barrier = 0;
    hv_shadow_barrier(&w->shadow);
  }
  give_way();
}

void hv_emu_meet(uint32_t mask, hv_emu_combine combine, void *operand, bool orders_memory) {
  worker *w = self->worker;
  if (!(mask >> self->lane & 1u)) {
    hv_emu_fault("takes part in a warp-wide operation whose mask 0x%08x lacks its lane %d", mask, self->lane);
    stop_thread();
  }
  meeting *m = &w->meetings[self->warp][__builtin_ctz(mask)];
  if (m->arrived == 0) {
    m->mask = mask;
    m->combine = combine;
  } else if (m->mask != mask || m->combine != combine) {
    hv_emu_fault("is at another warp-wide operation than a lane of its warp that waits (masks 0x%08x and 0x%08x)", mask,
                 m->mask);
    stop_thread();
  }
  m->operands[self->lane] = operand;
  m->arrived |= 1u << self->lane;
  if (m->arrived != mask) {
    self->state = AT_MEETING;
    give_way();
    return;
  }
  m->arrived = 0;
  combine(m->operands, mask);
  if (orders_memory && mask == 0xffffffffu) hv_shadow_warp_barrier(&w->shadow, self->warp);
  emu_thread *first = &w->threads[self->warp * HV_EMU_WARP];
  for (uint32_t rest = mask; rest; rest &= rest - 1) first[__builtin_ctz(rest)].state = READY;
}

void hv_emu_copy_issue(void *to, const void *from, size_t bytes) {
  worker *w = self->worker;
  checked_access target = access_to(to, bytes);
  if (!target.inside) {
    report_outside(&target.access, "copies");
    return;
  }
  if (from && !is_ahead(w->launch, from, bytes)) hv_emu_device_access(from);
  if (((uintptr_t)to | (uintptr_t)from) % bytes != 0) {
    hv_emu_fault("copies %zu bytes asynchronously between addresses that are not multiples of %zu", bytes, bytes);
  }
  if (self->copy_count == self->copy_capacity) {
    int capacity = self->copy_capacity ? 2 * self->copy_capacity : 32;
    void *grown = realloc(self->copies, (size_t)capacity * sizeof *self->copies);
    if (!grown) {
      hv_emu_fault("no memory to remember an asynchronous copy");
      stop_thread();
    }
    self->copies = (pending_copy *)grown;
    self->copy_capacity = capacity;
  }
  self->copies[self->copy_count++] = {to, from, bytes, self->open_group};
  /* From now on no thread may touch the target: checked as a write, which must be ordered after earlier accesses. */
  (void)hv_emu_shared_write(to, bytes);
  hv_shadow_flight(&w->shadow, target.access.offset, bytes, true);
}

void hv_emu_copy_commit(void) {
  self->open_group++;
}

void hv_emu_copy_wait(int groups_left) {
  worker *w = self->worker;
  int landed = 0;
  while (landed < self->copy_count && self->copies[landed].group < self->open_group - groups_left) {
    const pending_copy *c = &self->copies[landed++];
    hv_shadow_flight(&w->shadow, (size_t)((unsigned char *)c->to - w->shared), c->bytes, false);
    (void)hv_emu_shared_write(c->to, c->bytes);
    if (c->from) {
      memcpy(c->to, c->from, c->bytes);
    } else {
      memset(c->to, 0, c->bytes);
    }
  }
  if (landed == 0) return;
  self->copy_count -= landed;
  memmove(self->copies, self->copies + landed, (size_t)self->copy_count * sizeof *self->copies);
}

static void thread_main(void *argument) {
  hv_fiber_entered();
  emu_thread *thread = (emu_thread *)argument;
  worker *w = thread->worker;
  w->launch->run(w->launch->arguments);
  if (!thread->indices.waited) hv_emu_fault("returns without having waited for the launches before it");
  thread->state = FINISHED;
  w->finished++;
  hv_fiber *next = next_fiber(w); /* may take a stack, so before this one's is free */
  w->free_fibers[w->free_count++] = (int)(thread->fiber - w->fibers);
  hv_fiber_leave(thread->fiber, next);
  abort(); /* never resumed */
}

/* Reports that no thread can go on though some have not finished. */
static void report_stuck(worker *w) {
  int stuck = 0, at_barrier = 0;
  for (int i = w->thread_count - 1; i >= 0; i--) {
    if (w->threads[i].state != FINISHED) stuck = i;
    if (w->threads[i].state == AT_BARRIER) at_barrier++;
  }
  char text[160];
  if (w->threads[stuck].state == AT_BARRIER) {
    snprintf(text, sizeof text, "waits at a barrier that only %d of %d threads reach (%d have returned)", at_barrier,
             w->thread_count, w->finished);
  } else {
    snprintf(text, sizeof text, "waits at a warp-wide operation that not all lanes of its mask reach");
  }
  report(&w->threads[stuck], text);
}

/* Frees every stack, also those of threads that a fault stopped halfway, and empties all warp-wide operations. */
static void forget_threads(worker *w) {
  memset(w->meetings, 0, sizeof w->meetings);
  w->free_count = 0;
  for (int i = w->fiber_count - 1; i >= 0; i--) w->free_fibers[w->free_count++] = i;
}

static void begin_block(worker *w, uint3 block) {
  const hv_emu_launch *launch = w->launch;
  w->at_barrier = w->finished = 0;
  hv_fiber_adopt_thread(&w->scheduler); /* the system thread that runs a worker may change */
  if (w->free_count != w->fiber_count) forget_threads(w);
  memset(w->shared, POISON, launch->shared_bytes);
  hv_shadow_begin(&w->shadow);
  for (int i = 0; i < w->thread_count; i++) {
    emu_thread *t = &w->threads[i];
    unsigned x = (unsigned)i % launch->block.x, rest = (unsigned)i / launch->block.x;
    t->indices = {
        {x, rest % launch->block.y, rest / launch->block.y}, block, launch->block, launch->grid, !launch->early};
    t->worker = w;
    t->fiber = nullptr;
    t->state = READY;
    t->index = i;
    t->warp = i / HV_EMU_WARP;
    t->lane = i % HV_EMU_WARP;
    t->copy_count = t->open_group = 0;
  }
}

static void run_block(worker *w, uint3 block, uint64_t seed) {
  begin_block(w, block);
  w->seed = seed;
  w->turns_left = 0;
  w->progress = true;
  hv_fiber *first = next_fiber(w);
  if (first != &w->scheduler) hv_fiber_switch(&w->scheduler, first);
  if (w->finished < w->thread_count) report_stuck(w);
}

static hv_status open_worker(worker **out) {
  if (*out) return HV_OK;
  worker *w = (worker *)calloc(1, sizeof *w);
  void *shared = nullptr;
  if (!w || posix_memalign(&shared, 1024, HV_EMU_SHARED_BYTES) != 0) {
    free(w);
    return hv_error_memory("the emulated device's shared memory");
  }
  w->shared = (unsigned char *)shared;
  hv_status status = hv_shadow_open(HV_EMU_SHARED_BYTES, HV_EMU_MAX_THREADS / HV_EMU_WARP, &w->shadow);
  if (status) {
    free(shared);
    free(w);
    return status;
  }
  *out = w;
  return HV_OK;
}

static void close_worker(worker *w) {
  if (!w) return;
  for (int i = 0; i < w->fiber_count; i++) hv_fiber_close(&w->fibers[i]);
  for (int i = 0; i < HV_EMU_MAX_THREADS; i++) free(w->threads[i].copies);
  hv_shadow_close(&w->shadow);
  free(w->shared);
  free(w);
}

hv_status hv_emu_workers_open(int count, hv_emu_workers **out) {
  *out = nullptr;
  if (count <= 0) count = omp_get_max_threads();
  hv_emu_workers *workers = (hv_emu_workers *)calloc(1, sizeof *workers + (size_t)count * sizeof workers->workers[0]);
  if (!workers) return hv_error_memory("the emulated device");
  workers->count = count;
  *out = workers;
  return HV_OK;
}

void hv_emu_workers_close(hv_emu_workers *workers) {
  if (!workers) return;
  for (int i = 0; i < workers->count; i++) close_worker(workers->workers[i]);
  free(workers);
}

static uint3 block_at(const hv_emu_launch *launch, uint64_t index) {
  uint64_t rest = index / launch->grid.x;
  return {(unsigned)(index % launch->grid.x), (unsigned)(rest % launch->grid.y), (unsigned)(rest / launch->grid.y)};
}

static hv_status check_launch(const hv_emu_launch *launch) {
  uint64_t threads = (uint64_t)launch->block.x * launch->block.y * launch->block.z;
  uint64_t blocks = (uint64_t)launch->grid.x * launch->grid.y * launch->grid.z;
  if (threads == 0 || threads > HV_EMU_MAX_THREADS || launch->block.z > 64) {
    return hv_error(HV_ERR_DEVICE, "kernel %s: a block of %u × %u × %u threads; a device takes 1 to %d", launch->name,
                    launch->block.x, launch->block.y, launch->block.z, HV_EMU_MAX_THREADS);
  }
  if (launch->shared_bytes > HV_EMU_SHARED_BYTES) {
    return hv_error(HV_ERR_DEVICE, "kernel %s: %zu bytes of shared memory; the smallest card offers %d", launch->name,
                    launch->shared_bytes, HV_EMU_SHARED_BYTES);
  }
  if (blocks == 0 || launch->grid.x > 0x7fffffffu || launch->grid.y > 65535 || launch->grid.z > 65535) {
    return hv_error(HV_ERR_DEVICE,
                    "kernel %s: a grid of %u × %u × %u blocks; a device takes 1 to 2147483647 × 65535 × "
                    "65535",
                    launch->name, launch->grid.x, launch->grid.y, launch->grid.z);
  }
  return HV_OK;
}

hv_status hv_emu_run(hv_emu_workers *workers, const hv_emu_launch *launch) {
  HV_TRY(check_launch(launch));
  uint64_t blocks = (uint64_t)launch->grid.x * launch->grid.y * launch->grid.z, seed = launch->seed;
  uint64_t threads = blocks * launch->block.x * launch->block.y * launch->block.z;
  bool few = workers->count == 1 || blocks == 1 || threads < WORTH_SHARING;
  int used = few ? 1 : workers->count;
  for (int i = 0; i < used; i++) HV_TRY(open_worker(&workers->workers[i]));
  /* Blocks run in a seeded order, too. hv_order has 32-bit indices, so in a larger grid only the first 2^30 blocks do.
   */
  unsigned window = blocks < 0x40000000u ? (unsigned)blocks : 0x40000000u;
  hv_order o = hv_order_make(window, &seed);
#pragma omp parallel for schedule(dynamic) num_threads(used) if (!few)
  for (uint64_t i = 0; i < blocks; i++) {
    worker *w = workers->workers[omp_get_thread_num()];
    uint64_t index = i < window ? hv_order_at(&o, (unsigned)i) : i;
    if (w->fault) continue;
    w->launch = launch;
    w->thread_count = (int)(launch->block.x * launch->block.y * launch->block.z);
    uint64_t block_seed = seed ^ index * 0x9e3779b97f4a7c15u;
    run_block(w, block_at(launch, index), block_seed);
  }
  hv_status fault = HV_OK;
  for (int i = 0; i < used; i++) {
    fault = hv_status_first(fault, workers->workers[i]->fault);
    workers->workers[i]->fault = HV_OK;
  }
  return fault;
}
