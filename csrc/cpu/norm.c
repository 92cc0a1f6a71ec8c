#include "cpu/cpu.h"

void
DSB_KERNEL(dsb_cpu_norm)(dsb_backend *table)
{
    (void)table;
}
