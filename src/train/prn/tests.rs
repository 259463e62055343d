use std::path::Path;

use image::{Rgb, RgbImage};

use super::*;
use crate::dataset::mask::Mask;
use crate::dataset::pictures::Pictures;
use crate::synth::source::Source;
use crate::synth::synthesizer::Seen;

const SIDE: usize = 32;

/// A bright square on black, another grey in each picture.
fn part(i: u32) -> RgbImage {
    RgbImage::from_fn(SIDE as u32, SIDE as u32, |x, y| {
        let on = (6..26).contains(&x) && (6..26).contains(&y);
        Rgb(if on { [100 + 10 * i as u8 + (x * 5 + y * 3) as u8 % 7; 3] } else { [9; 3] })
    })
}

fn synthesizer(folder: &Path, count: u32) -> Synthesizer {
    let path = |i: u32| folder.join(format!("{i}.png"));
    for i in 0..count {
        part(i).save(path(i)).unwrap();
    }
    let paths = (0..count).map(path).collect();
    let mut mask = Mask::empty(SIDE, SIDE);
    for (y, x) in (10..18).flat_map(|y| (12..20).map(move |x| (y, x))) {
        mask.inside[y * SIDE + x] = true;
    }
    let stock = Stock {
        normals: Arc::new(Pictures::open(paths, (SIDE, SIDE), 1 << 20, 16).unwrap()),
        source: Arc::new(Source::open(None).unwrap()),
        seen: vec![Seen { name: "hole/0.png".to_owned(), picture: part(2), mask }],
        category: "square".to_owned(),
        surface: None,
    };
    Synthesizer::new(stock, synth::Config::default(), 5).unwrap()
}

#[test]
fn batches_are_halves_and_quarters_and_what_is_off_is_taken_over() {
    let paper = Anomalies::default();
    struct Case {
        anomalies: Anomalies,
        batch: usize,
        extended: usize,
        others: (Kind, usize),
    }
    let cases = [
        Case { anomalies: paper, batch: 64, extended: 16, others: (Kind::Simulated, 16) },
        Case { anomalies: paper, batch: 4, extended: 1, others: (Kind::Simulated, 1) },
        Case { anomalies: paper, batch: 7, extended: 1, others: (Kind::Simulated, 3) },
        Case {
            anomalies: Anomalies { extended: false, ..paper },
            batch: 64,
            extended: 0,
            others: (Kind::Simulated, 32),
        },
        Case {
            anomalies: Anomalies { homogeneous: false, ..paper },
            batch: 8,
            extended: 2,
            others: (Kind::Heterogeneous, 2),
        },
        Case {
            anomalies: Anomalies { heterogeneous: false, ..paper },
            batch: 8,
            extended: 2,
            others: (Kind::Homogeneous, 2),
        },
        Case {
            anomalies: Anomalies { heterogeneous: false, homogeneous: false, ..paper },
            batch: 64,
            extended: 32,
            others: (Kind::Simulated, 0),
        },
    ];
    for Case { anomalies, batch, extended, others } in cases {
        let kinds = anomalies.of_batch(batch);
        let of = |kind| kinds.iter().filter(|own| **own == kind).count();
        assert_eq!(of(Kind::Extended), extended, "{anomalies:?} {batch}");
        assert_eq!(of(others.0), others.1, "{anomalies:?} {batch}");
        assert_eq!(kinds.len(), extended + others.1, "{anomalies:?} {batch}");
    }
}

#[test]
fn good_parts_come_first_with_nothing_anomalous_in_them() {
    let folder = tempfile::tempdir().unwrap();
    let synthesizer = synthesizer(folder.path(), 5);
    let config = Config { batch: 12, ..Config::default() };
    let members = |step| members(&config, config.anomalies, &synthesizer, 5, step);
    let goods: Vec<usize> = (0..2)
        .flat_map(|step| members(step).into_iter())
        .filter_map(|member| match member {
            Member::Good(index) => Some(index),
            Member::Anomalous(_) => None,
        })
        .collect();
    // An epoch of five good parts is one step of six; the next begins another.
    assert_eq!((goods.len(), goods[5]), (12, goods[0]));
    let mut epoch = goods[..5].to_vec();
    epoch.sort_unstable();
    assert_eq!(epoch, [0, 1, 2, 3, 4]);

    let own = members(0);
    assert_eq!(own.len(), 12);
    assert!(own[..6].iter().all(|member| matches!(member, Member::Good(_))));
    let batch = mixed(&synthesizer, &own).unwrap();
    let places = SIDE * SIDE;
    assert_eq!((batch.pictures.len(), batch.truth.len()), (12 * 3 * places, 12 * places));
    for (i, truth) in batch.truth.chunks(places).enumerate() {
        let anomalous = truth.contains(&true);
        assert_eq!(anomalous, i >= 6, "picture {i}");
    }
    // The good parts are their pictures, normalised.
    let Member::Good(first) = own[0] else { unreachable!("checked above") };
    let level = f32::from(part(first as u32).get_pixel(0, 0).0[0]) / 255.0;
    let want = (level - 0.485) / 0.229;
    assert!((batch.pictures[0] - want).abs() < 1e-6, "{} {want}", batch.pictures[0]);
}

#[test]
fn a_batch_is_that_of_its_step_whatever_the_threads() {
    let folder = tempfile::tempdir().unwrap();
    let synthesizer = synthesizer(folder.path(), 4);
    let config = Config { batch: 8, ..Config::default() };
    let batch = |step, threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let members = members(&config, config.anomalies, &synthesizer, 5, step);
        pool.install(|| mixed(&synthesizer, &members).unwrap())
    };
    assert_eq!(batch(3, 1), batch(3, 4));
    assert_ne!(batch(3, 1), batch(4, 1));
}

#[test]
fn a_share_of_good_parts_is_rounded_down_and_is_never_none() {
    let of =
        |prototype_ratio, goods| Config { prototype_ratio, ..Config::default() }.prototypes(goods);
    assert_eq!(of(0.1, 391), [39; 3]);
    assert_eq!(of(0.1, 3), [1; 3]);
    // 28.999999999999996 in f64.
    assert_eq!(of(0.29, 100), [29; 3]);
    assert_eq!(of(1.0, 7), [7; 3]);
    let network = Variant { prototypes: false, ..Variant::default() };
    assert_eq!(Config { network, ..Config::default() }.prototypes(7), [0; 3]);
}

#[test]
fn what_stays_as_it_is() {
    for (name, trained, frozen) in [
        ("enc.conv1.weight", true, true),
        ("enc.layer3.1.bn2", true, true),
        ("enc.layer4.0.conv1.weight", false, true),
        ("prototypes.2", true, true),
        ("mf_f.f.01.0.weight", false, false),
        ("out.bias", false, false),
    ] {
        assert_eq!(is_frozen(name, Layer4::Trained), trained, "{name}");
        assert_eq!(is_frozen(name, Layer4::Frozen), frozen, "{name}");
    }
}

#[test]
fn settings_that_cannot_be_meant_are_named() {
    let cases = [
        ("batch = 3", "prn.batch = 3"),
        ("epochs = 0", "prn.epochs = 0"),
        ("learning_rate = 0.0", "prn.learning_rate = 0"),
        ("weight_decay = -1.0", "prn.weight_decay = -1"),
        ("lambda = -5.0", "prn.lambda = -5"),
        ("alpha = 1.0", "prn.alpha = 1"),
        ("gamma = 0", "prn.gamma = 0"),
        ("beta = 2.0", "prn.beta = 2"),
        ("prototype_ratio = 0.0", "prn.prototype_ratio = 0"),
        ("top = 0", "prn.top = 0"),
        (
            "anomalies = { extended = false, heterogeneous = false, homogeneous = false }",
            "prn.anomalies: extended, heterogeneous and homogeneous are all false",
        ),
        ("synth = { extended = { shear_deg = 60.0 } }", "prn.synth: extended: shear_deg = 60"),
    ];
    for (text, says) in cases {
        let error = toml::from_str::<Config>(text).unwrap().check().unwrap_err();
        assert!(format!("{error:#}").contains(says), "{error:#}");
    }
    Config::default().check().unwrap();
    assert!(toml::from_str::<Config>("rate = 1.0").is_err());
}

#[test]
fn a_config_says_itself_again() {
    let config = Config {
        optimizer: Preset::AdamW,
        layer4: Layer4::Frozen,
        anomalies: Anomalies { target_area: false, ..Anomalies::default() },
        ..Config::default()
    };
    let text = toml::to_string(&config).unwrap();
    assert!(text.contains("optimizer = \"adam_w\""), "{text}");
    assert_eq!(toml::from_str::<Config>(&text).unwrap(), config);
    assert!(
        !config.made_up().simulated.target_area.on && !config.made_up().extended.target_area.on
    );
}
