/* system.c - reads memory limits from /proc and /sys.
 *
 * Anything that is missing or unreadable is no limit: a container shows only part of these files.  Nothing here allocates. */
#include "system.h"

#include <fcntl.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#define FILE_BYTES 16384 /* more than any of these files has */

/* How the two versions of control groups name the same things. */
typedef struct cgroup_names {
    const char *mount, *limit, *usage, *inactive, *active;
} cgroup_names;

static const cgroup_names cgroup_v2 = {"/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file", "active_file"};
static const cgroup_names cgroup_v1 = {"/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file",
                                       "total_active_file"};

static uint64_t min_u64(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/* The text of a small file, cut at FILE_BYTES - 1; false when it cannot be read. */
static bool read_text(const char *path, char text[FILE_BYTES])
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return false;
    size_t len = 0;
    for (ssize_t n; len < FILE_BYTES - 1 && (n = read(fd, text + len, FILE_BYTES - 1 - len)) > 0;) len += (size_t)n;
    close(fd);
    text[len] = '\0';
    return len > 0;
}

/* The text after `key` where that begins a line, or NULL. */
static const char *find_line(const char *text, const char *key)
{
    size_t len = strlen(key);
    while (text) {
        if (!strncmp(text, key, len)) return text + len;
        text = strchr(text, '\n');
        if (text) text++;
    }
    return NULL;
}

/* A decimal number at the start of text, after blanks; false for other text ("max"). */
static bool parse_u64(const char *text, uint64_t *value)
{
    char *end;
    if (!text) return false;
    text += strspn(text, " \t");
    if (*text < '0' || *text > '9') return false;
    *value = strtoull(text, &end, 10);
    return true;
}

static bool read_u64(const char *dir, const char *name, uint64_t *value)
{
    char path[4200], text[FILE_BYTES];
    int len = snprintf(path, sizeof path, "%s/%s", dir, name);
    return len > 0 && (size_t)len < sizeof path && read_text(path, text) && parse_u64(text, value);
}

/* File cache of the group, which the kernel gives back before the group runs out. */
static uint64_t cgroup_cache(const char *dir, const cgroup_names *names)
{
    char path[4200], text[FILE_BYTES], key[64];
    const char *const parts[2] = {names->inactive, names->active};
    uint64_t sum = 0;
    int len = snprintf(path, sizeof path, "%s/memory.stat", dir);
    if (len < 0 || (size_t)len >= sizeof path || !read_text(path, text)) return 0;
    for (int i = 0; i < 2; i++) {
        uint64_t bytes;
        snprintf(key, sizeof key, "%s ", parts[i]);
        if (parse_u64(find_line(text, key), &bytes)) sum += bytes;
    }
    return sum;
}

/* What one group leaves; UINT64_MAX when it has no limit. */
static uint64_t cgroup_left(const char *dir, const cgroup_names *names)
{
    uint64_t limit, usage;
    if (!read_u64(dir, names->limit, &limit) || !read_u64(dir, names->usage, &usage)) return UINT64_MAX;
    usage -= min_u64(usage, cgroup_cache(dir, names));
    return limit > usage ? limit - usage : 0;
}

/* The smallest of what the group at path and all groups above it leave.  Below a container's own mount the path may not exist: then
 * only the mount's top is there, and that is the container's group. */
static uint64_t cgroup_path_left(const char *root, const char *path, size_t path_len, const cgroup_names *names)
{
    char dir[4096];
    uint64_t left = UINT64_MAX;
    int len = snprintf(dir, sizeof dir, "%s%s", root, names->mount);
    if (len < 0 || (size_t)len + path_len >= sizeof dir) return UINT64_MAX;
    size_t mount_len = (size_t)len, end = mount_len + path_len;
    memcpy(dir + mount_len, path, path_len);
    for (;;) {
        while (end > mount_len && dir[end - 1] == '/') end--;
        dir[end] = '\0';
        left = min_u64(left, cgroup_left(dir, names));
        if (end == mount_len) return left;
        while (end > mount_len && dir[end - 1] != '/') end--;
    }
}

/* /proc/self/cgroup has a line "0::/path" for version 2, and "N:controllers:/path" for each hierarchy of version 1. */
static uint64_t cgroups_left(const char *root)
{
    char path[4200], text[FILE_BYTES];
    uint64_t left = UINT64_MAX;
    int len = snprintf(path, sizeof path, "%s/proc/self/cgroup", root);
    if (len < 0 || (size_t)len >= sizeof path || !read_text(path, text)) return UINT64_MAX;
    for (char *line = text; *line;) {
        char *end = line + strcspn(line, "\n"), *next = *end ? end + 1 : end;
        *end = '\0';
        char *controllers = strchr(line, ':'), *group = controllers ? strchr(controllers + 1, ':') : NULL;
        if (group) {
            *group++ = '\0';
            controllers++;
            bool is_v1 = !strcmp(controllers, "memory") || !strncmp(controllers, "memory,", 7) || strstr(controllers, ",memory");
            if (is_v1) left = min_u64(left, cgroup_path_left(root, group, strlen(group), &cgroup_v1));
            else if (!*controllers) left = min_u64(left, cgroup_path_left(root, group, strlen(group), &cgroup_v2));
        }
        line = next;
    }
    return left;
}

uint64_t system_memory_below(const char *root)
{
    char path[4200], text[FILE_BYTES];
    uint64_t kib, left = UINT64_MAX;
    int len = snprintf(path, sizeof path, "%s/proc/meminfo", root);
    if (len > 0 && (size_t)len < sizeof path && read_text(path, text) && parse_u64(find_line(text, "MemAvailable:"), &kib)) left = kib * 1024;
    return min_u64(left, cgroups_left(root));
}

/* The first number of statm is the size of the address space in pages. */
static uint64_t address_space_left(void)
{
    struct rlimit limit;
    uint64_t pages;
    if (getrlimit(RLIMIT_AS, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY || !read_u64("/proc/self", "statm", &pages)) return UINT64_MAX;
    uint64_t used = pages * (uint64_t)sysconf(_SC_PAGESIZE);
    return limit.rlim_cur > used ? limit.rlim_cur - used : 0;
}

uint64_t system_memory_available(void)
{
    return min_u64(system_memory_below(""), address_space_left());
}

int system_n_cores(void)
{
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) > 0) return CPU_COUNT(&set);
    long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n > 0 ? (int)n : 1;
}
