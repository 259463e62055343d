#include <algorithm>

#include "../cases.h"
#include "common.cuh"

namespace nearest_prototype {
#include "nearest_prototype.cu"
}

namespace nearest_prototype_cases {

using namespace nearest_prototype;
using cases::Buffer;
using cases::ceil_div;

static double apart2(const std::vector<float>& a, size_t i, const std::vector<float>& b, size_t j,
                     int dims) {
    double sum = 0;
    for (int d = 0; d < dims; d++) {
        const double apart = double(a[i * dims + d]) - b[j * dims + d];
        sum += apart * apart;
    }
    return sum;
}

// Rows filled up with zeros to `wide`, in bf16.
static std::vector<Bf16> coded(const std::vector<float>& rows, int dims, int wide) {
    std::vector<Bf16> codes(rows.size() / dims * wide, Bf16{0});
    for (size_t i = 0; i < rows.size(); i++) codes[i / dims * wide + i % dims] = to_bf16(rows[i]);
    return codes;
}

static void search(const char* what, bool by_tensor_cores, int queries, int count, int dims,
                   int splits) {
    const auto rows = cases::noise(size_t(queries) * dims, 2);
    const auto bank = cases::noise(size_t(count) * dims, 3);
    Buffer<float> at(rows), prototypes(bank);
    const int split = static_cast<int>(ceil_div(ceil_div(count, splits), 64) * 64);
    const unsigned used = ceil_div(count, split);
    Buffer<unsigned long long> winners(size_t(used) * queries);
    double bound = 1e-5;
    if (by_tensor_cores) {
        const int wide = static_cast<int>(ceil_div(dims, DEPTH) * DEPTH);
        Buffer<Bf16> query_codes(coded(rows, dims, wide)), codes(coded(bank, dims, wide));
        std::vector<float> norms;
        for (int p = 0; p < count; p++) {
            double sum = 0;
            for (int d = 0; d < wide; d++) {
                const double x = to_float(codes[size_t(p) * wide + d]);
                sum += x * x;
            }
            norms.push_back(static_cast<float>(sum));
        }
        Buffer<float> norms2(norms);
        cases::launch(what, search_bf16, dim3(ceil_div(queries, QUERIES), used), dim3(THREADS), 0,
                      query_codes.at, codes.at, norms2.at, winners.at, queries, count, wide, split);
        // Numbers are below 1: each is off by at most 2⁻⁹ of it, at both ends of both distances.
        bound = 4.0 / 512 * std::sqrt(double(dims));
    } else {
        cases::launch(what, search_f32, dim3(ceil_div(queries, SIDE), used), dim3(THREADS), 0,
                      at.at, prototypes.at, winners.at, queries, count, dims, split);
    }
    Buffer<uint32_t> nearest(queries);
    Buffer<float> distances(queries);
    cases::launch(what, measure_winners, dim3(ceil_div(queries, THREADS / 32)), dim3(THREADS), 0,
                  winners.at, static_cast<int>(used), at.at, prototypes.at, queries, dims,
                  nearest.at, distances.at);
    for (int q = 0; q < queries; q++) {
        double least = INFINITY;
        for (int p = 0; p < count; p++) least = std::min(least, apart2(rows, q, bank, p, dims));
        const bool known = nearest[q] < static_cast<uint32_t>(count);
        const double own = known ? std::sqrt(apart2(rows, q, bank, nearest[q], dims)) : INFINITY;
        const double off = own - std::sqrt(least);
        if (!(off <= bound) || !(std::fabs(distances[q] - own) <= 1e-6 * (1 + own))) {
            cases::expect(false, what,
                          "query " + std::to_string(q) + ": " + std::to_string(distances[q]) +
                              ", nearest " + std::to_string(std::sqrt(least)));
            return;
        }
    }
    cases::expect(true, what, "");
}

static void ranked(int count, int dims, int k) {
    const char* const what = "ranked prototypes";
    const auto row = cases::noise(dims, 2), bank = cases::noise(size_t(count) * dims, 3);
    Buffer<float> at(row), prototypes(bank);
    const unsigned groups = ceil_div(count, RANKED_TOGETHER);
    Buffer<unsigned long long> candidates(size_t(groups) * k);
    Buffer<uint32_t> indices(k);
    Buffer<float> distances2(k);
    cases::launch(what, rank_some, dim3(groups), dim3(THREADS), 0, at.at, prototypes.at, count,
                  dims, k, candidates.at);
    cases::launch(what, rank_all, dim3(1), dim3(THREADS), 0, candidates.at,
                  static_cast<int>(groups) * k, k, indices.at, distances2.at);
    std::vector<double> all;
    for (int p = 0; p < count; p++) all.push_back(apart2(row, 0, bank, p, dims));
    std::sort(all.begin(), all.end());
    all.resize(k);
    cases::expect_close(distances2, all, 1e-5, what);
}

static void scored(int patches, int count, int dims, int around) {
    const char* const what = "a picture's score";
    const auto rows = cases::noise(size_t(patches) * dims, 2);
    const auto bank = cases::noise(size_t(count) * dims, 3);
    std::vector<float> distances;
    std::vector<uint32_t> nearest, neighbours;
    const auto sorted = [&](const std::vector<float>& from, size_t i) {
        std::vector<uint32_t> order(count);
        for (int p = 0; p < count; p++) order[p] = p;
        std::sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) {
            return apart2(from, i, bank, a, dims) < apart2(from, i, bank, b, dims);
        });
        return order;
    };
    for (int p = 0; p < count; p++) {
        const auto order = sorted(bank, p);
        neighbours.insert(neighbours.end(), order.begin(), order.begin() + around);
    }
    size_t worst = 0;
    for (int i = 0; i < patches; i++) {
        nearest.push_back(sorted(rows, i)[0]);
        distances.push_back(std::sqrt(apart2(rows, i, bank, nearest[i], dims)));
        if (distances[i] > distances[worst]) worst = i;
    }
    double total = 0;
    for (int i = 0; i < around; i++) {
        const uint32_t other = neighbours[size_t(nearest[worst]) * around + i];
        total += std::exp(std::sqrt(apart2(rows, worst, bank, other, dims)) - distances[worst]);
    }
    Buffer<float> at(rows), far(distances), prototypes(bank), score(1);
    Buffer<uint32_t> near(nearest), table(neighbours);
    cases::launch(what, image_score, dim3(1), dim3(SCORERS), 0, at.at, far.at, near.at,
                  prototypes.at, table.at, patches, dims, around, score.at);
    cases::expect_close(score, {distances[worst] * (1 - 1 / total)}, 1e-5, what);
}

void run() {
    search("search f32", false, 65, 130, 19, 1);
    search("search f32, split", false, 3, 200, 32, 3);
    search("search f32, of one", false, 1, 1, 1, 1);
    search("search bf16", true, 130, 70, 40, 1);
    search("search bf16, split", true, 7, 200, 96, 3);
    ranked(300, 17, 9);
    ranked(1, 16, 1);
    scored(33, 12, 18, 9);
}

}  // namespace nearest_prototype_cases
