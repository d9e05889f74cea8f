/* The kernels, by their number, and the formulas of the plain kernels, for tests. Number 0 is the plain kernels. */
#include "processor.h"

#define kernels_plain kernels_plain_of_the_probe
#include "kernels_plain.c"
#undef kernels_plain

extern const struct kernels kernels_plain;
#ifdef __x86_64__
extern const struct kernels kernels_avx_vnni_stand_in;
#endif

static const struct kernels *kernels_of(int number) {
    const struct kernels *const *list = usable_kernels();
    if (number == 0) return &kernels_plain;
    for (number--; *list != &kernels_plain; list++)
        if (number-- == 0) return *list;
#ifdef __x86_64__
    if (number == 0 && list != usable_kernels()) return &kernels_avx_vnni_stand_in; /* this processor has AVX2 */
#endif
    return NULL;
}

const char *probe_name(int number) {
    const struct kernels *kernels = kernels_of(number);
    return kernels ? kernels->name : NULL;
}

void probe_embed(int number, const void *row, const float *scale, const float *position, size_t width, float *out) {
    kernels_of(number)->embed(row, scale, position, width, out);
}

void probe_normalize(int number, float *x, const float *residual, size_t rows, size_t width, const float *gamma,
                     const float *beta, float epsilon) {
    kernels_of(number)->normalize(x, residual, rows, width, gamma, beta, epsilon);
}

void probe_quantize(int number, const float *x, size_t rows, const struct matrix *m, uint8_t *integers, float *scales,
                    float *lows) {
    struct quantized_rows out = {integers, scales, lows};
    kernels_of(number)->quantize(x, rows, m, &out);
}

void probe_multiply_int8(int number, uint8_t *integers, float *scales, float *lows, size_t rows, const struct matrix *m,
                         int activation, float *out) {
    const struct quantized_rows x = {integers, scales, lows};
    kernels_of(number)->multiply_int8(&x, rows, m, (enum activation)activation, out);
}

void probe_multiply_fp32(int number, const float *x, size_t rows, const struct matrix *m, int activation, float *out) {
    kernels_of(number)->multiply_fp32(x, rows, m, (enum activation)activation, out);
}

void probe_attend(int number, const float *qkv, size_t tokens, size_t heads, size_t head_width, float *out,
                  float *scratch) {
    kernels_of(number)->attend(qkv, tokens, heads, head_width, out, scratch);
}

size_t probe_scratch(size_t tokens, size_t head_width) { return attention_scratch(tokens, head_width); }

void probe_mean(int number, const float *x, size_t rows, size_t width, float *out) {
    kernels_of(number)->mean(x, rows, width, out);
}

void probe_scale_to_unit(int number, float *x, size_t width) { kernels_of(number)->scale_to_unit(x, width); }

void probe_exponential(const float *x, size_t count, float *out) {
    for (size_t i = 0; i < count; i++) out[i] = exponential(x[i]);
}

void probe_activate(const float *x, size_t count, int activation, float *out) {
    for (size_t i = 0; i < count; i++) out[i] = activate(x[i], (enum activation)activation);
}
