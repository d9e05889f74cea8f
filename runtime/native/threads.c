#define _GNU_SOURCE
#include "threads.h"

#include <pthread.h>
#include <signal.h>

enum { MOST_THREADS = 256, STACK_BYTES = 512 * 1024 };

struct start {
    void (*work)(void *context, size_t i);
    void *context;
    size_t i;
};

static void *begin(void *argument) {
    struct start *start = argument;
    start->work(start->context, start->i);
    return NULL;
}

void run_threads(size_t count, void (*work)(void *context, size_t i), void *context) {
    pthread_t threads[MOST_THREADS];
    struct start starts[MOST_THREADS];
    size_t started = 1;
    if (count > MOST_THREADS) count = MOST_THREADS;
    if (count > 1) {
        pthread_attr_t attributes;
        sigset_t all, before;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before); /* signals belong to the program's own threads */
        if (!pthread_attr_init(&attributes)) {
            pthread_attr_setstacksize(&attributes, STACK_BYTES);
            for (; started < count; started++) {
                starts[started] = (struct start){work, context, started};
                if (pthread_create(&threads[started], &attributes, begin, &starts[started])) break;
            }
            pthread_attr_destroy(&attributes);
        }
        pthread_sigmask(SIG_SETMASK, &before, NULL);
    }
    work(context, 0);
    for (size_t i = 1; i < started; i++) pthread_join(threads[i], NULL);
}
