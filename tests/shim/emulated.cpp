// What reads and writes the kernel's memory on its behalf: compiled with the sanitizers, which see
// it.
#include "cuda_host.h"

void host_land(void* to, const void* from, bool there) {
    uint32_t words[4] = {};
    if (there) {
        for (int i = 0; i < 4; i++) words[i] = static_cast<const uint32_t*>(from)[i];
    }
    for (int i = 0; i < 4; i++) static_cast<uint32_t*>(to)[i] = words[i];
}

void load_matrices(uint32_t (&to)[4], const void* row) {
    if ((reinterpret_cast<uintptr_t>(row) & 15) != 0) host::fail("a matrix's row is not aligned");
    host::meet(0xffffffffu, HOST_SITE, "a load of matrices", &row, sizeof row);
    const unsigned lane = host::lane();
    for (unsigned matrix = 0; matrix < 4; matrix++) {
        const void* const from = host::peer_as<const void*>(matrix * 8 + lane / 4);
        to[matrix] = static_cast<const uint32_t*>(from)[lane % 4];
    }
}

static double bf16(uint32_t word, unsigned upper) {
    return __uint_as_float(upper != 0 ? word & 0xffff0000u : word << 16);
}

// In f64, rounded once: a tensor core rounds otherwise, so nothing may depend on the last bits.
void multiply_add(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    struct Fragments {
        uint32_t a[4], b[2];
    } own;
    memcpy(own.a, a, sizeof own.a);
    memcpy(own.b, b, sizeof own.b);
    host::meet(0xffffffffu, HOST_SITE, "a product of matrices", &own, sizeof own);
    const unsigned lane = host::lane();
    for (unsigned i = 0; i < 4; i++) {
        const unsigned row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        double sum = sums[i];
        for (unsigned k = 0; k < 16; k++) {
            const auto left = host::peer_as<Fragments>(row % 8 * 4 + k % 8 / 2);
            const auto right = host::peer_as<Fragments>(column * 4 + k % 8 / 2);
            sum += bf16(left.a[row / 8 + k / 8 * 2], k % 2) * bf16(right.b[k / 8], k % 2);
        }
        sums[i] = static_cast<float>(sum);
    }
}
