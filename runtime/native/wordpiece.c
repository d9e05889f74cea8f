#define _GNU_SOURCE
#include "wordpiece.h"

#include "mapping.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { LONGEST_WORD = 1024 };

_Static_assert(sizeof(struct tables_header) == 128, "FORMAT.md says so");

/* ---- the file ---- */

/* Return what is wrong with the header, or NULL. What is in the arrays is checked where it is used. */
static const char *header_problem(const struct tables_header *h, size_t bytes) {
    static const struct tables_header zeros;
    if (memcmp(h->magic, TABLES_MAGIC, sizeof h->magic)) return "it is no file of WordPiece tables";
    if (h->byte_order != TABLES_BYTE_ORDER) return "its byte order is not this machine's";
    if (h->version != TABLES_VERSION) return "its version is not 1: upgrade firstvec";
    if (h->file_bytes != bytes) return "the file is cut off, or longer than it says";
    if (h->vocabulary < 1 || h->vocabulary > 1 << 24) return "its vocabulary is not 1 to 2^24 tokens";
    if (h->slots < 2 || h->slots > 1 << 26 || h->slots & (h->slots - 1)) return "its slots are no power of two";
    if (h->most_probes > h->slots) return "a search looks at more slots than there are";
    if (h->longest_token < 1 || h->longest_token > 255) return "its longest token is not 1 to 255 bytes";
    if (h->most_characters < 1 || h->most_characters > LONGEST_WORD / 4) return "its longest word is not 1 to 256 characters";
    if (h->prefixes > MOST_SPECIAL || h->suffixes > MOST_SPECIAL) return "it has more than 4 special tokens on a side";
    if (h->pages < 1 || h->pages > CODE_POINTS / PAGE) return "its number of pages is wrong";
    if (memcmp(h->reserved, zeros.reserved, sizeof zeros.reserved)) return "its reserved bytes are not 0";
    return NULL;
}

/* Return where the ids of the added tokens are: behind the strings. NULL: the file has none, or the list is not whole. */
static const uint8_t *find_added_ids(const uint8_t *list, uint32_t count, uint32_t list_bytes) {
    uint64_t at = 0;
    for (uint32_t i = 0; i < count && at < list_bytes; i++) at += 1 + (uint64_t)list[at];
    return at + 4 * (uint64_t)count == list_bytes ? list + at : NULL;
}

struct tables *open_tables(const void *bytes, size_t size, char *problem, size_t problem_bytes) {
    if (size < sizeof(struct tables_header)) {
        snprintf(problem, problem_bytes, "it has %zu bytes, and its header alone has %zu", size,
                 sizeof(struct tables_header));
        return NULL;
    }
    const struct tables_header *h = bytes;
    const char *reason = header_problem(h, size);
    struct tables *tables = reason ? NULL : malloc(sizeof *tables);
    if (!tables) {
        snprintf(problem, problem_bytes, "%s", reason ? reason : "memory is short");
        return NULL;
    }
    uint64_t at = sizeof *h;
    tables->header = h;
    tables->mapped_bytes = size;
    tables->slots = take(bytes, &at, 4 * (uint64_t)h->slots);
    tables->tokens = take(bytes, &at, 4 * (uint64_t)h->vocabulary);
    tables->strings = take(bytes, &at, h->string_bytes);
    tables->added = take(bytes, &at, h->added_bytes);
    tables->pages = take(bytes, &at, 2 * (CODE_POINTS / PAGE));
    tables->characters = take(bytes, &at, 4 * PAGE * (uint64_t)h->pages);
    tables->replacements = take(bytes, &at, h->replacement_bytes);
    if (at == size) {
        tables->added_ids = find_added_ids(tables->added, h->added_tokens, h->added_bytes);
        return tables;
    }
    snprintf(problem, problem_bytes, "its sizes need %llu bytes, and it has %zu", (unsigned long long)at, size);
    free(tables);
    return NULL;
}

struct tables *map_tables(int descriptor, size_t size, char *problem, size_t problem_bytes) {
    const void *bytes = map_file(descriptor, size, problem, problem_bytes);
    struct tables *tables = bytes ? open_tables(bytes, size, problem, problem_bytes) : NULL;
    if (bytes && !tables) munmap((void *)bytes, size);
    return tables;
}

void unmap_tables(struct tables *tables) {
    munmap((void *)tables->header, tables->mapped_bytes);
    free(tables);
}

/* ---- words → ids ---- */

/* FNV-1a (Fowler, Noll, Vo) over the bytes. Tokens that continue a word start from another number. */
static uint32_t first_hash(int continues) { return 2166136261u ^ (continues ? 0x9e3779b9u : 0); }
static uint32_t next_hash(uint32_t hash, uint8_t byte) { return (hash ^ byte) * 16777619u; }

/* Return the id of a token of `length` bytes, or EMPTY_SLOT. */
static uint32_t find(const struct tables *t, uint32_t hash, const uint8_t *token, size_t length, int continues) {
    const struct tables_header *h = t->header;
    uint32_t slot = hash ^ hash >> 15;
    for (uint32_t probe = 0; probe < h->most_probes; probe++, slot++) {
        const uint32_t id = t->slots[slot & (h->slots - 1)];
        if (id >= h->vocabulary) return EMPTY_SLOT;
        const uint64_t place = t->tokens[id];
        if (place + 2 + length > h->string_bytes) continue;
        const uint8_t *string = t->strings + place;
        if (string[0] == length && string[1] == continues && !memcmp(string + 2, token, length)) return id;
    }
    return EMPTY_SLOT;
}

/* Put the longest pieces of the vocabulary, or the unknown token if a rest is left. */
static void put_word(const struct tables *t, const uint8_t *word, size_t bytes, size_t characters, struct output *out) {
    const struct tables_header *h = t->header;
    const size_t before = out->count;
    size_t start = 0;
    if (characters > h->most_characters) start = bytes + 1;
    while (start < bytes) {
        uint32_t hashes[256], hash = first_hash(start > 0), id = EMPTY_SLOT;
        size_t length = bytes - start < h->longest_token ? bytes - start : h->longest_token;
        for (size_t i = 0; i < length; i++) hashes[i] = hash = next_hash(hash, word[start + i]);
        for (; length > 0; length--) {
            if (start + length < bytes && (word[start + length] & 0xc0) == 0x80) continue; /* within a character */
            id = find(t, hashes[length - 1], word + start, length, start > 0);
            if (id != EMPTY_SLOT) break;
        }
        if (id == EMPTY_SLOT) {
            start = bytes + 1;
            break;
        }
        put(out, id);
        start += length;
    }
    if (start > bytes) {
        out->count = before;
        put(out, h->unknown);
    }
}

/* ---- text → words ---- */

struct word {
    uint8_t bytes[LONGEST_WORD];
    size_t length, characters;
};

static void add_character(const struct tables *t, struct word *word, const uint8_t *bytes, size_t length) {
    if (word->characters < t->header->most_characters) {
        memcpy(word->bytes + word->length, bytes, length);
        word->length += length;
    }
    word->characters++; /* one more than the most says that the word is too long */
}

static void end_word(const struct tables *t, struct word *word, struct output *out) {
    if (word->characters) put_word(t, word->bytes, word->length, word->characters, out);
    word->length = word->characters = 0;
}

static uint32_t entry_of(const struct tables *t, uint32_t code) {
    const int64_t entry = find_entry(t->pages, t->header->pages, code);
    return entry < 0 ? LEFT_TO_PACKAGE : t->characters[entry];
}

/* Add a replacement to the words. Return 0 if it does not lie in the file. */
static int add_replacement(const struct tables *t, uint32_t entry, struct word *word, struct output *out) {
    const uint64_t place = entry >> 9, bytes = entry >> 3 & 63;
    if (place + bytes > t->header->replacement_bytes) return 0;
    const uint8_t *c = t->replacements + place, *end = c + bytes;
    while (c < end) {
        size_t length = character_bytes(*c);
        if (length > (size_t)(end - c)) return 0;
        if (*c == ' ')
            end_word(t, word, out);
        else
            add_character(t, word, c, length);
        c += length;
    }
    return 1;
}

/* Put the id of the longest added token that begins here, and return its bytes. 0: none begins here. */
static size_t put_added(const struct tables *t, const uint8_t *text, size_t bytes, struct word *word, struct output *out) {
    size_t longest = 0;
    uint32_t id = 0;
    const uint8_t *string = t->added;
    for (uint32_t i = 0; i < t->header->added_tokens; i++, string += 1 + *string) {
        if (*string <= longest || *string > bytes || memcmp(text, string + 1, *string)) continue;
        longest = *string;
        memcpy(&id, t->added_ids + 4 * (size_t)i, sizeof id);
    }
    if (!longest) return 0;
    end_word(t, word, out);
    put(out, id);
    return longest;
}

/* `has_added` is a constant of each call, so that usual texts do not ask for added tokens at each character. */
static inline int tokenize_text(const struct tables *t, const uint8_t *text, size_t bytes, uint32_t *ids, size_t room,
                                const int has_added) {
    const struct tables_header *h = t->header;
    struct output out = {ids, 0, room - h->suffixes};
    struct word word;
    word.length = word.characters = 0;
    for (uint32_t i = 0; i < h->prefixes; i++) put(&out, h->around[i]);
    for (size_t at = 0, length; at < bytes && out.count < out.room; at += length) {
        if (has_added && (length = put_added(t, text + at, bytes - at, &word, &out))) continue;
        length = character_bytes(text[at]);
        const uint32_t entry = entry_of(t, code_point(text + at, length));
        switch (entry & 7) {
        case ITSELF: add_character(t, &word, text + at, length); break;
        case NOTHING: break;
        case SPACE: end_word(t, &word, &out); break;
        case WORD_OF_ITS_OWN:
            end_word(t, &word, &out);
            add_character(t, &word, text + at, length);
            end_word(t, &word, &out);
            break;
        case REPLACEMENT:
            if (!add_replacement(t, entry, &word, &out)) return -1;
            break;
        default: return -1;
        }
    }
    end_word(t, &word, &out);
    if (out.count > out.room) out.count = out.room;
    out.room = room;
    for (uint32_t i = 0; i < h->suffixes; i++) put(&out, h->around[h->prefixes + i]);
    return (int)out.count;
}

int tokenize(const struct tables *t, const uint8_t *text, size_t bytes, uint32_t *ids, size_t room) {
    const struct tables_header *h = t->header;
    if (!holds_one_of(t->added, h->added_tokens, h->added_bytes, text, bytes))
        return tokenize_text(t, text, bytes, ids, room, 0);
    return t->added_ids ? tokenize_text(t, text, bytes, ids, room, 1) : -1;
}
