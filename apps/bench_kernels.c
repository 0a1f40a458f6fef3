/* bench_kernels.c - spillway bench --kernels and --machine: the library's own measurements as tables or JSON.
 *
 * Records are printed as they come in the table; JSON is one object at the end. */
#include "bench_kernels.h"

#include <stdio.h>
#include <string.h>

#include "report.h"

/* Clean samples below which a record is marked. */
enum { FEW_CLEAN = 3 };

typedef struct kernel_run {
    json_t *list; /* NULL: a table is printed */
    int n_doubtful;
} kernel_run;

static json_t *real_or_null(double v)
{
    return v > 0 ? report_real(v) : json_null();
}

static json_t *record_json(const spw_bench_record *r)
{
    json_t *o = json_object();
    json_object_set_new(o, "kernel", json_string(r->kernel));
    json_object_set_new(o, "type", json_string(r->type));
    json_object_set_new(o, "g", json_integer(r->g));
    json_object_set_new(o, "head_dim", json_integer(r->head_dim));
    json_object_set_new(o, "block", json_integer(r->block));
    if (r->n) json_object_set_new(o, "n", json_integer(r->n));
    json_object_set_new(o, "threads", json_integer(r->threads));
    if (r->us > 0) json_object_set_new(o, "us", report_real(r->us));
    else json_object_set_new(o, r->is_ops ? "gops" : "gbps", report_real(r->rate));
    json_object_set_new(o, "raw_gbps", real_or_null(r->raw_gbps));
    json_object_set_new(o, "l2_gbps", real_or_null(r->l2_gbps));
    json_object_set_new(o, "l2_peak", real_or_null(r->l2_peak));
    json_object_set_new(o, "roof", real_or_null(r->roof));
    json_object_set_new(o, "share", real_or_null(r->share));
    json_object_set_new(o, "samples", json_integer(r->n_samples));
    json_object_set_new(o, "clean", json_integer(r->n_clean));
    return o;
}

static void print_real(double v, int width, int places)
{
    if (v > 0) printf(" %*.*f", width, places, v);
    else printf(" %*s", width, "-");
}

static void print_record(const spw_bench_record *r)
{
    printf("%-12s %-5s %2u %5u %3u %3d", r->kernel, r->type, r->g, r->n ? r->n : r->head_dim, r->block, r->threads);
    print_real(r->us > 0 ? r->us : r->rate, 8, r->us > 0 ? 2 : 1);
    printf(" %-4s", r->us > 0 ? "us" : r->is_ops ? "Gop" : "GB");
    print_real(r->raw_gbps, 7, 1);
    print_real(r->l2_gbps, 7, 1);
    print_real(r->l2_peak, 6, 2);
    print_real(r->roof, 7, 1);
    print_real(r->share, 6, 2);
    printf("%s\n", r->n_clean < FEW_CLEAN ? "  *" : "");
    fflush(stdout);
}

static bool take_record(void *ctx, const spw_bench_record *r)
{
    kernel_run *run = ctx;
    run->n_doubtful += r->n_clean < FEW_CLEAN;
    if (run->list) json_array_append_new(run->list, record_json(r));
    else print_record(r);
    return true;
}

static int print_failure(const spw_err *err)
{
    report_error("bench", "%s", err->msg);
    return EXIT_FAILED;
}

int bench_kernels_main(const options *o)
{
    spw_bench_params p = spw_bench_default_params();
    kernel_run run = {.list = o->json ? json_array() : NULL};
    spw_err err;
    p.n_threads = (int)o->threads;
    if (!o->json) {
        printf("%-12s %-5s %2s %5s %3s %3s %8s %-4s %7s %7s %6s %7s %6s\n", "kernel", "type", "g", "dim/n", "blk", "thr", "rate", "/s", "raw", "L2", "L2peak",
               "roof", "share");
    }
    if (spw_bench_kernels(&p, take_record, &run, &err)) {
        json_decref(run.list);
        return print_failure(&err);
    }
    if (o->json) {
        json_t *v = json_object();
        json_object_set_new(v, "kernels", run.list);
        json_object_set_new(v, "doubtful", json_integer(run.n_doubtful));
        return report_json("bench", v, JSON_COMPACT);
    }
    if (run.n_doubtful)
        printf("\n* fewer than %d samples were undisturbed: the machine is busy, and this figure may be anything.  %d such.\n", FEW_CLEAN, run.n_doubtful);
    return report_finish("bench");
}

static int print_machine_json(const spw_machine *m)
{
    json_t *v = json_object();
    json_object_set_new(v, "model", json_string(m->model));
    json_object_set_new(v, "isa", json_string(m->isa));
    json_object_set_new(v, "hint", json_string(m->hint));
    json_object_set_new(v, "ahead", json_integer(m->ahead));
    json_object_set_new(v, "tile", json_integer(m->tile));
    json_object_set_new(v, "arithmetic", json_string(m->arithmetic));
    json_object_set_new(v, "prompt_arithmetic", json_string(m->prompt_arithmetic));
    json_object_set_new(v, "threads", json_integer(m->threads));
    json_object_set_new(v, "read_one_gbps", report_real(m->read_one));
    json_object_set_new(v, "read_all_gbps", report_real(m->read_all));
    json_object_set_new(v, "l2_gbps", report_real(m->l2_read));
    json_object_set_new(v, "f32_gops", report_real(m->f32_peak));
    json_object_set_new(v, "int8_gops", real_or_null(m->int8_peak));
    json_object_set_new(v, "bf16_gops", real_or_null(m->bf16_peak));
    json_object_set_new(v, "cached", json_boolean(m->cached));
    return report_json("bench", v, JSON_INDENT(2));
}

int bench_machine_main(const options *o)
{
    spw_machine m;
    spw_err err;
    if (spw_bench_machine(&m, (int)o->threads, &err)) return print_failure(&err);
    if (o->json) return print_machine_json(&m);
    printf("processor          %s\nkernels            %s\n", m.model, m.isa);
    printf("reading memory     %.1f GB/s by one thread, %.1f by %d\n", m.read_one, m.read_all, m.threads);
    printf("reading L2         %.1f GB/s a core\n", m.l2_read);
    printf("arithmetic         %.0f Gop/s in f32, %.0f in int8, %.0f in bf16 a core\n", m.f32_peak, m.int8_peak, m.bf16_peak);
    printf("decode attention   asks ahead: %s, %u positions; tile of %u positions; computes in %s\n", m.hint, m.ahead, m.tile, m.arithmetic);
    printf("prompt attention   computes in %s\n", m.prompt_arithmetic);
    printf("%s\n", m.cached ? "From the cache file; SPILLWAY_CACHE=off measures anew." : "Measured now.");
    return report_finish("bench");
}
