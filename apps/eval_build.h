/* eval_build.h - what the makers of eval's texts share: one build of a sample, and words, numbers and names to put into it.  Only eval_tasks.c and eval_ruler.c
 * need it. */
#ifndef SPW_APP_EVAL_BUILD_H
#define SPW_APP_EVAL_BUILD_H

#include "eval_tasks.h"

/* RULER's unit of noise, one a line. */
#define BUILD_NOISE "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
/* Seed of the shuffles that RULER makes the same for every sample. */
#define BUILD_SHUFFLE_SEED 42

/* One build: size units of text around what the cell asks, drawn from random, into out, which is empty. */
typedef struct task_draw {
    const task_cell *cell;
    uint64_t seed;
    size_t index, size;
    size_t example_size; /* of the worked example; 0: none was asked for */
    eval_random *random;
    task_sample *out;
} task_draw;

typedef void build_fn(task_draw *d);

/* eval_ruler.c.  The sizes are: lines of text for needles and chains, distinct words of cwe, words of fwe. */
void build_niah_noise(task_draw *d);
void build_niah_words(task_draw *d);
void build_niah_uuids(task_draw *d);
void build_vt_example(task_draw *d);
void build_vt(task_draw *d);
void build_cwe(task_draw *d);
void build_fwe(task_draw *d);

/* Appends formatted text, at most 500 bytes. */
void build_add(text *t, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Starts the next turn; its texts are empty strings. */
task_turn *build_turn(task_draw *d);
void build_reference(task_turn *t, const char *answer);
/* n hexadecimal groups of a UUID: 36 characters and a NUL.  version4 marks them as RULER's; otherwise all digits are random. */
enum { BUILD_UUID = 37 };
void build_uuid(eval_random *r, bool version4, char out[BUILD_UUID]);

#endif
