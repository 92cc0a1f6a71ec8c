#include "cpu/cpu.h"

void
DSB_KERNEL(dsb_cpu_conv)(dsb_backend *table)
{
    (void)table;
}
