/* The one logger: lines on standard error, "level: message" on a terminal, where information has no level in front of
 * it, and "time level: message" elsewhere.
 *
 * It is for programs (a main.c, the trainer's progress) and for warnings that a person must see; all other functions
 * report by their status. Safe to call from any thread: a line is written in one piece.
 */
#ifndef HV_BASE_LOG_H
#define HV_BASE_LOG_H

#include "core/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum hv_log_level { HV_LOG_DEBUG, HV_LOG_INFO, HV_LOG_WARNING, HV_LOG_ERROR } hv_log_level;

/* For the whole process. Lines below the level are dropped; HV_LOG_INFO at the start. */
void hv_log_set_level(hv_log_level level);

void hv_log(hv_log_level level, const char *format, ...) HV_PRINTF(2, 3);

#define hv_log_debug(...) hv_log(HV_LOG_DEBUG, __VA_ARGS__)
#define hv_log_info(...) hv_log(HV_LOG_INFO, __VA_ARGS__)
#define hv_log_warning(...) hv_log(HV_LOG_WARNING, __VA_ARGS__)
#define hv_log_error(...) hv_log(HV_LOG_ERROR, __VA_ARGS__)

#ifdef __cplusplus
}
#endif

#endif
