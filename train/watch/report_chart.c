#include "train/watch/report_chart.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "core/base/median.h"

/* The drawing's own units. */
static const double width = 560, height = 270, left = 52, right = 22, top = 10, bottom = 40;

enum { MOST_POINTS = 500 /* of a curve; more are averaged */, TICKS = 5 };

void hv_html_escape(const char *text, hv_text *out) {
  for (; *text; text++) {
    switch (*text) {
    case '&': hv_text_add(out, "&amp;"); break;
    case '<': hv_text_add(out, "&lt;"); break;
    case '>': hv_text_add(out, "&gt;"); break;
    case '"': hv_text_add(out, "&quot;"); break;
    default: hv_text_add_bytes(out, text, 1);
    }
  }
}

/* One axis of the drawing: its range of values, the distance of ticks, and its position. */
typedef struct axis {
  double low, high, tick;
  double from, to; /* where low and high lie */
} axis;

static double place(const axis *a, double value) {
  double at = a->from + (value - a->low) / (a->high - a->low) * (a->to - a->from);
  /* A little outside is enough: the drawing is clipped, and numbers stay short. */
  double least = fmin(a->from, a->to) - height, most = fmax(a->from, a->to) + height;
  return fmin(fmax(at, least), most);
}

/* 1, 2 or 5 times a power of ten, so that about TICKS of them make up the span. */
static double round_tick(double span) {
  double raw = span / TICKS, power = pow(10, floor(log10(raw)));
  double digit = raw / power;
  return power * (digit <= 1 ? 1 : digit <= 2 ? 2 : digit <= 5 ? 5 : 10);
}

/* Widens a range that is nearly empty: its ticks could not be told from 0. */
static axis make_axis(double low, double high, double from, double to) {
  static const double least = 1e-290;
  if (!(high - low > least)) {
    double around = fabs(high) > least ? 0.5 * fabs(high) : 1;
    low -= around;
    high += around;
  }
  return (axis){.low = low, .high = high, .tick = round_tick(high - low), .from = from, .to = to};
}

/* The value below which the fraction `part` of a series lies. */
static double quantile(const hv_series *series, double part) {
  double *sorted = malloc(series->count * sizeof *sorted);
  if (!sorted) return series->y[series->count - 1];
  for (size_t i = 0; i < series->count; i++) sorted[i] = series->y[i];
  hv_sort_values(sorted, series->count);
  double value = sorted[(size_t)(part * (double)(series->count - 1))];
  free(sorted);
  return value;
}

/* With at most so many values, none counts as a spike. */
enum { FEW_VALUES = 50 };

static double largest(const hv_chart *chart) {
  double high = -INFINITY;
  for (int s = 0; s < chart->count; s++) {
    if (chart->series[s].count > 0) high = fmax(high, quantile(&chart->series[s], 1));
  }
  return high;
}

/* From 0, or if values are negative from the tick below them, to the tick above the highest. */
static axis vertical_axis(const hv_chart *chart) {
  double low = INFINITY, high = -INFINITY;
  for (int s = 0; s < chart->count; s++) {
    const hv_series *series = &chart->series[s];
    if (series->count == 0) continue;
    low = fmin(low, quantile(series, 0));
    bool cut = chart->cut_spikes && series->count > FEW_VALUES;
    high = fmax(high, cut ? 1.15 * quantile(series, 0.98) : quantile(series, 1));
  }
  if (low > 0) low = 0;
  axis a = make_axis(low, high, height - bottom, top);
  if (low != 0) a.low = floor(a.low / a.tick) * a.tick;
  a.high = ceil(a.high / a.tick - 1e-9) * a.tick;
  return a;
}

static axis horizontal_axis(const hv_chart *chart) {
  double high = 1;
  for (int s = 0; s < chart->count; s++) {
    const hv_series *series = &chart->series[s];
    if (series->count > 0) high = fmax(high, series->x[series->count - 1]);
  }
  return make_axis(0, high, left, width - right);
}

/* The ticks of an axis are its tick times `first`, first + 1, … first + count − 1. */
static int count_ticks(const axis *a, double *first) {
  *first = ceil(a->low / a->tick - 1e-9);
  return (int)(floor(a->high / a->tick + 1e-9) - *first) + 1;
}

static void draw_axes(const axis *x, const axis *y, hv_text *out) {
  double first;
  int rows = count_ticks(y, &first);
  hv_text_add(out, "<g class=\"grid\">");
  for (int i = 0; i < rows; i++) {
    double at = place(y, (first + i) * y->tick);
    hv_text_add(out, "<line x1=\"%g\" x2=\"%g\" y1=\"%.1f\" y2=\"%.1f\"/>", left, width - right, at, at);
  }
  hv_text_add(out, "</g><g class=\"ticks\">");
  for (int i = 0; i < rows; i++) {
    double value = (first + i) * y->tick;
    hv_text_add(out, "<text x=\"%g\" y=\"%.1f\" text-anchor=\"end\">%.6g</text>", left - 8, place(y, value) + 4, value);
  }
  int columns = count_ticks(x, &first);
  for (int i = 0; i < columns; i++) {
    double value = (first + i) * x->tick;
    hv_text_add(out, "<text x=\"%.1f\" y=\"%g\" text-anchor=\"middle\">%.10g</text>", place(x, value),
                height - bottom + 17, value);
  }
  hv_text_add(out, "<text x=\"%g\" y=\"%g\" text-anchor=\"end\">step</text></g>", width - right, height - 5);
  hv_text_add(out, "<line class=\"axis\" x1=\"%g\" x2=\"%g\" y1=\"%g\" y2=\"%g\"/>", left, width - right,
              height - bottom, height - bottom);
}

/* A curve; if it has more points than can be seen, means of neighbours. */
static void draw_curve(const hv_series *series, const axis *x, const axis *y, hv_text *out) {
  size_t stride = (series->count + MOST_POINTS - 1) / MOST_POINTS;
  hv_text_add(out, "<path class=\"c%d%s%s%s\" d=\"", series->colour, series->faint ? " faint" : "",
              series->wide ? " wide" : "", series->dashed ? " dashed" : "");
  for (size_t i = 0; i < series->count; i += stride) {
    double sum_x = 0, sum_y = 0;
    size_t count = series->count - i < stride ? series->count - i : stride;
    for (size_t j = i; j < i + count; j++) {
      sum_x += series->x[j] / (double)count;
      sum_y += series->y[j] / (double)count;
    }
    hv_text_add(out, "%s%.1f %.1f", i ? "L" : "M", place(x, sum_x), place(y, sum_y));
  }
  hv_text_add(out, "\"/>");
  for (size_t i = 0; series->marked && i < series->count; i++) {
    hv_text_add(out, "<circle class=\"c%d\" cx=\"%.1f\" cy=\"%.1f\" r=\"3\"><title>step %.0f: %.4g</title></circle>",
                series->colour, place(x, series->x[i]), place(y, series->y[i]), series->x[i], series->y[i]);
  }
}

static void draw_legend(const hv_chart *chart, hv_text *out) {
  hv_text_add(out, "<ul class=\"legend\">");
  for (int s = 0; s < chart->count; s++) {
    const hv_series *series = &chart->series[s];
    if (series->faint || series->count == 0) continue;
    hv_text_add(out, "<li><i class=\"c%d%s%s\"></i>", series->colour, series->wide ? " wide" : "",
                series->dashed ? " dashed" : "");
    hv_html_escape(series->name, out);
    hv_text_add(out, " <b>%.4g</b></li>", series->y[series->count - 1]);
  }
  hv_text_add(out, "</ul>");
}

void hv_chart_draw(const hv_chart *chart, hv_text *out) {
  size_t points = 0;
  for (int s = 0; s < chart->count; s++) points += chart->series[s].count;
  if (points == 0) return;
  axis x = horizontal_axis(chart), y = vertical_axis(chart);
  hv_text_add(out, "<figure><figcaption><h3>");
  hv_html_escape(chart->title, out);
  hv_text_add(out, " <small>");
  hv_html_escape(chart->unit, out);
  if (largest(chart) > y.high) {
    hv_text_add(out, "%sspikes are cut off, the highest is %.4g", *chart->unit ? "; " : "", largest(chart));
  }
  hv_text_add(out, "</small></h3>");
  draw_legend(chart, out);
  hv_text_add(out, "</figcaption><svg viewBox=\"0 0 %g %g\" role=\"img\" aria-label=\"", width, height);
  hv_html_escape(chart->title, out);
  hv_text_add(out, "\">");
  draw_axes(&x, &y, out);
  hv_text_add(out, "<svg x=\"%g\" y=\"%g\" width=\"%g\" height=\"%g\" viewBox=\"%g %g %g %g\">", left - 4, top - 4,
              width - left - right + 8, height - top - bottom + 8, left - 4, top - 4, width - left - right + 8,
              height - top - bottom + 8);
  for (int s = 0; s < chart->count; s++) {
    if (chart->series[s].count > 0) draw_curve(&chart->series[s], &x, &y, out);
  }
  hv_text_add(out, "</svg></svg></figure>\n");
}
