/* Curves as inline SVG, drawn with the colours and fonts of the page around them (train/watch/report_style.h). */
#ifndef HV_TRAIN_WATCH_REPORT_CHART_H
#define HV_TRAIN_WATCH_REPORT_CHART_H

#include <stdbool.h>
#include <stddef.h>

#include "core/base/text.h"

/* Appends text with what HTML reads as markup made harmless. */
void hv_html_escape(const char *text, hv_text *out);

enum { HV_MAX_SERIES = 6 };

/* Points by rising x; `x` and `y` are not owned. */
typedef struct hv_series {
  const char *name;
  const double *x, *y; /* finite */
  size_t count;
  int colour;  /* 1 to 6: the page's; 0: grey */
  bool faint;  /* the raw values behind a smoothed curve: thin, and not in the legend */
  bool wide;   /* a pale band, to be drawn under others */
  bool marked; /* a dot at each point */
  bool dashed;
} hv_series;

typedef struct hv_chart {
  const char *title, *unit; /* unit: what the vertical axis counts */
  hv_series series[HV_MAX_SERIES];
  int count;
  bool cut_spikes; /* of many values, the vertical axis ends where almost all do, and the caption tells of the rest */
} hv_chart;

/* Appends a <figure>: title, legend with the newest values, axes, curves. Nothing where no series has a point. */
void hv_chart_draw(const hv_chart *chart, hv_text *out);

#endif
