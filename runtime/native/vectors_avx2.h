/* Vectors of 8 lanes, for AVX2 with FMA. */
#include <immintrin.h>

#define W 8
typedef __m256 vf;
typedef int32_t vi __attribute__((vector_size(32)));

static inline vf fma_(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
static inline vf lower(vf a, vf b) { return _mm256_min_ps(a, b); }
static inline vf higher(vf a, vf b) { return _mm256_max_ps(a, b); }

#define ROWS_F 6
#define PANELS_F 1
