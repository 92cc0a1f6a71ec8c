#include "cpu/cpu.h"

void
DSB_KERNEL(dsb_cpu_conv_bf16)(dsb_backend *table)
{
    (void)table;
}
