/* numa.h - memory nodes: which of them this process may run on, and how shares of work and memory go by them.
 *
 * On a machine of one node everything here does nothing: n_nodes is 1, nobody is pinned and no page is bound.  Where there are several, work that is cut into n
 * items goes to the nodes as runs of adjacent items, in proportion to the nodes' processors.  The pool gives its workers their items by the same rule, so whoever places memory by it
 * need not know how many workers there are. */
#ifndef SPW_NUMA_H
#define SPW_NUMA_H

#include <sched.h>
#include <stdbool.h>
#include <stddef.h>

enum { NUMA_MAX_NODES = 64 };

typedef struct numa_node {
    int id;         /* the system's number */
    int n_cpus;     /* that this process may run on, at least 1 */
    cpu_set_t cpus; /* these */
} numa_node;

typedef struct numa_topology {
    int n_nodes; /* at least 1; 1: what nodes says is of no interest */
    numa_node nodes[NUMA_MAX_NODES];
} numa_topology;

/* Reads "sys/devices/system/node" below root ("" is the system's own; others are for tests).  Nodes without a processor in *allowed do not count; what cannot be read is
 * one node. */
void numa_read(numa_topology *t, const char *root, const cpu_set_t *allowed);
/* The same of this machine and the calling thread. */
void numa_read_system(numa_topology *t);

/* The node (index into nodes) of item i of n. */
int numa_node_of(const numa_topology *t, size_t i, size_t n);
/* The calling thread runs on this node's processors from now on; false when the system refuses. */
bool numa_pin(const numa_topology *t, int node);
/* Whole pages of [addr, addr + bytes) that have no memory yet get it from this node, if it has any left; false when the system refuses. */
bool numa_prefer(const numa_topology *t, void *addr, size_t bytes, int node);

#endif
