/* What the tokenizers share: the arrays of a tables file, code points, added tokens, ids. */
#ifndef FIRSTVEC_TEXT_H
#define FIRSTVEC_TEXT_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { TABLES_BYTE_ORDER = 0x01020304, ALIGNMENT = 64, MOST_SPECIAL = 4, CODE_POINTS = 0x110000, PAGE = 128 };

/* Return where an array of so many bytes begins, on the next multiple of 64, and move `at` behind its end. */
static inline const void *take(const void *base, uint64_t *at, uint64_t bytes) {
    *at = (*at + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    const uint64_t start = *at;
    *at += bytes;
    return (const char *)base + start;
}

static inline size_t character_bytes(uint8_t first) { return first < 0x80 ? 1 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4; }

static inline uint32_t code_point(const uint8_t *c, size_t length) {
    switch (length) {
    case 1: return c[0];
    case 2: return (c[0] & 31u) << 6 | (c[1] & 63u);
    case 3: return (c[0] & 15u) << 12 | (c[1] & 63u) << 6 | (c[2] & 63u);
    default: return (c[0] & 7u) << 18 | (c[1] & 63u) << 12 | (c[2] & 63u) << 6 | (c[3] & 63u);
    }
}

/* Return where the entry of a code point lies in the entries of all pages. -1: the page is not in the file. */
static inline int64_t find_entry(const uint16_t *page_of, uint32_t pages, uint32_t code) {
    const uint32_t page = code < CODE_POINTS ? page_of[code / PAGE] : UINT32_MAX;
    return page < pages ? (int64_t)page * PAGE + code % PAGE : -1;
}

/* Return whether the text holds a string of a list, or the list is not whole. Each string has its length in one byte
 * before it. */
static inline int holds_one_of(const uint8_t *list, uint32_t count, uint32_t list_bytes, const uint8_t *text, size_t bytes) {
    uint8_t begins[256] = {0};
    const uint8_t *string = list, *end = list + list_bytes;
    for (uint32_t i = 0; i < count; i++, string += 1 + *string) {
        if (string == end || *string == 0 || *string >= end - string) return 1;
        begins[string[1]] = 1;
    }
    for (size_t at = 0; at < bytes; at++) {
        if (!begins[text[at]]) continue;
        string = list;
        for (uint32_t i = 0; i < count; i++, string += 1 + *string)
            if (*string <= bytes - at && !memcmp(text + at, string + 1, *string)) return 1;
    }
    return 0;
}

struct output {
    uint32_t *ids;
    size_t count, room; /* `count` may pass `room`: then the rest of the text does not matter */
};

static inline void put(struct output *out, uint32_t id) {
    if (out->count < out->room) out->ids[out->count] = id;
    out->count++;
}

#endif
