/* The extension module firstvec._native, in Python's stable ABI of 3.11. */
#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#include <Python.h>

#include "byte_pairs.h"
#include "encoder.h"
#include "processor.h"
#include "unigram.h"
#include "wordpiece.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/syscall.h>
#endif

/* Counts the changes of the bits that this engine computes of a weights file. */
#define ENGINE_VERSION "1.0"

/* ---- Weights ---- */

typedef struct {
    PyObject_HEAD
    struct model *model;
    const struct kernels *kernels;
} Weights;

static const struct kernels *find_kernels(const char *name) {
    const struct kernels *const *list = usable_kernels();
    if (!name) return *list;
    for (; *list; list++)
        if (!strcmp((*list)->name, name)) return *list;
    return NULL;
}

static PyObject *weights_new(PyTypeObject *type, PyObject *arguments, PyObject *named) {
    static char *names[] = {"descriptor", "size", "isa", NULL};
    int descriptor;
    Py_ssize_t size;
    const char *isa = NULL;
    char problem[160];
    if (!PyArg_ParseTupleAndKeywords(arguments, named, "in|z", names, &descriptor, &size, &isa)) return NULL;
    const struct kernels *kernels = find_kernels(isa);
    if (!kernels) return PyErr_Format(PyExc_ValueError, "this processor cannot run the kernels %s", isa);
    struct model *model = map_model(descriptor, size < 0 ? 0 : (size_t)size, problem, sizeof problem);
    if (!model) {
        PyErr_SetString(PyExc_ValueError, problem);
        return NULL;
    }
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    Weights *self = (Weights *)allocate(type, 0);
    if (!self) {
        unmap_model(model);
        return NULL;
    }
    self->model = model;
    self->kernels = kernels;
    return (PyObject *)self;
}

static void weights_dealloc(PyObject *object) {
    PyTypeObject *type = Py_TYPE(object);
    unmap_model(((Weights *)object)->model);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(object);
    Py_DECREF(type);
}

/* Signal handlers run in the main thread only. Another thread must not take the GIL between its blocks: at the
 * interpreter's exit Python ends a thread that does, while the engine's threads still use its stack. */
static int is_main_thread(void) {
#ifdef __APPLE__
    return pthread_main_np();
#else
    return getpid() == syscall(SYS_gettid); /* gettid() came with glibc 2.30 */
#endif
}

static int signal_raises(void *argument) {
    PyThreadState **state = argument;
    PyEval_RestoreThread(*state);
    int raised = PyErr_CheckSignals();
    *state = PyEval_SaveThread();
    return raised != 0;
}

/* Read the ids of a text, or set an exception and return 0. */
static int read_row(PyObject *row, const struct weights_header *header, Py_ssize_t index, uint32_t *ids,
                    uint32_t length) {
    for (uint32_t i = 0; i < length; i++) {
        const unsigned long id = PyLong_AsUnsignedLong(PyTuple_GetItem(row, i));
        if (id < header->vocabulary) {
            ids[i] = (uint32_t)id;
            continue;
        }
        PyErr_Clear();
        PyErr_Format(PyExc_ValueError, "text %zd: its token %lu is no integer from 0 to %lu", index, (unsigned long)i,
                     (unsigned long)header->vocabulary - 1);
        return 0;
    }
    return 1;
}

/* Read the texts of a tuple, or set an exception and return 0. The caller frees ids and lengths in either case. Each row
 * becomes a tuple first, because a list can change while it is read. */
static int read_rows(PyObject *rows, const struct weights_header *header, struct texts *texts) {
    const Py_ssize_t count = PyTuple_Size(rows);
    uint32_t *lengths = malloc(((size_t)count + 1) * sizeof *lengths);
    texts->lengths = lengths;
    texts->count = (size_t)count;
    size_t total = 0, room = 0;
    uint32_t *ids = NULL;
    for (Py_ssize_t i = 0; lengths && i < count; i++) {
        PyObject *row = PySequence_Tuple(PyTuple_GetItem(rows, i));
        if (!row) return 0;
        const Py_ssize_t length = PyTuple_Size(row);
        const int least = header->layers > 0; /* the mean of no rows is 0 */
        if (length < least || (size_t)length > header->positions) {
            PyErr_Format(PyExc_ValueError, "text %zd has %zd tokens, and the weights take %d to %lu", i, length, least,
                         (unsigned long)header->positions);
            Py_DECREF(row);
            return 0;
        }
        if (total + (size_t)length > room) {
            room = 2 * room + (size_t)length;
            uint32_t *more = realloc(ids, room * sizeof *ids);
            if (!more) {
                Py_DECREF(row);
                PyErr_NoMemory();
                return 0;
            }
            texts->ids = ids = more;
        }
        lengths[i] = (uint32_t)length;
        const int is_read = read_row(row, header, i, ids + total, (uint32_t)length);
        Py_DECREF(row);
        if (!is_read) return 0;
        total += (size_t)length;
    }
    if (!lengths) PyErr_NoMemory();
    return lengths != NULL;
}

static PyObject *weights_run(PyObject *object, PyObject *arguments) {
    Weights *self = (Weights *)object;
    const struct weights_header *header = self->model->header;
    PyObject *sequence, *result = NULL;
    Py_ssize_t threads;
    struct texts texts = {0};
    if (!PyArg_ParseTuple(arguments, "On:run", &sequence, &threads)) return NULL;
    PyObject *rows = PySequence_Tuple(sequence);
    if (!rows) return NULL;
    if (read_rows(rows, header, &texts))
        result = PyByteArray_FromStringAndSize(NULL, (Py_ssize_t)(texts.count * header->hidden * sizeof(float)));
    Py_DECREF(rows);
    if (result && texts.count) {
        float *out = (float *)PyByteArray_AsString(result);
        int (*should_stop)(void *) = is_main_thread() ? signal_raises : NULL;
        PyThreadState *state = PyEval_SaveThread();
        enum outcome outcome = encode(self->model, self->kernels, &texts, threads < 1 ? 1 : (size_t)threads,
                                      should_stop, &state, out);
        PyEval_RestoreThread(state);
        if (outcome != ENCODED) {
            Py_DECREF(result);
            result = outcome == OUT_OF_MEMORY ? PyErr_NoMemory() : NULL;
        }
    }
    free((void *)texts.ids);
    free((void *)texts.lengths);
    return result;
}

static PyObject *weights_isa(PyObject *object, void *unused) {
    (void)unused;
    return PyUnicode_FromString(((Weights *)object)->kernels->name);
}

static PyObject *weights_dim(PyObject *object, void *unused) {
    (void)unused;
    return PyLong_FromUnsignedLong(((Weights *)object)->model->header->hidden);
}

static PyMethodDef weights_methods[] = {
    {"run", weights_run, METH_VARARGS,
     "run(rows, threads)\n--\n\nCompute the vectors of rows of token ids: a bytearray of float32, (len(rows), dim).\n\n"
     "Raises ValueError: a row is empty or too long, or an id is not in the vocabulary. MemoryError."},
    {NULL, NULL, 0, NULL},
};
static PyGetSetDef weights_properties[] = {
    {"isa", weights_isa, NULL, "The instruction set of the kernels in use.", NULL},
    {"embedding_dim", weights_dim, NULL, "Numbers of a vector.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};
static PyType_Slot weights_slots[] = {
    {Py_tp_new, weights_new},
    {Py_tp_dealloc, weights_dealloc},
    {Py_tp_methods, weights_methods},
    {Py_tp_getset, weights_properties},
    {Py_tp_doc, "Weights(descriptor, size, isa=None)\n--\n\nThe weights file that is open at a descriptor, mapped into memory.\n\n"
                "Raises ValueError: it is no weights file that this engine can compute."},
    {0, NULL},
};
static PyType_Spec weights_spec = {"firstvec._native.Weights", sizeof(Weights), 0, Py_TPFLAGS_DEFAULT, weights_slots};

/* ---- tokenizers ---- */

/* What a family of tokenizers does with its tables. */
struct family {
    void *(*map)(int descriptor, size_t size, char *problem, size_t problem_bytes);
    void (*unmap)(void *tables);
    size_t (*specials)(const void *tables);
    int (*tokenize)(const void *tables, const uint8_t *text, size_t bytes, uint32_t *ids, size_t room);
};

typedef struct {
    PyObject_HEAD
    const struct family *family;
    void *tables;
    uint32_t room;
} Tokenizer;

enum { MOST_ROOM = 1 << 16 };

static PyObject *tokenizer_new(const struct family *family, PyTypeObject *type, PyObject *arguments, PyObject *named) {
    static char *names[] = {"descriptor", "size", "max_seq_length", NULL};
    int descriptor;
    Py_ssize_t size, room;
    char problem[160];
    if (!PyArg_ParseTupleAndKeywords(arguments, named, "inn", names, &descriptor, &size, &room)) return NULL;
    void *tables = family->map(descriptor, size < 0 ? 0 : (size_t)size, problem, sizeof problem);
    if (!tables) {
        PyErr_SetString(PyExc_ValueError, problem);
        return NULL;
    }
    if (room < (Py_ssize_t)family->specials(tables) || room > MOST_ROOM) {
        family->unmap(tables);
        return PyErr_Format(PyExc_ValueError, "max_seq_length is %zd: the special tokens do not fit, or it is above %d", room,
                            MOST_ROOM);
    }
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    Tokenizer *self = (Tokenizer *)allocate(type, 0);
    if (!self) {
        family->unmap(tables);
        return NULL;
    }
    self->family = family;
    self->tables = tables;
    self->room = (uint32_t)room;
    return (PyObject *)self;
}

static void tokenizer_dealloc(PyObject *object) {
    PyTypeObject *type = Py_TYPE(object);
    ((Tokenizer *)object)->family->unmap(((Tokenizer *)object)->tables);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(object);
    Py_DECREF(type);
}

static PyObject *tokenizer_tokenize(PyObject *object, PyObject *text) {
    Tokenizer *self = (Tokenizer *)object;
    Py_ssize_t bytes;
    const char *utf8 = PyUnicode_AsUTF8AndSize(text, &bytes);
    uint32_t few[512], *ids = few;
    if (!utf8) return NULL;
    if (self->room > 512 && !(ids = malloc(self->room * sizeof *ids))) return PyErr_NoMemory();
    const int count = self->family->tokenize(self->tables, (const uint8_t *)utf8, (size_t)bytes, ids, self->room);
    PyObject *result;
    if (count == -1) {
        result = Py_NewRef(Py_None);
    } else if (count < 0) {
        result = PyErr_NoMemory();
    } else if ((result = PyList_New(count)) != NULL) {
        for (int i = 0; i < count; i++) {
            PyObject *id = PyLong_FromUnsignedLong(ids[i]);
            if (!id || PyList_SetItem(result, i, id)) {
                Py_CLEAR(result);
                break;
            }
        }
    }
    if (ids != few) free(ids);
    return result;
}

static PyMethodDef tokenizer_methods[] = {
    {"tokenize", tokenizer_tokenize, METH_O,
     "tokenize(text)\n--\n\nReturn the text's token ids, or None if the tokenizers package has to be asked.\n\n"
     "Raises MemoryError."},
    {NULL, NULL, 0, NULL},
};

/* Define a family and its Python type. A function of the family takes the family's own kind of tables. */
#define FAMILY(lower, tables_type, map_function, unmap_function, tokenize_function, name, what)                         \
    static void *lower##_map(int descriptor, size_t size, char *problem, size_t problem_bytes) {                        \
        return map_function(descriptor, size, problem, problem_bytes);                                                  \
    }                                                                                                                   \
    static void lower##_unmap(void *tables) { unmap_function(tables); }                                                 \
    static size_t lower##_specials(const void *tables) {                                                                \
        const tables_type *t = tables;                                                                                  \
        return (size_t)t->header->prefixes + t->header->suffixes;                                                       \
    }                                                                                                                   \
    static int lower##_tokenize(const void *tables, const uint8_t *text, size_t bytes, uint32_t *ids, size_t room) {    \
        return tokenize_function(tables, text, bytes, ids, room);                                                       \
    }                                                                                                                   \
    static const struct family lower##_family = {lower##_map, lower##_unmap, lower##_specials, lower##_tokenize};       \
    static PyObject *lower##_new(PyTypeObject *type, PyObject *arguments, PyObject *named) {                            \
        return tokenizer_new(&lower##_family, type, arguments, named);                                                  \
    }                                                                                                                   \
    static PyType_Slot lower##_slots[] = {                                                                              \
        {Py_tp_new, lower##_new},                                                                                       \
        {Py_tp_dealloc, tokenizer_dealloc},                                                                             \
        {Py_tp_methods, tokenizer_methods},                                                                             \
        {Py_tp_doc, name "(descriptor, size, max_seq_length)\n--\n\nThe " what " tables that are open at a descriptor, "    \
                         "mapped into memory.\n\nRaises ValueError: the file has no tables that this engine can read."},  \
        {0, NULL},                                                                                                      \
    };                                                                                                                  \
    static PyType_Spec lower##_spec = {"firstvec._native." name, sizeof(Tokenizer), 0, Py_TPFLAGS_DEFAULT, lower##_slots};

FAMILY(wordpiece, struct tables, map_tables, unmap_tables, tokenize, "WordPiece", "WordPiece")
FAMILY(unigram, struct unigram, map_unigram, unmap_unigram, tokenize_unigram, "Unigram", "Unigram")
FAMILY(byte_pairs, struct byte_pairs, map_byte_pairs, unmap_byte_pairs, tokenize_byte_pairs, "BytePairs", "byte-pair")

/* ---- the module ---- */

static PyObject *instruction_sets(PyObject *module, PyObject *unused) {
    (void)module, (void)unused;
    const struct kernels *const *list = usable_kernels();
    Py_ssize_t count = 0;
    while (list[count]) count++;
    PyObject *names = PyTuple_New(count);
    for (Py_ssize_t i = 0; names && i < count; i++) {
        PyObject *name = PyUnicode_FromString(list[i]->name);
        if (!name || PyTuple_SetItem(names, i, name)) Py_CLEAR(names);
    }
    return names;
}

static int add_type(PyObject *module, PyType_Spec *spec, const char *name) {
    PyObject *type = PyType_FromModuleAndSpec(module, spec, NULL);
    if (!type) return -1;
    const int failed = PyModule_AddObjectRef(module, name, type);
    Py_DECREF(type);
    return failed;
}

static int execute(PyObject *module) {
    usable_kernels();
    if (add_type(module, &weights_spec, "Weights") || add_type(module, &wordpiece_spec, "WordPiece") ||
        add_type(module, &unigram_spec, "Unigram") || add_type(module, &byte_pairs_spec, "BytePairs"))
        return -1;
    return PyModule_AddStringConstant(module, "VERSION", ENGINE_VERSION);
}

static PyMethodDef functions[] = {
    {"instruction_sets", instruction_sets, METH_NOARGS,
     "instruction_sets()\n--\n\nReturn the instruction sets that the engine can use on this processor, fastest first."},
    {NULL, NULL, 0, NULL},
};
static PyModuleDef_Slot slots[] = {{Py_mod_exec, (void *)execute}, {0, NULL}};
static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "firstvec._native",
                                        "firstvec's own engine: weights and tokenizer in C.", 0, functions, slots,
                                        NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__native(void) { return PyModuleDef_Init(&definition); }
