/* system.h - what the machine, its control groups and this process's limits leave to the library. */
#ifndef SPW_SYSTEM_H
#define SPW_SYSTEM_H

#include <stdint.h>

/* Bytes that can be taken now: the smallest of the system's available memory, what the memory control groups leave, and what
 * RLIMIT_AS leaves.  File cache counts as available.  UINT64_MAX when nothing is known. */
uint64_t system_memory_available(void);
/* The same without RLIMIT_AS, from the files "proc" and "sys" below root ("" is the system's own): for tests. */
uint64_t system_memory_below(const char *root);
/* Cores that this process may run on, at least 1. */
int system_n_cores(void);

#endif
