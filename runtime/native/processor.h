/* Which instruction sets this processor and this operating system can run. */
#ifndef FIRSTVEC_PROCESSOR_H
#define FIRSTVEC_PROCESSOR_H

#include "kernels.h"

/* The kernels of this build that can run here, fastest first, ended by NULL. The last one is plain C. */
const struct kernels *const *usable_kernels(void);

#endif
