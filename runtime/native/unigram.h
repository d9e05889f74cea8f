/* SentencePiece's Unigram from a tables file: text → token ids. artifacts/FORMAT.md describes the file. */
#ifndef FIRSTVEC_UNIGRAM_H
#define FIRSTVEC_UNIGRAM_H

#include "text.h"

#define UNIGRAM_MAGIC "firstuni"
enum { UNIGRAM_VERSION = 1 };

/* The file's first 128 bytes, little-endian. Each array begins on a multiple of 64 bytes, in this order:
 * nodes, scores, left, pages, characters, replacements. */
struct unigram_header {
    char magic[8]; /* UNIGRAM_MAGIC */
    uint32_t byte_order, version;
    uint64_t file_bytes;
    uint32_t vocabulary;         /* pieces: ids are 0 to vocabulary - 1 */
    uint32_t nodes;              /* of the trie */
    uint32_t longest_piece;      /* bytes */
    uint32_t unknown;            /* its id */
    double unknown_score;        /* of one character that no piece is */
    uint32_t flags;              /* see `enum unigram_flags` */
    uint32_t cluster_bytes;      /* a character that may join the one before is certain if both have so many bytes */
    uint32_t prefixes, suffixes; /* ids around a text, at most 4 each */
    uint32_t around[8];          /* prefix ids, then suffix ids */
    uint32_t left, left_bytes;   /* strings whose texts are left to the package, and bytes of their list */
    uint32_t pages;              /* pages of 128 code points with different entries */
    uint32_t replacement_bytes;
    uint32_t reserved[4];
};

enum unigram_flags { PREPENDS = 1, COLLAPSES = 2, STRIPS_LEFT = 4, STRIPS_RIGHT = 8, ALL_UNIGRAM_FLAGS = 15 };

struct unigram_node {
    uint32_t children; /* the first child's number in the upper 24 bits, their count in the lower 8, sorted by byte */
    uint32_t piece;    /* 1 + the id of the piece that ends here, or 0, in the upper 24 bits, the node's byte below */
};

struct unigram {
    const struct unigram_header *header;
    size_t mapped_bytes;
    const struct unigram_node *nodes; /* [nodes]: the first is the root */
    const double *scores;             /* [vocabulary] */
    const uint8_t *left;              /* of each string: its length, its UTF-8 bytes */
    const uint16_t *pages;            /* [CODE_POINTS / PAGE]: number of the page of entries */
    const uint32_t *characters;       /* [pages x PAGE]: what becomes of a code point, see unigram.c */
    const uint8_t *replacements;      /* UTF-8 */
};

/* As of `open_tables`, `map_tables` and `unmap_tables` in wordpiece.h. */
struct unigram *open_unigram(const void *bytes, size_t size, char *problem, size_t problem_bytes);
struct unigram *map_unigram(int descriptor, size_t size, char *problem, size_t problem_bytes);
void unmap_unigram(struct unigram *tables);

/* Write at most `room` ids, special tokens included, and return their number. -1: the text is left to the tokenizers
 * package. -2: memory is short. `room` is at least the number of special tokens. The text is valid UTF-8. */
int tokenize_unigram(const struct unigram *tables, const uint8_t *text, size_t bytes, uint32_t *ids, size_t room);

#endif
