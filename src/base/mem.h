/* mem.h - the one seam through which the library takes memory, and arithmetic on sizes that cannot wrap. */
#ifndef SPW_MEM_H
#define SPW_MEM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MEM_ALIGN 64 /* bytes: a cache line, and the widest vector */

/* Owned memory, 64-byte aligned, freed by mem_free.  NULL when there is none (or bytes is 0).  mem_zalloc is zeroed. */
void *mem_alloc(size_t bytes);
void *mem_zalloc(size_t bytes);
/* n * size bytes, zeroed; NULL also when the product wraps. */
void *mem_calloc(size_t n, size_t size);
/* Grows or shrinks p (NULL: allocates), keeping old_bytes of it at most; on failure returns NULL and p is untouched. */
void *mem_realloc(void *p, size_t old_bytes, size_t bytes);
char *mem_strndup(const char *s, size_t len); /* adds the NUL */
void mem_free(void *p);

/* *out = a * b or a + b; false when the result does not fit. */
bool mul_size(size_t a, size_t b, size_t *out);
bool add_size(size_t a, size_t b, size_t *out);

/* Address space without memory behind it until it is written; zero when first read.  NULL when the system refuses.  bytes and result are
 * multiples of 2 MiB. */
void *mem_reserve(size_t bytes);
void mem_unreserve(void *p, size_t bytes);

/* Test seam: the n-th allocation from now (0: the next) fails, and every one after it while sticky is set; n < 0 turns it off. */
void mem_fail_after(long n, bool sticky);
/* Bytes handed out by mem_alloc and its kin and not yet freed: for leak tests. */
size_t mem_in_use(void);

#endif
