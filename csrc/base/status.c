#include "base/status.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static _Thread_local char last_message[1024];
static _Thread_local char last_place[96];

dsb_status
dsb_fail(dsb_status code, const char *file, int line, const char *fmt, ...)
{
    const char *slash = strrchr(file, '/');
    va_list args;

    va_start(args, fmt);
    vsnprintf(last_message, sizeof last_message, fmt, args);
    va_end(args);
    snprintf(last_place, sizeof last_place, "%s:%d", slash ? slash + 1 : file, line);
    return code;
}

const char *
dsb_last_message(void)
{
    return last_message;
}

const char *
dsb_last_place(void)
{
    return last_place;
}
