/* AVX2 with FMA: vectors of 8 lanes. vpmaddubsw adds pairs of byte products in 16 bits, which is exact for the weights of
 * a weights file (artifacts/FORMAT.md: the weights of a pair add up to 128 at most). */
#include <immintrin.h>
#include <stdint.h>

#define KERNELS kernels_avx2
#define NAME "avx2"

typedef int32_t vi __attribute__((vector_size(32)));
static inline __attribute__((always_inline)) vi add_products(vi sums, __m256i value, __m256i column) {
    __m256i pairs = _mm256_maddubs_epi16(value, column);
    return sums + (vi)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}

#include "vectors_avx2.h"
