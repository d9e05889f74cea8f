/* Token ids in, vectors out. */
#ifndef FIRSTVEC_ENCODER_H
#define FIRSTVEC_ENCODER_H

#include "weights.h"

struct texts {
    const uint32_t *ids;     /* of all texts, one behind the other. Each is below the vocabulary's size */
    const uint32_t *lengths; /* [count], from 1 to the model's positions, and also 0 if the model has no layers */
    size_t count;
};

enum outcome { ENCODED, OUT_OF_MEMORY, STOPPED };

/* Compute the vectors, (count x hidden). Texts need no padding, and a vector depends on its text only.
 * `should_stop` is asked in the caller's thread, about every 20 ms. If it answers 1, the rest is left out. */
enum outcome encode(const struct model *model, const struct kernels *kernels, const struct texts *texts,
                    size_t threads, int (*should_stop)(void *), void *argument, float *out);

#endif
