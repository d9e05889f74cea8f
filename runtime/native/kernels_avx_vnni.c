/* AVX2 with AVX-VNNI: vectors of 8 lanes, and vpdpbusd, which adds four products of bytes exactly. */
#include <stdint.h>
#include "vectors_avx2.h"
#include "kernels.h"

#define KERNELS kernels_avx_vnni
#define NAME "avx_vnni"
/* 6 x 2 sums, 2 columns and 1 value: 15 of 16 registers */
#define ROWS_I 6
#define PANELS_I 1

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
            sums[2 * row] = (vi)_mm256_dpbusd_avx_epi32((__m256i)sums[2 * row], value, left);
            sums[2 * row + 1] = (vi)_mm256_dpbusd_avx_epi32((__m256i)sums[2 * row + 1], value, right);
        }
    }
}

#include "kernels_vector.h"
