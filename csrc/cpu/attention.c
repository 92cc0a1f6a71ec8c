#include "cpu/cpu.h"

void
DSB_KERNEL(dsb_cpu_attention)(dsb_backend *table)
{
    (void)table;
}
