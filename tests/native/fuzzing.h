/* What all fuzz drivers need: an input becomes a file whose header and size can be right. */
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

/* Make valid UTF-8 of any bytes, as Python gives it: a byte that does not fit becomes a letter. */
static inline void make_valid(uint8_t *text, size_t size) {
    for (size_t i = 0, length; i < size; i += length) {
        const uint8_t c = text[i];
        length = c < 0x80 ? 1 : c < 0xc2 ? 0 : c < 0xe0 ? 2 : c < 0xf0 ? 3 : c < 0xf5 ? 4 : 0;
        if (length > size - i) length = 0;
        for (size_t j = 1; j < length; j++)
            if ((text[i + j] & 0xc0) != 0x80) length = 0;
        if (length == 3 && ((c == 0xe0 && text[i + 1] < 0xa0) || (c == 0xed && text[i + 1] > 0x9f))) length = 0;
        if (length == 4 && ((c == 0xf0 && text[i + 1] < 0x90) || (c == 0xf4 && text[i + 1] > 0x8f))) length = 0;
        if (length == 0) {
            text[i] = 'a' + c % 26;
            length = 1;
        }
    }
}

/* Return where an array begins that follows others. */
static inline size_t behind(size_t at, size_t bytes) { return (at + bytes + 63) / 64 * 64; }

#endif
