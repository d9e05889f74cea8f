/* The kernels of `struct kernels` in vectors of W lanes. A file of one instruction set defines the following, then
 * includes this file, so that every instruction set has the same formulas:
 *
 *   W                     float32 lanes of a vector: 4, 8 or 16
 *   vf, vi                a vector of float32, of int32
 *   fma_(a, b, c)         a b + c, rounded once
 *   lower(a, b)           a < b ? a : b, lane by lane
 *   higher(a, b)          a > b ? a : b
 *   ROWS_F, PANELS_F      rows and panels of 16 columns that a tile of `multiply_fp32` keeps in registers
 *   ROWS_I, PANELS_I      the same of `multiply_int8`
 *   store_integers(p, i, v)    write 16 integers, in V vectors, as numbers i to i + 15 of a quantized row
 *   dot_tile(rows, panels, x, m, first, sums)    sums[(row x panels + panel) x V + v] = the exact sums of products
 *   KERNELS, NAME         the struct to define, and the name of the instruction set
 */
#include "constants.h"
#include "kernels.h"

#include <math.h>
#include <string.h>

#define V (LANES / W)
#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 32")

typedef float vf_unaligned __attribute__((vector_size(W * 4), aligned(4), may_alias));

INLINE vf load(const float *p) { return (vf) * (const vf_unaligned *)p; }
INLINE void store(float *p, vf v) { *(vf_unaligned *)p = (vf_unaligned)v; }
INLINE vf splat(float x) { return x - (vf){0}; }
INLINE vf to_floats(vi v) { return __builtin_convertvector(v, vf); }

/* ---- reductions of 16 lanes: halves are combined, 8, 4, 2 and 1 apart, in this order everywhere ---- */

INLINE float sum_lanes(const vf *v) {
    float t[LANES];
    UNROLL for (int i = 0; i < V; i++) store(t + i * W, v[i]);
    UNROLL for (int n = 8; n; n /= 2) UNROLL for (int i = 0; i < n; i++) t[i] += t[i + n];
    return t[0];
}

INLINE float lowest_lane(const vf *v) {
    float t[LANES];
    UNROLL for (int i = 0; i < V; i++) store(t + i * W, v[i]);
    UNROLL for (int n = 8; n; n /= 2) UNROLL for (int i = 0; i < n; i++) t[i] = t[i] < t[i + n] ? t[i] : t[i + n];
    return t[0];
}

INLINE float highest_lane(const vf *v) {
    float t[LANES];
    UNROLL for (int i = 0; i < V; i++) store(t + i * W, v[i]);
    UNROLL for (int n = 8; n; n /= 2) UNROLL for (int i = 0; i < n; i++) t[i] = t[i] > t[i + n] ? t[i] : t[i + n];
    return t[0];
}

/* ---- formulas: see constants.h ---- */

INLINE vf exponential(vf x) {
    x = higher(x, splat(EXP_LOWEST));
    vf shifted = fma_(x, splat(LOG2_E), splat(ROUNDING));
    vi power = (vi)shifted << 23; /* n, where a float32 has its exponent */
    vf n = shifted - splat(ROUNDING);
    vf r = fma_(n, splat(-LN2_HIGH), x);
    r = fma_(n, splat(-LN2_LOW), r);
    vf p = splat(EXP_5);
    p = fma_(p, r, splat(EXP_4));
    p = fma_(p, r, splat(EXP_3));
    p = fma_(p, r, splat(EXP_2));
    p = fma_(p, r, splat(EXP_1));
    p = fma_(p, r, splat(EXP_0));
    p = fma_(p, r * r, r) + splat(1.0f);
    return (vf)((vi)p + power);
}

INLINE vf gelu(vf x) {
    vf z = lower(higher(x * splat(SQRT_HALF), splat(-ERF_LIMIT)), splat(ERF_LIMIT)), square = z * z;
    vf p = splat(ERF_P6);
    p = fma_(p, square, splat(ERF_P5));
    p = fma_(p, square, splat(ERF_P4));
    p = fma_(p, square, splat(ERF_P3));
    p = fma_(p, square, splat(ERF_P2));
    p = fma_(p, square, splat(ERF_P1));
    p = fma_(p, square, splat(ERF_P0));
    vf q = splat(ERF_Q4);
    q = fma_(q, square, splat(ERF_Q3));
    q = fma_(q, square, splat(ERF_Q2));
    q = fma_(q, square, splat(ERF_Q1));
    q = fma_(q, square, splat(ERF_Q0));
    vf half = x * splat(0.5f);
    return fma_(half, z * p / q, half);
}

INLINE vf gelu_tanh(vf x) {
    vf cubic = fma_(x * x * x, splat(GELU_CUBIC), x);
    vf e = exponential(lower(cubic * splat(TWICE_SQRT_2_BY_PI), splat(EXP_HIGHEST)));
    vf half = x * splat(0.5f);
    return fma_(half, splat(1.0f) - splat(2.0f) / (e + splat(1.0f)), half);
}

static void activate(float *x, size_t rows, size_t width, size_t stride, enum activation activation) {
    for (size_t row = 0; row < rows; row++, x += stride) {
        switch (activation) {
        case ACTIVATION_GELU:
            for (size_t i = 0; i < width; i += W) store(x + i, gelu(load(x + i)));
            break;
        case ACTIVATION_GELU_TANH:
            for (size_t i = 0; i < width; i += W) store(x + i, gelu_tanh(load(x + i)));
            break;
        case ACTIVATION_RELU:
            for (size_t i = 0; i < width; i += W) store(x + i, higher(load(x + i), splat(0.0f)));
            break;
        case ACTIVATION_NONE:
            return;
        }
    }
}

/* ---- rows ---- */

static void embed(const void *row, const float *scale, const float *position, size_t width, float *out) {
    if (!scale) {
        for (size_t i = 0; i < width; i += W) store(out + i, load((const float *)row + i) + load(position + i));
        return;
    }
    const int8_t *integers = row;
    for (size_t i = 0; i < width; i += W) {
        vi v;
        UNROLL for (int lane = 0; lane < W; lane++) v[lane] = integers[i + lane];
        store(out + i, fma_(to_floats(v), splat(*scale), load(position + i)));
    }
}

static void normalize(float *x, const float *residual, size_t rows, size_t width, const float *gamma,
                      const float *beta, float epsilon) {
    for (size_t row = 0; row < rows; row++, x += width) {
        vf sums[V] = {{0}}, squares[V] = {{0}};
        for (size_t i = 0; i < width; i += LANES) {
            UNROLL for (int v = 0; v < V; v++) {
                vf value = load(x + i + v * W);
                if (residual) {
                    value = value + load(residual + row * width + i + v * W);
                    store(x + i + v * W, value);
                }
                sums[v] = sums[v] + value;
            }
        }
        vf mean = splat(sum_lanes(sums) / (float)width);
        for (size_t i = 0; i < width; i += LANES) {
            UNROLL for (int v = 0; v < V; v++) {
                vf centred = load(x + i + v * W) - mean;
                squares[v] = fma_(centred, centred, squares[v]);
            }
        }
        vf factor = splat(1.0f / sqrtf(sum_lanes(squares) / (float)width + epsilon));
        for (size_t i = 0; i < width; i += W)
            store(x + i, fma_((load(x + i) - mean) * factor, load(gamma + i), load(beta + i)));
    }
}

static void mean(const float *x, size_t rows, size_t width, float *out) {
    for (size_t i = 0; i < width; i += W) {
        vf sum = {0};
        for (size_t row = 0; row < rows; row++) sum = sum + load(x + row * width + i);
        store(out + i, sum / splat((float)rows));
    }
}

static void scale_to_unit(float *x, size_t width) {
    vf squares[V] = {{0}};
    for (size_t i = 0; i < width; i += LANES)
        UNROLL for (int v = 0; v < V; v++) squares[v] = fma_(load(x + i + v * W), load(x + i + v * W), squares[v]);
    float norm = sqrtf(sum_lanes(squares));
    vf divisor = splat(norm > SMALLEST_NORM ? norm : SMALLEST_NORM);
    for (size_t i = 0; i < width; i += W) store(x + i, load(x + i) / divisor);
}

static void quantize(const float *x, size_t rows, const struct matrix *m, struct quantized_rows *out) {
    const size_t depth = m->depth;
    const float *multipliers = m->multipliers;
    uint8_t *integers = out->integers;
    for (size_t row = 0; row < rows; row++, x += depth, integers += depth) {
        vf low[V], high[V];
        UNROLL for (int v = 0; v < V; v++) {
            low[v] = load(x + v * W);
            if (multipliers) low[v] = low[v] * load(multipliers + v * W);
            high[v] = low[v];
        }
        for (size_t i = LANES; i < depth; i += LANES) {
            UNROLL for (int v = 0; v < V; v++) {
                vf value = load(x + i + v * W);
                if (multipliers) value = value * load(multipliers + i + v * W);
                low[v] = lower(low[v], value);
                high[v] = higher(high[v], value);
            }
        }
        float lowest = lowest_lane(low), scale = (highest_lane(high) - lowest) / 255.0f;
        if (!(scale > SMALLEST_SCALE)) scale = SMALLEST_SCALE;
        out->scales[row] = scale;
        out->lows[row] = lowest;
        float reciprocal = 1.0f / scale;
        vf factor = splat(reciprocal), offset = splat(-lowest * reciprocal);
        for (size_t i = 0; i < depth; i += LANES) {
            vi rounded[V];
            UNROLL for (int v = 0; v < V; v++) {
                vf value = load(x + i + v * W);
                if (multipliers) value = value * load(multipliers + i + v * W);
                value = lower(higher(fma_(value, factor, offset), splat(0.0f)), splat(255.0f));
                rounded[v] = (vi)(value + splat(ROUNDING)) & 255;
            }
            store_integers(integers, i, rounded);
        }
    }
}

/* ---- products ---- */

/* sums of one tile in fp32, each over the depth in its order: fma(x[k], w[k], sum) */
INLINE void tile_fp32(const int rows, const int panels, const float *x, const struct matrix *m, size_t first,
                      float *out) {
    const size_t depth = m->depth;
    const float *w = m->weights + first * depth;
    vf sums[ROWS_F * PANELS_F * V];
    UNROLL for (int i = 0; i < rows * panels * V; i++) sums[i] = (vf){0};
    for (size_t k = 0; k < depth; k++) {
        vf column[PANELS_F * V];
        UNROLL for (int j = 0; j < panels * V; j++)
            column[j] = load(w + (size_t)(j / V) * LANES * depth + LANES * k + (j % V) * W);
        UNROLL for (int row = 0; row < rows; row++) {
            vf value = splat(x[(size_t)row * depth + k]);
            UNROLL for (int j = 0; j < panels * V; j++)
                sums[row * panels * V + j] = fma_(value, column[j], sums[row * panels * V + j]);
        }
    }
    UNROLL for (int row = 0; row < rows; row++)
        UNROLL for (int j = 0; j < panels * V; j++)
            store(out + (size_t)row * m->columns + first + j * W,
                  sums[row * panels * V + j] + load(m->bias + first + j * W));
}

/* value = scale_w (scale_x sum + low sum_w) + bias */
INLINE void tile_int8(const int rows, const int panels, const struct quantized_rows *x, size_t row, const struct matrix *m,
                      size_t first, float *out) {
    vi sums[ROWS_I * PANELS_I * V];
    dot_tile(rows, panels, x->integers + row * m->depth, m, first, sums);
    UNROLL for (int r = 0; r < rows; r++) {
        vf scale = splat(x->scales[row + r]), low = splat(x->lows[row + r]);
        UNROLL for (int j = 0; j < panels * V; j++) {
            vf value = fma_(to_floats(sums[r * panels * V + j]), scale, low * load(m->sums + first + j * W));
            store(out + (row + r) * m->columns + first + j * W,
                  fma_(value, load(m->scales + first + j * W), load(m->bias + first + j * W)));
        }
    }
}

/* Rows are divided evenly, because a tile of one row costs nearly as much as a tile of some rows. */
#define FOR_EACH_TILE(ROWS, row, count)                                                                  \
    for (size_t tiles = (rows + (ROWS)-1) / (ROWS), tile = 0, row = 0, count; tile < tiles; tile++, row += count) \
        if ((count = rows / tiles + (tile < rows % tiles)))

#define CASE(MOST, TILE, n, ...)                         \
    case n:                                              \
        if (n <= MOST) TILE(n <= MOST ? n : 1, __VA_ARGS__); \
        break;
#define WITH_CONSTANT_ROWS(MOST, TILE, count, ...)                                        \
    switch (count) {                                                                      \
        CASE(MOST, TILE, 1, __VA_ARGS__) CASE(MOST, TILE, 2, __VA_ARGS__)                 \
        CASE(MOST, TILE, 3, __VA_ARGS__) CASE(MOST, TILE, 4, __VA_ARGS__)                 \
        CASE(MOST, TILE, 5, __VA_ARGS__) CASE(MOST, TILE, 6, __VA_ARGS__)                 \
        CASE(MOST, TILE, 7, __VA_ARGS__) CASE(MOST, TILE, 8, __VA_ARGS__)                 \
        CASE(MOST, TILE, 9, __VA_ARGS__)                                                  \
    }

static void multiply_fp32(const float *x, size_t rows, const struct matrix *m, enum activation activation,
                          float *out) {
    for (size_t first = 0, width; first < m->columns; first += width) {
        width = m->columns - first < PANELS_F * LANES ? LANES : PANELS_F * LANES;
        FOR_EACH_TILE(ROWS_F, row, count) {
            const float *in = x + row * m->depth;
            float *to = out + row * m->columns;
            if (width == LANES)
                WITH_CONSTANT_ROWS(ROWS_F, tile_fp32, count, 1, in, m, first, to)
            else
                WITH_CONSTANT_ROWS(ROWS_F, tile_fp32, count, PANELS_F, in, m, first, to)
        }
        activate(out + first, rows, width, m->columns, activation);
    }
}

static void multiply_int8(const struct quantized_rows *x, size_t rows, const struct matrix *m,
                          enum activation activation, float *out) {
    for (size_t first = 0, width; first < m->columns; first += width) {
        width = m->columns - first < PANELS_I * LANES ? LANES : PANELS_I * LANES;
        FOR_EACH_TILE(ROWS_I, row, count) {
            if (width == LANES)
                WITH_CONSTANT_ROWS(ROWS_I, tile_int8, count, 1, x, row, m, first, out)
            else
                WITH_CONSTANT_ROWS(ROWS_I, tile_int8, count, PANELS_I, x, row, m, first, out)
        }
        activate(out + first, rows, width, m->columns, activation);
    }
}

/* ---- attention ---- */

/* keys (tokens x width, rows `stride` apart) → (width x padded), filled with 0 */
static void transpose(const float *keys, size_t stride, size_t tokens, size_t width, size_t padded, float *out) {
    for (size_t first = 0; first < tokens; first += W) {
        const size_t count = tokens - first < W ? tokens - first : W;
        for (size_t d = 0; d < width; d++) {
            vf column = {0};
            if (count == W) {
                UNROLL for (int j = 0; j < W; j++) column[j] = keys[(first + j) * stride + d];
            } else {
                for (size_t j = 0; j < count; j++) column[j] = keys[(first + j) * stride + d];
            }
            store(out + d * padded + first, column);
        }
    }
    for (size_t first = round_up(tokens, W); first < padded; first += W)
        for (size_t d = 0; d < width; d++) store(out + d * padded + first, (vf){0});
}

/* scores[query][token] = query . key: fma over the head's width in its order */
INLINE void score_tile(const float *const *queries, size_t width, const float *keys, size_t padded, size_t j,
                       float *scores) {
    vf sums[QUERIES];
    UNROLL for (int r = 0; r < QUERIES; r++) sums[r] = (vf){0};
    for (size_t d = 0; d < width; d++) {
        vf key = load(keys + d * padded + j);
        UNROLL for (int r = 0; r < QUERIES; r++) sums[r] = fma_(splat(queries[r][d]), key, sums[r]);
    }
    UNROLL for (int r = 0; r < QUERIES; r++) store(scores + r * padded + j, sums[r]);
}

/* exp(score - highest score), 0 for the padding, and 1 / their sum */
INLINE float soften(float *scores, size_t tokens, size_t padded) {
    for (size_t j = tokens; j < padded; j++) scores[j] = scores[0];
    vf high[V], sums[V] = {{0}};
    UNROLL for (int v = 0; v < V; v++) high[v] = load(scores + v * W);
    for (size_t j = LANES; j < padded; j += LANES)
        UNROLL for (int v = 0; v < V; v++) high[v] = higher(high[v], load(scores + j + v * W));
    vf highest = splat(highest_lane(high));
    for (size_t j = 0; j < padded; j += W) store(scores + j, exponential(load(scores + j) - highest));
    for (size_t j = tokens; j < padded; j++) scores[j] = 0;
    for (size_t j = 0; j < padded; j += LANES)
        UNROLL for (int v = 0; v < V; v++) sums[v] = sums[v] + load(scores + j + v * W);
    return 1.0f / sum_lanes(sums);
}

/* out[query][d] = factor x sum over the tokens, in their order, of score x value, for 16 d */
INLINE void value_tile(const float *scores, size_t padded, const float *values, size_t stride, size_t tokens,
                       const float *factors, size_t queries, float *out, size_t out_stride) {
    vf sums[QUERIES][V];
    UNROLL for (int r = 0; r < QUERIES; r++) UNROLL for (int v = 0; v < V; v++) sums[r][v] = (vf){0};
    for (size_t j = 0; j < tokens; j++) {
        vf value[V];
        UNROLL for (int v = 0; v < V; v++) value[v] = load(values + j * stride + v * W);
        UNROLL for (int r = 0; r < QUERIES; r++) {
            vf score = splat(scores[r * padded + j]);
            UNROLL for (int v = 0; v < V; v++) sums[r][v] = fma_(score, value[v], sums[r][v]);
        }
    }
    UNROLL for (size_t r = 0; r < QUERIES; r++) {
        if (r < queries)
            UNROLL for (int v = 0; v < V; v++) store(out + r * out_stride + v * W, sums[r][v] * splat(factors[r]));
    }
}

static void attend(const float *qkv, size_t tokens, size_t heads, size_t head_width, float *out, float *scratch) {
    const size_t hidden = heads * head_width, stride = 3 * hidden;
    const size_t padded = round_up(tokens, LANES), wide = round_up(head_width, LANES);
    float *keys = scratch;                  /* (head_width x padded) */
    float *values = keys + padded * wide;   /* (tokens x wide), where vectors of 16 would reach into the next head */
    float *scores = values + padded * wide; /* (QUERIES x padded) */
    float *block = scores + QUERIES * padded; /* (QUERIES x wide), results of such heads */
    for (size_t head = 0; head < heads; head++) {
        const float *q = qkv + head * head_width, *k = q + hidden, *v = k + hidden;
        size_t value_stride = stride;
        transpose(k, stride, tokens, head_width, padded, keys);
        if (wide != head_width) {
            for (size_t j = 0; j < tokens; j++)
                for (size_t d = 0; d < wide; d++) values[j * wide + d] = d < head_width ? v[j * stride + d] : 0;
            v = values;
            value_stride = wide;
        }
        for (size_t first = 0; first < tokens; first += QUERIES) {
            const size_t queries = tokens - first < QUERIES ? tokens - first : QUERIES;
            const float *rows[QUERIES];
            float factors[QUERIES] = {0}, *result = out + first * hidden + head * head_width;
            /* the last query stands in for those that are not there */
            for (size_t r = 0; r < QUERIES; r++) rows[r] = q + (r < queries ? first + r : tokens - 1) * stride;
            for (size_t j = 0; j < padded; j += W) score_tile(rows, head_width, keys, padded, j, scores);
            for (size_t r = 0; r < queries; r++) factors[r] = soften(scores + r * padded, tokens, padded);
            for (size_t d = 0; d < wide; d += LANES)
                value_tile(scores, padded, v + d, value_stride, tokens, factors, queries,
                           wide == head_width ? result + d : block + d, wide == head_width ? hidden : wide);
            if (wide != head_width)
                for (size_t r = 0; r < queries; r++) memcpy(result + r * hidden, block + r * wide, head_width * sizeof *out);
        }
    }
}

const struct kernels KERNELS = {
    .name = NAME,
    .embed = embed,
    .normalize = normalize,
    .quantize = quantize,
    .multiply_int8 = multiply_int8,
    .multiply_fp32 = multiply_fp32,
    .attend = attend,
    .mean = mean,
    .scale_to_unit = scale_to_unit,
};
