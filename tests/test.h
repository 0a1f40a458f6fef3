/* test.h - the whole test harness: checks that count, print both values when they fail, and a closing line.
 *
 * A test program calls RUN for each of its functions and returns test_done(). */
#ifndef SPW_TEST_H
#define SPW_TEST_H

#include <inttypes.h>
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int test_n_passed, test_n_failed, test_n_skipped, test_bad; /* test_bad: failed checks of the running test */

#define CHECK(cond) ((cond) ? (void)0 : (void)(test_bad++, fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #cond)))
#define CHECK_INT(got, want)                                                                                                            \
    do {                                                                                                                                \
        long long g_ = (long long)(got), w_ = (long long)(want);                                                                       \
        if (g_ != w_) test_bad++, fprintf(stderr, "%s:%d: %s is %lld, expected %lld\n", __FILE__, __LINE__, #got, g_, w_);              \
    } while (0)
#define CHECK_STR(got, want)                                                                                                            \
    do {                                                                                                                                \
        const char *g_ = (got), *w_ = (want);                                                                                           \
        if (!g_ || strcmp(g_, w_)) test_bad++, fprintf(stderr, "%s:%d: %s is \"%s\", expected \"%s\"\n", __FILE__, __LINE__, #got, g_ ? g_ : "(null)", w_); \
    } while (0)
#define CHECK_HAS(got, part)                                                                                                            \
    do {                                                                                                                                \
        const char *g_ = (got), *w_ = (part);                                                                                           \
        if (!g_ || !strstr(g_, w_)) test_bad++, fprintf(stderr, "%s:%d: %s is \"%s\", which lacks \"%s\"\n", __FILE__, __LINE__, #got, g_ ? g_ : "(null)", w_); \
    } while (0)
#define CHECK_NEAR(got, want, tol)                                                                                                      \
    do {                                                                                                                                \
        double g_ = (double)(got), w_ = (double)(want);                                                                                 \
        if (!(fabs(g_ - w_) <= (double)(tol))) test_bad++, fprintf(stderr, "%s:%d: %s is %.9g, expected %.9g within %.3g\n", __FILE__, __LINE__, #got, g_, w_, (double)(tol)); \
    } while (0)
/* The status of a call that must succeed. */
#define CHECK_OK(call, err)                                                                                                             \
    do {                                                                                                                                \
        spw_status s_ = (call);                                                                                                         \
        if (s_ != SPW_OK) test_bad++, fprintf(stderr, "%s:%d: %s failed: %d %s\n", __FILE__, __LINE__, #call, (int)s_, (err).msg);       \
    } while (0)

/* Runs one test function (void -> void). */
#define RUN(fn)                                                                                                                         \
    do {                                                                                                                                \
        test_bad = 0;                                                                                                                   \
        fn();                                                                                                                           \
        if (test_bad) test_n_failed++, printf("FAIL  %s\n", #fn);                                                                       \
        else test_n_passed++, printf("ok    %s\n", #fn);                                                                                \
        fflush(stdout);                                                                                                                 \
    } while (0)
#define SKIP(name, why) (test_n_skipped++, (void)printf("skip  %s: %s\n", name, why))

static inline int test_done(void)
{
    printf("%d passed, %d failed, %d skipped\n", test_n_passed, test_n_failed, test_n_skipped);
    return test_n_failed ? 1 : 0;
}

/* Whether the program runs in an emulator of another processor (RUNNER of tools/run_tests.sh): slow, and its memory is the emulator's as well. */
static inline bool test_is_emulated(void)
{
    return getenv("TEST_EMULATED") != NULL;
}

/* xorshift64*: the tests' random numbers; seed must not be 0. */
static inline uint64_t test_rand(uint64_t *state)
{
    uint64_t x = *state;
    x ^= x >> 12, x ^= x << 25, x ^= x >> 27;
    *state = x;
    return x * 2685821657736338717u;
}
static inline float test_uniform(uint64_t *state) /* [-1, 1) */
{
    return (float)((double)(test_rand(state) >> 11) / 4503599627370496.0 - 1.0);
}

#endif
