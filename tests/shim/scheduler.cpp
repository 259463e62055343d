// Fibers, barriers and shared memory. Compiled without ThreadSanitizer, whose fibers it drives with
// -DHOST_TSAN: what happens here must not look like something that the kernel's threads do.
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>

#include "cuda_host.h"

#ifdef HOST_TSAN
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_set_fiber_name(void* fiber, const char* name);
void __tsan_acquire(void* at);
void __tsan_release(void* at);
}
// Switching to a fiber orders nothing.
constexpr unsigned NO_SYNC = 1;
#endif
#ifdef HOST_ASAN
extern "C" {
void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom, size_t size);
void __sanitizer_finish_switch_fiber(void* fake_stack, const void** bottom, size_t* size);
void __asan_poison_memory_region(const volatile void* at, size_t size);
void __asan_unpoison_memory_region(const volatile void* at, size_t size);
}
#endif

#ifndef __x86_64__
#error "switching between fibers is written for x86-64 only"
#endif
extern "C" void host_switch(void** from, void* to);
asm(R"(
.text
.globl host_switch
.type host_switch,@function
host_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size host_switch,.-host_switch
)");

// The accesses of a copy that has arrived, which the sanitizers are to see (emulated.cpp).
void host_land(void* to, const void* from, bool there);

namespace host {
namespace {

// Thrown through a fiber's frames when the launch is over.
struct Stop {};

constexpr size_t STACK = 64 * 1024;
// Shared memory that every card gives a block without being asked.
constexpr size_t MOST_SHARED = 48 * 1024;
// With the red zones.
constexpr size_t ARENA = 128 * 1024;
constexpr size_t MOST_BYTES = 64;

enum class State { ready, at_barrier, at_warp, done };

struct Copy {
    void* to;
    const void* from;
    bool there;
};

struct Fiber {
    void* stack_pointer = nullptr;
    char* stack = nullptr;
    State state = State::ready;
    uint3 index{};
    unsigned number = 0, lane = 0, warp = 0;
    uint64_t site = 0;
    unsigned barriers = 0, meetings = 0, mask = 0;
    const char* what = "";
    void* tsan = nullptr;
    void* fake_stack = nullptr;
    std::vector<Copy> open;
    std::vector<std::vector<Copy>> groups;
};

struct Warp {
    // Of two meetings in turn: a late lane still reads what an early one would overwrite.
    unsigned char slots[2][32][MOST_BYTES];
    char order[2];
};

struct SharedArray {
    const void* key;
    char* at;
};

struct Launch {
    dim3 grid, block;
    uint3 block_index{};
    size_t dynamic_bytes = 0;
    const std::function<void()>* body = nullptr;
    std::vector<Fiber> fibers;
    std::vector<Warp> warps;
    Fiber* current = nullptr;
    void* scheduler_pointer = nullptr;
    void* scheduler_tsan = nullptr;
    void* scheduler_fake = nullptr;
    const void* scheduler_bottom = nullptr;
    size_t scheduler_size = 0;
    char* arena = nullptr;
    size_t arena_used = 0, shared_bytes = 0;
    // No vector: nothing is to be allocated while a fiber of ThreadSanitizer runs.
    SharedArray arrays[32];
    unsigned array_count = 0;
    char order[2];
    char end;
    std::string error;
    uint64_t random = 0x9e3779b97f4a7c15ull;
};

Launch* launch = nullptr;
const char dynamic_key = 0;

void to_scheduler() {
    Fiber* const own = launch->current;
#ifdef HOST_ASAN
    void** const fake = own->state == State::done ? nullptr : &own->fake_stack;
    __sanitizer_start_switch_fiber(fake, launch->scheduler_bottom, launch->scheduler_size);
#endif
#ifdef HOST_TSAN
    __tsan_switch_to_fiber(launch->scheduler_tsan, NO_SYNC);
#endif
    host_switch(&own->stack_pointer, launch->scheduler_pointer);
#ifdef HOST_ASAN
    __sanitizer_finish_switch_fiber(own->fake_stack, nullptr, nullptr);
#endif
}

void wait() {
    to_scheduler();
    if (!launch->error.empty()) throw Stop{};
}

void begin() {
#ifdef HOST_ASAN
    __sanitizer_finish_switch_fiber(nullptr, &launch->scheduler_bottom, &launch->scheduler_size);
#endif
    Fiber* const own = launch->current;
    try {
        (*launch->body)();
        bool flying = !own->open.empty();
        for (const auto& group : own->groups) flying = flying || !group.empty();
        if (flying) fail("ends with copies under way");
    } catch (Stop&) {
    }
    std::vector<Copy>().swap(own->open);
    std::vector<std::vector<Copy>>().swap(own->groups);
#ifdef HOST_TSAN
    __tsan_release(&launch->end);
#endif
    own->state = State::done;
    to_scheduler();
    abort();
}

void resume(Fiber& fiber) {
    launch->current = &fiber;
#ifdef HOST_ASAN
    __sanitizer_start_switch_fiber(&launch->scheduler_fake, fiber.stack, STACK);
#endif
#ifdef HOST_TSAN
    __tsan_switch_to_fiber(fiber.tsan, NO_SYNC);
#endif
    host_switch(&launch->scheduler_pointer, fiber.stack_pointer);
#ifdef HOST_ASAN
    __sanitizer_finish_switch_fiber(launch->scheduler_fake, nullptr, nullptr);
#endif
    launch->current = nullptr;
}

// Lets those go on that all wait at the block's barrier.
bool open_barrier() {
    const Fiber* first = nullptr;
    size_t left = 0, waiting = 0;
    for (const Fiber& fiber : launch->fibers) {
        if (fiber.state == State::done) continue;
        left++;
        if (fiber.state != State::at_barrier) continue;
        waiting++;
        if (first == nullptr) first = &fiber;
        if (fiber.site != first->site) {
            launch->error = "threads wait at different barriers";
            return false;
        }
    }
    if (waiting == 0 || waiting < left) return false;
    if (left < launch->fibers.size()) {
        launch->error = "a barrier, and threads of the block have ended";
        return false;
    }
    for (Fiber& fiber : launch->fibers) fiber.state = State::ready;
    return true;
}

// Lets those lanes go on whose whole mask has met.
bool open_meeting(Fiber& fiber) {
    const std::string what = fiber.what;
    const size_t base = fiber.warp * size_t{32};
    bool all = true;
    for (unsigned i = 0; i < 32; i++) {
        if ((fiber.mask >> i & 1) == 0) continue;
        if (base + i >= launch->fibers.size()) {
            launch->error = what + " with a lane that the block does not have";
            return false;
        }
        const Fiber& other = launch->fibers[base + i];
        if (other.state == State::done) {
            launch->error = what + " with lane " + std::to_string(i) + ", which has ended";
            return false;
        }
        if (other.state != State::at_warp) {
            all = false;
        } else if (other.site != fiber.site || other.mask != fiber.mask ||
                   other.meetings != fiber.meetings) {
            launch->error = what + " meets " + other.what + " of lane " + std::to_string(i);
            return false;
        }
    }
    if (!all) return false;
    for (unsigned i = 0; i < 32; i++) {
        if ((fiber.mask >> i & 1) != 0) launch->fibers[base + i].state = State::ready;
    }
    return true;
}

bool open_waiting() {
    bool any = open_barrier();
    for (Fiber& fiber : launch->fibers) {
        if (!launch->error.empty()) return false;
        if (fiber.state == State::at_warp) any = open_meeting(fiber) || any;
    }
    return any;
}

uint64_t draw() {
    launch->random ^= launch->random << 13;
    launch->random ^= launch->random >> 7;
    launch->random ^= launch->random << 17;
    return launch->random;
}

template <class T>
void arrange(std::vector<T>& numbers, Order order) {
    for (size_t i = 0; i < numbers.size(); i++) numbers[i] = static_cast<T>(i);
    if (order == Order::descending) std::reverse(numbers.begin(), numbers.end());
    if (order == Order::shuffled) {
        for (size_t i = numbers.size(); i > 1; i--) std::swap(numbers[i - 1], numbers[draw() % i]);
    }
}

void prepare(Fiber& fiber, unsigned number, char* stack) {
    const dim3& block = launch->block;
    fiber.number = number;
    fiber.lane = number % 32;
    fiber.warp = number / 32;
    fiber.index = {number % block.x, number / block.x % block.y, number / block.x / block.y};
    fiber.stack = stack;
    // As host_switch leaves it: six registers, then where to go on; aligned as at a call.
    void** top = reinterpret_cast<void**>(stack + STACK);
    *--top = nullptr;
    *--top = reinterpret_cast<void*>(begin);
    for (int i = 0; i < 6; i++) *--top = nullptr;
    fiber.stack_pointer = top;
#ifdef HOST_TSAN
    fiber.tsan = __tsan_create_fiber(0);
    char name[64];
    const uint3& at = launch->block_index;
    snprintf(name, sizeof name, "block (%u,%u,%u) thread %u", at.x, at.y, at.z, number);
    __tsan_set_fiber_name(fiber.tsan, name);
#endif
}

char* map_memory(size_t bytes) {
    void* const at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) abort();
    return static_cast<char*>(at);
}

void run_block(Order order) {
    const size_t threads = size_t{launch->block.x} * launch->block.y * launch->block.z;
    // Where they were: memory given back would look as if taken from the last block's threads.
    launch->fibers.clear();
    launch->fibers.resize(threads);
    launch->warps.resize((threads + 31) / 32);
    for (Warp& warp : launch->warps) memset(warp.slots, 0xff, sizeof warp.slots);
    launch->array_count = 0;
    launch->arena_used = launch->shared_bytes = 0;
    // Anew for each block: ThreadSanitizer forgets what earlier ones did there.
    launch->arena = map_memory(ARENA);
    char* const stacks = map_memory(threads * STACK);
#ifdef HOST_ASAN
    __asan_poison_memory_region(launch->arena, ARENA);
#endif
    for (unsigned i = 0; i < threads; i++) prepare(launch->fibers[i], i, stacks + i * STACK);
    std::vector<unsigned> turn(threads);
    bool over = false;
    while (!over && launch->error.empty()) {
        arrange(turn, order);
        bool ran = false;
        for (const unsigned i : turn) {
            if (launch->fibers[i].state != State::ready) continue;
            resume(launch->fibers[i]);
            ran = true;
            if (!launch->error.empty()) break;
        }
        over = std::all_of(launch->fibers.begin(), launch->fibers.end(),
                           [](const Fiber& fiber) { return fiber.state == State::done; });
        if (over || !launch->error.empty()) break;
        if (!open_waiting() && !ran && launch->error.empty()) {
            launch->error = "threads wait for each other";
        }
    }
#ifdef HOST_TSAN
    for (const Fiber& fiber : launch->fibers) __tsan_destroy_fiber(fiber.tsan);
#endif
#ifdef HOST_ASAN
    __asan_unpoison_memory_region(launch->arena, ARENA);
    __asan_unpoison_memory_region(stacks, threads * STACK);
#endif
    munmap(launch->arena, ARENA);
    munmap(stacks, threads * STACK);
}

}  // namespace

const uint3& thread_index() { return launch->current->index; }
const uint3& block_index() { return launch->block_index; }
const dim3& block_size() { return launch->block; }
const dim3& grid_size() { return launch->grid; }
unsigned lane() { return launch->current->lane; }

[[noreturn]] void fail(const std::string& what) {
    if (launch->error.empty()) {
        launch->error = "thread " + std::to_string(launch->current->number) + ": " + what;
    }
    throw Stop{};
}

void barrier(uint64_t site) {
    Fiber* const own = launch->current;
    own->barriers++;
    own->site = site;
    own->state = State::at_barrier;
    // Two in turn: who leaves late must not learn what an early one does before the next.
#ifdef HOST_TSAN
    __tsan_release(&launch->order[own->barriers % 2]);
#endif
    wait();
#ifdef HOST_TSAN
    __tsan_acquire(&launch->order[own->barriers % 2]);
#endif
}

void meet(unsigned mask, uint64_t site, const char* what, const void* bytes, size_t count) {
    Fiber* const own = launch->current;
    if ((mask >> own->lane & 1) == 0) {
        fail(std::string(what) + " by a lane that is not in its mask");
    }
    if (count > MOST_BYTES) fail(std::string(what) + " of too many bytes");
    own->meetings++;
    own->site = site;
    own->mask = mask;
    own->what = what;
    own->state = State::at_warp;
    // Byte by byte, and not by a function that ThreadSanitizer replaces.
    Warp& warp = launch->warps[own->warp];
    volatile unsigned char* const slot = warp.slots[own->meetings % 2][own->lane];
    for (size_t i = 0; i < count; i++) slot[i] = static_cast<const unsigned char*>(bytes)[i];
    wait();
}

const void* peer(unsigned lane) {
    const Fiber* const own = launch->current;
    return launch->warps[own->warp].slots[own->meetings % 2][lane];
}

void order_warp(unsigned mask, uint64_t site) {
#ifdef HOST_TSAN
    const Fiber* const own = launch->current;
    char* const order = &launch->warps[own->warp].order[(own->meetings + 1) % 2];
    __tsan_release(order);
#endif
    meet(mask, site, "a warp's barrier", "", 0);
#ifdef HOST_TSAN
    __tsan_acquire(order);
#endif
}

void* shared_array(const void* key, size_t bytes) {
    for (unsigned i = 0; i < launch->array_count; i++) {
        if (launch->arrays[i].key == key) return launch->arrays[i].at;
    }
    launch->shared_bytes += bytes;
    if (launch->shared_bytes > MOST_SHARED) fail("more than 48 KiB of shared memory");
    const size_t taken = (bytes + 127) / 128 * 128 + 128;
    if (launch->array_count == 32 || launch->arena_used + taken > ARENA) {
        fail("more shared arrays than there is room for");
    }
    char* const at = launch->arena + launch->arena_used;
    launch->arena_used += taken;
#ifdef HOST_ASAN
    __asan_unpoison_memory_region(at, bytes);
#endif
    volatile char* const raw = at;
    for (size_t i = 0; i < bytes; i++) raw[i] = static_cast<char>(0xff);
    launch->arrays[launch->array_count++] = {key, at};
    return at;
}

void* dynamic_shared() {
    if (launch->dynamic_bytes == 0) fail("a launch that brings no shared memory");
    return shared_array(&dynamic_key, launch->dynamic_bytes);
}

std::string run(dim3 grid, dim3 block, size_t shared_bytes, Order order,
                const std::function<void()>& body) {
    const size_t threads = size_t{block.x} * block.y * block.z;
    if (threads == 0 || threads > 1024) return "a block of " + std::to_string(threads) + " threads";
    Launch own;
    own.grid = grid;
    own.block = block;
    own.dynamic_bytes = shared_bytes;
    own.body = &body;
    launch = &own;
#ifdef HOST_TSAN
    own.scheduler_tsan = __tsan_get_current_fiber();
#endif
    std::vector<uint64_t> blocks(uint64_t{grid.x} * grid.y * grid.z);
    arrange(blocks, order);
    for (const uint64_t number : blocks) {
        own.block_index = {static_cast<unsigned>(number % grid.x),
                           static_cast<unsigned>(number / grid.x % grid.y),
                           static_cast<unsigned>(number / grid.x / grid.y)};
        run_block(order);
        if (!own.error.empty()) {
            const uint3& at = own.block_index;
            own.error = "block (" + std::to_string(at.x) + ", " + std::to_string(at.y) + ", " +
                        std::to_string(at.z) + "): " + own.error;
            break;
        }
    }
#ifdef HOST_TSAN
    __tsan_acquire(&own.end);
#endif
    launch = nullptr;
    return own.error;
}

}  // namespace host

void copy_async_16(void* to, const void* from, bool there) {
    const auto is_off = [](const void* at) { return (reinterpret_cast<uintptr_t>(at) & 15) != 0; };
    if (is_off(to) || (there && is_off(from))) {
        host::fail("a copy of 16 bytes that are not aligned");
    }
    host::launch->current->open.push_back({to, from, there});
}

void copy_async_commit() {
    host::Fiber* const own = host::launch->current;
    own->groups.push_back(std::move(own->open));
    own->open.clear();
}

void copy_async_wait(int left) {
    auto& groups = host::launch->current->groups;
    while (groups.size() > static_cast<size_t>(left)) {
        for (const host::Copy& copy : groups.front()) host_land(copy.to, copy.from, copy.there);
        groups.erase(groups.begin());
    }
}
