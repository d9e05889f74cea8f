#include "processor.h"

#include <stdint.h>

#if defined(__x86_64__)
#include <cpuid.h>

/* Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapters 13.3 and 14, and volume 2, CPUID. */
static uint64_t saved_registers(void) {
    uint32_t low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0)); /* the states that the operating system saves */
    return (uint64_t)high << 32 | low;
}

static void find(const struct kernels **found) {
    enum { FMA = 1 << 12, OSXSAVE = 1 << 27 };                                 /* leaf 1, ecx */
    enum { AVX2 = 1 << 5, AVX512F = 1 << 16, AVX512DQ = 1 << 17, AVX512BW = 1 << 30 }; /* leaf 7, ebx */
    enum { AVX512_VNNI = 1 << 11 };                                            /* leaf 7, ecx */
    enum { AVX_VNNI = 1 << 4 };                                                /* leaf 7, subleaf 1, eax */
    const uint32_t avx512vl = 1u << 31;                                        /* leaf 7, ebx */
    enum { YMM = 0x06, ZMM = 0xe6 };                                           /* states of XCR0 */
    uint32_t a, b, c, d, features, b7, c7;
    if (!__get_cpuid(1, &a, &b, &features, &d) || !(features & OSXSAVE) || !(features & FMA)) return;
    if ((saved_registers() & YMM) != YMM || !__get_cpuid_count(7, 0, &a, &b7, &c7, &d) || !(b7 & AVX2)) return;
    const uint32_t avx512 = AVX512F | AVX512DQ | AVX512BW | avx512vl;
    if ((saved_registers() & ZMM) == ZMM && (b7 & avx512) == avx512 && (c7 & AVX512_VNNI))
        *found++ = &kernels_avx512_vnni;
    if (a >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & AVX_VNNI)) *found++ = &kernels_avx_vnni;
    *found = &kernels_avx2;
}

#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>

static void find(const struct kernels **found) {
    enum { ASIMDDP = 1 << 20 }; /* HWCAP_ASIMDDP: Linux, Documentation/arch/arm64/elf_hwcaps.rst */
    if (getauxval(AT_HWCAP) & ASIMDDP) *found = &kernels_neon_dot;
}

#elif defined(__aarch64__) && defined(__APPLE__)

static void find(const struct kernels **found) { *found = &kernels_neon_dot; /* every Apple silicon has it */ }

#else

static void find(const struct kernels **found) { (void)found; }

#endif

const struct kernels *const *usable_kernels(void) {
    static const struct kernels *list[5]; /* filled while the module is imported */
    if (!list[0]) {
        const struct kernels *found[5] = {0};
        find(found);
        size_t count = 0;
        while (found[count]) count++;
        found[count] = &kernels_plain;
        for (size_t i = 5; i-- > 0;) list[i] = found[i]; /* the first one last: it says that the list is whole */
    }
    return list;
}
