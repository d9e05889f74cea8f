/* A file in memory, for reading only. */
#ifndef FIRSTVEC_MAPPING_H
#define FIRSTVEC_MAPPING_H

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

/* Map `size` bytes of the file that is open at `descriptor`. Return NULL, and a reason in `problem`, if the file has
 * fewer bytes, because a read behind its end would end the process, or if the system refuses. munmap() ends it. */
static inline const void *map_file(int descriptor, size_t size, char *problem, size_t problem_bytes) {
    struct stat file;
    if (fstat(descriptor, &file)) {
        snprintf(problem, problem_bytes, "its size is unknown (%s)", strerror(errno));
        return NULL;
    }
    if (file.st_size < 0 || (uint64_t)file.st_size < size) {
        snprintf(problem, problem_bytes, "it has %lld bytes, and not %zu", (long long)file.st_size, size);
        return NULL;
    }
    void *bytes = mmap(NULL, size, PROT_READ, MAP_PRIVATE, descriptor, 0);
    if (bytes == MAP_FAILED) {
        snprintf(problem, problem_bytes, "%zu bytes cannot be mapped into memory (%s)", size, strerror(errno));
        return NULL;
    }
#ifdef MADV_HUGEPAGE
    /* Linux then reads 2 MB at once from the disk, and keeps them as one block. A later process maps such a block with
     * one page fault, where small pages need 32 (docs/native-engine.md has the figures). A refusal changes nothing. */
    madvise(bytes, size, MADV_HUGEPAGE);
#endif
    return bytes;
}

#endif
