#include "cpu/cpu.h"

void
DSB_KERNEL(dsb_cpu_image)(dsb_backend *table)
{
    (void)table;
}
