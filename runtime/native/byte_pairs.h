/* Byte-level BPE from a tables file: text → token ids. artifacts/FORMAT.md describes the file. */
#ifndef FIRSTVEC_BYTE_PAIRS_H
#define FIRSTVEC_BYTE_PAIRS_H

#include "text.h"

#define BYTE_PAIRS_MAGIC "firstbpe"
enum { BYTE_PAIRS_VERSION = 1 };

/* The file's first 128 bytes, little-endian. Each array begins on a multiple of 64 bytes, in this order:
 * bytes, slots, left, pages, classes. */
struct byte_pairs_header {
    char magic[8]; /* BYTE_PAIRS_MAGIC */
    uint32_t byte_order, version;
    uint64_t file_bytes;
    uint32_t slots;              /* a power of two */
    uint32_t most_probes;        /* slots that a search looks at, at most */
    uint32_t split;              /* see `enum split` */
    uint32_t most_digits;        /* of a piece. 0: any number */
    uint32_t adds_space;         /* 1: a text that begins without a space gets one */
    uint32_t prefixes, suffixes; /* ids around a text, at most 4 each */
    uint32_t around[8];          /* prefix ids, then suffix ids */
    uint32_t left, left_bytes;   /* strings whose texts are left to the package, and bytes of their list */
    uint32_t pages;              /* pages of 128 code points with different classes */
    uint32_t reserved[8];
};

/* How a text is split into pieces: by the expression of GPT-2, or by that of cl100k_base and Qwen2. */
enum split { SPLIT_GPT2, SPLIT_CL100K };

struct merge {
    uint32_t first, second; /* ids. An empty slot has NO_TOKEN first */
    uint32_t rank;          /* the lowest one is merged first */
    uint32_t merged;        /* id */
};

#define NO_TOKEN 0xffffffffu

struct byte_pairs {
    const struct byte_pairs_header *header;
    size_t mapped_bytes;
    const uint32_t *bytes;     /* [256]: id of the token of each byte */
    const struct merge *slots; /* [slots] */
    const uint8_t *left;       /* of each string: its length, its UTF-8 bytes */
    const uint16_t *pages;     /* [CODE_POINTS / PAGE]: number of the page of classes */
    const uint8_t *classes;    /* [pages x PAGE], see byte_pairs.c */
};

/* As of `open_tables`, `map_tables` and `unmap_tables` in wordpiece.h. */
struct byte_pairs *open_byte_pairs(const void *bytes, size_t size, char *problem, size_t problem_bytes);
struct byte_pairs *map_byte_pairs(int descriptor, size_t size, char *problem, size_t problem_bytes);
void unmap_byte_pairs(struct byte_pairs *tables);

/* As `tokenize_unigram` in unigram.h. */
int tokenize_byte_pairs(const struct byte_pairs *tables, const uint8_t *text, size_t bytes, uint32_t *ids, size_t room);

#endif
