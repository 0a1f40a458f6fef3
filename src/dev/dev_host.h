/* dev_host.h - the host as a device: kernels of src/kern on the workers of a pool. */
#ifndef SPW_DEV_HOST_H
#define SPW_DEV_HOST_H

#include "device.h"
#include "kern.h"
#include "pool.h"

/* Keeps kern and pool.  repack: weights whose types have a packed form (pack.h) are copied into it, and products with them are computed in integers;
 * otherwise every product is computed in f32 from the values of the file. */
spw_status dev_host_create(dev **out, const kern_table *kern, spw_pool *pool, bool repack, spw_err *err);
dev_repacked dev_host_repacked(const dev *d);

#endif
