#include "cpu/cpu.h"

void
DSB_KERNEL(dsb_cpu_conv_weight)(dsb_backend *table)
{
    (void)table;
}
