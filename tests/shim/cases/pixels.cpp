#include <algorithm>

#include "../cases.h"
#include "common.cuh"

namespace pixels_kernel {
#include "pixels.cu"
}

namespace pixels_cases {

using namespace pixels_kernel;
using cases::Buffer;

constexpr int BITS = 14;

// A triangle filter's weights, in whole numbers.
struct Table {
    std::vector<int> firsts, counts, weights;  // weights [taps, to]

    Table(int from, int to) {
        const double scale = double(from) / to, support = std::fmax(scale, 1);
        std::vector<std::vector<int>> rows;
        size_t taps = 0;
        for (int i = 0; i < to; i++) {
            const double centre = (i + 0.5) * scale;
            const int first = std::max(0, static_cast<int>(std::floor(centre - support)));
            const int end = std::min(from, static_cast<int>(std::ceil(centre + support)));
            std::vector<double> own;
            double sum = 0;
            for (int j = first; j < end; j++) {
                own.push_back(std::fmax(0, 1 - std::fabs((j + 0.5 - centre) / support)));
                sum += own.back();
            }
            std::vector<int> whole;
            for (const double weight : own) {
                whole.push_back(static_cast<int>(std::lround(weight / sum * (1 << BITS))));
            }
            firsts.push_back(first);
            counts.push_back(end - first);
            taps = std::max(taps, whole.size());
            rows.push_back(whole);
        }
        weights.resize(taps * to);
        for (int i = 0; i < to; i++) {
            for (size_t k = 0; k < rows[i].size(); k++) weights[k * to + i] = rows[i][k];
        }
    }
    int at(int i, int k) const { return weights[size_t(k) * firsts.size() + i]; }
};

static int level(int sum) { return std::clamp((sum + (1 << (BITS - 1))) >> BITS, 0, 255); }

static void pictures(int images, int height, int width, int samples, int to_height, int to_width) {
    const char* const what = "pixels";
    std::vector<uint8_t> values;
    for (const float x : cases::noise(size_t(images) * height * width * samples, 5)) {
        values.push_back(static_cast<uint8_t>((x + 1) * 127.9f));
    }
    const Table rows(height, to_height), columns(width, to_width);
    const Normal normal{{0.1f, 0.2f, 0.3f}, {0.5f, 0.6f, 0.7f}};
    std::vector<double> want;
    for (int b = 0; b < images; b++) {
        for (int channel = 0; channel < 3; channel++) {
            for (int i = 0; i < to_height * to_width; i++) {
                const int y = i / to_width, x = i % to_width;
                int sum = 0;
                for (int k = 0; k < columns.counts[x]; k++) {
                    int column = 0;
                    for (int j = 0; j < rows.counts[y]; j++) {
                        const size_t row = size_t(b) * height + rows.firsts[y] + j;
                        const size_t pixel = row * width + columns.firsts[x] + k;
                        column += rows.at(y, j) * values[pixel * samples + channel % samples];
                    }
                    sum += columns.at(x, k) * level(column);
                }
                want.push_back((level(sum) / 255.0 - normal.mean[channel]) / normal.std[channel]);
            }
        }
    }
    Buffer<uint8_t> from(values);
    Buffer<int> tables[6] = {Buffer<int>(rows.firsts),    Buffer<int>(rows.counts),
                             Buffer<int>(rows.weights),   Buffer<int>(columns.firsts),
                             Buffer<int>(columns.counts), Buffer<int>(columns.weights)};
    const Side down{tables[0].at, tables[1].at, tables[2].at, BITS, to_height};
    const Side across{tables[3].at, tables[4].at, tables[5].at, BITS, to_width};
    Buffer<float> planes(want.size());
    cases::launch(what, samples == 3 ? pixels_rgb : pixels_grey, dim3(to_height, images),
                  dim3(THREADS), size_t(width) * samples, from.at, height, width, down, across,
                  normal, planes.at);
    cases::expect_close(planes, want, 1e-6, what);
}

void run() {
    pictures(1, 20, 300, 3, 7, 33);
    pictures(2, 5, 7, 3, 9, 4);
    pictures(1, 11, 31, 1, 11, 31);
    pictures(1, 9, 1025, 1, 2, 1);
}

}  // namespace pixels_cases
