/* BERT's WordPiece from a tables file: text → token ids. artifacts/FORMAT.md describes the file. */
#ifndef FIRSTVEC_WORDPIECE_H
#define FIRSTVEC_WORDPIECE_H

#include "text.h"

#define TABLES_MAGIC "firstwrd"
enum { TABLES_VERSION = 1 };

/* The file's first 128 bytes, little-endian. Each array begins on a multiple of 64 bytes, in this order:
 * slots, tokens, strings, added, pages, characters, replacements. */
struct tables_header {
    char magic[8]; /* TABLES_MAGIC */
    uint32_t byte_order, version;
    uint64_t file_bytes;
    uint32_t vocabulary;        /* tokens: ids are 0 to vocabulary - 1 */
    uint32_t slots;             /* a power of two */
    uint32_t most_probes;       /* slots that a search looks at, at most */
    uint32_t string_bytes;
    uint32_t longest_token;     /* bytes, without "##" */
    uint32_t most_characters;   /* of a word. A longer word is the unknown token */
    uint32_t unknown;           /* its id */
    uint32_t prefixes, suffixes; /* ids around a text, at most 4 each */
    uint32_t around[8];         /* prefix ids, then suffix ids */
    uint32_t added_tokens, added_bytes;
    uint32_t pages;             /* pages of 128 code points with different entries */
    uint32_t replacement_bytes;
    uint32_t reserved[4];
};

struct tables {
    const struct tables_header *header;
    size_t mapped_bytes;
    const uint32_t *slots;        /* [slots]: id, or EMPTY_SLOT */
    const uint32_t *tokens;       /* [vocabulary]: where the token's string begins */
    const uint8_t *strings;       /* of each token: its length, 1 if it continues a word, its UTF-8 bytes */
    const uint8_t *added;         /* of each added token: its length, its UTF-8 bytes */
    const uint8_t *added_ids;     /* [added_tokens]: uint32, not aligned. NULL: a text with one is left to the package */
    const uint16_t *pages;        /* [CODE_POINTS / PAGE]: number of the page of entries */
    const uint32_t *characters;   /* [pages x PAGE]: what becomes of a code point, see `enum becomes` */
    const uint8_t *replacements;  /* UTF-8 */
};

#define EMPTY_SLOT 0xffffffffu

/* The lowest 3 bits of an entry. A replacement has its length in the next 6 bits, and above them its place. */
enum becomes { ITSELF, NOTHING, SPACE, WORD_OF_ITS_OWN, LEFT_TO_PACKAGE, REPLACEMENT };

/* Check a tables file in memory, its header and its size. Return NULL, and a reason in `problem`, if this engine cannot
 * read it, or if memory is short. `bytes` begins on a multiple of 64 and must stay there as long as the tables. free()
 * frees the tables. */
struct tables *open_tables(const void *bytes, size_t size, char *problem, size_t problem_bytes);

/* Map the file that is open at `descriptor`, and open the tables in it. `unmap_tables` ends both. */
struct tables *map_tables(int descriptor, size_t size, char *problem, size_t problem_bytes);
void unmap_tables(struct tables *tables);

/* Write at most `room` ids, special tokens included, and return their number. -1: the text is left to the tokenizers
 * package. `room` is at least the number of special tokens. The text is valid UTF-8 of any length. */
int tokenize(const struct tables *tables, const uint8_t *text, size_t bytes, uint32_t *ids, size_t room);

#endif
