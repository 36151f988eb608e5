/* How the report of a run looks: one style sheet, for light and dark screens and for paper. */
#ifndef HV_TRAIN_WATCH_REPORT_STYLE_H
#define HV_TRAIN_WATCH_REPORT_STYLE_H

extern const char hv_report_style[];

#endif
