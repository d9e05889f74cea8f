#define _GNU_SOURCE
#include "unigram.h"

#include "mapping.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { LONGEST_PIECE = 1024, LONGEST_WORD = 1 << 20, FEW = 512, NOWHERE = -1 };

_Static_assert(sizeof(struct unigram_header) == 128, "FORMAT.md says so");
_Static_assert(sizeof(struct unigram_node) == 8, "FORMAT.md says so");

/* An entry's lowest 3 bits. The next bit says that the character may join the one before. A replacement has its length in
 * the next 6 bits, and above them its place. */
enum becomes { ITSELF, NOTHING, SPACE, LEFT_TO_PACKAGE = 4, REPLACEMENT };
enum { JOINS = 8 };

/* ---- the file ---- */

/* Return what is wrong with the header, or NULL. What is in the arrays is checked where it is used. */
static const char *header_problem(const struct unigram_header *h, size_t bytes) {
    static const struct unigram_header zeros;
    if (memcmp(h->magic, UNIGRAM_MAGIC, sizeof h->magic)) return "it is no file of Unigram tables";
    if (h->byte_order != TABLES_BYTE_ORDER) return "its byte order is not this machine's";
    if (h->version != UNIGRAM_VERSION) return "its version is not 1: upgrade firstvec";
    if (h->file_bytes != bytes) return "the file is cut off, or longer than it says";
    if (h->vocabulary < 1 || h->vocabulary >= 1 << 24) return "its vocabulary is not 1 to 2^24 - 1 pieces";
    if (h->nodes < 1 || h->nodes > 1 << 24) return "its trie has not 1 to 2^24 nodes";
    if (h->longest_piece < 1 || h->longest_piece > LONGEST_PIECE) return "its longest piece is not 1 to 1024 bytes";
    if (h->unknown >= h->vocabulary) return "its unknown token is not in its vocabulary";
    if (h->flags > ALL_UNIGRAM_FLAGS) return "its flags are unknown: upgrade firstvec";
    if (h->prefixes > MOST_SPECIAL || h->suffixes > MOST_SPECIAL) return "it has more than 4 special tokens on a side";
    if (h->pages < 1 || h->pages > CODE_POINTS / PAGE) return "its number of pages is wrong";
    if (memcmp(h->reserved, zeros.reserved, sizeof zeros.reserved)) return "its reserved bytes are not 0";
    return NULL;
}

struct unigram *open_unigram(const void *bytes, size_t size, char *problem, size_t problem_bytes) {
    if (size < sizeof(struct unigram_header)) {
        snprintf(problem, problem_bytes, "it has %zu bytes, and its header alone has %zu", size,
                 sizeof(struct unigram_header));
        return NULL;
    }
    const struct unigram_header *h = bytes;
    const char *reason = header_problem(h, size);
    struct unigram *tables = reason ? NULL : malloc(sizeof *tables);
    if (!tables) {
        snprintf(problem, problem_bytes, "%s", reason ? reason : "memory is short");
        return NULL;
    }
    uint64_t at = sizeof *h;
    tables->header = h;
    tables->mapped_bytes = size;
    tables->nodes = take(bytes, &at, sizeof(struct unigram_node) * (uint64_t)h->nodes);
    tables->scores = take(bytes, &at, sizeof(double) * (uint64_t)h->vocabulary);
    tables->left = take(bytes, &at, h->left_bytes);
    tables->pages = take(bytes, &at, 2 * (CODE_POINTS / PAGE));
    tables->characters = take(bytes, &at, 4 * PAGE * (uint64_t)h->pages);
    tables->replacements = take(bytes, &at, h->replacement_bytes);
    if (at == size) return tables;
    snprintf(problem, problem_bytes, "its sizes need %llu bytes, and it has %zu", (unsigned long long)at, size);
    free(tables);
    return NULL;
}

struct unigram *map_unigram(int descriptor, size_t size, char *problem, size_t problem_bytes) {
    const void *bytes = map_file(descriptor, size, problem, problem_bytes);
    struct unigram *tables = bytes ? open_unigram(bytes, size, problem, problem_bytes) : NULL;
    if (bytes && !tables) munmap((void *)bytes, size);
    return tables;
}

void unmap_unigram(struct unigram *tables) {
    munmap((void *)tables->header, tables->mapped_bytes);
    free(tables);
}

/* ---- word → ids ---- */

/* The best path to a place of the word. */
struct step {
    double score;
    uint32_t id;
    int32_t start; /* where its last piece begins, or NOWHERE */
    int32_t next;  /* where the piece ends that begins here. It is set when the best path is known */
};

struct word {
    uint8_t *bytes;
    struct step *steps; /* one more than bytes */
    size_t length, room;
    int is_short_of_memory;
    uint8_t few_bytes[FEW];
    struct step few_steps[FEW + 1];
};

/* Return the child of a node for a byte, or 0, which is the root and no child. */
static uint32_t find_child(const struct unigram *t, uint32_t node, uint8_t byte) {
    const uint32_t children = t->nodes[node].children, count = children & 255;
    uint32_t low = children >> 8, high = low + count;
    if (high > t->header->nodes) return 0;
    while (low < high) {
        const uint32_t middle = low + (high - low) / 2;
        const uint8_t found = t->nodes[middle].piece & 255;
        if (found == byte) return middle;
        if (found < byte)
            low = middle + 1;
        else
            high = middle;
    }
    return 0;
}

/* Return the id of the piece with these bytes, or of the unknown token. */
static uint32_t find_piece(const struct unigram *t, const uint8_t *bytes, size_t length) {
    uint32_t node = 0;
    if (length > t->header->longest_piece) return t->header->unknown;
    for (size_t i = 0; i < length; i++)
        if (!(node = find_child(t, node, bytes[i]))) return t->header->unknown;
    const uint32_t piece = t->nodes[node].piece >> 8;
    return piece && piece <= t->header->vocabulary ? piece - 1 : t->header->unknown;
}

/* A path that is as good as an earlier one does not replace it, as in the tokenizers package. */
static void offer(struct step *step, double score, uint32_t id, size_t start) {
    if (step->start != NOWHERE && !(score > step->score)) return;
    step->score = score;
    step->id = id;
    step->start = (int32_t)start;
}

/* Put the pieces of the best path (Viterbi). Unknown characters behind one another are one token. */
static void put_word(const struct unigram *t, struct word *word, struct output *out) {
    const struct unigram_header *h = t->header;
    const uint8_t *bytes = word->bytes;
    const size_t length = word->length;
    struct step *steps = word->steps;
    for (size_t i = 0; i <= length; i++) steps[i] = (struct step){0, 0, NOWHERE, 0};
    for (size_t at = 0, one; at < length; at += one) {
        const double before = steps[at].score;
        int is_piece = 0; /* this character alone */
        one = character_bytes(bytes[at]);
        if (one > length - at) one = length - at;
        size_t end = length - at < h->longest_piece ? length : at + h->longest_piece;
        for (size_t i = at, node = 0; i < end && (node = find_child(t, (uint32_t)node, bytes[i])); i++) {
            const uint32_t piece = t->nodes[node].piece >> 8;
            if (!piece || piece > h->vocabulary) continue;
            offer(&steps[i + 1], t->scores[piece - 1] + before, piece - 1, at);
            if (i + 1 - at == one) is_piece = 1;
        }
        if (!is_piece) offer(&steps[at + one], h->unknown_score + before, h->unknown, at);
    }
    for (int32_t end = (int32_t)length; end > 0; end = steps[end].start) steps[steps[end].start].next = end;
    for (size_t at = 0, end; at < length && out->count < out->room; at = end) {
        end = (size_t)steps[at].next;
        uint32_t id = steps[end].id;
        if (id == h->unknown) {
            while (end < length && steps[steps[end].next].id == h->unknown) end = (size_t)steps[end].next;
            id = find_piece(t, bytes + at, end - at); /* of all these characters together */
        }
        put(out, id);
    }
}

static int has_room(struct word *word, size_t more) {
    if (word->length + more <= word->room) return 1;
    if (word->length + more > LONGEST_WORD || word->is_short_of_memory) return 0;
    const size_t room = 2 * (word->length + more);
    uint8_t *bytes = malloc(room);
    struct step *steps = malloc((room + 1) * sizeof *steps);
    if (!bytes || !steps) {
        free(bytes);
        free(steps);
        word->is_short_of_memory = 1;
        return 0;
    }
    memcpy(bytes, word->bytes, word->length);
    if (word->bytes != word->few_bytes) {
        free(word->bytes);
        free(word->steps);
    }
    word->bytes = bytes;
    word->steps = steps;
    word->room = room;
    return 1;
}

/* ---- text → words ---- */

struct text {
    const struct unigram *tables;
    struct word *word;
    struct output out;
    size_t spaces; /* behind the word, not yet in a word */
    int has_begun; /* a word has begun, whose first character is a space if words get one */
};

static int add_bytes(struct text *text, const uint8_t *bytes, size_t length) {
    if (!has_room(text->word, length)) return 0;
    memcpy(text->word->bytes + text->word->length, bytes, length);
    text->word->length += length;
    return 1;
}

static void end_word(struct text *text) {
    if (text->word->length) put_word(text->tables, text->word, &text->out);
    text->word->length = 0;
}

/* End the word, and begin one with U+2581, which stands for a space. */
static int begin_word(struct text *text) {
    end_word(text);
    return add_bytes(text, (const uint8_t *)"\xe2\x96\x81", 3);
}

static int begin_words_of_spaces(struct text *text) {
    const uint32_t flags = text->tables->header->flags;
    size_t count = flags & COLLAPSES && text->spaces ? 1 : text->spaces;
    if (!text->has_begun && flags & STRIPS_LEFT) count = 0;
    text->spaces = 0;
    for (; count && text->out.count < text->out.room; count--, text->has_begun = 1)
        if (!begin_word(text)) return 0;
    return 1;
}

static int add_character(struct text *text, const uint8_t *bytes, size_t length) {
    if (text->spaces && !begin_words_of_spaces(text)) return 0;
    if (!text->has_begun && text->tables->header->flags & PREPENDS && !begin_word(text)) return 0;
    text->has_begun = 1;
    return add_bytes(text, bytes, length);
}

/* Add a replacement to the words. Return 0 if it does not lie in the file, or a word is too long. */
static int add_replacement(struct text *text, uint32_t entry) {
    const uint64_t place = entry >> 10, bytes = entry >> 4 & 63;
    if (place + bytes > text->tables->header->replacement_bytes) return 0;
    const uint8_t *c = text->tables->replacements + place, *end = c + bytes;
    for (size_t length; c < end; c += length) {
        length = character_bytes(*c);
        if (length > (size_t)(end - c)) return 0;
        if (*c == ' ')
            text->spaces++;
        else if (!add_character(text, c, length))
            return 0;
    }
    return 1;
}

/* Add all words. Return 0 if the text is left to the package, or memory is short. */
static int add_text(struct text *text, const uint8_t *utf8, size_t bytes) {
    const struct unigram *t = text->tables;
    for (size_t at = 0, length = 0, before; at < bytes && text->out.count < text->out.room; at += length) {
        before = length;
        length = character_bytes(utf8[at]);
        const int64_t place = find_entry(t->pages, t->header->pages, code_point(utf8 + at, length));
        const uint32_t entry = place < 0 ? LEFT_TO_PACKAGE : t->characters[place];
        if (entry & JOINS && at && before + length < t->header->cluster_bytes) return 0;
        switch (entry & 7) {
        case ITSELF:
            if (!add_character(text, utf8 + at, length)) return 0;
            break;
        case NOTHING: break;
        case SPACE: text->spaces++; break;
        case REPLACEMENT:
            if (!add_replacement(text, entry)) return 0;
            break;
        default: return 0;
        }
    }
    if (text->spaces && !(t->header->flags & STRIPS_RIGHT) && !begin_words_of_spaces(text)) return 0;
    end_word(text);
    return 1;
}

int tokenize_unigram(const struct unigram *t, const uint8_t *utf8, size_t bytes, uint32_t *ids, size_t room) {
    const struct unigram_header *h = t->header;
    if (holds_one_of(t->left, h->left, h->left_bytes, utf8, bytes)) return -1;
    struct word word;
    word.bytes = word.few_bytes;
    word.steps = word.few_steps;
    word.room = FEW;
    word.length = 0;
    word.is_short_of_memory = 0;
    struct text text = {t, &word, {ids, 0, room - h->suffixes}, 0, 0};
    for (uint32_t i = 0; i < h->prefixes; i++) put(&text.out, h->around[i]);
    const int is_certain = add_text(&text, utf8, bytes);
    if (word.bytes != word.few_bytes) {
        free(word.bytes);
        free(word.steps);
    }
    if (!is_certain) return word.is_short_of_memory ? -2 : -1;
    if (text.out.count > text.out.room) text.out.count = text.out.room;
    text.out.room = room;
    for (uint32_t i = 0; i < h->suffixes; i++) put(&text.out, h->around[h->prefixes + i]);
    return (int)text.out.count;
}
