//! Searches and scores against the CPU's.

use half::bf16;
use inspectd::cuda::nearest_prototype::{
    Bank, Codes, Found, Patches, Ranked, Search, code_dims, image_score, nearest, ranked,
    ranked_bytes, winner_bytes,
};
use inspectd::cuda::{DeviceMemory, Gpu, Region};
use inspectd::ops::nearest_prototype::{Nearest, PrototypeBank, squared_distance};
use inspectd::ops::team::Team;

use crate::data::{bf16_bytes, noise, u32_bytes};
use crate::interpreter::Interpreter;

/// Queries, prototypes, dimensions.
const CASES: [(usize, usize, usize); 6] =
    [(1, 1, 1), (31, 33, 17), (33, 200, 40), (129, 70, 32), (5, 1025, 31), (65, 130, 64)];

fn read_u32(gpu: &mut Interpreter, from: Region) -> Vec<u32> {
    let mut bytes = vec![0; from.bytes];
    gpu.download(from, &mut bytes).unwrap();
    bytes.as_chunks().0.iter().map(|&word| u32::from_le_bytes(word)).collect()
}

/// Rows that lie around a few centres, as those of patches do.
fn rows(count: usize, dims: usize, seed: u32) -> Vec<f32> {
    let centres = noise(5 * dims, 1);
    let rows = noise(count * dims, seed);
    let centre = |i: usize| centres[i / dims % 5 * dims + i % dims];
    rows.iter().enumerate().map(|(i, x)| 3.0 + centre(i) + 0.3 * x).collect()
}

/// Indices and distances.
fn search(
    by_tensor_cores: bool,
    queries: &[f32],
    prototypes: &[f32],
    dims: usize,
) -> (Vec<u32>, Vec<f32>) {
    let mut gpu = Interpreter::default();
    let (count, query_count) = (prototypes.len() / dims, queries.len() / dims);
    let (at, bank) = (gpu.floats(queries), gpu.floats(prototypes));
    let bank = Bank { count, dims, rows: bank.region() };
    let own = Codes::new(prototypes, dims);
    let wide = code_dims(dims);
    let mut query_codes = vec![0.0; query_count * wide];
    for (codes, row) in query_codes.chunks_mut(wide).zip(queries.chunks(dims)) {
        for (i, code) in codes[..dims].iter_mut().enumerate() {
            *code = row[i] - own.centre[i];
        }
    }
    let bytes: Vec<u8> = own.rows.iter().flat_map(|code| code.to_le_bytes()).collect();
    let codes =
        [gpu.buffer(&bytes), gpu.floats(&own.norms2), gpu.buffer(&bf16_bytes(&query_codes))];
    let by = if by_tensor_cores {
        let [codes, norms2, queries] = codes.each_ref().map(|buffer| buffer.region());
        Search::Bf16 { codes, norms2, queries }
    } else {
        Search::F32
    };
    let winners = gpu.alloc(winner_bytes(&by, bank, query_count)).unwrap();
    let [indices, distances] = [0, 1].map(|_| gpu.alloc(4 * query_count).unwrap());
    let found = Found {
        winners: winners.region(),
        nearest: indices.region(),
        distances: distances.region(),
    };
    for launch in nearest(by, bank, query_count, at.region(), found) {
        gpu.launch(&launch).unwrap();
    }
    (read_u32(&mut gpu, indices.region()), gpu.read_floats(distances.region()).unwrap())
}

#[test]
fn the_f32_search_finds_what_the_cpu_finds() {
    for (queries, count, dims) in CASES {
        let (queries, prototypes) = (rows(queries, dims, 2), rows(count, dims, 3));
        let want = PrototypeBank::new(prototypes.clone(), dims)
            .unwrap()
            .nearest(&Team::alone(), &queries)
            .unwrap();
        let (indices, distances) = search(false, &queries, &prototypes, dims);
        for ((index, distance), want) in indices.iter().zip(distances).zip(want) {
            let Nearest { index: wanted, distance2 } = want;
            // The same order of the same sums.
            assert_eq!((*index, distance), (wanted, distance2.sqrt()), "{count} × {dims}");
        }
    }
}

#[test]
fn the_search_by_tensor_cores_is_off_by_no_more_than_codes_are() {
    for (queries, count, dims) in CASES {
        let (queries, prototypes) = (rows(queries, dims, 2), rows(count, dims, 3));
        let bank = PrototypeBank::new(prototypes.clone(), dims).unwrap();
        let wants = bank.nearest(&Team::alone(), &queries).unwrap();
        let (indices, distances) = search(true, &queries, &prototypes, dims);
        let centre = Codes::new(&prototypes, dims).centre;
        // How far a row's code is from it.
        let off = |row: &[f32]| {
            let apart = row.iter().zip(&centre).map(|(x, centre)| {
                let x = x - centre;
                f64::from(x - bf16::from_f32(x).to_f32()).powi(2)
            });
            apart.sum::<f64>().sqrt()
        };
        let bank_off = prototypes.chunks(dims).map(off).fold(0.0, f64::max);
        let mut same = 0;
        for (i, (index, distance)) in indices.iter().zip(distances).enumerate() {
            let query = &queries[i * dims..][..dims];
            let own = squared_distance(query, bank.row(*index as usize)).sqrt();
            assert_eq!(distance, own, "the distance is that to the prototype named");
            let want = wants[i].distance2.sqrt();
            // Both ends of both distances are off; sums of squares below 50 are too, in f32.
            let bound = 2.0 * (off(query) + bank_off) + 1e-4;
            let far = f64::from(distance) - f64::from(want);
            assert!((0.0..=bound).contains(&far), "{i}: {distance} {want} {bound}");
            same += usize::from(*index == wants[i].index);
        }
        assert!(same * 10 >= indices.len() * 9, "{same} of {}", indices.len());
    }
}

#[test]
fn of_equal_prototypes_the_first_is_named() {
    for by_tensor_cores in [false, true] {
        let prototypes = noise(40, 1).repeat(50);
        let (indices, distances) = search(by_tensor_cores, &noise(120, 1), &prototypes, 40);
        assert_eq!((indices[0], distances[0]), (0, 0.0));
        assert_eq!(indices, [0; 3]);
    }
}

#[test]
fn nan_is_seen_in_the_distance() {
    for by_tensor_cores in [false, true] {
        let mut queries = noise(3 * 33, 1);
        queries[33 + 4] = f32::NAN;
        let (_, distances) = search(by_tensor_cores, &queries, &noise(70 * 33, 2), 33);
        assert_eq!(distances.iter().map(|x| x.is_nan()).collect::<Vec<_>>(), [false, true, false]);
    }
}

#[test]
fn ranked_prototypes_are_the_cpus() {
    for (count, dims, k) in [(9_usize, 5, 9), (1, 40, 1), (600, 33, 9), (257, 16, 4)] {
        // Each twice but the last, so that equal distances are there.
        let mut prototypes = rows(count.div_ceil(2), dims, 3).repeat(2);
        prototypes.truncate(count * dims);
        let row = rows(1, dims, 8);
        let want = PrototypeBank::new(prototypes.clone(), dims)
            .unwrap()
            .top(&Team::alone(), &row, k)
            .unwrap();
        let mut gpu = Interpreter::default();
        let (at, bank) = (gpu.floats(&row), gpu.floats(&prototypes));
        let bank = Bank { count, dims, rows: bank.region() };
        let candidates = gpu.alloc(ranked_bytes(bank, k)).unwrap();
        let [indices, distances2] = [0, 1].map(|_| gpu.alloc(4 * k).unwrap());
        let found = Ranked {
            candidates: candidates.region(),
            indices: indices.region(),
            distances2: distances2.region(),
        };
        for launch in ranked(bank, at.region(), k, found) {
            gpu.launch(&launch).unwrap();
        }
        let got = read_u32(&mut gpu, indices.region());
        assert_eq!(got, want.iter().map(|nearest| nearest.index).collect::<Vec<_>>());
        let got = gpu.read_floats(distances2.region()).unwrap();
        assert_eq!(got, want.iter().map(|nearest| nearest.distance2).collect::<Vec<_>>());
    }
}

/// The score of each picture of `patches` patches, whose distances are given.
fn scores(
    prototypes: &[f32],
    dims: usize,
    around: usize,
    rows: &[f32],
    patches: usize,
) -> Vec<f32> {
    let team = Team::alone();
    let cpu = PrototypeBank::new(prototypes.to_vec(), dims).unwrap();
    let neighbours: Vec<u32> =
        cpu.top(&team, prototypes, around).unwrap().iter().map(|near| near.index).collect();
    let found: Vec<Nearest> = rows
        .chunks(dims)
        .map(|row| match cpu.nearest(&team, row) {
            Ok(found) => found[0],
            Err(_) => Nearest { index: 0, distance2: f32::NAN },
        })
        .collect();
    let mut gpu = Interpreter::default();
    let distances: Vec<f32> = found.iter().map(|near| near.distance2.sqrt()).collect();
    let nearest: Vec<u32> = found.iter().map(|near| near.index).collect();
    let images = nearest.len() / patches;
    let buffers = [gpu.floats(rows), gpu.floats(&distances), gpu.floats(prototypes)];
    let tables = [gpu.buffer(&u32_bytes(&nearest)), gpu.buffer(&u32_bytes(&neighbours))];
    let to = gpu.alloc(4 * images).unwrap();
    let bank = Bank { count: cpu.len(), dims, rows: buffers[2].region() };
    let patches = Patches {
        images,
        patches,
        rows: buffers[0].region(),
        nearest: tables[0].region(),
        distances: buffers[1].region(),
    };
    gpu.launch(&image_score(bank, patches, tables[1].region(), around, to.region())).unwrap();
    gpu.read_floats(to.region()).unwrap()
}

#[test]
fn the_score_is_the_worst_patch_re_weighted() {
    for (patches, count, dims, around) in [(1, 9, 5, 9), (33, 40, 31, 9), (700, 12, 8, 2)] {
        let prototypes = rows(count, dims, 3);
        let features = rows(2 * patches, dims, 4);
        let got = scores(&prototypes, dims, around, &features, patches);
        let distance = |a: &[f32], b: &[f32]| {
            a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt()
        };
        for (features, got) in features.chunks(patches * dims).zip(got) {
            let (mut worst, mut far) = ((0, 0), -1.0);
            for (i, patch) in features.chunks(dims).enumerate() {
                let all: Vec<f64> =
                    prototypes.chunks(dims).map(|row| distance(patch, row)).collect();
                let star = (0..count).min_by(|&a, &b| all[a].total_cmp(&all[b])).unwrap();
                if all[star] > far {
                    (worst, far) = ((i, star), all[star]);
                }
            }
            let row = |i: usize| &prototypes[i * dims..][..dims];
            let mut order: Vec<usize> = (0..count).collect();
            order.sort_by(|&a, &b| {
                distance(row(worst.1), row(a)).total_cmp(&distance(row(worst.1), row(b)))
            });
            let patch = &features[worst.0 * dims..][..dims];
            let total: f64 =
                order[..around].iter().map(|&i| (distance(patch, row(i)) - far).exp()).sum();
            let want = far * (1.0 - 1.0 / total);
            // Sums of at most 31 squares in f32, and an exponential.
            assert!((f64::from(got) - want).abs() <= 2e-6 * want, "{got} {want}");
        }
    }
}

#[test]
fn a_patch_without_a_distance_has_no_score() {
    let prototypes = rows(9, 5, 3);
    let mut features = rows(6, 5, 4);
    features[21] = f32::NAN;
    let got = scores(&prototypes, 5, 9, &features, 3);
    assert!(got[0].is_finite() && got[1].is_nan(), "{got:?}");
}
