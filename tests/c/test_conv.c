#include "test.h"

void
test_conv(void)
{
}
