/* NEON with the dot product of Armv8.2: vectors of 4 lanes. sdot multiplies signed bytes, so quantized rows hold their
 * integers minus 128, and each sum begins with 128 times the sum of the column's weights. */
#include <arm_neon.h>
#include <stdint.h>
#include "kernels.h"

#define KERNELS kernels_neon_dot
#define NAME "neon_dot"
#define W 4
typedef float32x4_t vf;
typedef int32x4_t vi;

static inline vf fma_(vf a, vf b, vf c) { return vfmaq_f32(c, a, b); }
/* vminq_f32 has other rules for -0 and +0 than x86 */
static inline vf lower(vf a, vf b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
static inline vf higher(vf a, vf b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }

/* 6 x 4 sums, 4 columns and 1 value: 29 of 32 registers */
#define ROWS_F 6
#define PANELS_F 1
#define ROWS_I 6
#define PANELS_I 1

#define UNROLL _Pragma("GCC unroll 32")
static inline void store_integers(uint8_t *p, size_t at, const vi *v) {
    int16x8_t a = vcombine_s16(vmovn_s32(v[0]), vmovn_s32(v[1])), b = vcombine_s16(vmovn_s32(v[2]), vmovn_s32(v[3]));
    int8x16_t bytes = vcombine_s8(vmovn_s16(a), vmovn_s16(b));
    vst1q_s8((int8_t *)p + at, veorq_s8(bytes, vdupq_n_s8(-128)));
}

static inline __attribute__((always_inline)) void dot_tile(const int rows, const int panels, const uint8_t *x,
                                                           const struct matrix *m, size_t first, vi *sums) {
    (void)panels; /* always 1 */
    const size_t depth = m->depth;
    const int8_t *w = m->quantized + first * depth;
    int32x4_t acc[ROWS_I * 4];
    UNROLL for (int j = 0; j < 4; j++) {
        int32x4_t start = vshlq_n_s32(vcvtq_s32_f32(vld1q_f32(m->sums + first + 4 * j)), 7);
        UNROLL for (int row = 0; row < rows; row++) acc[4 * row + j] = start;
    }
    for (size_t k = 0; k < depth; k += 4) {
        int8x16_t column[4];
        UNROLL for (int j = 0; j < 4; j++) column[j] = vld1q_s8(w + LANES * k + 16 * j);
        UNROLL for (int row = 0; row < rows; row++) {
            int32_t four;
            __builtin_memcpy(&four, x + row * depth + k, 4);
            int8x16_t value = vreinterpretq_s8_s32(vdupq_n_s32(four));
            UNROLL for (int j = 0; j < 4; j++) acc[4 * row + j] = vdotq_s32(acc[4 * row + j], column[j], value);
        }
    }
    UNROLL for (int i = 0; i < rows * 4; i++) sums[i] = acc[i];
}

#include "kernels_vector.h"
