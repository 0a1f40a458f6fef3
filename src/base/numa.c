/* numa.c - reads the nodes from /sys; threads and pages are placed by plain system calls. */
#include "numa.h"

#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { LIST_BYTES = 4096, PREFERRED = 1 /* MPOL_PREFERRED of linux/mempolicy.h, which not every system has */ };

/* Adds the numbers of a list such as "0-3,8,10-11" to *set; stops at what is no list. */
static void parse_list(const char *text, cpu_set_t *set)
{
    while (*text >= '0' && *text <= '9') {
        char *end;
        unsigned long first = strtoul(text, &end, 10), last = first;
        if (*end == '-' && end[1] >= '0' && end[1] <= '9') last = strtoul(end + 1, &end, 10);
        for (unsigned long i = first; i <= last && i < CPU_SETSIZE; i++) CPU_SET(i, set);
        if (*end != ',') return;
        text = end + 1;
    }
}

/* A list in a file; empty when it cannot be read. */
static void read_list(const char *root, const char *name, cpu_set_t *set)
{
    char path[4200], text[LIST_BYTES];
    CPU_ZERO(set);
    int len = snprintf(path, sizeof path, "%s/sys/devices/system/node/%s", root, name);
    int fd = len > 0 && (size_t)len < sizeof path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0) return;
    ssize_t n = read(fd, text, sizeof text - 1);
    close(fd);
    if (n <= 0) return;
    text[n] = '\0';
    parse_list(text, set);
}

void numa_read(numa_topology *t, const char *root, const cpu_set_t *allowed)
{
    cpu_set_t online;
    char name[64];
    t->n_nodes = 0;
    read_list(root, "online", &online);
    for (size_t id = 0; id < CPU_SETSIZE && t->n_nodes < NUMA_MAX_NODES; id++) {
        if (!CPU_ISSET(id, &online)) continue;
        numa_node *node = &t->nodes[t->n_nodes];
        snprintf(name, sizeof name, "node%zu/cpulist", id);
        read_list(root, name, &node->cpus);
        CPU_AND(&node->cpus, &node->cpus, allowed);
        node->id = (int)id;
        node->n_cpus = CPU_COUNT(&node->cpus);
        if (node->n_cpus > 0) t->n_nodes++;
    }
    if (t->n_nodes > 0) return;
    t->n_nodes = 1;
    t->nodes[0] = (numa_node){.n_cpus = 1};
}

void numa_read_system(numa_topology *t)
{
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) CPU_ZERO(&allowed);
    numa_read(t, "", &allowed);
}

int numa_node_of(const numa_topology *t, size_t i, size_t n)
{
    size_t n_cpus = 0, before = 0;
    for (int k = 0; k < t->n_nodes; k++) n_cpus += (size_t)t->nodes[k].n_cpus;
    for (int k = 0; k + 1 < t->n_nodes; k++) {
        before += (size_t)t->nodes[k].n_cpus;
        if ((2 * i + 1) * n_cpus < 2 * n * before) return k; /* by the item's middle */
    }
    return t->n_nodes - 1;
}

bool numa_pin(const numa_topology *t, int node)
{
    return t->n_nodes == 1 || sched_setaffinity(0, sizeof t->nodes[node].cpus, &t->nodes[node].cpus) == 0;
}

bool numa_prefer(const numa_topology *t, void *addr, size_t bytes, int node)
{
    enum { BITS = 8 * sizeof(unsigned long) };
    if (t->n_nodes == 1) return true;
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), from = ((uintptr_t)addr + page - 1) / page * page, to = ((uintptr_t)addr + bytes) / page * page;
    unsigned long mask[CPU_SETSIZE / BITS] = {0};
    int id = t->nodes[node].id;
    mask[id / BITS] |= 1ul << id % BITS;
    return to <= from || syscall(SYS_mbind, from, to - from, PREFERRED, mask, (unsigned long)CPU_SETSIZE + 1, 0) == 0;
}
