/* Status codes and error messages.
 *
 * Purpose: every function that can fail returns a dsb_status; the sentence for the user is kept in a
 * thread-local buffer until the border turns it into an exception. Library code never prints or exits.
 * DSB_REQUIRE is for the user's faults, DSB_TRY passes a failure on, assert is for our own.
 */
#ifndef DSB_BASE_STATUS_H
#define DSB_BASE_STATUS_H

typedef enum dsb_status {
    DSB_OK = 0,
    DSB_ERR_VALUE,       /* a value out of its domain: ValueError */
    DSB_ERR_TYPE,        /* wrong dtype or rank: TypeError */
    DSB_ERR_MEMORY,      /* not enough memory: MemoryError */
    DSB_ERR_STATE,       /* called at the wrong time: RuntimeError */
    DSB_ERR_NUMERIC,     /* NaN or infinity met on the way: FloatingPointError */
    DSB_ERR_DEVICE,      /* the device refused: dsb.DeviceError */
    DSB_ERR_INTERRUPTED, /* the caller's tick asked to stop; the exception is already set */
} dsb_status;

#if defined(__GNUC__)
#define DSB_PRINTF(fmt_index, first) __attribute__((format(printf, fmt_index, first)))
#define DSB_MUST_CHECK __attribute__((warn_unused_result))
#else
#define DSB_PRINTF(fmt_index, first)
#define DSB_MUST_CHECK
#endif

/* Keeps the message (with the file's name and line) for this thread and returns `code`. */
dsb_status dsb_fail(dsb_status code, const char *file, int line, const char *fmt, ...)
    DSB_PRINTF(4, 5);

/* The sentence of the last failure on this thread, and the place in the source that raised it. */
const char *dsb_last_message(void);
const char *dsb_last_place(void);

#define DSB_FAIL(code, ...) dsb_fail((code), __FILE__, __LINE__, __VA_ARGS__)

#define DSB_REQUIRE(condition, ...)                      \
    do {                                                 \
        if (!(condition)) {                              \
            return DSB_FAIL(DSB_ERR_VALUE, __VA_ARGS__); \
        }                                                \
    } while (0)

#define DSB_TRY(expression)                 \
    do {                                    \
        dsb_status dsb_try_ = (expression); \
        if (dsb_try_ != DSB_OK) {           \
            return dsb_try_;                \
        }                                   \
    } while (0)

#endif
