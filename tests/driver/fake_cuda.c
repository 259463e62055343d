/* A driver without a card, for tests/driver.rs: just enough of libcuda.so.1 to see what a program
   asks of it. Device memory is memory of the process; what goes to a stream waits until somebody
   waits for the stream or an event, as on a card, so that a buffer which is filled again too soon
   shows. Kernels are not run but written to the log, each argument as wide as the PTX declares it.

   FAKE_CUDA_LOG         file that gets a line for what happens, and at the end one for what is left
   FAKE_CUDA_FAIL        function:n:code, the n-th call (from 1) of it returns the code
   FAKE_CUDA_COUNT       cards [1]
   FAKE_CUDA_CAPABILITY  major * 10 + minor [90] */
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef unsigned int code;
enum {
    INVALID_VALUE = 1,
    INVALID_DEVICE = 101,
    INVALID_CONTEXT = 201,
    NOT_FOUND = 500,
    CAPTURE_UNSUPPORTED = 900,
    NOT_INITIALIZED = 3
};

static FILE* logged;
static int started;
static long contexts, modules, memories, pins, streams, events, graphs, execs;
static _Thread_local void* current;
static char the_context;

static void say(const char* format, ...) {
    if (!logged) {
        const char* path = getenv("FAKE_CUDA_LOG");
        logged = path ? fopen(path, "w") : stderr;
    }
    va_list rest;
    va_start(rest, format);
    vfprintf(logged, format, rest);
    va_end(rest);
    fputc('\n', logged);
    fflush(logged);
}

__attribute__((destructor)) static void end(void) {
    if (started)
        say("left contexts=%ld modules=%ld memories=%ld pins=%ld streams=%ld events=%ld graphs=%ld "
            "execs=%ld",
            contexts, modules, memories, pins, streams, events, graphs, execs);
}

/* How often each function was called, and whether this call is to fail. */
static code called(const char* name) {
    static struct {
        const char* name;
        int calls;
    } seen[64];
    int i = 0;
    while (seen[i].name && strcmp(seen[i].name, name)) i++;
    seen[i].name = name;
    seen[i].calls++;
    const char* fail = getenv("FAKE_CUDA_FAIL");
    size_t length = strlen(name);
    if (!fail || strncmp(fail, name, length) || fail[length] != ':') return 0;
    int call, result;
    if (sscanf(fail + length + 1, "%d:%d", &call, &result) != 2) abort();
    return call == seen[i].calls ? (code)result : 0;
}

#define BEGIN                               \
    code failure = called(__func__);        \
    if (failure) return failure;            \
    if (!started) return NOT_INITIALIZED
#define BEGIN_IN_CONTEXT \
    BEGIN;               \
    if (current != &the_context) return INVALID_CONTEXT

static int number(const char* name, int usual) {
    const char* text = getenv(name);
    return text ? atoi(text) : usual;
}

code cuInit(unsigned flags) {
    code failure = called(__func__);
    if (failure) return failure;
    started = 1;
    return flags ? INVALID_VALUE : 0;
}
code cuDriverGetVersion(int* version) {
    BEGIN;
    *version = 13000;
    return 0;
}
code cuGetErrorName(code error, const char** name) {
    if (error == 12345) return INVALID_VALUE;
    static char text[32];
    snprintf(text, sizeof text, "CUDA_ERROR_%u", error);
    *name = text;
    return 0;
}
code cuGetErrorString(code error, const char** text) {
    if (error == 12345) return INVALID_VALUE;
    *text = "what the driver says";
    return 0;
}
code cuDeviceGetCount(int* count) {
    BEGIN;
    *count = number("FAKE_CUDA_COUNT", 1);
    return 0;
}
code cuDeviceGet(int* device, int ordinal) {
    BEGIN;
    *device = ordinal;
    return ordinal < number("FAKE_CUDA_COUNT", 1) ? 0 : INVALID_DEVICE;
}
code cuDeviceGetName(char* name, int length, int device) {
    BEGIN;
    snprintf(name, (size_t)length, "Fake %d", device);
    return 0;
}
code cuDeviceGetAttribute(int* value, int attribute, int device) {
    BEGIN;
    (void)device;
    int capability = number("FAKE_CUDA_CAPABILITY", 90);
    switch (attribute) { /* cuda.h */
        case 75: *value = capability / 10; return 0;
        case 76: *value = capability % 10; return 0;
        case 16: *value = 132; return 0;
        case 13: *value = 1980000; return 0;
        case 36: *value = 2619000; return 0;
        case 37: *value = 5120; return 0;
    }
    return INVALID_VALUE;
}
code cuDeviceTotalMem_v2(size_t* bytes, int device) {
    BEGIN;
    (void)device;
    *bytes = (size_t)80 << 30;
    return 0;
}
code cuDevicePrimaryCtxRetain(void** context, int device) {
    BEGIN;
    (void)device;
    contexts++;
    *context = &the_context;
    return 0;
}
code cuDevicePrimaryCtxRelease_v2(int device) {
    BEGIN;
    (void)device;
    contexts--;
    return 0;
}
code cuCtxSetCurrent(void* context) {
    BEGIN;
    current = context;
    return 0;
}

/* A stream: what waits in it, in order. */
struct work {
    void* to;
    const void* from;
    size_t bytes;
    long event; /* instead of a copy */
};
static struct work queue[1024];
static size_t waiting;
static int recording;

static void finish(size_t count) {
    for (size_t i = 0; i < count; i++)
        if (!queue[i].event) memcpy(queue[i].to, queue[i].from, queue[i].bytes);
    memmove(queue, queue + count, (waiting - count) * sizeof *queue);
    waiting -= count;
}
static void push(struct work work) {
    if (waiting == sizeof queue / sizeof *queue) abort();
    queue[waiting++] = work;
}

code cuCtxSynchronize(void) {
    BEGIN_IN_CONTEXT;
    finish(waiting);
    return 0;
}
code cuStreamCreate(void** stream, unsigned flags) {
    BEGIN_IN_CONTEXT;
    if (flags != 1) return INVALID_VALUE; /* CU_STREAM_NON_BLOCKING */
    streams++;
    *stream = malloc(1);
    return 0;
}
code cuStreamDestroy_v2(void* stream) {
    BEGIN_IN_CONTEXT;
    streams--;
    free(stream);
    return 0;
}
code cuStreamSynchronize(void* stream) {
    BEGIN_IN_CONTEXT;
    (void)stream;
    if (recording) return CAPTURE_UNSUPPORTED;
    finish(waiting);
    return 0;
}

code cuEventCreate(void** event, unsigned flags) {
    BEGIN_IN_CONTEXT;
    if (flags != 0 && flags != 2) return INVALID_VALUE;
    events++;
    *event = malloc(1);
    return 0;
}
code cuEventDestroy_v2(void* event) {
    BEGIN_IN_CONTEXT;
    events--;
    free(event);
    return 0;
}
code cuEventRecord(void* event, void* stream) {
    BEGIN_IN_CONTEXT;
    (void)stream;
    push((struct work){.event = (long)event});
    return 0;
}
code cuEventSynchronize(void* event) {
    BEGIN_IN_CONTEXT;
    for (size_t i = waiting; i > 0; i--)
        if (queue[i - 1].event == (long)event) {
            finish(i);
            break;
        }
    return 0;
}
code cuEventElapsedTime(float* milliseconds, void* first, void* last) {
    BEGIN_IN_CONTEXT;
    (void)first, (void)last;
    *milliseconds = 1.5f;
    return 0;
}

code cuMemAlloc_v2(uint64_t* address, size_t bytes) {
    BEGIN_IN_CONTEXT;
    if (!bytes) return INVALID_VALUE;
    memories++;
    *address = (uint64_t)malloc(bytes);
    say("alloc %zu", bytes);
    return 0;
}
code cuMemFree_v2(uint64_t address) {
    BEGIN_IN_CONTEXT;
    if (waiting) return INVALID_VALUE; /* nobody waited */
    memories--;
    free((void*)address);
    return 0;
}
code cuMemHostAlloc(void** address, size_t bytes, unsigned flags) {
    BEGIN_IN_CONTEXT;
    if (flags) return INVALID_VALUE;
    pins++;
    *address = malloc(bytes);
    return 0;
}
code cuMemFreeHost(void* address) {
    BEGIN_IN_CONTEXT;
    pins--;
    free(address);
    return 0;
}
static code copy(void* to, const void* from, size_t bytes) {
    if (recording) return CAPTURE_UNSUPPORTED;
    push((struct work){.to = to, .from = from, .bytes = bytes});
    return 0;
}
code cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, void* stream) {
    BEGIN_IN_CONTEXT;
    (void)stream;
    return copy((void*)to, from, bytes);
}
code cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, void* stream) {
    BEGIN_IN_CONTEXT;
    (void)stream;
    return copy(to, (const void*)from, bytes);
}

/* Kernels: how wide each parameter is, read from the PTX. */
struct module {
    char* ptx;
};
struct kernel {
    char name[64];
    int parameters;
    size_t bytes[32];
    int shared;
};
code cuModuleLoadDataEx(struct module** module, const char* ptx, unsigned options, void* names,
                        void* values) {
    BEGIN_IN_CONTEXT;
    (void)names, (void)values;
    if (options || !strstr(ptx, ".version")) return INVALID_VALUE;
    if (recording) return CAPTURE_UNSUPPORTED;
    modules++;
    *module = malloc(sizeof **module);
    (*module)->ptx = strdup(ptx);
    say("module %zu bytes", strlen(ptx));
    return 0;
}
code cuModuleUnload(struct module* module) {
    BEGIN_IN_CONTEXT;
    modules--;
    free(module->ptx);
    free(module);
    return 0;
}
code cuModuleGetFunction(struct kernel** kernel, struct module* module, const char* name) {
    BEGIN_IN_CONTEXT;
    char heading[96];
    snprintf(heading, sizeof heading, ".entry %s(", name);
    const char* at = strstr(module->ptx, heading);
    if (!at) return NOT_FOUND;
    const char* end_of_list = strchr(at, ')');
    struct kernel* found = calloc(1, sizeof *found); /* as the driver's, never given back */
    snprintf(found->name, sizeof found->name, "%s", name);
    while ((at = strstr(at, ".param ")) && at < end_of_list) {
        at += strlen(".param ");
        unsigned align, bits, bytes;
        char type;
        if (sscanf(at, ".align %u .b8 %*[^[][%u]", &align, &bytes) == 2)
            found->bytes[found->parameters++] = bytes;
        else if (sscanf(at, ".%c%u", &type, &bits) == 2)
            found->bytes[found->parameters++] = bits / 8;
        else
            return INVALID_VALUE;
    }
    *kernel = found;
    return 0;
}
code cuFuncSetAttribute(struct kernel* kernel, int attribute, int value) {
    BEGIN_IN_CONTEXT;
    if (attribute != 8) return INVALID_VALUE; /* ..._MAX_DYNAMIC_SHARED_SIZE_BYTES */
    kernel->shared = value;
    return 0;
}
code cuLaunchKernel(struct kernel* kernel, unsigned gx, unsigned gy, unsigned gz, unsigned bx,
                    unsigned by, unsigned bz, unsigned shared, void* stream, void** parameters,
                    void** extra) {
    BEGIN_IN_CONTEXT;
    (void)stream;
    if (extra || !gx || !gy || !gz || !bx || !by || !bz) return INVALID_VALUE;
    if (bx * by * bz > 1024) return INVALID_VALUE;
    if (shared > 49152 && (int)shared > kernel->shared) return INVALID_VALUE;
    char text[4096];
    const char* done = recording ? "record" : "launch";
    int at = snprintf(text, sizeof text, "%s %s (%u,%u,%u) (%u,%u,%u) %u:", done, kernel->name, gx,
                      gy, gz, bx, by, bz, shared);
    for (int i = 0; i < kernel->parameters; i++) {
        at += snprintf(text + at, sizeof text - (size_t)at, " ");
        for (size_t byte = 0; byte < kernel->bytes[i]; byte++)
            at += snprintf(text + at, sizeof text - (size_t)at, "%02x",
                           ((unsigned char*)parameters[i])[byte]);
    }
    say("%s", text);
    return 0;
}

code cuStreamBeginCapture_v2(void* stream, int mode) {
    BEGIN_IN_CONTEXT;
    (void)stream;
    if (mode != 1 || recording) return INVALID_VALUE; /* thread-local */
    recording = 1;
    return 0;
}
code cuStreamEndCapture(void* stream, void** graph) {
    BEGIN_IN_CONTEXT;
    (void)stream;
    if (!recording) return INVALID_VALUE;
    recording = 0;
    graphs++;
    *graph = malloc(1);
    return 0;
}
code cuGraphInstantiateWithFlags(void** exec, void* graph, unsigned long long flags) {
    BEGIN_IN_CONTEXT;
    if (!graph || flags) return INVALID_VALUE;
    execs++;
    *exec = malloc(1);
    return 0;
}
code cuGraphDestroy(void* graph) {
    BEGIN_IN_CONTEXT;
    graphs--;
    free(graph);
    return 0;
}
code cuGraphExecDestroy(void* exec) {
    BEGIN_IN_CONTEXT;
    execs--;
    free(exec);
    return 0;
}
code cuGraphLaunch(void* exec, void* stream) {
    BEGIN_IN_CONTEXT;
    (void)exec, (void)stream;
    say("graph");
    return 0;
}
