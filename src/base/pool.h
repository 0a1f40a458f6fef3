/* pool.h - persistent workers that run the items of a job.
 *
 * A job is n_items independent items.  Each of the caller and the workers has a run of adjacent items as its share, the same for every job of that size, and
 * takes it front to back; who is done early takes items of others, from the back.  What an item computes may depend only
 * on its number, never on who runs it, so results are the same for any number of threads: split work by its size.
 * Workers spin about 0.02 ms for the next job, then sleep on a futex.  On a machine of several memory nodes a worker runs on the node whose share its items are
 * (numa.h); the caller is the application's thread, and stays where it is.  Every worker, and the caller for the length of a job, has FTZ and
 * DAZ set. */
#ifndef SPW_POOL_H
#define SPW_POOL_H

#include "numa.h"
#include "status.h"

typedef struct spw_pool spw_pool;
typedef void pool_fn(void *ctx, size_t item, int worker); /* worker: 0 (the caller) .. pool_n_threads - 1 */

/* n_threads counts the caller: 1 starts no thread. */
spw_status pool_create(spw_pool **out, int n_threads, spw_err *err);
/* The same on nodes that may be others than the machine's own. */
spw_status pool_create_on(spw_pool **out, int n_threads, const numa_topology *numa, spw_err *err);
void pool_free(spw_pool *p);
int pool_n_threads(const spw_pool *p);
const numa_topology *pool_numa(const spw_pool *p);
/* Runs fn for items 0 .. n_items-1 and returns when all are done.  One job at a time; not from inside an item.  Items do not wait for each other: a worker
 * whose core another program has gets none for a while. */
void pool_run(spw_pool *p, size_t n_items, pool_fn *fn, void *ctx);
/* One item for each thread, which may wait for each other. */
void pool_run_all(spw_pool *p, pool_fn *fn, void *ctx);

/* The floating point mode that results are defined in: round to nearest, no traps, FTZ and DAZ.  Workers have it always, pool_run for its length; a
 * caller that also computes between jobs enters it around all of them.  Returns the mode before, for pool_float_mode_leave. */
uint64_t pool_float_mode_enter(void);
void pool_float_mode_leave(uint64_t old);

#endif
