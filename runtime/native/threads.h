/* Threads for the length of one call: none is left when the call returns, so fork and exit have nothing to care for. */
#ifndef FIRSTVEC_THREADS_H
#define FIRSTVEC_THREADS_H

#include <stddef.h>

/* Run `work(context, i)` for i from 0 to count - 1. The caller's thread runs i = 0, and a new thread each other. Where
 * the system grants no more threads, fewer run: so the work must be taken from a shared place, not divided by i. */
void run_threads(size_t count, void (*work)(void *context, size_t i), void *context);

#endif
