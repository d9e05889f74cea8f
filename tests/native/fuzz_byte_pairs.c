/* libFuzzer's driver of byte-pair tables and texts. An input is as that of fuzz_tokenizer.c. */
#define _GNU_SOURCE
#include "byte_pairs.h"
#include "fuzzing.h"

enum { ROOM = 32, PAGES = 2 * CODE_POINTS / PAGE };

static size_t open_and_run(const uint8_t *bytes, size_t size, const uint8_t *text, size_t text_bytes) {
    char problem[160] = "";
    uint8_t *copy = copy_of(bytes, size), *valid = copy_of(text, text_bytes);
    make_valid(valid, text_bytes);
    struct byte_pairs *tables = open_byte_pairs(copy, size, problem, sizeof problem);
    for (size_t room = 1; tables && room <= ROOM; room *= 2) {
        if (room < tables->header->prefixes + (size_t)tables->header->suffixes) continue;
        uint32_t *ids = malloc(room * sizeof *ids);
        if (!ids) abort();
        const int count = tokenize_byte_pairs(tables, valid, text_bytes, ids, room);
        if (count < -2 || count > (int)room) abort();
        free(ids);
    }
    free(tables);
    free(copy);
    free(valid);
    return tables ? 0 : size_needed(problem);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size) {
    static uint8_t file[LARGEST_FILE];
    if (size <= HEADER + 1) {
        open_and_run(bytes, size, bytes, size);
        return 0;
    }
    const size_t text_bytes = bytes[HEADER] < size - HEADER - 1 ? bytes[HEADER] : size - HEADER - 1;
    const uint8_t *text = bytes + HEADER + 1, *rest = text + text_bytes;
    const size_t length = (size_t)(bytes + size - rest);
    open_and_run(bytes, size, text, text_bytes);
    if (!length || length > 4096) return 0;
    memcpy(file, bytes, HEADER);
    set_right(file, BYTE_PAIRS_MAGIC, HEADER);
    const size_t needed = open_and_run(file, HEADER, text, text_bytes);
    if (needed <= HEADER) return 0;
    const struct byte_pairs_header *h = (const struct byte_pairs_header *)bytes;
    size_t pages = behind(behind(HEADER, 4 * 256), sizeof(struct merge) * (size_t)h->slots);
    pages = behind(pages, h->left_bytes);
    const uint8_t *last = length < 16 ? rest : rest + length - 16;
    for (size_t i = HEADER, from = 0; i < needed; i++)
        file[i] = i >= pages && i < pages + PAGES ? last[(i - pages) % 16 % length] : rest[from++ % length];
    set_right(file, BYTE_PAIRS_MAGIC, needed);
    if (open_and_run(file, needed, text, text_bytes)) abort(); /* the needed size was not the right one */
    return 0;
}
