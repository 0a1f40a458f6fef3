/* measure_cache.c - what was measured of a machine, kept in a file of the user's cache folder.
 *
 * A file that does not read back exactly as it would be written, or that speaks of another machine, is as good as none: it is measured again and
 * written anew. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "measure.h"

enum { CACHE_VERSION = 1, CACHE_BYTES = 1024 };

/* Letters and digits stay, everything else becomes one dash. */
static void append_name(char *to, size_t size, const char *name)
{
    size_t n = strlen(to);
    for (; *name && n + 1 < size; name++) {
        bool plain = (*name >= 'a' && *name <= 'z') || (*name >= 'A' && *name <= 'Z') || (*name >= '0' && *name <= '9');
        if (plain) to[n++] = *name;
        else if (n && to[n - 1] != '-' && to[n - 1] != '/') to[n++] = '-';
    }
    to[n] = '\0';
}

bool measure_cache_path(char *path, size_t size, const char *model, const char *isa)
{
    const char *off = getenv("SPILLWAY_CACHE"), *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    char name[128] = "";
    int n;
    if (off && !strcmp(off, "off")) return false;
    append_name(name, sizeof name, model);
    append_name(name, sizeof name, "-");
    append_name(name, sizeof name, isa);
    if (cache && cache[0] == '/') n = snprintf(path, size, "%s/spillway/machine-%s.json", cache, name);
    else if (home && home[0] == '/') n = snprintf(path, size, "%s/.cache/spillway/machine-%s.json", home, name);
    else return false;
    return n > 0 && (size_t)n < size;
}

/* Quotes, backslashes and control characters of a name would need escapes. */
static bool is_plain(const char *s)
{
    for (; *s; s++)
        if ((unsigned char)*s < 32 || *s == '"' || *s == '\\') return false;
    return true;
}

static int format_cache(char *text, size_t size, const spw_machine *m)
{
    return snprintf(text, size,
                    "{\"version\": %d, \"model\": \"%s\", \"host\": \"%s\", \"isa\": \"%s\", \"threads\": %d,\n \"read_one\": %.6g, \"read_all\": %.6g, "
                    "\"l2_read\": %.6g, \"f32_peak\": %.6g, \"int8_peak\": %.6g, \"bf16_peak\": %.6g,\n \"hint\": \"%s\", \"ahead\": %u, \"tile\": %u, "
                    "\"arithmetic\": \"%s\"}\n",
                    CACHE_VERSION, m->model, m->host, m->isa, m->threads, m->read_one, m->read_all, m->l2_read, m->f32_peak, m->int8_peak, m->bf16_peak,
                    m->hint, m->ahead, m->tile, m->arithmetic);
}

/* The number or quoted text behind "key": */
static const char *find_value(const char *text, const char *key)
{
    char quoted[32];
    snprintf(quoted, sizeof quoted, "\"%s\": ", key);
    const char *at = strstr(text, quoted);
    return at ? at + strlen(quoted) : NULL;
}

static double real_value(const char *text, const char *key)
{
    const char *v = find_value(text, key);
    return v ? strtod(v, NULL) : -1;
}

static void text_value(const char *text, const char *key, char *out, size_t size)
{
    const char *v = find_value(text, key);
    size_t n = v && *v == '"' ? strcspn(v + 1, "\"") : 0;
    if (n >= size) n = 0;
    if (n) memcpy(out, v + 1, n);
    out[n] = '\0';
}

static uint32_t count_value(const char *text, const char *key)
{
    double v = real_value(text, key);
    return v >= 0 && v <= 1e9 ? (uint32_t)v : 0;
}

static bool is_sane(const spw_machine *m)
{
    bool known = !strcmp(m->hint, "none") || !strcmp(m->hint, "T0") || !strcmp(m->hint, "T1");
    return known && !strcmp(m->arithmetic, "f32") && m->ahead <= KERN_AHEAD && m->tile > 0 && m->read_one > 0 && m->read_all > 0 && m->l2_read > 0 && m->f32_peak > 0 &&
           m->int8_peak >= 0 && m->bf16_peak >= 0;
}

bool measure_cache_read(const char *path, spw_machine *m)
{
    char text[CACHE_BYTES + 1], again[CACHE_BYTES + 1];
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return false;
    ssize_t n = read(fd, text, CACHE_BYTES);
    close(fd);
    if (n <= 0 || memchr(text, '\0', (size_t)n)) return false;
    text[n] = '\0';
    spw_machine r = *m;
    r.threads = (int)count_value(text, "threads");
    r.read_one = real_value(text, "read_one"), r.read_all = real_value(text, "read_all"), r.l2_read = real_value(text, "l2_read");
    r.f32_peak = real_value(text, "f32_peak"), r.int8_peak = real_value(text, "int8_peak"), r.bf16_peak = real_value(text, "bf16_peak");
    text_value(text, "hint", r.hint, sizeof r.hint);
    text_value(text, "arithmetic", r.arithmetic, sizeof r.arithmetic);
    r.ahead = count_value(text, "ahead"), r.tile = count_value(text, "tile");
    /* Model, host, kernels and version are compared here as well: they are m's, not the file's. */
    int len = format_cache(again, sizeof again, &r);
    if (len != n || strcmp(text, again) || !is_sane(&r)) return false;
    r.cached = true;
    *m = r;
    return true;
}

static bool write_all(int fd, const char *text, size_t len)
{
    while (len > 0) {
        ssize_t n = write(fd, text, len);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return false;
        text += n, len -= (size_t)n;
    }
    return true;
}

/* Makes the folders that path lies in, as far as they are missing. */
static void make_folders(char *path)
{
    for (char *slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        mkdir(path, 0700);
        *slash = '/';
    }
}

bool measure_cache_write(const char *path, const spw_machine *m)
{
    char text[CACHE_BYTES], temp[4096];
    int len = format_cache(text, sizeof text, m), n = snprintf(temp, sizeof temp, "%s.%ld", path, (long)getpid());
    if (len < 0 || (size_t)len >= sizeof text || n < 0 || (size_t)n >= sizeof temp || !is_plain(m->model) || !is_plain(m->host)) return false;
    make_folders(temp);
    int fd = open(temp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0) return false;
    bool ok = write_all(fd, text, (size_t)len);
    ok = close(fd) == 0 && ok;
    ok = ok && rename(temp, path) == 0;
    if (!ok) unlink(temp);
    return ok;
}
