#include "cuda/emu/fiber.h"

#include <errno.h>
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__)
#define HV_ASAN_FIBERS 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define HV_ASAN_FIBERS 1
#endif
#endif
#if defined(__SANITIZE_THREAD__)
#define HV_TSAN_FIBERS 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define HV_TSAN_FIBERS 1
#endif
#endif

#ifdef HV_ASAN_FIBERS
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>

enum { FRAME_BYTES = 4096 /* at most, of the frame of the function that switches */ };
#endif
#ifdef HV_TSAN_FIBERS
#include <sanitizer/tsan_interface.h>
#endif

#if !defined(HV_EMU_UCONTEXT) && !defined(__x86_64__) && !defined(__aarch64__)
#define HV_EMU_UCONTEXT 1
#endif

/* switch_context(save, to): pushes the registers that a call preserves on the stack and stores the stack pointer in
 * *save, then restores both from `to`. first_context prepares a stack on which the first switch calls entry(argument).
 */
#ifdef HV_EMU_UCONTEXT

#include <ucontext.h>

static void start_context(unsigned entry_high, unsigned entry_low, unsigned argument_high, unsigned argument_low) {
  uintptr_t entry = (uintptr_t)((uint64_t)entry_high << 32 | entry_low);
  uintptr_t argument = (uintptr_t)((uint64_t)argument_high << 32 | argument_low);
  ((void (*)(void *))entry)((void *)argument);
}

static void switch_context(void **save, void *to) {
  ucontext_t self;
  *save = &self;
  swapcontext(&self, (ucontext_t *)to);
}

static void *first_context(char *stack, size_t bytes, void (*entry)(void *), void *argument) {
  /* The context of the first switch lies at the top of the stack, above everything that runs on it. */
  size_t reserved = (sizeof(ucontext_t) + 63) / 64 * 64;
  ucontext_t *context = (ucontext_t *)(stack + bytes - reserved);
  getcontext(context);
  context->uc_stack.ss_sp = stack;
  context->uc_stack.ss_size = bytes - reserved;
  context->uc_link = nullptr;
  uint64_t e = (uintptr_t)entry, a = (uintptr_t)argument;
  makecontext(context, (void (*)(void))start_context, 4, (unsigned)(e >> 32), (unsigned)e, (unsigned)(a >> 32),
              (unsigned)a);
  return context;
}

#elif defined(__x86_64__)

asm(".text\n"
    ".p2align 4\n"
    ".hidden hv_emu_switch_context\n"
    ".globl hv_emu_switch_context\n"
    ".type hv_emu_switch_context, @function\n"
    "hv_emu_switch_context:\n"
    "  pushq %rbp\n  pushq %rbx\n  pushq %r12\n  pushq %r13\n  pushq %r14\n  pushq %r15\n"
    "  movq %rsp, (%rdi)\n"
    "  movq %rsi, %rsp\n"
    "  popq %r15\n  popq %r14\n  popq %r13\n  popq %r12\n  popq %rbx\n  popq %rbp\n"
    "  ret\n"
    ".size hv_emu_switch_context, . - hv_emu_switch_context\n"
    ".hidden hv_emu_start_context\n"
    ".globl hv_emu_start_context\n"
    ".type hv_emu_start_context, @function\n"
    "hv_emu_start_context:\n"
    "  movq %r12, %rdi\n"
    "  callq *%r13\n"
    "  ud2\n"
    ".size hv_emu_start_context, . - hv_emu_start_context\n");

extern "C" void hv_emu_switch_context(void **save, void *to);
extern "C" void hv_emu_start_context(void);

static void switch_context(void **save, void *to) {
  hv_emu_switch_context(save, to);
}

static void *first_context(char *stack, size_t bytes, void (*entry)(void *), void *argument) {
  uintptr_t *top = (uintptr_t *)(stack + bytes) - 2;
  *--top = (uintptr_t)hv_emu_start_context;
  *--top = 0;                   /* rbp */
  *--top = 0;                   /* rbx */
  *--top = (uintptr_t)argument; /* r12 */
  *--top = (uintptr_t)entry;    /* r13 */
  *--top = 0;                   /* r14 */
  *--top = 0;                   /* r15 */
  return top;
}

#else /* AArch64 */

asm(".text\n"
    ".p2align 4\n"
    ".hidden hv_emu_switch_context\n"
    ".globl hv_emu_switch_context\n"
    ".type hv_emu_switch_context, %function\n"
    "hv_emu_switch_context:\n"
    "  sub sp, sp, #160\n"
    "  stp x19, x20, [sp, #0]\n  stp x21, x22, [sp, #16]\n  stp x23, x24, [sp, #32]\n"
    "  stp x25, x26, [sp, #48]\n  stp x27, x28, [sp, #64]\n  stp x29, x30, [sp, #80]\n"
    "  stp d8, d9, [sp, #96]\n  stp d10, d11, [sp, #112]\n  stp d12, d13, [sp, #128]\n  stp d14, d15, [sp, #144]\n"
    "  mov x9, sp\n"
    "  str x9, [x0]\n"
    "  mov sp, x1\n"
    "  ldp x19, x20, [sp, #0]\n  ldp x21, x22, [sp, #16]\n  ldp x23, x24, [sp, #32]\n"
    "  ldp x25, x26, [sp, #48]\n  ldp x27, x28, [sp, #64]\n  ldp x29, x30, [sp, #80]\n"
    "  ldp d8, d9, [sp, #96]\n  ldp d10, d11, [sp, #112]\n  ldp d12, d13, [sp, #128]\n  ldp d14, d15, [sp, #144]\n"
    "  add sp, sp, #160\n"
    "  ret\n"
    ".hidden hv_emu_start_context\n"
    ".globl hv_emu_start_context\n"
    ".type hv_emu_start_context, %function\n"
    "hv_emu_start_context:\n"
    "  mov x0, x19\n"
    "  blr x20\n"
    "  brk #0\n");

extern "C" void hv_emu_switch_context(void **save, void *to);
extern "C" void hv_emu_start_context(void);

static void switch_context(void **save, void *to) {
  hv_emu_switch_context(save, to);
}

static void *first_context(char *stack, size_t bytes, void (*entry)(void *), void *argument) {
  uintptr_t *top = (uintptr_t *)(stack + bytes) - 20;
  for (int i = 0; i < 20; i++) top[i] = 0;
  top[0] = (uintptr_t)argument;              /* x19 */
  top[1] = (uintptr_t)entry;                 /* x20 */
  top[11] = (uintptr_t)hv_emu_start_context; /* x30 */
  return top;
}

#endif

hv_status hv_fiber_open(size_t stack_bytes, hv_fiber *out) {
  *out = hv_fiber{};
  size_t page = (size_t)sysconf(_SC_PAGESIZE);
  size_t bytes = (stack_bytes + page - 1) / page * page;
  void *mapping = mmap(nullptr, bytes + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapping == MAP_FAILED) return hv_error_memory("an emulated thread's stack");
  if (mprotect(mapping, page, PROT_NONE) != 0) {
    int errnum = errno;
    munmap(mapping, bytes + page);
    return hv_error_errno(errnum, "cannot guard an emulated thread's stack");
  }
  out->mapping = mapping;
  out->mapping_bytes = bytes + page;
  out->stack = (char *)mapping + page;
  out->stack_bytes = bytes;
#ifdef HV_TSAN_FIBERS
  out->sanitizer = __tsan_create_fiber(0);
#endif
  return HV_OK;
}

void hv_fiber_close(hv_fiber *fiber) {
  if (!fiber->mapping) return;
#ifdef HV_TSAN_FIBERS
  __tsan_destroy_fiber(fiber->sanitizer);
#endif
#ifdef HV_ASAN_FIBERS
  /* The stack's frames left poison in the sanitizer's shadow, which would be reported for whatever is mapped here next.
   */
  __asan_unpoison_memory_region(fiber->mapping, fiber->mapping_bytes);
#endif
  munmap(fiber->mapping, fiber->mapping_bytes);
  *fiber = hv_fiber{};
}

void hv_fiber_adopt_thread(hv_fiber *out) {
  *out = hv_fiber{};
#ifdef HV_TSAN_FIBERS
  out->sanitizer = __tsan_get_current_fiber();
#endif
}

void hv_fiber_start(hv_fiber *fiber, void (*entry)(void *), void *argument) {
#ifdef HV_ASAN_FIBERS
  /* Unpoisons the frames from which the stack's last user never returned: they lie above the point where it stopped, or
   * a little below. */
  if (fiber->context) {
    char *lowest = (char *)fiber->context - FRAME_BYTES, *top = fiber->stack + fiber->stack_bytes;
    if (lowest < fiber->stack) lowest = fiber->stack;
    ASAN_UNPOISON_MEMORY_REGION(lowest, (size_t)(top - lowest));
  }
#endif
#ifdef HV_TSAN_FIBERS
  /* The sanitizer's own call stack is started anew, too. */
  __tsan_destroy_fiber(fiber->sanitizer);
  fiber->sanitizer = __tsan_create_fiber(0);
#endif
  fiber->context = first_context(fiber->stack, fiber->stack_bytes, entry, argument);
}

#ifdef HV_ASAN_FIBERS
/* The fiber that was left, so that the one entered can note the bounds of a system thread's stack. */
static thread_local hv_fiber *left_fiber;

static void finish_switch(void *saved) {
  const void *bottom = nullptr;
  size_t bytes = 0;
  __sanitizer_finish_switch_fiber(saved, &bottom, &bytes);
  if (left_fiber && !left_fiber->mapping) {
    left_fiber->stack = (char *)(uintptr_t)bottom;
    left_fiber->stack_bytes = bytes;
  }
}
#endif

static void switch_fiber(hv_fiber *from, hv_fiber *to, [[maybe_unused]] bool last) {
#ifdef HV_ASAN_FIBERS
  void *saved = nullptr;
  left_fiber = from;
  /* nullptr: the sanitizer frees the fake stack that it keeps for the fiber. */
  __sanitizer_start_switch_fiber(last ? nullptr : &saved, to->stack, to->stack_bytes);
#endif
#ifdef HV_TSAN_FIBERS
  /* Flag 0: the switch orders what comes before and after it. Races between emulated threads are found by shadow.h. */
  __tsan_switch_to_fiber(to->sanitizer, 0);
#endif
  switch_context(&from->context, to->context);
#ifdef HV_ASAN_FIBERS
  finish_switch(saved);
#endif
}

void hv_fiber_switch(hv_fiber *from, hv_fiber *to) {
  switch_fiber(from, to, false);
}

void hv_fiber_leave(hv_fiber *from, hv_fiber *to) {
  switch_fiber(from, to, true);
}

void hv_fiber_entered(void) {
#ifdef HV_ASAN_FIBERS
  finish_switch(nullptr);
#endif
}
