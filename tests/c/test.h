/* What the C tests share: CHECK counts a failure and goes on. */
#ifndef DSB_TESTS_TEST_H
#define DSB_TESTS_TEST_H

#include <stdbool.h>

#define CHECK(condition) test_check((condition), #condition, __FILE__, __LINE__)

void test_check(bool holds, const char *condition, const char *file, int line);

/* Every convolution pass the backend has, against plain loops in float64 (test_conv.c). */
void test_conv(void);
/* The other kernels for images, against plain loops in float64 (test_images.c). */
void test_images(void);

#endif
