/* What both fuzz drivers need: an input becomes a file whose header and size can be right. */
#ifndef FIRSTVEC_FUZZING_H
#define FIRSTVEC_FUZZING_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { HEADER = 128, LARGEST_FILE = 1 << 15 };

/* Return a copy in memory of exactly this size, so that AddressSanitizer sees a read behind its end. */
static inline uint8_t *copy_of(const void *bytes, size_t size) {
    void *memory = NULL;
    if (posix_memalign(&memory, 64, size ? size : 1)) abort();
    memcpy(memory, bytes, size);
    return memory;
}

/* Return the size that a file must have for its header, or 0, from the reason why it was refused. */
static inline size_t size_needed(const char *problem) {
    unsigned long long size = 0;
    return sscanf(problem, "its sizes need %llu bytes", &size) == 1 && size <= LARGEST_FILE ? (size_t)size : 0;
}

/* Put the magic bytes, the byte order, the version and the size at a header's beginning. */
static inline void set_right(uint8_t *header, const char *magic, uint64_t size) {
    const uint32_t order_and_version[2] = {0x01020304, 1};
    memcpy(header, magic, 8);
    memcpy(header + 8, order_and_version, 8);
    memcpy(header + 16, &size, 8);
}

#endif
