/* The engine without Python: `driver WEIGHTS TABLES TEXTS THREADS CALLERS ROUNDS [INSTRUCTION_SET]`.
 *
 * The driver tokenizes the texts and encodes them with every instruction set of this machine, or with the given one. It
 * prints a digest of the vectors for each. CALLERS pthreads encode at once, ROUNDS times each, with 1 to THREADS threads
 * and in several batches. Exit code 1 and a message: two of these calls gave different vectors, or something failed.
 *
 * TEXTS holds UTF-8 texts, each ended by a byte of 0. */
#define _GNU_SOURCE
#include "encoder.h"
#include "processor.h"
#include "wordpiece.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MOST_TOKENS = 512 };

static void fail(const char *what, const char *why) {
    fprintf(stderr, "%s: %s\n", what, why);
    exit(1);
}

static void *allocate(size_t size) {
    void *memory = NULL;
    if (posix_memalign(&memory, 64, size ? size : 1)) fail("memory", "is short");
    return memory;
}

struct file {
    int descriptor;
    size_t size;
    char *bytes; /* a copy in memory of exactly this size, so that a sanitizer sees a read behind its end */
};

static struct file read_file(const char *path) {
    struct file file = {open(path, O_RDONLY), 0, NULL};
    struct stat about;
    if (file.descriptor < 0 || fstat(file.descriptor, &about)) fail(path, "cannot be opened");
    file.size = (size_t)about.st_size;
    file.bytes = allocate(file.size);
    for (size_t at = 0; at < file.size;) {
        const ssize_t got = pread(file.descriptor, file.bytes + at, file.size - at, (off_t)at);
        if (got <= 0) fail(path, "cannot be read");
        at += (size_t)got;
    }
    return file;
}

static struct texts tokenize_all(const struct tables *tables, const struct weights_header *header,
                                 const struct file *file) {
    const uint32_t room = header->positions < MOST_TOKENS ? header->positions : MOST_TOKENS;
    size_t most = 1;
    for (size_t i = 0; i < file->size; i++) most += !file->bytes[i];
    uint32_t *ids = allocate(most * room * sizeof *ids), *lengths = allocate(most * sizeof *lengths);
    struct texts texts = {ids, lengths, 0};
    size_t row = 0;
    for (const char *text = file->bytes, *end = text + file->size; text < end; text += strlen(text) + 1) {
        const int count = tokenize(tables, (const uint8_t *)text, strlen(text), ids + row, room);
        if (count < 1) continue; /* left to the tokenizers package */
        for (int i = 0; i < count; i++)
            if (ids[row + (size_t)i] >= header->vocabulary) fail("tables", "have an id that the weights have not");
        lengths[texts.count++] = (uint32_t)count;
        row += (size_t)count;
    }
    return texts;
}

struct caller {
    const struct model *model;
    const struct kernels *kernels;
    const struct texts *texts;
    size_t batch, threads, rounds;
    float *out;
};

static int never(void *asked) {
    ++*(size_t *)asked;
    return 0;
}

static void *call(void *argument) {
    const struct caller *c = argument;
    size_t asked = 0;
    for (size_t round = 0; round < c->rounds; round++) {
        const uint32_t *ids = c->texts->ids;
        for (size_t i = 0, count; i < c->texts->count; i += count) {
            count = c->texts->count - i < c->batch ? c->texts->count - i : c->batch;
            const struct texts texts = {ids, c->texts->lengths + i, count};
            float *out = c->out + i * c->model->header->hidden;
            if (encode(c->model, c->kernels, &texts, c->threads, never, &asked, out) != ENCODED)
                fail("encode", "did not finish");
            for (size_t j = 0; j < count; j++) ids += texts.lengths[j];
        }
    }
    return NULL;
}

/* FNV-1a over the bytes */
static uint64_t digest(const float *numbers, size_t count) {
    const unsigned char *bytes = (const unsigned char *)numbers;
    uint64_t hash = 14695981039346656037u;
    for (size_t i = 0; i < count * sizeof *numbers; i++) hash = (hash ^ bytes[i]) * 1099511628211u;
    return hash;
}

static void run(const struct model *mapped, const struct model *in_memory, const struct kernels *kernels,
                const struct texts *texts, size_t threads, size_t count, size_t rounds) {
    static const size_t batches[] = {1 << 20, 1, 3, 16, 100};
    const size_t numbers = texts->count * mapped->header->hidden;
    struct caller *callers = allocate(count * sizeof *callers);
    pthread_t *ids = allocate(count * sizeof *ids);
    for (size_t i = 0; i < count; i++) {
        callers[i] = (struct caller){i % 2 ? in_memory : mapped, kernels, texts, batches[i % 5], i % threads + 1,
                                     rounds, allocate(numbers * sizeof(float))};
        if (pthread_create(&ids[i], NULL, call, &callers[i])) fail("pthread_create", "failed");
    }
    for (size_t i = 0; i < count; i++) pthread_join(ids[i], NULL);
    for (size_t i = 1; i < count; i++)
        if (memcmp(callers[i].out, callers[0].out, numbers * sizeof(float)))
            fail(kernels->name, "two callers got different vectors");
    printf("%s %zu %016llx\n", kernels->name, texts->count, (unsigned long long)digest(callers[0].out, numbers));
    for (size_t i = 0; i < count; i++) free(callers[i].out);
    free(callers);
    free(ids);
}

int main(int count, char **arguments) {
    char problem[160];
    if (count < 7) fail(arguments[0], "WEIGHTS TABLES TEXTS THREADS CALLERS ROUNDS [INSTRUCTION_SET]");
    struct file weights = read_file(arguments[1]), words = read_file(arguments[2]), text = read_file(arguments[3]);
    struct model *mapped = map_model(weights.descriptor, weights.size, problem, sizeof problem);
    struct model *in_memory = mapped ? open_model(weights.bytes, weights.size, problem, sizeof problem) : NULL;
    if (!in_memory) fail(arguments[1], problem);
    struct tables *tables = map_tables(words.descriptor, words.size, problem, sizeof problem);
    struct tables *copy = tables ? open_tables(words.bytes, words.size, problem, sizeof problem) : NULL;
    if (!copy) fail(arguments[2], problem);
    struct texts texts = tokenize_all(tables, mapped->header, &text), same = tokenize_all(copy, mapped->header, &text);
    size_t rows = 0;
    for (size_t i = 0; i < texts.count; i++) rows += texts.lengths[i];
    if (same.count != texts.count || memcmp(texts.ids, same.ids, rows * sizeof *texts.ids))
        fail(arguments[2], "two copies of the tables gave different ids");
    int ran = 0;
    for (const struct kernels *const *kernels = usable_kernels(); *kernels; kernels++) {
        if (count > 7 && strcmp(arguments[7], (*kernels)->name)) continue;
        run(mapped, in_memory, *kernels, &texts, strtoul(arguments[4], NULL, 10), strtoul(arguments[5], NULL, 10),
            strtoul(arguments[6], NULL, 10));
        ran = 1;
    }
    if (!ran) fail(arguments[7], "this processor cannot run these kernels");
    free((void *)texts.ids), free((void *)texts.lengths), free((void *)same.ids), free((void *)same.lengths);
    unmap_model(mapped), free(in_memory), unmap_tables(tables), free(copy);
    free(weights.bytes), free(words.bytes), free(text.bytes);
    close(weights.descriptor), close(words.descriptor), close(text.descriptor);
    return 0;
}
