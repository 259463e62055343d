#include "../cases.h"
#include "common.cuh"

namespace cosine_map {
#include "cosine_map.cu"
}

namespace cosine_map_cases {

using namespace cosine_map;
using cases::Buffer;

struct Size {
    int channels, places;
};

template <class T>
T number(float x);
template <>
float number(float x) {
    return x;
}
template <>
Bf16 number(float x) {
    return to_bf16(x);
}

template <class T, class Distances, class Products>
static void levels(const char* what, Distances distances, Products products, int images,
                   const std::vector<Size>& sizes) {
    std::vector<Buffer<T>*> maps;
    std::vector<Buffer<float>*> results[3];
    std::vector<double> wants[3][MOST_LEVELS];
    Levels given[3] = {};
    unsigned tiles = 0;
    for (size_t i = 0; i < sizes.size(); i++) {
        const auto [channels, places] = sizes[i];
        const size_t count = size_t(images) * channels * places;
        for (unsigned map = 0; map < 2; map++) {
            std::vector<T> values;
            for (const float x : cases::noise(count, static_cast<unsigned>(2 * i) + map)) {
                values.push_back(number<T>(x));
            }
            if (map == 0) {
                for (int c = 0; c < channels; c++) values[size_t(c) * places] = number<T>(0.0f);
            }
            maps.push_back(new Buffer<T>(values));
        }
        Buffer<T>&a = *maps[2 * i], &b = *maps[2 * i + 1];
        for (int k = 0; k < 3; k++) {
            results[k].push_back(new Buffer<float>(k < 2 ? size_t(images) * places : count));
            given[k].levels[i] = Level{a.at, b.at, results[k][i]->at, channels, places};
        }
        wants[2][i].resize(count);
        for (int place = 0; place < images * places; place++) {
            const size_t first = size_t(place / places) * channels * places + place % places;
            double dot = 0, aa = 0, bb = 0;
            for (int c = 0; c < channels; c++) {
                const size_t at = first + size_t(c) * places;
                const double x = to_float(a[at]), y = to_float(b[at]);
                dot += x * y;
                aa += x * x;
                bb += y * y;
            }
            const double scale = 1 / ((std::sqrt(aa) + 1e-12) * (std::sqrt(bb) + 1e-12));
            wants[0][i].push_back(1 - dot * scale);
            wants[1][i].push_back((aa > 0 ? 0.5 : 0) + (bb > 0 ? 0.5 : 0) - dot * scale);
            for (int c = 0; c < channels; c++) {
                const size_t at = first + size_t(c) * places;
                wants[2][i][at] = -double(to_float(a[at])) * to_float(b[at]) * scale;
            }
        }
        tiles = std::max(tiles, cases::ceil_div(places, ACROSS * Lanes<T>::count));
    }
    const dim3 grid(tiles, images, static_cast<unsigned>(sizes.size()));
    cases::launch(what, distances, grid, dim3(THREADS), 0, given[0], 0);
    cases::launch(what, distances, grid, dim3(THREADS), 0, given[1], 1);
    cases::launch(what, products, grid, dim3(THREADS), 0, given[2]);
    for (int k = 0; k < 3; k++) {
        for (size_t i = 0; i < sizes.size(); i++) {
            cases::expect_close(*results[k][i], wants[k][i], 2e-6, what);
            delete results[k][i];
        }
    }
    for (Buffer<T>* map : maps) delete map;
}

void run() {
    const std::vector<Size> ragged{{3, 33}, {33, 8}, {1, 1}}, whole{{40, 32}, {5, 72}};
    levels<float>("cosines f32, ragged", cosine_distances_f32, cosine_products_f32, 2, ragged);
    levels<float>("cosines f32, whole", cosine_distances_f32, cosine_products_f32, 1, whole);
    levels<Bf16>("cosines bf16, ragged", cosine_distances_bf16, cosine_products_bf16, 1, ragged);
    levels<Bf16>("cosines bf16, whole", cosine_distances_bf16, cosine_products_bf16, 2, whole);
}

}  // namespace cosine_map_cases
