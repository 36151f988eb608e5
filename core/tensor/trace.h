/* A timeline of a run for chrome://tracing and Perfetto: spans of time in rows for computation, communication, waiting
 * for data, writing checkpoints and copying batches to the device, each rank a process of its own.
 *
 * A span begins and ends when its stream reaches these points (hv_stream_stamp), or, without a stream, at the time of
 * the calls. With a NULL trace nothing is done. Spans are kept in memory and written when the trace is closed; after
 * MOST_SPANS (trace.c) no more are taken. Any thread may begin and end spans.
 */
#ifndef HV_TENSOR_TRACE_H
#define HV_TENSOR_TRACE_H

#include "core/tensor/device.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum hv_trace_row {
  HV_TRACE_COMPUTE,
  HV_TRACE_COMMUNICATION,
  HV_TRACE_LOADER,
  HV_TRACE_CHECKPOINT,
  HV_TRACE_UPLOAD,
  HV_TRACE_ROWS,
} hv_trace_row;

typedef struct hv_trace hv_trace;
typedef struct hv_span hv_span;

/* The trace is written to `path` when it is closed, on ranks above 0 to "<path>.<rank>". An empty file is written at
 * once, so that a path that cannot be written is an error now. The path is copied. */
HV_NODISCARD hv_status hv_trace_open(const char *path, int32_t rank, hv_trace **out);

/* Writes the file; streams of spans have been synchronised. NULL is allowed. */
HV_NODISCARD hv_status hv_trace_close(hv_trace *trace);

/* Begins a span "<verb> <name>"; the verb must be a string constant, the name is copied. Returns NULL without a trace
 * or memory. */
hv_span *hv_trace_begin(hv_trace *trace, hv_trace_row row, const char *verb, const char *name, hv_stream *stream);

/* NULL is allowed. */
void hv_trace_rename(hv_span *span, const char *verb);
void hv_trace_end(hv_span *span, hv_stream *stream);

#ifdef __cplusplus
}
#endif

#endif
