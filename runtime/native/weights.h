/* A weights file in memory: its numbers stay where the file is mapped. artifacts/FORMAT.md describes the file. */
#ifndef FIRSTVEC_WEIGHTS_H
#define FIRSTVEC_WEIGHTS_H

#include "kernels.h"

enum precision { PRECISION_FP32, PRECISION_INT8 };
enum pooling { POOLING_MEAN, POOLING_CLS };

/* The file's first 128 bytes, little-endian. */
struct weights_header {
    char magic[8]; /* WEIGHTS_MAGIC */
    uint32_t byte_order, version;
    uint64_t file_bytes;
    uint32_t precision, layers; /* 0 layers: a vector is the mean of its tokens' rows, and no array follows these */
    uint32_t hidden, heads, intermediate, vocabulary, positions;
    uint32_t activation, pooling, unit_length;
    float epsilon;    /* of LayerNorm */
    uint32_t padding; /* 0: positions count the tokens. Else a token's id + 1: see run_block() */
    uint32_t reserved[14];
};

#define WEIGHTS_MAGIC "firstvec"
enum { WEIGHTS_BYTE_ORDER = 0x01020304, WEIGHTS_VERSION = 1 };

struct layer {
    struct matrix query_key_value, attention_output, up, down;
    const float *attention_gamma, *attention_beta, *output_gamma, *output_beta;
};

struct model {
    const struct weights_header *header;
    size_t mapped_bytes;
    const void *tokens;        /* (vocabulary x hidden), int8 or float32 */
    const float *token_scales; /* [vocabulary], NULL in fp32 */
    const float *positions;    /* (positions, and 1 more with padding, x hidden), the embedding of token type 0 added */
    const float *gamma, *beta; /* LayerNorm of the embeddings */
    struct layer layers[];
};

/* Check a weights file in memory, its header and its size. Return NULL, and a reason in `problem`, if it is no weights
 * file that this engine can compute, or if memory is short. `bytes` begins on a multiple of 64 and must stay there as
 * long as the model. free() frees the model. */
struct model *open_model(const void *bytes, size_t size, char *problem, size_t problem_bytes);

/* Map the file that is open at `descriptor`, and open the model in it. `unmap_model` ends both. */
struct model *map_model(int descriptor, size_t size, char *problem, size_t problem_bytes);
void unmap_model(struct model *model);

#endif
