/* budget.h - how a KV budget is written. */
#ifndef SPW_APP_BUDGET_H
#define SPW_APP_BUDGET_H

#include <stdbool.h>

/* A share up to 1, a whole number of positions above 1, or "auto", which is 0: the policy's own rule. */
bool budget_read(const char *text, double *out);

#endif
