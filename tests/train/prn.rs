//! PRN: on the smallest pictures that it can have, since it is a hundred times a teacher's work.

use inspectd::dataset::Surface;
use inspectd::dataset::mask::Mask;
use inspectd::nn::prn::{Align, Depthwise, Embedding, Residual, Scale, Variant};
use inspectd::synth::synthesizer::{Seen, Stock};
use inspectd::train::prn::{Anomalies, Config, Layer4, Preset, Prn};

use super::*;

const SIDE: usize = 128;
const INPUT: Input = Input { width: SIDE, height: SIDE };

fn rendered(defect_rate: f64, i: u64) -> image::RgbImage {
    let side = SIDE as u32;
    let config =
        pattern::Config { width: side, height: side, defect_rate, ..pattern::Config::default() };
    render(&config, i).0
}

/// `goods` good parts in `train/good`; where there are `defects`, these in `test/hole` with a square
/// mask each, and two good parts in `test/good`.
fn category(root: &Path, goods: u64, defects: u64) -> Vec<PathBuf> {
    let at = |folder: &str, i: u64| {
        let folder = root.join("part").join(folder);
        std::fs::create_dir_all(&folder).unwrap();
        folder.join(format!("{i:03}.png"))
    };
    let learned = (0..goods).map(|i| {
        let path = at("train/good", i);
        rendered(0.0, i).save(&path).unwrap();
        path
    });
    let learned = learned.collect();
    for i in 0..defects {
        rendered(1.0, i).save(at("test/hole", i)).unwrap();
        let square = |x: u32, y: u32| (50..70).contains(&x) && (50..70).contains(&y);
        let mask = image::GrayImage::from_fn(SIDE as u32, SIDE as u32, |x, y| {
            image::Luma([if square(x, y) { 255 } else { 0 }])
        });
        let path = at("ground_truth/hole", i);
        mask.save(path.with_file_name(format!("{i:03}_mask.png"))).unwrap();
        if i < 2 {
            rendered(0.0, 100 + i).save(at("test/good", i)).unwrap();
        }
    }
    learned
}

fn seen() -> Seen {
    let mut mask = Mask::empty(SIDE, SIDE);
    for (y, x) in (50..70).flat_map(|y| (50..70).map(move |x| (y, x))) {
        mask.inside[y * SIDE + x] = true;
    }
    Seen { name: "hole/000.png".to_owned(), picture: rendered(1.0, 0), mask }
}

/// Without what makes it slow; each case puts back what it is of.
fn small() -> Config {
    let network = Variant { encoder: Teacher::Compact, attention: false, ..Variant::default() };
    Config { network, epochs: 1, batch: 4, prototype_ratio: 0.5, ..Config::default() }
}

fn attempt(
    config: Config,
    encoder: &Backbone,
    paths: &[PathBuf],
    seen: Vec<Seen>,
    threads: usize,
) -> anyhow::Result<Prn> {
    let engine = Engine::new(&engine::Config { threads: Some(threads), ..Default::default() })?;
    let normals = Pictures::open(paths.to_vec(), (SIDE, SIDE), 64 << 20, 16).unwrap();
    let stock = Stock {
        normals: Arc::new(normals),
        source: Arc::new(Source::open(None).unwrap()),
        seen,
        category: "part".to_owned(),
        surface: Some(Surface::Object),
    };
    Prn::new(config, INPUT, encoder, stock, 3, &engine)
}

fn new(config: Config, paths: &[PathBuf], seen: Vec<Seen>) -> Prn {
    let encoder = match config.network.encoder {
        Teacher::Compact => nn::load(&BackboneSpec::Compact, 3).unwrap(),
        _ => resnet18(4),
    };
    attempt(config, &encoder, paths, seen, 2).unwrap()
}

/// An encoder with batch norms, whose weights nobody has to download.
fn resnet18(layers: usize) -> Backbone {
    let graph = resnet::graph(Depth::R18, layers, (64, 64)).unwrap();
    let parameters = Parameters::begin(&graph, 9, |_| Some(Start::FanOut));
    Backbone::resnet(Depth::R18, layers, &parameters.weights("drawn").unwrap()).unwrap()
}

/// A step moves what is learned and nothing that is frozen.
fn learns_a_step(mut trainee: Prn, name: &str, watched: &[&str], frozen: &[&str]) {
    let of = |trainee: &Prn, name: &str| trainee.parameters().get(name).unwrap().to_vec();
    trainee.find_prototypes(&mut |_| {}).unwrap();
    let before: Vec<_> = watched.iter().chain(frozen).map(|at| of(&trainee, at)).collect();
    let losses = trainee.step(0).unwrap();
    assert!(losses.iter().all(|(_, value)| value.is_finite()), "{name}: {losses:?}");
    for (i, at) in watched.iter().chain(frozen).enumerate() {
        let moved = of(&trainee, at) != before[i];
        assert_eq!(moved, i < watched.len(), "{name}: {at}");
    }
}

const OUT: &str = "out.weight";
const LAYER4: &str = "enc.layer4.0.conv1.weight";
const LAYER4_MEAN: &str = "enc.layer4.0.bn1.running_mean";
const PROTOTYPES: &str = "prototypes.2";
const LAYER3: &str = "enc.block3.conv2.weight";

#[test]
fn the_papers_network_learns() {
    let folder = tempfile::tempdir().unwrap();
    let paths = category(folder.path(), 2, 0);
    let network = Variant { attention: true, ..small().network };
    let trainee = new(Config { network, ..small() }, &paths, vec![seen()]);
    let learned = [OUT, LAYER4, LAYER4_MEAN, "msa.0.0.c1.weight", "mf_d.f.01.0.weight"];
    learns_a_step(trainee, "whole", &learned, &[PROTOTYPES, LAYER3]);
}

#[test]
fn every_ablation_learns() {
    let folder = tempfile::tempdir().unwrap();
    let paths = category(folder.path(), 2, 0);
    let network = |change: fn(&mut Variant)| {
        let mut config = small();
        change(&mut config.network);
        config
    };
    let anomalies = |change: fn(&mut Anomalies)| {
        let mut config = small();
        change(&mut config.anomalies);
        config
    };
    struct Case {
        name: &'static str,
        config: Config,
        frozen: &'static [&'static str],
    }
    const USUAL: &[&str] = &[PROTOTYPES, LAYER3];
    let case = |name, config| Case { name, config, frozen: USUAL };
    let resnet = |config: Config| {
        let network = Variant { encoder: Teacher::Resnet18, ..config.network };
        Config { network, ..config }
    };
    const OF_RESNET: &[&str] = &[PROTOTYPES, "enc.layer3.1.conv2.weight", "enc.bn1.running_mean"];
    const WITH_LAYER4: &[&str] = &[PROTOTYPES, "enc.bn1.running_mean", LAYER4, LAYER4_MEAN];
    let cases = [
        Case { frozen: &[LAYER3], ..case("no prototypes", network(|n| n.prototypes = false)) },
        case("no fusion", network(|n| n.fusion = false)),
        case(
            "other readings of the paper",
            network(|n| {
                *n = Variant {
                    attention: true,
                    residual: Residual::Squared,
                    embedding: Embedding::Elementwise,
                    scale: Scale::Root,
                    depthwise: Depthwise::Grouped,
                    shared_fusion: true,
                    align: Align::HalfPixel,
                    ..*n
                }
            }),
        ),
        case("no extended", anomalies(|a| a.extended = false)),
        case("no heterogeneous", anomalies(|a| a.heterogeneous = false)),
        case("no homogeneous", anomalies(|a| a.homogeneous = false)),
        case("extended alone", anomalies(|a| (a.heterogeneous, a.homogeneous) = (false, false))),
        case("no target area", anomalies(|a| a.target_area = false)),
        case("decoupled decay", Config { optimizer: Preset::AdamW, ..small() }),
        case("every map a prototype", Config { prototype_ratio: 1.0, ..small() }),
        Case { frozen: OF_RESNET, ..case("resnet", resnet(small())) },
        Case {
            frozen: WITH_LAYER4,
            ..case("layer4 frozen", resnet(Config { layer4: Layer4::Frozen, ..small() }))
        },
    ];
    for Case { name, config, frozen } in cases {
        let layer4 = config.layer4 == Layer4::Trained;
        let watched = if layer4 { &[OUT, LAYER4, LAYER4_MEAN][..] } else { &[OUT] };
        learns_a_step(new(config, &paths, vec![seen()]), name, watched, frozen);
    }
    // Nothing seen: what would be extended is simulated.
    learns_a_step(new(small(), &paths, Vec::new()), "unsupervised", &[OUT], USUAL);
}

#[test]
fn layer4_begins_as_its_file_has_it() {
    let folder = tempfile::tempdir().unwrap();
    let paths = category(folder.path(), 2, 0);
    let network = Variant { encoder: Teacher::Resnet18, ..small().network };
    let config = Config { network, ..small() };
    let of = |trainee: &Prn| trainee.parameters().get(LAYER4).unwrap().to_vec();
    let (whole, short) = (resnet18(4), resnet18(3));
    let begun = attempt(config.clone(), &whole, &paths, Vec::new(), 2).unwrap();
    let theirs = whole.weights().get("layer4.0.conv1.weight", &[512, 256, 3, 3]).unwrap();
    let theirs: Vec<f32> = theirs.flatten_all().unwrap().to_vec1().unwrap();
    assert!(of(&begun) == theirs);
    let drawn = attempt(config.clone(), &short, &paths, Vec::new(), 2).unwrap();
    assert!(of(&drawn) != theirs);
    let frozen = Config { layer4: Layer4::Frozen, ..config };
    let error = attempt(frozen, &short, &paths, Vec::new(), 2).err().unwrap().to_string();
    assert!(error.contains("prn.layer4 = \"frozen\": the backbone has no layer4"), "{error}");
}

#[test]
fn prototypes_are_maps_of_good_parts_or_means_of_them() {
    let folder = tempfile::tempdir().unwrap();
    let paths = category(folder.path(), 4, 0);
    let encoder = nn::load(&BackboneSpec::Compact, 3).unwrap();
    let find = |prototype_ratio, threads| {
        let mut all = Vec::new();
        let config = Config { prototype_ratio, ..small() };
        let mut trainee = attempt(config, &encoder, &paths, Vec::new(), threads).unwrap();
        trainee.find_prototypes(&mut |found| all.push(found.clone())).unwrap();
        all
    };
    let (maps, halves, one) = (find(1.0, 2), find(0.5, 2), find(0.25, 2));
    assert!(find(0.5, 1) == halves && find(0.5, 3) == halves);
    for scale in 0..3 {
        let sizes = [64 * 32 * 32, 128 * 16 * 16, 256 * 8 * 8];
        let counts = [&maps, &halves, &one].map(|found| found[scale].count);
        assert_eq!(counts, [4, 2, 1]);
        assert_eq!(maps[scale].prototypes.len(), 4 * sizes[scale]);
        let maps: Vec<&[f32]> = maps[scale].prototypes.chunks(sizes[scale]).collect();
        let close = |got: &f32, want: f32| (got - want).abs() <= 1e-5 + 1e-5 * want.abs();
        for (i, got) in one[scale].prototypes.iter().enumerate() {
            assert!(close(got, maps.iter().map(|map| map[i]).sum::<f32>() / 4.0), "{scale} {i}");
        }
        // Each of the two is the mean of some maps, and together they are of all.
        let sums: Vec<usize> = halves[scale]
            .prototypes
            .chunks(sizes[scale])
            .map(|centre| {
                let is_mean = |some: &usize| {
                    let some: Vec<_> = (0..4).filter(|i| some >> i & 1 == 1).collect();
                    centre.iter().enumerate().all(|(at, got)| {
                        let sum: f32 = some.iter().map(|&i| maps[i][at]).sum();
                        close(got, sum / some.len() as f32)
                    })
                };
                (1..15).find(is_mean).unwrap()
            })
            .collect();
        assert_eq!(sums[0] + sums[1], 15, "{scale}: {sums:?}");
    }
}

#[test]
fn an_interrupted_run_of_prn_ends_as_one_that_was_not() {
    let folder = tempfile::tempdir().unwrap();
    let paths = category(folder.path(), 4, 0);
    let new = || new(small(), &paths, vec![seen()]);
    let mut whole = new();
    assert_eq!(run_some(&mut whole, &folder.path().join("whole"), None, false), 2);
    let at = folder.path().join("interrupted");
    assert_eq!(run_some(&mut new(), &at, Some(1), false), 1);
    let mut resumed = new();
    assert_eq!(run_some(&mut resumed, &at, None, true), 2);
    assert!(resumed.parameters() == whole.parameters());
}

#[test]
fn extended_anomalies_alone_want_a_defect() {
    let folder = tempfile::tempdir().unwrap();
    let paths = category(folder.path(), 2, 0);
    let anomalies = Anomalies { heterogeneous: false, homogeneous: false, ..Anomalies::default() };
    let encoder = nn::load(&BackboneSpec::Compact, 3).unwrap();
    let config = Config { anomalies, ..small() };
    let error = attempt(config, &encoder, &paths, Vec::new(), 2).err().unwrap().to_string();
    assert!(error.contains("no defect was seen") && error.contains("--seen"), "{error}");
}

#[test]
fn a_trained_prn_is_sealed_and_its_defects_are_not_tested_with() {
    let folder = tempfile::tempdir().unwrap();
    category(folder.path(), 8, 4);
    let data = folder.path().join("part").display().to_string();
    let out = folder.path().join("prn.bundle");
    let place = out.display().to_string();
    let file = folder.path().join("prn.toml");
    std::fs::write(&file, "[prn]\nprototype_ratio = 0.5\n[prn.network]\nattention = false\n")
        .unwrap();
    let config = file.display().to_string();
    let args = |seen: &'static str| {
        let all =
            ["train", "--system", "prn", "--data", &data, "--out", &place, "--config", &config];
        let more = ["--size", "128", "--batch", "4", "--steps", "1", "--holdout", "0.25"];
        let rest = ["--threads", "2", "--seen", seen];
        [&all[..], &more[..], &rest[..]].concat().iter().map(|s| s.to_string()).collect::<Vec<_>>()
    };
    let run = |args: &[String]| {
        let output = inspectd(&args.iter().map(String::as_str).collect::<Vec<_>>());
        let said = [&output.stdout[..], &output.stderr[..]].concat();
        (output.status.success(), String::from_utf8_lossy(&said).into_owned())
    };
    let (well, said) = run(&args("5"));
    assert!(!well && said.contains("5 defects are to be learned from"), "{said}");
    assert!(said.contains("--seen 5; 0 learns from good parts"), "{said}");

    let (well, said) = run(&args("3"));
    assert!(well, "{said}");
    assert!(said.contains("3 defects are learned from") && said.contains("hole/00"), "{said}");
    assert!(said.contains("scale 3: 3 prototypes of 6 good parts"), "{said}");
    let loaded = bundle::load(&out, 3, &engine()).unwrap();
    assert_eq!(loaded.card.system, "prn");
    assert_eq!(loaded.card.prn.unwrap().prototypes, [3; 3]);
    assert_eq!(loaded.card.training_data.seen_anomalies.len(), 3);
    let output = inspectd(&["eval", "--bundle", &place, "--data", &data, "--threads", "2"]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("3: 2 good, 1 with defects"), "{said}");
}

#[test]
fn options_that_prn_cannot_have_are_named() {
    let folder = tempfile::tempdir().unwrap();
    category(folder.path(), 5, 0);
    let data = folder.path().join("part").display().to_string();
    let out = folder.path().join("b").display().to_string();
    let list = folder.path().join("seen.txt").display().to_string();
    let refused = |args: &[&str]| {
        let output = inspectd(&[&["train", "--data", &data, "--out", &out][..], args].concat());
        assert!(!output.status.success(), "{args:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let error = refused(&["--system", "prn", "--size", "192"]);
    assert!(error.contains("192 × 192") && error.contains("multiple of 128"), "{error}");
    let error = refused(&["--system", "prn", "--size", "128"]);
    assert!(error.contains("--seen 10; 0 learns"), "{error}");
    let error = refused(&["--system", "prn", "--size", "128", "--seen", "0", "--batch", "2"]);
    assert!(error.contains("prn.batch = 2"), "{error}");
    let error = refused(&["--system", "ntsnet", "--seen-list", &list]);
    assert!(error.contains("--seen and --seen-list are for prn"), "{error}");
}
