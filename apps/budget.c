/* budget.c - how a KV budget is written: by itself, so that a test can have it without the rest of the flags. */
#include "budget.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

bool budget_read(const char *text, double *out)
{
    char *end;
    double v = strtod(text, &end);
    bool automatic = strcmp(text, "auto") == 0;
    if (!automatic && (end == text || *end || !(v > 0) || v > 1e15 || (v > 1 && v != floor(v)))) return false;
    *out = automatic ? 0 : v;
    return true;
}
