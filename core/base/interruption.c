#include "core/base/interruption.h"

#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>

static const int signals[] = {SIGINT, SIGTERM, SIGHUP};
enum { SIGNALS = sizeof signals / sizeof *signals };

static sigset_t held;
static atomic_int received;

static void remember(int number) {
  atomic_store(&received, number);
}

void hv_interruption_hold(void) {
  const struct sigaction catch = {.sa_handler = remember, .sa_flags = SA_RESTART};
  sigset_t blocked;
  sigemptyset(&held);
  pthread_sigmask(SIG_BLOCK, NULL, &blocked);
  for (int i = 0; i < SIGNALS; i++) {
    struct sigaction former;
    bool ends = sigaction(signals[i], NULL, &former) == 0 && former.sa_handler == SIG_DFL;
    if (!ends || sigismember(&blocked, signals[i])) continue;
    if (sigaction(signals[i], &catch, NULL) == 0) sigaddset(&held, signals[i]);
  }
}

hv_status hv_interruption_status(void) {
  return atomic_load(&received) ? hv_error(HV_ERR_IO, "interrupted by a signal") : HV_OK;
}

void hv_interruption_release(void) {
  for (int i = 0; i < SIGNALS; i++) {
    if (sigismember(&held, signals[i])) signal(signals[i], SIG_DFL);
  }
  int number = atomic_exchange(&received, 0);
  if (number) raise(number);
}
