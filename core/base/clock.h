/* Time that only goes forward, for durations, and the time of day. */
#ifndef HV_BASE_CLOCK_H
#define HV_BASE_CLOCK_H

#include <time.h>

/* Seconds since some moment. */
static inline double hv_clock_seconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* Seconds since 1970, as the machine's clock has it. */
static inline double hv_wall_seconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

#endif
