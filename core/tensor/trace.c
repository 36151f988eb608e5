#include "core/tensor/trace.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/clock.h"
#include "core/base/file.h"
#include "core/base/text.h"

enum { BLOCK_SPANS = 1024, MOST_SPANS = 1 << 20, NAME_SIZE = 104 };

struct hv_span {
  double begin, end; /* hv_clock_seconds; 0: never reached */
  const char *verb;
  hv_trace_row row;
  char name[NAME_SIZE];
};

/* Spans never move, since a stream may stamp them later. */
typedef struct block {
  struct block *next;
  hv_span spans[BLOCK_SPANS];
} block;

struct hv_trace {
  char *path;
  int32_t rank;
  pthread_mutex_t mutex;
  block *first, *last;
  int64_t count;
};

/* The next span's place, under the mutex. */
static hv_span *next_span(hv_trace *trace) {
  if (trace->count == MOST_SPANS) return NULL;
  if (trace->count % BLOCK_SPANS == 0) {
    block *more = calloc(1, sizeof *more);
    if (!more) return NULL;
    if (trace->last) {
      trace->last->next = more;
    } else {
      trace->first = more;
    }
    trace->last = more;
  }
  return &trace->last->spans[trace->count++ % BLOCK_SPANS];
}

static void stamp(hv_stream *stream, double *out) {
  if (stream) {
    hv_stream_stamp(stream, out);
  } else {
    *out = hv_clock_seconds();
  }
}

hv_span *hv_trace_begin(hv_trace *trace, hv_trace_row row, const char *verb, const char *name, hv_stream *stream) {
  if (!trace) return NULL;
  pthread_mutex_lock(&trace->mutex);
  hv_span *span = next_span(trace);
  pthread_mutex_unlock(&trace->mutex);
  if (!span) return NULL;
  span->row = row;
  span->verb = verb;
  snprintf(span->name, sizeof span->name, "%s", name);
  stamp(stream, &span->begin);
  return span;
}

void hv_trace_rename(hv_span *span, const char *verb) {
  if (span) span->verb = verb;
}

void hv_trace_end(hv_span *span, hv_stream *stream) {
  if (span) stamp(stream, &span->end);
}

/* Names are those of parameters and operations: no quotes, no control characters. */
static void add_span(const hv_trace *trace, const hv_span *span, hv_text *out) {
  if (span->begin <= 0 || span->end < span->begin) return;
  hv_text_add(out, ",\n{\"ph\":\"X\",\"pid\":%d,\"tid\":%d,\"name\":\"%s %s\",\"ts\":%.3f,\"dur\":%.3f}", trace->rank,
              (int)span->row, span->verb, span->name, 1e6 * span->begin, 1e6 * (span->end - span->begin));
}

static void add_names(const hv_trace *trace, hv_text *out) {
  static const char *const rows[] = {"compute", "communication", "loader", "checkpoint", "upload"};
  hv_text_add(out, "{\"ph\":\"M\",\"pid\":%d,\"name\":\"process_name\",\"args\":{\"name\":\"rank %d\"}}", trace->rank,
              trace->rank);
  for (int row = 0; row < HV_TRACE_ROWS; row++) {
    hv_text_add(out, ",\n{\"ph\":\"M\",\"pid\":%d,\"tid\":%d,\"name\":\"thread_name\",\"args\":{\"name\":\"%s\"}}",
                trace->rank, row, rows[row]);
  }
}

static hv_status write_trace(const hv_trace *trace) {
  hv_text text = {0};
  int64_t left = trace->count;
  hv_text_add(&text, "{\"displayTimeUnit\":\"ms\",\"traceEvents\":[\n");
  add_names(trace, &text);
  for (const block *b = trace->first; b; b = b->next) {
    for (int64_t i = 0; i < BLOCK_SPANS && left > 0; i++, left--) add_span(trace, &b->spans[i], &text);
  }
  hv_text_add(&text, "\n]}\n");
  hv_status status = text.failed ? hv_error_memory("the trace")
                                 : hv_write_file_atomic(trace->path, hv_text_string(&text), text.length);
  hv_text_free(&text);
  return status;
}

static void free_trace(hv_trace *trace) {
  while (trace->first) {
    block *next = trace->first->next;
    free(trace->first);
    trace->first = next;
  }
  pthread_mutex_destroy(&trace->mutex);
  free(trace->path);
  free(trace);
}

hv_status hv_trace_open(const char *path, int32_t rank, hv_trace **out) {
  *out = NULL;
  hv_trace *trace = calloc(1, sizeof *trace);
  size_t size = strlen(path) + 16;
  char *copy = malloc(size);
  if (!trace || !copy) {
    free(trace);
    free(copy);
    return hv_error_memory("the trace");
  }
  if (rank > 0) {
    snprintf(copy, size, "%s.%d", path, rank);
  } else {
    snprintf(copy, size, "%s", path);
  }
  trace->path = copy;
  trace->rank = rank;
  pthread_mutex_init(&trace->mutex, NULL);
  hv_status status = write_trace(trace); /* a path that cannot be written is an error now, not at the end of a run */
  if (status) {
    free_trace(trace);
  } else {
    *out = trace;
  }
  return status;
}

hv_status hv_trace_close(hv_trace *trace) {
  if (!trace) return HV_OK;
  hv_status status = write_trace(trace);
  free_trace(trace);
  return status;
}
