/* Vectors of 8 lanes, for AVX2 with FMA. */
#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

#define W 8
typedef __m256 vf;
typedef int32_t vi __attribute__((vector_size(32)));

static inline vf fma_(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
static inline vf lower(vf a, vf b) { return _mm256_min_ps(a, b); }
static inline vf higher(vf a, vf b) { return _mm256_max_ps(a, b); }

#define ROWS_F 6
#define PANELS_F 1

static inline void store_integers(uint8_t *p, size_t at, const vi *v) {
    __m256i shorts = _mm256_permute4x64_epi64(_mm256_packus_epi32((__m256i)v[0], (__m256i)v[1]), 0xD8);
    __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(shorts), _mm256_extracti128_si256(shorts, 1));
    _mm_storeu_si128((__m128i *)(p + at), bytes);
}
