/* pool.h - persistent workers that run the items of a job.
 *
 * A job is n_items independent items, claimed one by one by the caller and the workers.  What an item computes may depend only
 * on its number, never on who runs it, so results are the same for any number of threads: split work by its size.
 * Workers spin about 0.1 ms for the next job, then sleep on a futex.  Every worker, and the caller for the length of a job, has FTZ and
 * DAZ set. */
#ifndef SPW_POOL_H
#define SPW_POOL_H

#include "status.h"

typedef struct spw_pool spw_pool;
typedef void pool_fn(void *ctx, size_t item, int worker); /* worker: 0 (the caller) .. pool_n_threads - 1 */

/* n_threads counts the caller: 1 starts no thread. */
spw_status pool_create(spw_pool **out, int n_threads, spw_err *err);
void pool_free(spw_pool *p);
int pool_n_threads(const spw_pool *p);
/* Runs fn for items 0 .. n_items-1 and returns when all are done.  One job at a time; not from inside an item. */
void pool_run(spw_pool *p, size_t n_items, pool_fn *fn, void *ctx);

/* The floating point mode that results are defined in: round to nearest, no traps, FTZ and DAZ.  Workers have it always, pool_run for its length; a
 * caller that also computes between jobs enters it around all of them.  Returns the mode before, for pool_float_mode_leave. */
uint64_t pool_float_mode_enter(void);
void pool_float_mode_leave(uint64_t old);

#endif
