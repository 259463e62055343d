//! How many pictures the published sets have, to warn where one seems not whole. Nothing is refused
//! for it: the counts are the specification's, recalled from the papers (MVTec AD: Bergmann et al.
//! 2019; BTAD: Mishra et al. 2021; VisA: Zou et al. 2022; DAGM 2007 and KolektorSDD2: their pages).

use super::{Category, Layout, Sample, Surface};

/// Name, good pictures to learn from, good and defective ones to test with.
pub(super) type Row = (&'static str, usize, usize, usize);

/// The first five are textures.
pub(super) const MVTEC: [Row; 15] = [
    ("carpet", 280, 28, 89),
    ("grid", 264, 21, 57),
    ("leather", 245, 32, 92),
    ("tile", 230, 33, 84),
    ("wood", 247, 19, 60),
    ("bottle", 209, 20, 63),
    ("cable", 224, 58, 92),
    ("capsule", 219, 23, 109),
    ("hazelnut", 391, 40, 70),
    ("metal_nut", 220, 22, 93),
    ("pill", 267, 26, 141),
    ("screw", 320, 41, 119),
    ("toothbrush", 60, 12, 30),
    ("transistor", 213, 60, 40),
    ("zipper", 240, 32, 119),
];

const BTAD: [Row; 3] = [("01", 400, 21, 49), ("02", 399, 30, 200), ("03", 1000, 400, 41)];

pub(super) const VISA: [Row; 12] = [
    ("candle", 900, 100, 100),
    ("capsules", 542, 60, 100),
    ("cashew", 450, 50, 100),
    ("chewinggum", 453, 50, 100),
    ("fryum", 450, 50, 100),
    ("macaroni1", 900, 100, 100),
    ("macaroni2", 900, 100, 100),
    ("pcb1", 904, 100, 100),
    ("pcb2", 901, 100, 100),
    ("pcb3", 905, 101, 100),
    ("pcb4", 904, 101, 100),
    ("pipe_fryum", 450, 50, 100),
];

/// Whether a category in MVTec AD's layout is one of VisA as anomalib converts it.
pub(super) fn is_converted_visa(name: &str, test: &[Sample]) -> bool {
    let kinds: Vec<&str> = test.iter().filter_map(|sample| sample.defect.as_deref()).collect();
    row(&VISA, name).is_some() && !kinds.is_empty() && kinds.iter().all(|kind| *kind == "bad")
}

pub(super) fn surface(layout: Layout, name: &str) -> Option<Surface> {
    match layout {
        Layout::Mvtec if row(&MVTEC[..5], name).is_some() => Some(Surface::Texture),
        Layout::Mvtec if row(&MVTEC, name).is_some() => Some(Surface::Object),
        Layout::Dagm => Some(Surface::Texture),
        _ => None,
    }
}

/// What is unusual about the numbers of pictures.
pub(super) fn oddities(category: &Category) -> Vec<String> {
    let (defects, goods): (Vec<&Sample>, Vec<&Sample>) =
        category.test.iter().partition(|sample| sample.defect.is_some());
    let (train, train_defects) = (category.train.len(), category.train_defects.len());
    let (goods, defects) = (goods.len(), defects.len());
    let name = &category.name;
    let mut words = Vec::new();
    if !category.test.is_empty() {
        for (kind, count) in [("good", goods), ("defective", defects)] {
            if count == 0 {
                words.push(format!("{name} has no {kind} picture to test with"));
            }
        }
    }
    let rows: &[Row] = match category.layout {
        Layout::Mvtec => &MVTEC,
        Layout::Btad => &BTAD,
        Layout::Visa => &VISA,
        _ => &[],
    };
    let mut usual = Vec::new(); // what, how many there are, how many the published set has
    if let Some(&(_, usual_train, usual_goods, usual_defects)) = row(rows, name) {
        usual.push(("good pictures to learn from", train, usual_train));
        usual.push(("good pictures to test with", goods, usual_goods));
        usual.push(("defective pictures to test with", defects, usual_defects));
    }
    if category.layout == Layout::Ksdd2 {
        usual.push(("good pictures to learn from", train, 2085));
        usual.push(("defective pictures to learn from", train_defects, 246));
        usual.push(("good pictures to test with", goods, 894));
        usual.push(("defective pictures to test with", defects, 110));
    }
    let class = name.strip_prefix("Class").and_then(|number| number.parse::<u32>().ok());
    if let (Layout::Dagm, Some(class), true) = (category.layout, class, train * goods > 0) {
        let (images, defective) = if class <= 6 { (1150, 150) } else { (2300, 300) };
        usual.push(("pictures", train + train_defects + goods + defects, images));
        usual.push(("defective pictures", train_defects + defects, defective));
    }
    // Where a half is not there it is not wanted.
    usual.retain(|&(_, have, published)| have != published && have > 0);
    let set = category.layout;
    words.extend(usual.into_iter().map(|(what, have, published)| {
        format!("{name} has {have} {what}; {set}, if this is it, has {published}")
    }));
    words
}

fn row<'a>(rows: &'a [Row], name: &str) -> Option<&'a Row> {
    rows.iter().find(|row| row.0 == name)
}
