// Every case in each order of threads and blocks, or with the argument `once` in one.
#include "cases.h"

namespace cases {

host::Order order;
int held, failed;

void expect(bool holds, const char* what, const std::string& detail) {
    if (holds) {
        held++;
        return;
    }
    failed++;
    static const char* const orders[] = {"ascending", "descending", "shuffled"};
    fprintf(stderr, "FAILED %s (%s): %s\n", what, orders[static_cast<int>(order)], detail.c_str());
}

std::vector<float> noise(size_t count, unsigned seed) {
    uint64_t state = (seed * 0x9e3779b97f4a7c15ull) | 1;
    std::vector<float> values(count);
    for (float& value : values) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        value = static_cast<float>(state >> 40) / (1 << 23) - 1.0f;
    }
    return values;
}

}  // namespace cases

#define CASES(name)          \
    namespace name##_cases { \
    void run();              \
    }
#include "cases/all.h"
#undef CASES

int main(int count, char** arguments) {
    using host::Order;
    const bool once = count > 1 && std::string(arguments[1]) == "once";
    for (const Order order : {Order::shuffled, Order::ascending, Order::descending}) {
        if (once && order != Order::shuffled) break;
        cases::order = order;
#define CASES(name) name##_cases::run();
#include "cases/all.h"
#undef CASES
    }
    printf("%d held, %d failed\n", cases::held, cases::failed);
    return cases::failed == 0 && cases::held > 0 ? 0 : 1;
}
