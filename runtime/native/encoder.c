#define _GNU_SOURCE
#include "encoder.h"

#include "threads.h"

#include <fenv.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

/* Rows that pass through all layers together. Their activations stay in a core's second cache. */
enum { BLOCK_ROWS = 128, ROWS_PER_THREAD = 64 };
static const int64_t ASK_EVERY_NS = 20 * 1000 * 1000;

/* ---- one block of texts: rows (tokens) x numbers ---- */

struct workspace {
    float *x;       /* (rows x hidden), what a layer takes and returns */
    float *wide;    /* (rows x 3 hidden) queries, keys and values, or (rows x intermediate) */
    float *context; /* (rows x hidden), what attention returns */
    float *product; /* (rows x hidden) */
    float *scratch; /* see attention_scratch() */
    struct quantized_rows quantized;
    void *memory;
};

static int make_workspace(struct workspace *w, const struct model *model, size_t rows, size_t longest) {
    const struct weights_header *h = model->header;
    const size_t wide = h->intermediate > 3 * (size_t)h->hidden ? h->intermediate : 3 * (size_t)h->hidden;
    const size_t deepest = h->intermediate > h->hidden ? h->intermediate : h->hidden;
    const size_t is_int8 = h->precision == PRECISION_INT8;
    const size_t line = 16; /* each part begins on a cache line of 64 bytes */
    size_t sizes[] = {rows * h->hidden, rows * wide, rows * h->hidden, rows * h->hidden,
                      attention_scratch(longest, h->hidden / h->heads),
                      is_int8 * (rows * deepest / sizeof(float)), is_int8 * rows, is_int8 * rows};
    enum { PARTS = sizeof sizes / sizeof *sizes };
    size_t total = 0;
    for (int i = 0; i < PARTS; i++) total += sizes[i] = round_up(sizes[i], line);
    float *p = w->memory = aligned_alloc(64, total * sizeof(float));
    if (!p) return 0;
    float *parts[PARTS];
    for (int i = 0; i < PARTS; p += sizes[i++]) parts[i] = p;
    w->x = parts[0];
    w->wide = parts[1];
    w->context = parts[2];
    w->product = parts[3];
    w->scratch = parts[4];
    w->quantized = (struct quantized_rows){(uint8_t *)parts[5], parts[6], parts[7]};
    return 1;
}

static void multiply(const struct kernels *kernels, struct workspace *w, const float *x, size_t rows,
                     const struct matrix *m, enum activation activation, float *out) {
    if (m->weights) {
        kernels->multiply_fp32(x, rows, m, activation, out);
        return;
    }
    kernels->quantize(x, rows, m, &w->quantized);
    kernels->multiply_int8(&w->quantized, rows, m, activation, out);
}

static void run_layer(const struct model *model, const struct kernels *kernels, const struct layer *layer,
                      struct workspace *w, const struct texts *texts, size_t rows) {
    const struct weights_header *h = model->header;
    multiply(kernels, w, w->x, rows, &layer->query_key_value, ACTIVATION_NONE, w->wide);
    for (size_t i = 0, row = 0; i < texts->count; row += texts->lengths[i++])
        kernels->attend(w->wide + row * 3 * h->hidden, texts->lengths[i], h->heads, h->hidden / h->heads,
                        w->context + row * h->hidden, w->scratch);
    multiply(kernels, w, w->context, rows, &layer->attention_output, ACTIVATION_NONE, w->product);
    kernels->normalize(w->x, w->product, rows, h->hidden, layer->attention_gamma, layer->attention_beta, h->epsilon);
    multiply(kernels, w, w->x, rows, &layer->up, h->activation, w->wide);
    multiply(kernels, w, w->wide, rows, &layer->down, ACTIVATION_NONE, w->product);
    kernels->normalize(w->x, w->product, rows, h->hidden, layer->output_gamma, layer->output_beta, h->epsilon);
}

/* ---- all texts of a call, in blocks that threads take ---- */

struct block {
    size_t first_text, first_row;
};

struct call {
    const struct model *model;
    const struct kernels *kernels;
    const struct texts *texts;
    float *out;
    struct block *blocks; /* and one behind the last block, where all texts end */
    size_t count;         /* of blocks */
    size_t rows, longest; /* most rows of a block, most tokens of a text */
    int (*should_stop)(void *);
    void *argument;
    atomic_size_t next;
    atomic_int outcome;
};

/* Divide the texts, in their order, into blocks of at most `most_rows` rows. A longer text is a block of its own. */
static int divide(struct call *call, size_t most_rows) {
    const struct texts *texts = call->texts;
    call->blocks = malloc((texts->count + 1) * sizeof *call->blocks);
    if (!call->blocks) return 0;
    size_t row = 0;
    for (size_t i = 0; i < texts->count; row += texts->lengths[i++]) {
        const struct block *last = call->count ? &call->blocks[call->count - 1] : NULL;
        if (!last || row + texts->lengths[i] - last->first_row > most_rows)
            call->blocks[call->count++] = (struct block){i, row};
    }
    call->blocks[call->count] = (struct block){texts->count, row};
    for (size_t i = 0; i < call->count; i++) {
        size_t rows = call->blocks[i + 1].first_row - call->blocks[i].first_row;
        if (rows > call->rows) call->rows = rows;
    }
    return 1;
}

static int64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

/* Whether the call is over. The caller's thread asks the program, and every thread heeds the answer before its next
 * layer, because a block of a long text can take 100 ms. */
static int stops(struct call *call, int64_t *asked) {
    if (asked && call->should_stop && now() - *asked > ASK_EVERY_NS) {
        if (call->should_stop(call->argument)) atomic_store(&call->outcome, STOPPED);
        *asked = now();
    }
    return atomic_load(&call->outcome) != ENCODED;
}

/* A model without layers: each vector is the mean of the rows of its tokens, and 0 if there is no token. */
static void average_rows(struct call *call, const struct texts *texts, float *out) {
    const struct model *model = call->model;
    const size_t hidden = model->header->hidden, token_bytes = hidden * (model->token_scales ? 1 : sizeof(float));
    const uint32_t *id = texts->ids;
    for (size_t i = 0; i < texts->count; i++, out += hidden) {
        for (size_t j = 0; j < hidden; j++) out[j] = 0;
        for (uint32_t token = 0; token < texts->lengths[i]; token++, id++)
            call->kernels->embed((const char *)model->tokens + *id * token_bytes,
                                 model->token_scales ? model->token_scales + *id : NULL, out, hidden, out);
        for (size_t j = 0; texts->lengths[i] && j < hidden; j++) out[j] /= (float)texts->lengths[i];
        if (model->header->unit_length) call->kernels->scale_to_unit(out, hidden);
    }
}

/* A run that is told to stop leaves `out` as it was. `asked` is the time of the caller's last question, or NULL. */
static void run_block(struct call *call, const struct block *block, struct workspace *w, int64_t *asked) {
    const struct model *model = call->model;
    const struct kernels *kernels = call->kernels;
    const struct weights_header *h = model->header;
    const struct texts block_texts = {call->texts->ids + block->first_row, call->texts->lengths + block->first_text,
                                      block[1].first_text - block->first_text};
    const struct texts *texts = &block_texts;
    float *out = call->out + block->first_text * h->hidden;
    const size_t hidden = h->hidden, token_bytes = hidden * (model->token_scales ? 1 : sizeof(float));
    size_t rows = 0;
    if (!h->layers) {
        if (!stops(call, asked)) average_rows(call, texts, out);
        return;
    }
    for (size_t i = 0; i < texts->count; i++) {
        for (size_t next = h->padding ? 1 : 0, end = rows + texts->lengths[i]; rows < end; rows++) {
            const size_t id = texts->ids[rows];
            /* The RoBERTa family gives a padding token within a text position 0, and counts the other tokens from 1. */
            const size_t position = h->padding && id == h->padding - 1 ? 0 : next++;
            kernels->embed((const char *)model->tokens + id * token_bytes,
                           model->token_scales ? model->token_scales + id : NULL, model->positions + position * hidden,
                           hidden, w->x + rows * hidden);
        }
    }
    kernels->normalize(w->x, NULL, rows, hidden, model->gamma, model->beta, h->epsilon);
    for (uint32_t i = 0; i < h->layers; i++) {
        if (stops(call, asked)) return;
        run_layer(model, kernels, &model->layers[i], w, texts, rows);
    }
    const float *x = w->x;
    for (size_t i = 0; i < texts->count; i++, out += hidden) {
        kernels->mean(x, h->pooling == POOLING_CLS ? 1 : texts->lengths[i], hidden, out);
        if (h->unit_length) kernels->scale_to_unit(out, hidden);
        x += texts->lengths[i] * hidden;
    }
}

static void work(void *argument, size_t thread) {
    struct call *call = argument;
    struct workspace workspace;
    const int has_layers = call->model->header->layers > 0; /* a model without layers needs no workspace */
    if (!make_workspace(&workspace, call->model, has_layers * call->rows, has_layers * call->longest)) {
        /* Only the caller's thread, which always runs, decides: another thread's blocks are taken by the others. */
        if (thread == 0) atomic_store(&call->outcome, OUT_OF_MEMORY);
        return;
    }
    fenv_t before; /* the program may have changed the rounding, or let denormal numbers be 0 */
    fegetenv(&before);
    fesetenv(FE_DFL_ENV);
    int64_t asked = now();
    for (size_t i; !stops(call, NULL) && (i = atomic_fetch_add(&call->next, 1)) < call->count;)
        run_block(call, &call->blocks[i], &workspace, thread == 0 ? &asked : NULL);
    fesetenv(&before);
    free(workspace.memory);
}

enum outcome encode(const struct model *model, const struct kernels *kernels, const struct texts *texts,
                    size_t threads, int (*should_stop)(void *), void *argument, float *out) {
    size_t rows = 0, longest = 0;
    for (size_t i = 0; i < texts->count; rows += texts->lengths[i++])
        if (texts->lengths[i] > longest) longest = texts->lengths[i];
    const size_t useful = texts->count == 1 ? 1 : rows / ROWS_PER_THREAD + 1;
    if (threads > useful) threads = useful;
    if (threads < 1) threads = 1;
    const size_t share = (rows + threads - 1) / threads;
    struct call call = {.model = model, .kernels = kernels, .texts = texts, .out = out, .longest = longest,
                        .should_stop = should_stop, .argument = argument};
    atomic_init(&call.next, 0);
    atomic_init(&call.outcome, ENCODED);
    if (!divide(&call, share < BLOCK_ROWS ? share : BLOCK_ROWS)) return OUT_OF_MEMORY;
    run_threads(threads, work, &call);
    free(call.blocks);
    return atomic_load(&call.outcome);
}
