/* libFuzzer's driver of weights files. An input is a header and some bytes, which are repeated as often as the header's
 * sizes need them. The file is opened as it is, then with a right size. If it opens, it encodes some texts. */
#define _GNU_SOURCE
#include "encoder.h"
#include "fuzzing.h"
#include "processor.h"

/* Encode three texts with one instruction set, which the file's last byte chooses. */
static void encode_some(const struct model *model, uint8_t last_byte) {
    uint32_t ids[9], lengths[] = {1, 5, 3};
    const struct weights_header *h = model->header;
    struct texts texts = {ids, lengths, 3};
    for (uint32_t i = 0; i < 9; i++) ids[i] = i * 7 % h->vocabulary;
    for (int i = 0; i < 3; i++)
        if (lengths[i] > h->positions) lengths[i] = h->positions;
    const struct kernels *const *list = usable_kernels();
    size_t count = 0;
    while (list[count]) count++;
    float *out = malloc(3 * (size_t)h->hidden * sizeof *out);
    if (!out || encode(model, list[last_byte % count], &texts, 1, NULL, NULL, out) != ENCODED) abort();
    free(out);
}

static size_t open_and_run(const uint8_t *bytes, size_t size) {
    char problem[160] = "";
    uint8_t *copy = copy_of(bytes, size);
    struct model *model = open_model(copy, size, problem, sizeof problem);
    if (model) encode_some(model, bytes[size - 1]);
    free(model);
    free(copy);
    return model ? 0 : size_needed(problem);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size) {
    static uint8_t file[LARGEST_FILE];
    open_and_run(bytes, size);
    if (size <= HEADER || size > LARGEST_FILE) return 0;
    memcpy(file, bytes, size);
    set_right(file, WEIGHTS_MAGIC, size);
    const size_t needed = open_and_run(file, size);
    if (!needed) return 0;
    for (size_t i = size; i < needed; i++) file[i] = file[i - (size - HEADER)];
    set_right(file, WEIGHTS_MAGIC, needed);
    if (open_and_run(file, needed)) abort(); /* the needed size was not the right one */
    return 0;
}
