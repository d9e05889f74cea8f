/* Plain C: the reference of all kernels, in short scalar loops. artifacts/FORMAT.md, "Order of operations", says in
 * words what this file says in C. */
#include "constants.h"
#include "kernels.h"

#include <math.h>
#include <string.h>

static float lower(float a, float b) { return a < b ? a : b; }
static float higher(float a, float b) { return a > b ? a : b; }
static float add(float a, float b) { return a + b; }

/* Combine 16 partial results: 8 lanes apart, then 4, 2 and 1. */
static float reduce(float lanes[LANES], float (*combine)(float, float)) {
    for (int n = 8; n; n /= 2)
        for (int i = 0; i < n; i++) lanes[i] = combine(lanes[i], lanes[i + n]);
    return lanes[0];
}

static int32_t bits_of(float x) {
    int32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

/* Multiply by 2^n, where the lowest bits of `shifted` hold n. */
static float times_power(float x, float shifted) {
    uint32_t bits = (uint32_t)bits_of(x) + ((uint32_t)bits_of(shifted) << 23);
    memcpy(&x, &bits, sizeof x);
    return x;
}

static float exponential(float x) {
    x = higher(x, EXP_LOWEST);
    float shifted = fmaf(x, LOG2_E, ROUNDING), n = shifted - ROUNDING;
    float r = fmaf(n, -LN2_HIGH, x);
    r = fmaf(n, -LN2_LOW, r);
    float p = EXP_5;
    p = fmaf(p, r, EXP_4);
    p = fmaf(p, r, EXP_3);
    p = fmaf(p, r, EXP_2);
    p = fmaf(p, r, EXP_1);
    p = fmaf(p, r, EXP_0);
    p = fmaf(p, r * r, r) + 1.0f;
    return times_power(p, shifted);
}

static float gelu(float x) {
    float z = lower(higher(x * SQRT_HALF, -ERF_LIMIT), ERF_LIMIT), square = z * z;
    float p = ERF_P6;
    p = fmaf(p, square, ERF_P5);
    p = fmaf(p, square, ERF_P4);
    p = fmaf(p, square, ERF_P3);
    p = fmaf(p, square, ERF_P2);
    p = fmaf(p, square, ERF_P1);
    p = fmaf(p, square, ERF_P0);
    float q = ERF_Q4;
    q = fmaf(q, square, ERF_Q3);
    q = fmaf(q, square, ERF_Q2);
    q = fmaf(q, square, ERF_Q1);
    q = fmaf(q, square, ERF_Q0);
    float half = x * 0.5f;
    return fmaf(half, z * p / q, half);
}

static float gelu_tanh(float x) {
    float cubic = fmaf(x * x * x, GELU_CUBIC, x);
    float e = exponential(lower(cubic * TWICE_SQRT_2_BY_PI, EXP_HIGHEST));
    float half = x * 0.5f;
    return fmaf(half, 1.0f - 2.0f / (e + 1.0f), half);
}

static float activate(float x, enum activation activation) {
    switch (activation) {
    case ACTIVATION_GELU: return gelu(x);
    case ACTIVATION_GELU_TANH: return gelu_tanh(x);
    case ACTIVATION_RELU: return higher(x, 0.0f);
    default: return x;
    }
}

static void embed(const void *row, const float *scale, const float *position, size_t width, float *out) {
    for (size_t i = 0; i < width; i++)
        out[i] = scale ? fmaf((float)((const int8_t *)row)[i], *scale, position[i]) : ((const float *)row)[i] + position[i];
}

static void normalize(float *x, const float *residual, size_t rows, size_t width, const float *gamma,
                      const float *beta, float epsilon) {
    for (size_t row = 0; row < rows; row++, x += width) {
        float sums[LANES] = {0}, squares[LANES] = {0};
        for (size_t i = 0; i < width; i++) {
            if (residual) x[i] += residual[row * width + i];
            sums[i % LANES] += x[i];
        }
        float mean = reduce(sums, add) / (float)width;
        for (size_t i = 0; i < width; i++)
            squares[i % LANES] = fmaf(x[i] - mean, x[i] - mean, squares[i % LANES]);
        float factor = 1.0f / sqrtf(reduce(squares, add) / (float)width + epsilon);
        for (size_t i = 0; i < width; i++) x[i] = fmaf((x[i] - mean) * factor, gamma[i], beta[i]);
    }
}

static void mean(const float *x, size_t rows, size_t width, float *out) {
    for (size_t i = 0; i < width; i++) {
        float sum = 0;
        for (size_t row = 0; row < rows; row++) sum += x[row * width + i];
        out[i] = sum / (float)rows;
    }
}

static void scale_to_unit(float *x, size_t width) {
    float squares[LANES] = {0};
    for (size_t i = 0; i < width; i++) squares[i % LANES] = fmaf(x[i], x[i], squares[i % LANES]);
    float norm = sqrtf(reduce(squares, add)), divisor = norm > SMALLEST_NORM ? norm : SMALLEST_NORM;
    for (size_t i = 0; i < width; i++) x[i] /= divisor;
}

static void quantize(const float *x, size_t rows, const struct matrix *m, struct quantized_rows *out) {
    uint8_t *integers = out->integers;
    for (size_t row = 0; row < rows; row++, x += m->depth, integers += m->depth) {
        float low[LANES], high[LANES];
        for (size_t i = 0; i < m->depth; i++) {
            float value = m->multipliers ? x[i] * m->multipliers[i] : x[i];
            low[i % LANES] = i < LANES ? value : lower(low[i % LANES], value);
            high[i % LANES] = i < LANES ? value : higher(high[i % LANES], value);
        }
        float lowest = reduce(low, lower), scale = (reduce(high, higher) - lowest) / 255.0f;
        if (!(scale > SMALLEST_SCALE)) scale = SMALLEST_SCALE;
        float reciprocal = 1.0f / scale, offset = -lowest * reciprocal;
        for (size_t i = 0; i < m->depth; i++) {
            float value = m->multipliers ? x[i] * m->multipliers[i] : x[i];
            value = lower(higher(fmaf(value, reciprocal, offset), 0.0f), 255.0f);
            integers[i] = (uint8_t)(bits_of(value + ROUNDING) & 255);
        }
        out->scales[row] = scale;
        out->lows[row] = lowest;
    }
}

static void multiply_int8(const struct quantized_rows *x, size_t rows, const struct matrix *m,
                          enum activation activation, float *out) {
    for (size_t row = 0; row < rows; row++) {
        const uint8_t *integers = x->integers + row * m->depth;
        for (size_t column = 0; column < m->columns; column++) {
            const int8_t *w = m->quantized + column / LANES * LANES * m->depth + column % LANES * 4;
            int32_t sum = 0;
            for (size_t k = 0; k < m->depth; k++) sum += integers[k] * w[k / 4 * 4 * LANES + k % 4];
            float value = fmaf((float)sum, x->scales[row], x->lows[row] * m->sums[column]);
            out[row * m->columns + column] = activate(fmaf(value, m->scales[column], m->bias[column]), activation);
        }
    }
}

static void multiply_fp32(const float *x, size_t rows, const struct matrix *m, enum activation activation,
                          float *out) {
    for (size_t row = 0; row < rows; row++) {
        for (size_t column = 0; column < m->columns; column++) {
            const float *w = m->weights + column / LANES * LANES * m->depth + column % LANES;
            float sum = 0;
            for (size_t k = 0; k < m->depth; k++) sum = fmaf(x[row * m->depth + k], w[k * LANES], sum);
            out[row * m->columns + column] = activate(sum + m->bias[column], activation);
        }
    }
}

static void attend(const float *qkv, size_t tokens, size_t heads, size_t head_width, float *out, float *scratch) {
    const size_t hidden = heads * head_width, stride = 3 * hidden;
    float *scores = scratch;
    for (size_t head = 0; head < heads; head++) {
        for (size_t query = 0; query < tokens; query++) {
            const float *q = qkv + query * stride + head * head_width, *k = qkv + hidden + head * head_width;
            float high[LANES], sums[LANES] = {0};
            for (size_t j = 0; j < tokens; j++) {
                float sum = 0;
                for (size_t d = 0; d < head_width; d++) sum = fmaf(q[d], k[j * stride + d], sum);
                scores[j] = sum;
            }
            for (size_t j = 0; j < round_up(tokens, LANES); j++) {
                float score = scores[j < tokens ? j : 0];
                high[j % LANES] = j < LANES ? score : higher(high[j % LANES], score);
            }
            float highest = reduce(high, higher);
            for (size_t j = 0; j < tokens; j++) {
                scores[j] = exponential(scores[j] - highest);
                sums[j % LANES] += scores[j];
            }
            float factor = 1.0f / reduce(sums, add);
            for (size_t d = 0; d < head_width; d++) {
                const float *v = k + hidden + d;
                float sum = 0;
                for (size_t j = 0; j < tokens; j++) sum = fmaf(scores[j], v[j * stride], sum);
                out[query * hidden + head * head_width + d] = sum * factor;
            }
        }
    }
}

const struct kernels kernels_plain = {
    .name = "plain",
    .embed = embed,
    .normalize = normalize,
    .quantize = quantize,
    .multiply_int8 = multiply_int8,
    .multiply_fp32 = multiply_fp32,
    .attend = attend,
    .mean = mean,
    .scale_to_unit = scale_to_unit,
};
