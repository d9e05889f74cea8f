/* AVX2 with FMA: vectors of 8 lanes. vpmaddubsw would saturate sums of byte products, so quantized rows hold their
 * integers in 16 bits, weights are widened as they are read, and vpmaddwd adds pairs of products exactly. */
#include <stdint.h>
#include "vectors_avx2.h"
#include "kernels.h"

#define KERNELS kernels_avx2
#define NAME "avx2"
#define ROWS_I 6
#define PANELS_I 1
#define BYTES_PER_INTEGER 2

#define UNROLL _Pragma("GCC unroll 32")
static inline void store_integers(void *p, size_t at, const vi *v) {
    __m256i shorts = _mm256_permute4x64_epi64(_mm256_packus_epi32((__m256i)v[0], (__m256i)v[1]), 0xD8);
    _mm256_storeu_si256((__m256i *)((uint16_t *)p + at), shorts);
}

/* Half a panel at a time: 6 x 2 sums, 2 columns and 1 value are 15 of 16 registers. */
static inline __attribute__((always_inline)) void dot_tile(const int rows, const int panels, const void *x,
                                                           const struct matrix *m, size_t first, vi *sums) {
    (void)panels; /* always 1 */
    const size_t depth = m->depth;
    const int16_t *integers = x;
    UNROLL for (int half = 0; half < 2; half++) {
        const int8_t *w = m->quantized + first * depth + 32 * half;
        vi acc[ROWS_I * 2]; /* each column has two neighbouring lanes */
        UNROLL for (int i = 0; i < rows * 2; i++) acc[i] = (vi){0};
        for (size_t k = 0; k < depth; k += 4) {
            __m256i left = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(w + LANES * k)));
            __m256i right = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(w + LANES * k + 16)));
            UNROLL for (int row = 0; row < rows; row++) {
                int64_t four;
                __builtin_memcpy(&four, integers + row * depth + k, 8);
                __m256i value = _mm256_set1_epi64x(four);
                acc[2 * row] += (vi)_mm256_madd_epi16(value, left);
                acc[2 * row + 1] += (vi)_mm256_madd_epi16(value, right);
            }
        }
        UNROLL for (int row = 0; row < rows; row++)
            sums[2 * row + half] = (vi)_mm256_permute4x64_epi64(_mm256_hadd_epi32((__m256i)acc[2 * row], (__m256i)acc[2 * row + 1]), 0xD8);
    }
}

#include "kernels_vector.h"
