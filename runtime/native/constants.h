/* The constants of the formulas, for every instruction set. */
#ifndef FIRSTVEC_CONSTANTS_H
#define FIRSTVEC_CONSTANTS_H

/* Adding 1.5 x 2^23 to a float32 below 2^22 in size rounds it to the nearest integer, ties to even, and leaves that
 * integer in the lowest bits (Hacker's Delight, 2nd edition, section 17-1). */
#define ROUNDING 12582912.0f

/* exp(x) = 2^n exp(r), n = round(x / ln 2), r = x - n ln 2, with ln 2 in two parts (Cody and Waite) and a polynomial of
 * degree 7 for exp(r): Cephes Math Library 2.2, expf.c (Moshier). Its error is below 2 ulp. */
#define EXP_LOWEST (-87.0f) /* smaller arguments count as this one: the result is 1.6e-38 */
#define LOG2_E 1.44269504088896341f
#define LN2_HIGH 0.693359375f
#define LN2_LOW (-2.12194440e-4f)
#define EXP_0 5.0000001201e-1f
#define EXP_1 1.6666665459e-1f
#define EXP_2 4.1665795894e-2f
#define EXP_3 8.3334519073e-3f
#define EXP_4 1.3981999507e-3f
#define EXP_5 1.9875691500e-4f

/* erf(z) = z P(z^2) / Q(z^2) for |z| <= 4, and its end values beyond: the rational function of Eigen 3.3
 * (unsupported/Eigen/src/SpecialFunctions, generic_fast_erf_float). Its error is below 1e-7. */
#define ERF_LIMIT 4.0f
#define ERF_P0 (-1.60960333262415e-02f)
#define ERF_P1 (-2.95459980854025e-03f)
#define ERF_P2 (-7.34990630326855e-04f)
#define ERF_P3 (-5.69250639462346e-05f)
#define ERF_P4 (-2.10102402082508e-06f)
#define ERF_P5 2.77068142495902e-08f
#define ERF_P6 (-2.72614225801306e-10f)
#define ERF_Q0 (-1.42647390514189e-02f)
#define ERF_Q1 (-7.37332916720468e-03f)
#define ERF_Q2 (-1.68282697438203e-03f)
#define ERF_Q3 (-2.13374055278905e-04f)
#define ERF_Q4 (-1.45660718464996e-05f)

/* GELU(x) = x / 2 (1 + erf(x / sqrt 2)): Hendrycks and Gimpel, arXiv:1606.08415. */
#define SQRT_HALF 0.70710678118654752f
/* Its form with tanh: x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), and tanh(u) = 1 - 2 / (exp(2 u) + 1). */
#define TWICE_SQRT_2_BY_PI 1.59576912160573071f
#define GELU_CUBIC 0.044715f
#define EXP_HIGHEST 80.0f /* larger arguments of that exp count as this one: tanh is 1 there */

#define SMALLEST_SCALE 1e-12f /* of a quantized row, so that a row of equal numbers has a scale */
#define SMALLEST_NORM 1e-12f  /* as torch.nn.functional.normalize */

#endif
