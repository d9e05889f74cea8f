/* AVX2 with AVX-VNNI: vectors of 8 lanes, and vpdpbusd, which adds four products of bytes exactly. */
#include <immintrin.h>
#include <stdint.h>

#define KERNELS kernels_avx_vnni
#define NAME "avx_vnni"

typedef int32_t vi __attribute__((vector_size(32)));
static inline __attribute__((always_inline)) vi add_products(vi sums, __m256i value, __m256i column) {
    return (vi)_mm256_dpbusd_avx_epi32((__m256i)sums, value, column);
}

#include "vectors_avx2.h"
