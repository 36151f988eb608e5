/* A contact sheet: a row a camera, with frames of the first episode that has it, evenly spaced from the first to the
 * last. */
#ifndef HV_DATA_PICTURE_H
#define HV_DATA_PICTURE_H

#include "data/summary.h"

/* Writes a PNG. A file without cameras is HV_ERR_INPUT. */
HV_NODISCARD hv_status hv_contact_sheet(hv_hdf5 *file, const hv_file_summary *summary, const char *path);

#endif
