/* The kernels in vectors of 8 lanes, for AVX2 with FMA. A file of one instruction set defines `vi`, KERNELS, NAME and
 * add_products(sums, value, column), which adds four products of bytes to each sum, and then includes this file. */
#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels.h"

#define W 8
typedef __m256 vf;

static inline vf fma_(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
static inline vf lower(vf a, vf b) { return _mm256_min_ps(a, b); }
static inline vf higher(vf a, vf b) { return _mm256_max_ps(a, b); }

/* 6 x 2 sums, 2 columns and 1 value: 15 of 16 registers */
#define ROWS_F 6
#define PANELS_F 1
#define ROWS_I 6
#define PANELS_I 1

static inline void store_integers(uint8_t *p, size_t at, const vi *v) {
    __m256i shorts = _mm256_permute4x64_epi64(_mm256_packus_epi32((__m256i)v[0], (__m256i)v[1]), 0xD8);
    __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(shorts), _mm256_extracti128_si256(shorts, 1));
    _mm_storeu_si128((__m128i *)(p + at), bytes);
}

#define UNROLL _Pragma("GCC unroll 32")
static inline __attribute__((always_inline)) void dot_tile(const int rows, const int panels, const uint8_t *x,
                                                           const struct matrix *m, size_t first, vi *sums) {
    (void)panels; /* always 1 */
    const size_t depth = m->depth;
    const int8_t *w = m->quantized + first * depth;
    UNROLL for (int i = 0; i < rows * 2; i++) sums[i] = (vi){0};
    for (size_t k = 0; k < depth; k += 4) {
        __m256i left = _mm256_loadu_si256((const __m256i *)(w + LANES * k));
        __m256i right = _mm256_loadu_si256((const __m256i *)(w + LANES * k + 32));
        UNROLL for (int row = 0; row < rows; row++) {
            int32_t four;
            __builtin_memcpy(&four, x + row * depth + k, 4);
            __m256i value = _mm256_set1_epi32(four);
            sums[2 * row] = add_products(sums[2 * row], value, left);
            sums[2 * row + 1] = add_products(sums[2 * row + 1], value, right);
        }
    }
}

#include "kernels_vector.h"
