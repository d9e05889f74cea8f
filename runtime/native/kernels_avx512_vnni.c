/* AVX-512 with VNNI: vectors of 16 lanes, and vpdpbusd, which adds four products of bytes exactly. */
#include <immintrin.h>
#include <stdint.h>

#define KERNELS kernels_avx512_vnni
#define NAME "avx512_vnni"
#define W 16
typedef __m512 vf;
typedef int32_t vi __attribute__((vector_size(64)));

static inline vf fma_(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
static inline vf lower(vf a, vf b) { return _mm512_min_ps(a, b); }
static inline vf higher(vf a, vf b) { return _mm512_max_ps(a, b); }

/* 9 x 3 sums, 3 columns and 1 value: 31 of 32 registers */
#define ROWS_F 9
#define PANELS_F 3
#define ROWS_I 9
#define PANELS_I 3
#define store_integers(p, i, v) _mm_storeu_si128((__m128i *)((p) + (i)), _mm512_cvtepi32_epi8((__m512i)(v)[0]))
#define dot_tile dot_tile_vnni
#include "kernels.h"

#define UNROLL _Pragma("GCC unroll 32")
static inline __attribute__((always_inline)) void dot_tile_vnni(const int rows, const int panels, const uint8_t *x,
                                                                const struct matrix *m, size_t first, vi *sums) {
    const size_t depth = m->depth;
    const int8_t *w = m->quantized + first * depth;
    UNROLL for (int i = 0; i < rows * panels; i++) sums[i] = (vi){0};
    for (size_t k = 0; k < depth; k += 4) {
        vi column[PANELS_I];
        UNROLL for (int j = 0; j < panels; j++) column[j] = (vi)_mm512_loadu_si512(w + j * LANES * depth + LANES * k);
        UNROLL for (int row = 0; row < rows; row++) {
            int32_t four;
            __builtin_memcpy(&four, x + row * depth + k, 4);
            UNROLL for (int j = 0; j < panels; j++)
                sums[row * panels + j] = (vi)_mm512_dpbusd_epi32((__m512i)sums[row * panels + j], _mm512_set1_epi32(four), (__m512i)column[j]);
        }
    }
}

#include "kernels_vector.h"
