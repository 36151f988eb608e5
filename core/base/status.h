/* Errors are values: a function that can fail returns an hv_status, NULL when all went well.
 *
 * An error carries a code, from which a program derives its exit code, and one message for a person: what went
 * wrong, where (file, object, key) and what would be right. The holder of a non-NULL status owns it: return it,
 * add context to it, or free it. Creating an error never fails: without memory, a static one is returned.
 */
#ifndef HV_BASE_STATUS_H
#define HV_BASE_STATUS_H

#include <stdarg.h>
#include <stdbool.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum hv_code {
  HV_ERR_NO = 1,       /* the answer to the question asked is no: a bad episode, a failed verification */
  HV_ERR_INPUT = 2,    /* wrong input: a file, an option, a shape, a range */
  HV_ERR_IO = 3,       /* the operating system refused: open, read, write, full disk */
  HV_ERR_MEMORY = 4,   /* out of host or device memory */
  HV_ERR_DEVICE = 5,   /* no such device, or the device failed */
  HV_ERR_INTERNAL = 6, /* a bug of ours */
} hv_code;

typedef struct hv_failure *hv_status;

#define HV_OK ((hv_status)0)
#define HV_NODISCARD __attribute__((warn_unused_result))
#define HV_PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))
#define HV_NONNULL_RESULT __attribute__((returns_nonnull))

/* A new error, owned by the caller. */
hv_status hv_error(hv_code code, const char *format, ...) HV_PRINTF(2, 3) HV_NONNULL_RESULT;

/* An error for a failed system call: HV_ERR_IO, "<formatted>: <strerror(errnum)>". */
hv_status hv_error_errno(int errnum, const char *format, ...) HV_PRINTF(2, 3) HV_NONNULL_RESULT;

/* Puts "<formatted>: " in front of an error's message; NULL stays NULL. Takes and returns ownership. */
hv_status hv_error_context(hv_status status, const char *format, ...) HV_PRINTF(2, 3);

/* Out of host memory while making `what`. */
hv_status hv_error_memory(const char *what) HV_NONNULL_RESULT;

hv_code hv_status_code(hv_status status);        /* status must not be NULL */
const char *hv_status_message(hv_status status); /* valid until the status is freed; "" for NULL */
void hv_status_free(hv_status status);           /* NULL is allowed */

/* The exit code of a program that ends with this status: 0 for NULL, 1 for HV_ERR_NO, 2 for all others. Does not free
 * it. */
int hv_status_exit_code(hv_status status);

/* Keeps the first of two errors and frees the other: for cleanup that can fail after a failure. */
hv_status hv_status_first(hv_status first, hv_status second);

/* Returns from the enclosing function with the error of `call`, if it has one. */
#define HV_TRY(call)                                                                                                   \
  do {                                                                                                                 \
    hv_status hv_try_status_ = (call);                                                                                 \
    if (hv_try_status_) return hv_try_status_;                                                                         \
  } while (0)

/* Sets the local variable `status` from `call` and jumps to the label `done` when it is an error. */
#define HV_CHECK(call)                                                                                                 \
  do {                                                                                                                 \
    status = (call);                                                                                                   \
    if (status) goto done;                                                                                             \
  } while (0)

#ifdef __cplusplus
}
#endif

#endif
