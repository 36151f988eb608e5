/* A contact sheet: a row a camera, with frames of the first episode that has it, evenly spaced from the first to the
 * last. */
#ifndef HV_DATA_PICTURE_H
#define HV_DATA_PICTURE_H

#include "data/survey.h"

/* Writes a PNG. A file without cameras is HV_ERR_INPUT. */
HV_NODISCARD hv_status hv_contact_sheet(const hv_survey *survey, const char *path);

#endif
