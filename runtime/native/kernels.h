/* What an instruction set must provide: the arithmetic of the encoder, on rows of float32.
 *
 * Each file kernels_*.c fills in one `struct kernels`. All of them compute the same bits: the order of every
 * sum is fixed (artifacts/FORMAT.md, "Order of operations"), and no product is fused with a sum unless fma() says so.
 * kernels_plain.c is the reference: short scalar loops in that very order. */
#ifndef FIRSTVEC_KERNELS_H
#define FIRSTVEC_KERNELS_H

#include <stddef.h>
#include <stdint.h>

enum { LANES = 16 };  /* columns of a panel of weights, and partial sums of a row */

enum activation { ACTIVATION_NONE, ACTIVATION_GELU, ACTIVATION_GELU_TANH, ACTIVATION_RELU };

/* A product's weights, (columns x depth), in panels of 16 columns. Both sizes are multiples of 16. */
struct matrix {
    size_t columns, depth;
    const float *weights;      /* fp32: [columns / 16][depth][16]. NULL in an INT8 file */
    const int8_t *quantized;   /* INT8: [columns / 16][depth / 4][16][4]. NULL in an fp32 file */
    const float *scales;       /* INT8: [columns], a weight's value is scale x integer */
    const float *sums;         /* INT8: [columns], sum of the column's integers, which float32 holds exactly */
    const float *multipliers;  /* INT8: [depth], each input is multiplied by its own before it is quantized */
    const float *bias;         /* [columns] */
};

/* Rows that were quantized for one product: value = low + scale x integer, with integers from 0 to 255. */
struct quantized_rows {
    uint8_t *integers; /* (rows x depth). NEON's kernels store each one minus 128, as int8 */
    float *scales;   /* [rows] */
    float *lows;     /* [rows] */
};

struct kernels {
    const char *name; /* of the instruction set */

    /* out[width] = scale x row + position. `row` is int8, or float32 if `scale` is NULL. */
    void (*embed)(const void *row, const float *scale, const float *position, size_t width, float *out);
    /* x = LayerNorm(x + residual), in place. `residual` may be NULL. */
    void (*normalize)(float *x, const float *residual, size_t rows, size_t width, const float *gamma,
                      const float *beta, float epsilon);
    /* Quantize rows of `m->depth` numbers, each times its multiplier. */
    void (*quantize)(const float *x, size_t rows, const struct matrix *m, struct quantized_rows *out);
    /* out (rows x columns) = activation(x W + bias) */
    void (*multiply_int8)(const struct quantized_rows *x, size_t rows, const struct matrix *m,
                          enum activation activation, float *out);
    void (*multiply_fp32)(const float *x, size_t rows, const struct matrix *m, enum activation activation,
                          float *out);
    /* Attention of one text, all heads. qkv: (tokens x 3 hidden), queries already scaled. out: (tokens x hidden).
     * scratch: `attention_scratch()` floats. */
    void (*attend)(const float *qkv, size_t tokens, size_t heads, size_t head_width, float *out, float *scratch);
    /* out[width] = the mean of the rows */
    void (*mean)(const float *x, size_t rows, size_t width, float *out);
    /* Scale x to unit length. */
    void (*scale_to_unit)(float *x, size_t width);
};

extern const struct kernels kernels_plain, kernels_avx2, kernels_avx_vnni, kernels_avx512_vnni, kernels_neon_dot;

enum { QUERIES = 8 };  /* queries that `attend` works on at once */

static inline size_t round_up(size_t value, size_t to) { return (value + to - 1) / to * to; }

/* Floats that `attend` needs beside its arguments: transposed keys, padded values, and scores. */
static inline size_t attention_scratch(size_t tokens, size_t head_width) {
    size_t padded = round_up(tokens, LANES), width = round_up(head_width, LANES);
    return padded * (2 * width + QUERIES) + QUERIES * width;
}

#endif
