#define _GNU_SOURCE
#include "weights.h"

#include "mapping.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { ALIGNMENT = 64 };

_Static_assert(sizeof(struct weights_header) == 128, "FORMAT.md says so");

/* A walk through the file: its header fixes the place of every array. */
struct walk {
    const char *base;
    uint64_t at; /* bytes from the beginning. At most 2^63, because each array is shorter than 2^48 bytes */
};

static const void *take(struct walk *walk, uint64_t count, uint64_t element_bytes) {
    walk->at = (walk->at + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    uint64_t start = walk->at;
    walk->at += count * element_bytes;
    return walk->base + start;
}

/* An INT8 product whose inputs come from a LayerNorm has multipliers. */
static struct matrix take_matrix(struct walk *walk, const struct weights_header *header, uint64_t columns,
                                 uint64_t depth, int has_multipliers) {
    struct matrix m = {.columns = columns, .depth = depth};
    if (header->precision == PRECISION_FP32) {
        m.weights = take(walk, columns * depth, sizeof(float));
    } else {
        m.quantized = take(walk, columns * depth, 1);
        m.scales = take(walk, columns, sizeof(float));
        m.sums = take(walk, columns, sizeof(float));
        if (has_multipliers) m.multipliers = take(walk, depth, sizeof(float));
    }
    m.bias = take(walk, columns, sizeof(float));
    return m;
}

/* Set the model's pointers and return the size that the file must have. */
static uint64_t place(struct model *model, const struct weights_header *header) {
    struct walk walk = {(const char *)header, sizeof *header};
    const uint64_t hidden = header->hidden, intermediate = header->intermediate;
    const int is_int8 = header->precision == PRECISION_INT8;
    model->tokens = take(&walk, header->vocabulary * hidden, is_int8 ? 1 : sizeof(float));
    model->token_scales = is_int8 ? take(&walk, header->vocabulary, sizeof(float)) : NULL;
    if (!header->layers) return walk.at;
    model->positions = take(&walk, (header->positions + (header->padding ? 1 : 0)) * hidden, sizeof(float));
    model->gamma = take(&walk, hidden, sizeof(float));
    model->beta = take(&walk, hidden, sizeof(float));
    for (uint32_t i = 0; i < header->layers; i++) {
        struct layer *layer = &model->layers[i];
        layer->query_key_value = take_matrix(&walk, header, 3 * hidden, hidden, 1);
        layer->attention_output = take_matrix(&walk, header, hidden, hidden, 0);
        layer->attention_gamma = take(&walk, hidden, sizeof(float));
        layer->attention_beta = take(&walk, hidden, sizeof(float));
        layer->up = take_matrix(&walk, header, intermediate, hidden, 1);
        layer->down = take_matrix(&walk, header, hidden, intermediate, 0);
        layer->output_gamma = take(&walk, hidden, sizeof(float));
        layer->output_beta = take(&walk, hidden, sizeof(float));
    }
    return walk.at;
}

/* Return what is wrong with the header, or NULL. The limits keep every product of sizes below 2^48. */
static const char *header_problem(const struct weights_header *header, size_t bytes) {
    static const struct weights_header zeros;
    if (memcmp(header->magic, WEIGHTS_MAGIC, sizeof header->magic)) return "it is no weights file of firstvec";
    if (header->byte_order != WEIGHTS_BYTE_ORDER) return "its byte order is not this machine's";
    if (header->version != WEIGHTS_VERSION) return "its version is not 1: upgrade firstvec";
    if (header->file_bytes != bytes) return "the file is cut off, or longer than it says";
    if (header->precision > PRECISION_INT8) return "its precision is unknown";
    if (header->layers > 1024) return "its number of layers is above 1024";
    if (header->hidden < LANES || header->hidden > 16384 || header->hidden % LANES)
        return "its hidden size is no multiple of 16 up to 16384";
    if (header->heads < 1 || header->heads > header->hidden || header->hidden % header->heads)
        return "its heads do not divide the hidden size";
    if (header->intermediate < LANES || header->intermediate > 65536 || header->intermediate % LANES)
        return "its intermediate size is no multiple of 16 up to 65536";
    if (header->vocabulary < 1 || header->vocabulary > 1 << 24) return "its vocabulary is not 1 to 2^24 tokens";
    if (header->positions < 1 || header->positions > 1 << 16) return "its number of positions is not 1 to 2^16";
    if (header->activation < ACTIVATION_GELU || header->activation > ACTIVATION_RELU)
        return "its activation is unknown";
    if (header->pooling > POOLING_CLS) return "its pooling is unknown";
    if (header->unit_length > 1) return "a flag is neither 0 nor 1";
    if (!(header->epsilon > 0 && header->epsilon < 1)) return "its epsilon is not between 0 and 1";
    if (header->padding > header->vocabulary) return "its padding token is not in the vocabulary";
    if (memcmp(header->reserved, zeros.reserved, sizeof zeros.reserved)) return "its reserved bytes are not 0";
    return NULL;
}

struct model *open_model(const void *bytes, size_t size, char *problem, size_t problem_bytes) {
    if (size < sizeof(struct weights_header)) {
        snprintf(problem, problem_bytes, "it has %zu bytes, and its header alone has %zu", size,
                 sizeof(struct weights_header));
        return NULL;
    }
    const struct weights_header *header = bytes;
    const char *reason = header_problem(header, size);
    struct model *model = reason ? NULL : malloc(sizeof *model + header->layers * sizeof *model->layers);
    if (!model) {
        snprintf(problem, problem_bytes, "%s", reason ? reason : "memory is short");
        return NULL;
    }
    model->header = header;
    model->mapped_bytes = size;
    uint64_t needed = place(model, header);
    if (needed == size) return model;
    snprintf(problem, problem_bytes, "its sizes need %llu bytes, and it has %zu", (unsigned long long)needed, size);
    free(model);
    return NULL;
}

struct model *map_model(int descriptor, size_t size, char *problem, size_t problem_bytes) {
    const void *bytes = map_file(descriptor, size, problem, problem_bytes);
    struct model *model = bytes ? open_model(bytes, size, problem, problem_bytes) : NULL;
    if (bytes && !model) munmap((void *)bytes, size);
    return model;
}

void unmap_model(struct model *model) {
    munmap((void *)model->header, model->mapped_bytes);
    free(model);
}
