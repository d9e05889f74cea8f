#define _GNU_SOURCE
#include "byte_pairs.h"

#include "mapping.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { LONGEST_PIECE = 2048 }; /* bytes: merging takes time with the square of the length */

_Static_assert(sizeof(struct byte_pairs_header) == 128, "FORMAT.md says so");
_Static_assert(sizeof(struct merge) == 16, "FORMAT.md says so");

/* The lowest 3 bits of a class. The next bit says that the character is a mark, whose order a normalizer may change. */
enum class { OTHER, LETTER, NUMBER, WHITE_SPACE, LEFT_TO_PACKAGE, END };
enum { MARK = 8 };

/* ---- the file ---- */

/* Return what is wrong with the header, or NULL. What is in the arrays is checked where it is used. */
static const char *header_problem(const struct byte_pairs_header *h, size_t bytes) {
    static const struct byte_pairs_header zeros;
    if (memcmp(h->magic, BYTE_PAIRS_MAGIC, sizeof h->magic)) return "it is no file of byte-pair tables";
    if (h->byte_order != TABLES_BYTE_ORDER) return "its byte order is not this machine's";
    if (h->version != BYTE_PAIRS_VERSION) return "its version is not 1: upgrade firstvec";
    if (h->file_bytes != bytes) return "the file is cut off, or longer than it says";
    if (h->slots < 2 || h->slots > 1 << 26 || h->slots & (h->slots - 1)) return "its slots are no power of two";
    if (h->most_probes > h->slots) return "a search looks at more slots than there are";
    if (h->split > SPLIT_CL100K) return "its way to split a text is unknown: upgrade firstvec";
    if (h->adds_space > 1) return "its number for a space before the text is neither 0 nor 1";
    if (h->prefixes > MOST_SPECIAL || h->suffixes > MOST_SPECIAL) return "it has more than 4 special tokens on a side";
    if (h->pages < 1 || h->pages > CODE_POINTS / PAGE) return "its number of pages is wrong";
    if (memcmp(h->reserved, zeros.reserved, sizeof zeros.reserved)) return "its reserved bytes are not 0";
    return NULL;
}

struct byte_pairs *open_byte_pairs(const void *bytes, size_t size, char *problem, size_t problem_bytes) {
    if (size < sizeof(struct byte_pairs_header)) {
        snprintf(problem, problem_bytes, "it has %zu bytes, and its header alone has %zu", size,
                 sizeof(struct byte_pairs_header));
        return NULL;
    }
    const struct byte_pairs_header *h = bytes;
    const char *reason = header_problem(h, size);
    struct byte_pairs *tables = reason ? NULL : malloc(sizeof *tables);
    if (!tables) {
        snprintf(problem, problem_bytes, "%s", reason ? reason : "memory is short");
        return NULL;
    }
    uint64_t at = sizeof *h;
    tables->header = h;
    tables->mapped_bytes = size;
    tables->bytes = take(bytes, &at, 4 * 256);
    tables->slots = take(bytes, &at, sizeof(struct merge) * (uint64_t)h->slots);
    tables->left = take(bytes, &at, h->left_bytes);
    tables->pages = take(bytes, &at, 2 * (CODE_POINTS / PAGE));
    tables->classes = take(bytes, &at, PAGE * (uint64_t)h->pages);
    if (at == size) return tables;
    snprintf(problem, problem_bytes, "its sizes need %llu bytes, and it has %zu", (unsigned long long)at, size);
    free(tables);
    return NULL;
}

struct byte_pairs *map_byte_pairs(int descriptor, size_t size, char *problem, size_t problem_bytes) {
    const void *bytes = map_file(descriptor, size, problem, problem_bytes);
    struct byte_pairs *tables = bytes ? open_byte_pairs(bytes, size, problem, problem_bytes) : NULL;
    if (bytes && !tables) munmap((void *)bytes, size);
    return tables;
}

void unmap_byte_pairs(struct byte_pairs *tables) {
    munmap((void *)tables->header, tables->mapped_bytes);
    free(tables);
}

/* ---- piece → ids ---- */

/* Return the merge of two tokens, or NULL. */
static const struct merge *find_merge(const struct byte_pairs *t, uint32_t first, uint32_t second) {
    uint32_t slot = first * 0x9e3779b1u ^ second * 0x85ebca77u;
    slot ^= slot >> 15;
    for (uint32_t probe = 0; probe < t->header->most_probes; probe++, slot++) {
        const struct merge *merge = &t->slots[slot & (t->header->slots - 1)];
        if (merge->first == first && merge->second == second) return merge;
        if (merge->first == NO_TOKEN) return NULL;
    }
    return NULL;
}

/* Put the tokens of a piece: of all neighbours the first ones of the lowest rank are merged, again and again. */
static void put_piece(const struct byte_pairs *t, const uint8_t *piece, size_t length, struct output *out) {
    uint32_t ids[LONGEST_PIECE];
    const struct merge *merges[LONGEST_PIECE]; /* of each token and the next one */
    for (size_t i = 0; i < length; i++) ids[i] = t->bytes[piece[i]];
    for (size_t i = 0; i + 1 < length; i++) merges[i] = find_merge(t, ids[i], ids[i + 1]);
    while (length > 1) {
        size_t best = length;
        for (size_t i = 0; i + 1 < length; i++)
            if (merges[i] && (best == length || merges[i]->rank < merges[best]->rank)) best = i;
        if (best == length) break;
        ids[best] = merges[best]->merged;
        length--;
        memmove(ids + best + 1, ids + best + 2, (length - best - 1) * sizeof *ids);
        memmove(merges + best, merges + best + 1, (length - best - 1) * sizeof *merges);
        if (best + 1 < length) merges[best] = find_merge(t, ids[best], ids[best + 1]);
        if (best > 0) merges[best - 1] = find_merge(t, ids[best - 1], ids[best]);
    }
    for (size_t i = 0; i < length; i++) put(out, ids[i]);
}

/* ---- text → pieces ---- */

struct text {
    const struct byte_pairs *tables;
    const uint8_t *utf8;
    size_t bytes;
    int is_left; /* a character is left to the package */
};

/* Return the class of the character at a place, and its length. */
static enum class class_at(struct text *text, size_t at, size_t *length) {
    *length = 0;
    if (at >= text->bytes) return END;
    *length = character_bytes(text->utf8[at]);
    if (text->utf8[at] < 128) { /* the tables have the same, and most texts need no more */
        const uint8_t c = text->utf8[at], lower = c | 32;
        if (lower >= 'a' && lower <= 'z') return LETTER;
        if (c == ' ') return WHITE_SPACE;
    }
    const struct byte_pairs *t = text->tables;
    const int64_t place = find_entry(t->pages, t->header->pages, code_point(text->utf8 + at, *length));
    const uint8_t found = place < 0 ? LEFT_TO_PACKAGE : t->classes[place];
    if (found & MARK && at) { /* a mark behind a mark is left to the package */
        size_t before = at - 1;
        while (before && (text->utf8[before] & 0xc0) == 0x80) before--;
        const int64_t place_before = find_entry(
            t->pages, t->header->pages, code_point(text->utf8 + before, character_bytes(text->utf8[before])));
        if (place_before < 0 || t->classes[place_before] & MARK) text->is_left = 1;
    }
    if ((found & 7) >= LEFT_TO_PACKAGE) text->is_left = 1;
    return found & 7;
}

/* Return where a run of characters of a class ends, at most `most` of them. 0: any number. */
static size_t end_of_run(struct text *text, size_t at, enum class class, uint32_t most) {
    size_t length;
    for (uint32_t count = 0; (!most || count < most) && class_at(text, at, &length) == class; count++) at += length;
    return at;
}

/* Return the length of 's, 't, 're, 've, 'm, 'll or 'd at a place, or 0. */
static size_t length_of_contraction(const struct text *text, size_t at, int ignores_case) {
    static const char *const endings[] = {"s", "t", "re", "ve", "m", "ll", "d"};
    if (text->utf8[at] != '\'') return 0;
    for (size_t i = 0; i < sizeof endings / sizeof *endings; i++) {
        const size_t length = strlen(endings[i]);
        size_t same = 0;
        if (at + 1 + length > text->bytes) continue;
        while (same < length) {
            const uint8_t c = text->utf8[at + 1 + same];
            if ((ignores_case && c >= 'A' && c <= 'Z' ? c | 32 : c) != (uint8_t)endings[i][same]) break;
            same++;
        }
        if (same == length) return 1 + length;
    }
    return 0;
}

static int is_line_end(uint8_t c) { return c == '\r' || c == '\n'; }

/* Return where white space ends that begins at a place: \s+(?!\S)|\s+ and before them, for cl100k, \s*[\r\n]+ */
static size_t end_of_space(struct text *text, size_t at, int has_line_ends) {
    size_t end = at, last = at, behind_line = 0, length;
    for (; class_at(text, end, &length) == WHITE_SPACE; end += length) {
        last = end;
        if (is_line_end(text->utf8[end])) behind_line = end + 1;
    }
    if (has_line_ends && behind_line) return behind_line;
    return end == text->bytes || last == at ? end : last;
}

/* Return where the piece ends that begins at a place. */
static size_t end_of_piece(struct text *text, size_t at) {
    const struct byte_pairs_header *h = text->tables->header;
    const int is_cl100k = h->split == SPLIT_CL100K;
    const size_t contraction = length_of_contraction(text, at, is_cl100k);
    if (contraction) return at + contraction;
    size_t length, next_length, end;
    const enum class class = class_at(text, at, &length), next = class_at(text, at + length, &next_length);
    const int is_space = text->utf8[at] == ' ';
    if (class == LETTER) return end_of_run(text, at, LETTER, 0);
    if (is_cl100k ? class != NUMBER && next == LETTER && !is_line_end(text->utf8[at]) : is_space && next == LETTER)
        return end_of_run(text, at + length, LETTER, 0);
    if (class == NUMBER) return end_of_run(text, at, NUMBER, h->most_digits);
    if (is_space && next == NUMBER && !is_cl100k) return end_of_run(text, at + length, NUMBER, h->most_digits);
    if (class == OTHER || (is_space && next == OTHER)) {
        end = end_of_run(text, is_space ? at + 1 : at, OTHER, 0);
        while (is_cl100k && end < text->bytes && is_line_end(text->utf8[end])) end++;
        return end;
    }
    return end_of_space(text, at, is_cl100k);
}

int tokenize_byte_pairs(const struct byte_pairs *t, const uint8_t *utf8, size_t bytes, uint32_t *ids, size_t room) {
    const struct byte_pairs_header *h = t->header;
    if (holds_one_of(t->left, h->left, h->left_bytes, utf8, bytes)) return -1;
    uint8_t *spaced = NULL;
    if (h->adds_space && bytes && utf8[0] != ' ') {
        if (!(spaced = malloc(bytes + 1))) return -2;
        spaced[0] = ' ';
        memcpy(spaced + 1, utf8, bytes);
        utf8 = spaced;
        bytes++;
    }
    struct text text = {t, utf8, bytes, 0};
    struct output out = {ids, 0, room - h->suffixes};
    for (uint32_t i = 0; i < h->prefixes; i++) put(&out, h->around[i]);
    for (size_t at = 0, end; at < bytes && out.count < out.room; at = end) {
        end = end_of_piece(&text, at);
        if (text.is_left || end <= at || end - at > LONGEST_PIECE) {
            free(spaced);
            return -1;
        }
        put_piece(t, utf8 + at, end - at, &out);
    }
    free(spaced);
    if (out.count > out.room) out.count = out.room;
    out.room = room;
    for (uint32_t i = 0; i < h->suffixes; i++) put(&out, h->around[h->prefixes + i]);
    return (int)out.count;
}
