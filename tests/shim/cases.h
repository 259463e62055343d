// What cases share: buffers with red zones, launches in each order, and a count of what held.
#pragma once
#include <cstdio>
#include <cstdlib>

#include "cuda_host.h"

#ifdef HOST_ASAN
extern "C" void __asan_poison_memory_region(const volatile void* at, size_t size);
#endif

namespace cases {

extern host::Order order;
extern int held, failed;

// Says what failed.
void expect(bool holds, const char* what, const std::string& detail);

// From −1 to 1, the same each time.
std::vector<float> noise(size_t count, unsigned seed);

inline float to_bf16_and_back(float x) {
    uint32_t bits = __float_as_uint(x);
    bits += 0x7fffu + (bits >> 16 & 1u);
    return __uint_as_float(bits & 0xffff0000u);
}

// Device memory of exactly so many numbers, aligned to 16 bytes; never written.
template <class T>
class Buffer {
public:
    explicit Buffer(size_t count) : count(count) {
        const size_t bytes = count * sizeof(T), whole = (bytes + 15) / 16 * 16;
        at = static_cast<T*>(aligned_alloc(16, whole));
        memset(static_cast<void*>(at), 0xff, bytes);
#ifdef HOST_ASAN
        __asan_poison_memory_region(reinterpret_cast<char*>(at) + bytes, whole - bytes);
#endif
    }
    explicit Buffer(const std::vector<T>& values) : Buffer(values.size()) {
        if (count > 0) memcpy(static_cast<void*>(at), values.data(), count * sizeof(T));
    }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    ~Buffer() { free(at); }
    T& operator[](size_t i) { return at[i]; }

    T* at;
    const size_t count;
};

// Runs a kernel, whose end must be one.
template <class Kernel, class... Args>
void launch(const char* what, Kernel kernel, dim3 grid, dim3 block, size_t shared_bytes,
            Args... args) {
    const std::string error =
        host::run(grid, block, shared_bytes, order, [&] { kernel(args...); });
    if (!error.empty()) expect(false, what, error);
}

// Each is as near as `bound`; a NaN is near nothing.
template <class T>
void expect_close(Buffer<T>& got, const std::vector<double>& want, double bound, const char* what) {
    for (size_t i = 0; i < want.size(); i++) {
        if (!(std::fabs(static_cast<double>(got[i]) - want[i]) <= bound)) {
            expect(false, what,
                   "number " + std::to_string(i) + " is " + std::to_string(double(got[i])) +
                       ", not " + std::to_string(want[i]));
            return;
        }
    }
    expect(got.count == want.size(), what, "another count");
}

// As expect_close, but a NaN or an infinity has to be where one is wanted; what nobody wrote is a
// NaN too, and is not taken for one that a kernel made.
inline void expect_close_or_nan(Buffer<float>& got, const std::vector<double>& want, double bound,
                                const char* what) {
    for (size_t i = 0; i < want.size(); i++) {
        const double value = got[i];
        const bool near = value == want[i] || std::fabs(value - want[i]) <= bound;
        const bool written = __float_as_uint(got[i]) != 0xffffffffu;
        if (!written || !(std::isnan(want[i]) ? std::isnan(value) : near)) {
            expect(false, what,
                   "number " + std::to_string(i) + " is " +
                       (written ? std::to_string(value) : "not written") + ", not " +
                       std::to_string(want[i]));
            return;
        }
    }
    expect(got.count == want.size(), what, "another count");
}

inline unsigned ceil_div(size_t a, size_t b) { return static_cast<unsigned>((a + b - 1) / b); }

}  // namespace cases
