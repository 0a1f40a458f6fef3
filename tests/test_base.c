/* test_base.c - messages, memory and its fault injection, sizes, hash, and the limits of the system. */
#include "test.h"

#include <limits.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "mem.h"
#include "status.h"
#include "system.h"

/* ------------------------------------------------------------------------------------- status ---- */

static void test_fail_fills(void)
{
    spw_err err = {.code = SPW_OK};
    CHECK_INT(spw_fail(&err, SPW_E_FORMAT, "tensor %s has %d dimensions, not %d", "a.b", 5, 4), SPW_E_FORMAT);
    CHECK_INT(err.code, SPW_E_FORMAT);
    CHECK_STR(err.msg, "tensor a.b has 5 dimensions, not 4");
    CHECK_INT(spw_fail(NULL, SPW_E_IO, "nobody listens to %s", "this"), SPW_E_IO);
}

static void test_fail_is_one_line(void)
{
    spw_err err;
    spw_fail(&err, SPW_E_FORMAT, "key '%s' is bad", "a\nb\rc\td\033[31m\177e");
    CHECK_STR(err.msg, "key 'a?b?c?d?[31m?e' is bad");
    spw_fail(&err, SPW_E_FORMAT, "caf\xc3\xa9 \xe4\xb8\xad \xc2\xa0 \xc2\x9b[2J \xc2\x80\xc2\x9f \xc2");
    CHECK_STR(err.msg, "caf\xc3\xa9 \xe4\xb8\xad \xc2\xa0 ??[2J ???? \xc2");
}

static void test_fail_quotes_itself(void)
{
    spw_err err;
    spw_fail(&err, SPW_E_IO, "cannot read");
    spw_fail(&err, err.code, "model.gguf: %s", err.msg);
    CHECK_STR(err.msg, "model.gguf: cannot read");
}

static void test_fail_cuts(void)
{
    spw_err err;
    char text[2000];
    memset(text, 'x', sizeof text);
    text[sizeof err.msg - 1] = '\0';
    spw_fail(&err, SPW_E_ARG, "%s", text); /* just fits */
    CHECK_STR(err.msg, text);
    text[sizeof err.msg - 1] = 'x', text[sizeof text - 1] = '\0';
    spw_fail(&err, SPW_E_ARG, "%s", text);
    CHECK_INT(strlen(err.msg), sizeof err.msg - 1);
    CHECK_STR(err.msg + sizeof err.msg - 5, "x...");
    /* At every alignment a cut between characters, never inside one. */
    for (size_t shift = 0; shift < 4; shift++) {
        memset(text, 'y', shift);
        for (size_t i = shift; i + 3 < sizeof text; i += 3) memcpy(text + i, "\xe4\xb8\xad", 4);
        spw_fail(&err, SPW_E_ARG, "%s", text);
        size_t len = strlen(err.msg);
        CHECK(len < sizeof err.msg && len >= sizeof err.msg - 4);
        CHECK_STR(err.msg + len - 3, "...");
        CHECK_INT((len - 3 - shift) % 3, 0);
    }
}

static void test_version(void)
{
    CHECK_STR(spw_version(), SPW_VERSION);
}

/* ---------------------------------------------------------------------------------------- mem ---- */

static void test_mem_counts(void)
{
    size_t before = mem_in_use();
    void *p = mem_alloc(1), *q = mem_zalloc(1000), *r = mem_calloc(3, 7);
    CHECK(p && q && r);
    CHECK_INT(mem_in_use() - before, 1 + 1000 + 21);
    mem_free(q);
    CHECK_INT(mem_in_use() - before, 22);
    mem_free(p);
    spw_free(r);
    mem_free(NULL);
    spw_free(NULL);
    CHECK_INT(mem_in_use(), before);
}

static void test_mem_aligned_and_zero(void)
{
    for (size_t bytes = 1; bytes < 300; bytes++) {
        unsigned char *p = mem_zalloc(bytes);
        CHECK(p && (uintptr_t)p % MEM_ALIGN == 0);
        if (!p) continue;
        for (size_t i = 0; i < bytes; i++) CHECK(p[i] == 0);
        memset(p, 0xee, bytes); /* the next zeroed block likely reuses it */
        mem_free(p);
    }
}

static void test_mem_refuses(void)
{
    size_t before = mem_in_use();
    CHECK(!mem_alloc(0));
    CHECK(!mem_zalloc(0));
    CHECK(!mem_calloc(0, 8));
    CHECK(!mem_calloc(SIZE_MAX / 8 + 1, 8));
    CHECK(!mem_alloc(SIZE_MAX));
    CHECK(!mem_alloc(SIZE_MAX - MEM_ALIGN + 1));
    CHECK(!mem_strndup("", SIZE_MAX));
    CHECK(!mem_reserve(0));
    CHECK(!mem_reserve(SIZE_MAX - ((size_t)2 << 20) + 1));
    CHECK(!mem_reserve((size_t)1 << 62));
    CHECK_INT(mem_in_use(), before);
}

static void test_mem_realloc(void)
{
    size_t before = mem_in_use();
    char *p = mem_realloc(NULL, 0, 4);
    CHECK(p);
    if (!p) return;
    memcpy(p, "abc", 4);
    char *q = mem_realloc(p, 4, 4000);
    CHECK_STR(q, "abc");
    CHECK_INT(mem_in_use() - before, 4000);
    mem_fail_after(0, false);
    CHECK(!mem_realloc(q, 4000, 8000));
    CHECK_STR(q, "abc");
    q = mem_realloc(q, 4000, 2);
    CHECK(q && q[0] == 'a' && q[1] == 'b');
    mem_free(q);
    CHECK_INT(mem_in_use(), before);
}

static void test_mem_strndup(void)
{
    char *p = mem_strndup("abcdef", 3), *q = mem_strndup(NULL, 0), *r = mem_strndup("a\0b", 3);
    CHECK_STR(p, "abc");
    CHECK_STR(q, "");
    CHECK(r && !memcmp(r, "a\0b", 4));
    mem_free(p), mem_free(q), mem_free(r);
}

static void test_mem_fail_after(void)
{
    void *p[6];
    mem_fail_after(2, false);
    for (int i = 0; i < 6; i++) p[i] = mem_alloc(8);
    for (int i = 0; i < 6; i++) CHECK((p[i] == NULL) == (i == 2)), mem_free(p[i]);
    mem_fail_after(2, true);
    for (int i = 0; i < 6; i++) p[i] = mem_alloc(8);
    CHECK(!mem_reserve((size_t)2 << 20));
    mem_fail_after(-1, false);
    for (int i = 0; i < 6; i++) CHECK((p[i] == NULL) == (i >= 2)), mem_free(p[i]);
    p[0] = mem_alloc(8);
    CHECK(p[0]);
    mem_free(p[0]);
}

/* Bytes of the address space (field 0) or resident (field 1). */
static size_t statm_bytes(int field)
{
    unsigned long pages[2] = {0, 0};
    FILE *f = fopen("/proc/self/statm", "r");
    if (!f) return 0;
    CHECK_INT(fscanf(f, "%lu %lu", &pages[0], &pages[1]), 2);
    fclose(f);
    return pages[field] * (size_t)sysconf(_SC_PAGESIZE);
}

static void test_mem_reserve(void)
{
    size_t bytes = (size_t)64 << 30, before = statm_bytes(1);
    unsigned char *p = mem_reserve(bytes);
    if (!p) {
        SKIP("test_mem_reserve", "the system refuses 64 GiB of address space");
        return;
    }
    CHECK_INT((uintptr_t)p % ((size_t)2 << 20), 0);
    CHECK(p[0] == 0 && p[bytes - 1] == 0 && p[bytes / 2] == 0);
    p[0] = 1, p[bytes - 1] = 2;
    CHECK(p[0] == 1 && p[bytes - 1] == 2);
    CHECK(test_is_emulated() || statm_bytes(1) < before + ((size_t)64 << 20)); /* an emulator keeps tables of what is mapped */
    mem_unreserve(p, bytes);
    mem_unreserve(NULL, bytes);
}

/* The huge page that is mapped too much for the alignment is given back, and so is all of it. */
static void test_mem_reserve_trims(void)
{
    enum { n = 200 };
    const size_t bytes = (size_t)2 << 20, slack = (size_t)16 << 20;
    void *p[n], *between[n]; /* mappings of growing size between the reservations, so that those start anywhere */
    size_t before = statm_bytes(0), extra = 0;
    for (int i = 0; i < n; i++) {
        size_t size = (size_t)(i + 1) << 12;
        p[i] = mem_reserve(bytes);
        between[i] = mmap(NULL, size, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        extra += size;
        CHECK(p[i] && between[i] != MAP_FAILED);
    }
    CHECK(statm_bytes(0) < before + n * bytes + extra + slack);
    for (int i = 0; i < n; i++) mem_unreserve(p[i], bytes), munmap(between[i], (size_t)(i + 1) << 12);
    CHECK(statm_bytes(0) < before + slack);
}

static void test_sizes(void)
{
    size_t out = 7, big = SIZE_MAX;
    CHECK(add_size(big - 5, 5, &out) && out == big);
    CHECK(!add_size(big - 5, 6, &out) && out == big);
    CHECK(!add_size(big, big, &out));
    CHECK(add_size(0, 0, &out) && out == 0);
    CHECK(mul_size(big, 1, &out) && out == big);
    CHECK(mul_size(big, 0, &out) && out == 0);
    CHECK(mul_size(0, big, &out) && out == 0);
    CHECK(mul_size(big / 3, 3, &out) && out == big / 3 * 3);
    out = 7;
    CHECK(!mul_size(big / 3 + 1, 3, &out) && out == 7);
    CHECK(!mul_size((size_t)1 << (sizeof(size_t) * 4), (size_t)1 << (sizeof(size_t) * 4), &out) && out == 7);
}

/* --------------------------------------------------------------------------------------- hash ---- */

static int count_bits(uint64_t x)
{
    int n = 0;
    for (; x; x &= x - 1) n++;
    return n;
}

static void test_hash_is_fixed(void)
{
    /* Published values: a hash that changes makes every recorded one useless. */
    CHECK(spw_hash(0, NULL, 0) == UINT64_C(0x1176da9e29601ab2));
    CHECK(spw_hash(1, "spillway", 8) == UINT64_C(0x08e674cf1d4ba081));
    CHECK(spw_hash(2, "a hash of bytes", 15) == UINT64_C(0x78c8d44a7d1b462e));
}

static void test_hash_sees_everything(void)
{
    unsigned char data[40] = {0};
    uint64_t seen[41 + 320 + 2];
    size_t n = 0;
    for (size_t len = 0; len <= 40; len++) seen[n++] = spw_hash(0, data, len); /* zeros of each length */
    int flipped = 0;
    for (size_t bit = 0; bit < 320; bit++) {
        data[bit / 8] ^= (unsigned char)(1 << bit % 8);
        seen[n] = spw_hash(0, data, 40);
        flipped += count_bits(seen[n] ^ seen[40]);
        data[bit / 8] ^= (unsigned char)(1 << bit % 8);
        n++;
    }
    seen[n++] = spw_hash(1, data, 40);
    seen[n++] = spw_hash(spw_hash(0, data, 20), data, 20);
    for (size_t i = 0; i < n; i++) {
        for (size_t j = 0; j < i; j++) CHECK(seen[i] != seen[j]);
    }
    CHECK_NEAR(flipped / 320.0, 32, 1); /* one bit of input changes half of the output's */
}

static void test_hash_misaligned(void)
{
    char data[80];
    for (size_t i = 0; i < sizeof data; i++) data[i] = (char)(i % 19);
    for (size_t len = 0; len < 30; len++) CHECK(spw_hash(5, data, len) == spw_hash(5, data + 19, len));
}

/* ------------------------------------------------------------------------------------- system ---- */

static void write_file(const char *root, const char *name, const char *text)
{
    char path[400];
    snprintf(path, sizeof path, "%s/%s", root, name);
    for (char *slash = path + strlen(root) + 1; (slash = strchr(slash, '/')); slash++) {
        *slash = '\0';
        mkdir(path, 0700);
        *slash = '/';
    }
    FILE *f = fopen(path, "w");
    CHECK(f);
    if (!f) return;
    fputs(text, f);
    fclose(f);
}

static void remove_tree(const char *root)
{
    char command[400];
    snprintf(command, sizeof command, "rm -rf '%s'", root);
    CHECK_INT(system(command), 0);
}

static void test_system_cgroup_v2(void)
{
    char root[] = "/tmp/spw-test-XXXXXX";
    CHECK(mkdtemp(root));
    CHECK(system_memory_below(root) == UINT64_MAX);
    write_file(root, "proc/meminfo", "MemTotal:   4000000 kB\nMemFree:  10 kB\nMemAvailable:    3000000 kB\n");
    CHECK_INT(system_memory_below(root), 3000000ll * 1024);
    write_file(root, "proc/self/cgroup", "0::/outer/inner\n");
    write_file(root, "sys/fs/cgroup/outer/memory.max", "2000000000\n");
    write_file(root, "sys/fs/cgroup/outer/memory.current", "500000000\n");
    write_file(root, "sys/fs/cgroup/outer/inner/memory.max", "max\n");
    write_file(root, "sys/fs/cgroup/outer/inner/memory.current", "400000000\n");
    CHECK_INT(system_memory_below(root), 1500000000);
    write_file(root, "sys/fs/cgroup/outer/memory.stat", "anon 1\nfile 999999999\ninactive_file 100000000\nactive_file 200000000\n");
    CHECK_INT(system_memory_below(root), 1800000000);
    write_file(root, "sys/fs/cgroup/outer/inner/memory.max", "300000000\n");
    CHECK_INT(system_memory_below(root), 0); /* more used than the limit says */
    write_file(root, "sys/fs/cgroup/outer/inner/memory.max", "1000000000\n");
    CHECK_INT(system_memory_below(root), 600000000);
    /* A container sees its group at the top of the mount, whatever the path says. */
    write_file(root, "proc/self/cgroup", "0::/not/here/\n");
    write_file(root, "sys/fs/cgroup/memory.max", "700\n");
    write_file(root, "sys/fs/cgroup/memory.current", "300\n");
    CHECK_INT(system_memory_below(root), 400);
    remove_tree(root);
}

static void test_system_cgroup_v1(void)
{
    char root[] = "/tmp/spw-test-XXXXXX";
    CHECK(mkdtemp(root));
    write_file(root, "proc/self/cgroup", "5:cpu,cpuacct:/x\n4:memory:/job\n1:name=systemd:/y\nbad line\n");
    write_file(root, "sys/fs/cgroup/memory/job/memory.limit_in_bytes", "5000\n");
    write_file(root, "sys/fs/cgroup/memory/job/memory.usage_in_bytes", "4000\n");
    write_file(root, "sys/fs/cgroup/memory/job/memory.stat", "inactive_file 7\ntotal_inactive_file 1000\ntotal_active_file 500\n");
    CHECK_INT(system_memory_below(root), 2500);
    write_file(root, "sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
    write_file(root, "sys/fs/cgroup/memory/memory.usage_in_bytes", "4000\n");
    CHECK_INT(system_memory_below(root), 2500);
    remove_tree(root);
}

/* A sanitizer maps more than any limit leaves. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED 1
#endif
#endif

#ifndef SANITIZED
/* In a child, because a limit that is lowered may not be raised again. */
static void test_system_address_space(void)
{
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        struct rlimit limit = {(rlim_t)1 << 30, (rlim_t)1 << 30};
        if (setrlimit(RLIMIT_AS, &limit) != 0) _exit(1);
        uint64_t left = system_memory_available();
        if (left >= (uint64_t)1 << 30 || left < (uint64_t)100 << 20) _exit(2);
        if (mem_reserve((size_t)2 << 30)) _exit(3);
        void *p = mem_reserve((size_t)256 << 20);
        if (!p) _exit(4);
        uint64_t less = system_memory_available();
        _exit(left - less < ((uint64_t)256 << 20) || left - less > ((uint64_t)264 << 20) ? 5 : 0);
    }
    int status = -1;
    CHECK(pid > 0 && waitpid(pid, &status, 0) == pid);
    CHECK(WIFEXITED(status));
    CHECK_INT(WEXITSTATUS(status), 0);
}
#endif

static void test_system_real(void)
{
    uint64_t bytes = system_memory_available();
    CHECK(bytes > (uint64_t)1 << 20);
    CHECK(system_n_cores() >= 1);
    CHECK(system_n_cores() <= sysconf(_SC_NPROCESSORS_CONF));
}

int main(void)
{
    RUN(test_fail_fills);
    RUN(test_fail_is_one_line);
    RUN(test_fail_quotes_itself);
    RUN(test_fail_cuts);
    RUN(test_version);
    RUN(test_mem_counts);
    RUN(test_mem_aligned_and_zero);
    RUN(test_mem_refuses);
    RUN(test_mem_realloc);
    RUN(test_mem_strndup);
    RUN(test_mem_fail_after);
    RUN(test_mem_reserve);
    RUN(test_mem_reserve_trims);
    RUN(test_sizes);
    RUN(test_hash_is_fixed);
    RUN(test_hash_sees_everything);
    RUN(test_hash_misaligned);
    RUN(test_system_cgroup_v2);
    RUN(test_system_cgroup_v1);
#ifdef SANITIZED
    SKIP("test_system_address_space", "a sanitizer maps more than any limit");
#else
    if (test_is_emulated()) SKIP("test_system_address_space", "the emulator applies no limit");
    else RUN(test_system_address_space);
#endif
    RUN(test_system_real);
    return test_done();
}
