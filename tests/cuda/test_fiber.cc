/* Fibers of the emulator: switching keeps what a function has in registers and on its stack. Built twice, with the
 * switch in assembly and with swapcontext, which other processors use. */
#include "cuda/emu/fiber.h"

#include "tests/check.h"

enum { FIBERS = 16, TURNS = 500, STACK = 256 << 10 };

static hv_fiber home, fibers[FIBERS];

struct work {
  int index;
  double result;
  bool aligned, done;
};
static work works[FIBERS];

static void yield(int index) {
  hv_fiber_switch(&fibers[index], &home);
}

/* Computes sums in integers, doubles and vectors, over the frames of a recursion and yielding in between. */
static double spread_sum(work *w, int depth) {
  alignas(64) double values[8];
  if ((uintptr_t)values % 64 != 0) w->aligned = false;
  for (int i = 0; i < 8; i++) values[i] = (double)(depth * 8 + i) * (w->index + 1);
  double below = depth > 0 ? spread_sum(w, depth - 1) : 0, sum = 0;
  for (int i = 0; i < 8; i++) {
    sum += values[i];
    yield(w->index);
  }
  return sum + below;
}

static void run_work(void *argument) {
  hv_fiber_entered();
  work *w = (work *)argument;
  w->result = spread_sum(w, 30);
  w->done = true;
  for (;;) yield(w->index);
}

/* 0 + 1 + … + 247, times the fiber's number. */
static void interleaved_fibers_keep_their_state(void **) {
  hv_fiber_adopt_thread(&home);
  for (int i = 0; i < FIBERS; i++) {
    assert_ok(hv_fiber_open(STACK, &fibers[i]));
    works[i] = work{i, 0, true, false};
    hv_fiber_start(&fibers[i], run_work, &works[i]);
  }
  for (int turn = 0; turn < TURNS; turn++) {
    for (int i = 0; i < FIBERS; i++) hv_fiber_switch(&home, &fibers[(i * 7 + turn) % FIBERS]);
  }
  for (int i = 0; i < FIBERS; i++) {
    assert_true(works[i].done && works[i].aligned);
    assert_true(works[i].result == 247.0 * 248 / 2 * (i + 1));
    hv_fiber_close(&fibers[i]);
  }
}

/* A fiber that stopped in the middle may be started anew. */
static void a_fiber_starts_again(void **) {
  hv_fiber_adopt_thread(&home);
  hv_status status = hv_fiber_open(STACK, &fibers[0]);
  assert_null(status);
  for (int round = 0; round < 3; round++) {
    works[0] = work{0, 0, true, false};
    hv_fiber_start(&fibers[0], run_work, &works[0]);
    for (int turn = 0; turn < 20 + 300 * (round == 2); turn++) hv_fiber_switch(&home, &fibers[0]);
    assert_true(works[0].done == (round == 2));
  }
  hv_fiber_close(&fibers[0]);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(interleaved_fibers_keep_their_state),
      cmocka_unit_test(a_fiber_starts_again),
  };
  return cmocka_run_group_tests(tests, nullptr, nullptr);
}
