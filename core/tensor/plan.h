/* A device that runs nothing: operations check their operands and count work, allocations are entered in the account of
 * memory and hand out addresses that must not be followed, downloads are zeros. Running a step on it tells whether the
 * step fits and what it costs. The first operand that is wrong is returned by hv_stream_synchronize.
 *
 * It simulates the time of a described machine (hv_plan_machine): an operation takes the longer of its arithmetic and
 * its memory traffic, a copy from the host its bytes at the link's rate; work of a stream runs in order, streams run
 * concurrently, and events, synchronisation and planned collectives (plan_comm.h) order them. Timestamps
 * (hv_stream_stamp) are of this time. Without a machine no time passes.
 */
#ifndef HV_TENSOR_PLAN_H
#define HV_TENSOR_PLAN_H

#include "core/tensor/device.h"

typedef struct hv_plan_machine {
  double flops_per_s;        /* of matrix products, 2 per multiply-add */
  double bytes_per_s;        /* of device memory, reading and writing */
  double upload_bytes_per_s; /* of copies from the host; 0: they take no time */
  size_t device_bytes;       /* that an open device itself takes; entered as workspace */
  size_t stream_bytes;       /* scratch of a stream that multiplies matrices; likewise */
} hv_plan_machine;

typedef struct hv_plan_counts {
  double matrix_flops;    /* as hv_op_cost of op_check.h counts them */
  double bytes;           /* read and written by all operations, each operand once */
  double weight_bytes;    /* of weights read by linear operations */
  double seconds;         /* of all operations, one after the other */
  int64_t operations;     /* how many were queued */
  size_t allocated_bytes; /* live now */
  size_t peak_bytes;      /* most that was live at once */
} hv_plan_counts;

HV_NODISCARD hv_status hv_plan_device_open(hv_device **out);
void hv_plan_device_counts(const hv_device *plan, hv_plan_counts *out);
void hv_plan_device_reset(hv_device *plan); /* zeroes the work, keeps allocations; the peak becomes what is live */

/* Describes the machine; before any stream is opened. */
HV_NODISCARD hv_status hv_plan_device_set_machine(hv_device *plan, const hv_plan_machine *machine);

/* Simulated seconds on the host, which waits at every synchronisation of a stream and whose own work takes no time. */
double hv_plan_device_now(const hv_device *plan);

/* The simulated time at which a stream will have finished what is queued on it; and a time before which it starts
 * nothing new.
 */
double hv_plan_stream_end(const hv_stream *stream);
void hv_plan_stream_delay(hv_stream *stream, double until);

#endif
