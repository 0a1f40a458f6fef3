/* mem.c - allocation with accounting and fault injection, and reservations of address space.
 *
 * Every block is preceded by one cache line that holds its size, so freeing needs no size and leaks can be counted:
 *
 *   | bytes, unused .. 64 | block, 64-byte aligned ... |
 */
#include "mem.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "status.h"

#define RESERVE_ALIGN ((size_t)2 << 20) /* bytes of a huge page */

static atomic_size_t in_use;
static atomic_long fail_left = -1; /* allocations until one fails; negative: none will */
static atomic_bool fail_sticky;

/* True when the test seam wants this allocation to fail. */
static bool must_fail(void)
{
    long left = atomic_load_explicit(&fail_left, memory_order_relaxed);
    while (left >= 0) {
        long next = left > 0 ? left - 1 : atomic_load(&fail_sticky) ? 0 : -1;
        if (atomic_compare_exchange_weak(&fail_left, &left, next)) return left == 0;
    }
    return false;
}

void mem_fail_after(long n, bool sticky)
{
    atomic_store(&fail_sticky, sticky);
    atomic_store(&fail_left, n < 0 ? -1 : n);
}

size_t mem_in_use(void)
{
    return atomic_load(&in_use);
}

void *mem_alloc(size_t bytes)
{
    size_t whole;
    void *head;
    if (bytes == 0 || !add_size(bytes, MEM_ALIGN, &whole) || must_fail()) return NULL;
    if (posix_memalign(&head, MEM_ALIGN, whole) != 0) return NULL;
    *(size_t *)head = bytes;
    atomic_fetch_add_explicit(&in_use, bytes, memory_order_relaxed);
    return (char *)head + MEM_ALIGN;
}

void *mem_zalloc(size_t bytes)
{
    void *p = mem_alloc(bytes);
    if (p) memset(p, 0, bytes);
    return p;
}

void *mem_calloc(size_t n, size_t size)
{
    size_t bytes;
    return mul_size(n, size, &bytes) ? mem_zalloc(bytes) : NULL;
}

void *mem_realloc(void *p, size_t old_bytes, size_t bytes)
{
    void *q = mem_alloc(bytes);
    if (!q || !p) return q;
    memcpy(q, p, old_bytes < bytes ? old_bytes : bytes);
    mem_free(p);
    return q;
}

char *mem_strndup(const char *s, size_t len)
{
    size_t bytes;
    char *copy = add_size(len, 1, &bytes) ? mem_alloc(bytes) : NULL;
    if (!copy) return NULL;
    if (len) memcpy(copy, s, len);
    copy[len] = '\0';
    return copy;
}

void mem_free(void *p)
{
    if (!p) return;
    char *head = (char *)p - MEM_ALIGN;
    atomic_fetch_sub_explicit(&in_use, *(size_t *)(void *)head, memory_order_relaxed);
    free(head);
}

bool mul_size(size_t a, size_t b, size_t *out)
{
    if (a && b > SIZE_MAX / a) return false;
    *out = a * b;
    return true;
}

bool add_size(size_t a, size_t b, size_t *out)
{
    if (b > SIZE_MAX - a) return false;
    *out = a + b;
    return true;
}

/* The system aligns to small pages only, so one huge page too much is mapped and the two ends are given back. */
void *mem_reserve(size_t bytes)
{
    size_t whole;
    SPW_CHECK(bytes % RESERVE_ALIGN == 0);
    if (bytes == 0 || !add_size(bytes, RESERVE_ALIGN, &whole) || must_fail()) return NULL;
    char *base = mmap(NULL, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) return NULL;
    size_t head = (RESERVE_ALIGN - (uintptr_t)base % RESERVE_ALIGN) % RESERVE_ALIGN;
    size_t tail = RESERVE_ALIGN - head;
    if (head) munmap(base, head);
    if (tail) munmap(base + head + bytes, tail);
    return base + head;
}

void mem_unreserve(void *p, size_t bytes)
{
    if (p) munmap(p, bytes);
}
