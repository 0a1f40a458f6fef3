/* dev_host.h - the host as a device: kernels of src/kern on the workers of a pool. */
#ifndef SPW_DEV_HOST_H
#define SPW_DEV_HOST_H

#include "device.h"
#include "kern.h"
#include "pool.h"

/* Keeps kern and pool. */
spw_status dev_host_create(dev **out, const kern_table *kern, spw_pool *pool, spw_err *err);

#endif
