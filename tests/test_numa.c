/* test_numa.c - nodes as /sys would describe them, how shares go by them, and workers pinned to made-up nodes of this machine's own processors. */
#include "test.h"

#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "mem.h"
#include "numa.h"
#include "pool.h"

static void write_file(const char *root, const char *name, const char *text)
{
    char path[4200];
    snprintf(path, sizeof path, "%s/%s", root, name);
    for (char *p = path + strlen(root) + 1; (p = strchr(p, '/')); p++) {
        *p = '\0';
        mkdir(path, 0700);
        *p = '/';
    }
    FILE *f = fopen(path, "w");
    CHECK(f);
    if (!f) return;
    fputs(text, f);
    fclose(f);
}

#define NODES "sys/devices/system/node/"

static cpu_set_t cpus_below(size_t n)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    for (size_t i = 0; i < n; i++) CPU_SET(i, &set);
    return set;
}

/* Two nodes with processors in between each other, one that has memory alone, and one that this process may not use. */
static void test_read(void)
{
    char root[] = "/tmp/spillway-numa-XXXXXX", remove[64];
    numa_topology t;
    cpu_set_t allowed = cpus_below(12);
    CHECK(mkdtemp(root));
    numa_read(&t, root, &allowed);
    CHECK_INT(t.n_nodes, 1); /* nothing there: one node */
    write_file(root, NODES "online", "0-2,4\n");
    write_file(root, NODES "node0/cpulist", "0-3,8-9\n");
    write_file(root, NODES "node1/cpulist", "\n");
    write_file(root, NODES "node2/cpulist", "4,6,10-4000000000\n");
    write_file(root, NODES "node3/cpulist", "5\n"); /* not online */
    write_file(root, NODES "node4/cpulist", "12-15\n");
    numa_read(&t, root, &allowed);
    CHECK_INT(t.n_nodes, 2);
    CHECK_INT(t.nodes[0].id, 0);
    CHECK_INT(t.nodes[0].n_cpus, 6);
    CHECK(CPU_ISSET(9, &t.nodes[0].cpus) && !CPU_ISSET(4, &t.nodes[0].cpus));
    CHECK_INT(t.nodes[1].id, 2);
    CHECK_INT(t.nodes[1].n_cpus, 4); /* 4, 6, 10, 11 */
    allowed = cpus_below(4);
    numa_read(&t, root, &allowed);
    CHECK_INT(t.n_nodes, 1);
    write_file(root, NODES "node0/cpulist", "nonsense");
    write_file(root, NODES "online", "-3");
    numa_read(&t, root, &allowed);
    CHECK_INT(t.n_nodes, 1);
    snprintf(remove, sizeof remove, "rm -r %s", root);
    CHECK_INT(system(remove), 0);
    numa_read_system(&t);
    CHECK(t.n_nodes >= 1 && t.n_nodes <= NUMA_MAX_NODES);
}

static numa_topology nodes_of(int n, const int *n_cpus)
{
    numa_topology t = {.n_nodes = n};
    for (int i = 0; i < n; i++) t.nodes[i] = (numa_node){.id = i, .n_cpus = n_cpus[i]};
    return t;
}

/* Items go to the nodes in order and in proportion; many items and few fall alike. */
static void test_shares(void)
{
    const numa_topology one = nodes_of(1, (int[]){4}), two = nodes_of(2, (int[]){8, 8}), odd = nodes_of(3, (int[]){2, 4, 2});
    CHECK_INT(numa_node_of(&one, 5, 7), 0);
    for (size_t i = 0; i < 8; i++) CHECK_INT(numa_node_of(&two, i, 8), i < 4 ? 0 : 1);
    CHECK_INT(numa_node_of(&two, 0, 3), 0);
    CHECK_INT(numa_node_of(&two, 2, 3), 1);
    CHECK_INT(numa_node_of(&two, 0, 1) + 0, numa_node_of(&two, 50, 101)); /* in the middle, whatever the number */
    for (size_t i = 0; i < 64; i++) CHECK_INT(numa_node_of(&odd, i, 64), i < 16 ? 0 : i < 48 ? 1 : 2);
    for (size_t n = 1; n < 40; n++) {
        for (size_t i = 1; i < n; i++) CHECK(numa_node_of(&odd, i, n) >= numa_node_of(&odd, i - 1, n));
    }
}

/* Up to two nodes of the processors that there are; a single processor is in both. */
static numa_topology split_own(void)
{
    cpu_set_t own;
    numa_topology t = {.n_nodes = 2};
    CHECK_INT(sched_getaffinity(0, sizeof own, &own), 0);
    int n = CPU_COUNT(&own), seen = 0;
    for (size_t i = 0; i < CPU_SETSIZE; i++) {
        if (!CPU_ISSET(i, &own)) continue;
        if (seen < (n + 1) / 2) CPU_SET(i, &t.nodes[0].cpus);
        if (seen >= n / 2) CPU_SET(i, &t.nodes[1].cpus);
        seen++;
    }
    for (int i = 0; i < 2; i++) t.nodes[i].n_cpus = CPU_COUNT(&t.nodes[i].cpus);
    t.nodes[1].id = 1000; /* there is no such memory: binding must be refused or harmless, never needed */
    return t;
}

typedef struct where {
    atomic_int n_arrived;
    int n_threads;
    cpu_set_t cpus[4];
} where;

/* All items wait for each other, so each thread has one. */
static void where_item(void *ctx, size_t item, int worker)
{
    where *w = ctx;
    (void)item;
    sched_getaffinity(0, sizeof w->cpus[0], &w->cpus[worker]);
    atomic_fetch_add(&w->n_arrived, 1);
    while (atomic_load(&w->n_arrived) < w->n_threads) sched_yield();
}

static void test_workers_are_pinned(void)
{
    numa_topology t = split_own(), one = {.n_nodes = 1};
    cpu_set_t own;
    sched_getaffinity(0, sizeof own, &own);
    for (int on_one = 0; on_one < 2; on_one++) {
        spw_pool *p = NULL;
        spw_err err;
        where w = {.n_threads = 4};
        CHECK_OK(pool_create_on(&p, 4, on_one ? &one : &t, &err), err);
        CHECK_INT(pool_numa(p)->n_nodes, on_one ? 1 : 2);
        pool_run(p, 4, where_item, &w);
        for (int i = 0; i < 4; i++) CHECK(CPU_EQUAL(&w.cpus[i], i == 0 || on_one ? &own : &t.nodes[i / 2].cpus)); /* never the caller */
        pool_free(p);
    }
}

static void test_memory(void)
{
    const size_t bytes = 4 << 20;
    numa_topology t = split_own(), one = {.n_nodes = 1};
    char *p = mem_reserve(bytes);
    CHECK(p);
    CHECK(numa_prefer(&one, p, bytes, 0));
    numa_prefer(&t, p, bytes / 2, 0); /* a system without nodes may refuse */
    CHECK(!numa_prefer(&t, p + bytes / 2, bytes / 2, 1));
    CHECK(numa_prefer(&t, p + 1, 4096, 1)); /* no whole page */
    memset(p, 1, bytes);
    mem_unreserve(p, bytes);
}

int main(void)
{
    RUN(test_read);
    RUN(test_shares);
    RUN(test_workers_are_pinned);
    RUN(test_memory);
    return test_done();
}
