/* bench_kernels.h - the two modes of spillway bench that need no model. */
#ifndef SPW_APP_BENCH_KERNELS_H
#define SPW_APP_BENCH_KERNELS_H

#include "options.h"
#include "spillway_bench.h"

int bench_kernels_main(const options *o);
int bench_machine_main(const options *o);

#endif
