/* replay.c - the main of a fuzz target without a fuzzer: gives it every file of a folder, and each file's beginnings.
 *
 * usage: replay_x CORPUS-FOLDER
 *
 * One file is one test; a target that finds something wrong dies, and the last line printed names the file. */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* A copy that ends where the data ends, so that a sanitizer sees the first byte read beyond it. */
static void run_input(const uint8_t *data, size_t size)
{
    uint8_t *copy = malloc(size ? size : 1);
    if (!copy) exit(1);
    memcpy(copy, data, size);
    LLVMFuzzerTestOneInput(copy, size);
    free(copy);
}

/* The whole file, and some sixty of its beginnings: a parser's ends of input. */
static int run_file(const char *folder, const char *name)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *f = fopen(path, "rb");
    if (!f || fseek(f, 0, SEEK_END) != 0) {
        printf("FAIL  cannot read %s\n", path);
        if (f) fclose(f);
        return 0;
    }
    long end = ftell(f);
    size_t size = end > 0 ? (size_t)end : 0;
    uint8_t *data = malloc(size + 1);
    rewind(f);
    int ok = data && fread(data, 1, size, f) == size;
    fclose(f);
    if (ok) {
        size_t step = size / 60 + 1;
        for (size_t cut = 0; cut < size; cut += step) run_input(data, cut);
        run_input(data, size);
    }
    printf("%s  %s, %zu bytes\n", ok ? "ok  " : "FAIL", name, size);
    free(data);
    return ok;
}

static int visible(const struct dirent *d)
{
    return d->d_name[0] != '.';
}

int main(int argc, char **argv)
{
    struct dirent **entries;
    if (argc != 2) {
        fprintf(stderr, "usage: %s CORPUS-FOLDER\n", argv[0]);
        return 2;
    }
    int n = scandir(argv[1], &entries, visible, alphasort), passed = 0;
    if (n <= 0) {
        printf("FAIL  %s: no corpus\n0 passed, 1 failed, 0 skipped\n", argv[1]);
        return 1;
    }
    for (int i = 0; i < n; i++) {
        printf("      %s\n", entries[i]->d_name);
        fflush(stdout);
        passed += run_file(argv[1], entries[i]->d_name);
        free(entries[i]);
    }
    free(entries);
    printf("%d passed, %d failed, 0 skipped\n", passed, n - passed);
    return passed == n ? 0 : 1;
}
