/* How losses and errors are written for people. */
#ifndef HV_TRAIN_WATCH_FORMAT_FIGURE_H
#define HV_TRAIN_WATCH_FORMAT_FIGURE_H

enum { HV_FIGURE_SIZE = 32 };

/* "5.2470", "2.3790e+27", "nan". */
void hv_format_figure(double value, char out[HV_FIGURE_SIZE]);

#endif
