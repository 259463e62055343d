//! Each layout, whole and in parts, made of tiny pictures.

use std::fs;

use image::{GrayImage, Luma};

use super::*;
use crate::shared::shared;

fn save(root: &Path, file: &str, level: u8) {
    let path = root.join(file);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    GrayImage::from_pixel(3, 2, Luma([level])).save(path).unwrap();
}

/// Grey pictures; what does not end as a picture is a text.
fn folder_with(files: &[&str]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    add(root.path(), files);
    root
}

fn add(root: &Path, files: &[&str]) {
    for file in files {
        if crate::camera::folder::is_picture(Path::new(file)) {
            save(root, file, 200);
        } else {
            fs::create_dir_all(root.join(file).parent().unwrap()).unwrap();
            fs::write(root.join(file), "text").unwrap();
        }
    }
}

fn only(root: &Path) -> Category {
    let mut categories = find(root).unwrap();
    assert_eq!(categories.len(), 1);
    categories.remove(0)
}

fn names(samples: &[Sample]) -> Vec<&str> {
    samples.iter().map(|sample| sample.name.as_str()).collect()
}

/// Name, kind and the mask's file name.
fn seen(samples: &[Sample]) -> Vec<(&str, Option<&str>, Option<String>)> {
    samples
        .iter()
        .map(|s| (s.name.as_str(), s.defect.as_deref(), s.mask.as_deref().map(listing::name)))
        .collect()
}

const MVTEC_TREE: [&str; 10] = [
    "train/good/010.png",
    "train/good/9.png",
    "test/good/000.PNG",
    "test/scratch/b.jpg",
    "test/scratch/a.png",
    "test/scratch/.hidden.png",
    "test/readme.txt",
    "ground_truth/scratch/a_mask.png",
    "ground_truth/scratch/b.PNG",
    "license.txt",
];

#[test]
fn mvtec_comes_sorted_with_kinds_and_masks() {
    let root = folder_with(&MVTEC_TREE);
    let category = only(root.path());
    assert_eq!(category.layout, Layout::Mvtec);
    assert_eq!(names(&category.train), ["train/good/010.png", "train/good/9.png"]);
    assert_eq!(
        seen(&category.test),
        [
            ("good/000.PNG", None, None),
            ("scratch/a.png", Some("scratch"), Some("a_mask.png".into())),
            ("scratch/b.jpg", Some("scratch"), Some("b.PNG".into())),
        ]
    );
    assert!(category.test.iter().chain(&category.train).all(|sample| sample.path.is_file()));
}

#[test]
fn what_belongs_to_nothing_is_said() {
    let root = folder_with(&MVTEC_TREE);
    add(root.path(), &["ground_truth/scratch/c.png", "test/empty/notes.txt"]);
    let oddities = only(root.path()).oddities;
    assert_eq!(oddities.len(), 2, "{oddities:?}");
    assert!(oddities[0].ends_with("test/empty has no picture"), "{oddities:?}");
    assert!(oddities[1].starts_with("1 of the pictures in"), "{oddities:?}");
    assert!(oddities[1].ends_with("ground_truth/scratch are no picture's mask"), "{oddities:?}");
}

#[test]
fn without_ground_truth_nothing_has_a_mask() {
    let root = folder_with(&["test/dent/7.png"]);
    let categories = find_for(root.path(), Purpose::Testing).unwrap();
    assert_eq!(categories[0].test[0].mask, None);
}

#[test]
fn btad_is_found_in_the_folder_of_its_release() {
    let root = folder_with(&[
        "BTech_Dataset_transformed/03/train/ok/0001.bmp",
        "BTech_Dataset_transformed/03/test/ok/0000.bmp",
        "BTech_Dataset_transformed/03/test/ko/0000.bmp",
        "BTech_Dataset_transformed/03/test/ko/0001.bmp",
        "BTech_Dataset_transformed/03/test/ko/0002.bmp",
        "BTech_Dataset_transformed/03/ground_truth/ko/0000.bmp",
        "BTech_Dataset_transformed/03/ground_truth/ko/0001.png",
        "BTech_Dataset_transformed/03/ground_truth/ko/0001.bmp",
        "BTech_Dataset_transformed/03/ground_truth/ko/0002_mask.png",
        "BTech_Dataset_transformed/02/train/ok/0001.png",
        "BTech_Dataset_transformed/02/test/ok/0000.png",
        "BTech_Dataset_transformed/02/test/ko/0000.png",
        "BTech_Dataset_transformed/02/ground_truth/ko/0000.png",
    ]);
    let categories = find(root.path()).unwrap();
    assert_eq!(categories, find(&root.path().join("BTech_Dataset_transformed")).unwrap());
    assert_eq!(categories.iter().map(|c| c.name.as_str()).collect::<Vec<_>>(), ["02", "03"]);
    assert!(categories.iter().all(|category| category.layout == Layout::Btad));
    assert_eq!(names(&categories[1].train), ["train/ok/0001.bmp"]);
    assert_eq!(
        seen(&categories[1].test),
        [
            ("ko/0000.bmp", Some("ko"), Some("0000.bmp".into())),
            ("ko/0001.bmp", Some("ko"), Some("0001.png".into())),
            ("ko/0002.bmp", Some("ko"), Some("0002_mask.png".into())),
            ("ok/0000.bmp", None, None),
        ]
    );
}

#[test]
fn dagm_goes_by_its_labels() {
    let root = folder_with(&[
        "Class10/Train/0001.PNG",
        "Class10/Train/0002.PNG",
        "Class10/Train/Label/0002_label.PNG",
        "Class10/Train/Label/Labels.txt",
        "Class10/Test/0001.PNG",
        "Class10/Test/0002.PNG",
        "Class10/Test/Label/0001_label.PNG",
        "Class10/Test/Label/0009_label.PNG",
    ]);
    let category = only(root.path());
    assert_eq!((category.layout, category.surface), (Layout::Dagm, Some(Surface::Texture)));
    assert_eq!(names(&category.train), ["Train/0001.PNG"]);
    assert_eq!(
        seen(&category.train_defects),
        [("Train/0002.PNG", Some("defect"), Some("0002_label.PNG".into()))]
    );
    assert_eq!(
        seen(&category.test),
        [("0001.PNG", Some("defect"), Some("0001_label.PNG".into())), ("0002.PNG", None, None)]
    );
    let oddities = category.oddities.join("\n");
    assert!(oddities.contains("Test/Label has 1 pictures that belong to no picture"), "{oddities}");
    assert!(oddities.contains("DAGM 2007, if this is it, has 2300"), "{oddities}");
}

#[test]
fn ksdd2_goes_by_what_is_not_black() {
    let root = folder_with(&[
        "train/10001.png",
        "train/10002.png",
        "train/10002_GT.png",
        "train/10002 (copy).png",
        "test/20000.png",
        "test/20001.png",
        "test/20001_GT.png",
    ]);
    save(root.path(), "train/10001_GT.png", 0);
    save(root.path(), "test/20000_GT.png", 0);
    // A single level in a single channel counts.
    let mut truth = image::RgbImage::new(3, 2);
    truth.get_pixel_mut(2, 1).0 = [0, 0, 1];
    truth.save(root.path().join("test/20001_GT.png")).unwrap();
    let category = only(root.path());
    assert_eq!(category.layout, Layout::Ksdd2);
    assert_eq!(names(&category.train), ["train/10001.png"]);
    assert_eq!(
        seen(&category.train_defects),
        [("train/10002.png", Some("defect"), Some("10002_GT.png".into()))]
    );
    assert_eq!(
        seen(&category.test),
        [("20000.png", None, None), ("20001.png", Some("defect"), Some("20001_GT.png".into()))]
    );
    let oddities = category.oddities.join("\n");
    assert!(oddities.contains("train has 1 files that are no NNNNN.png"), "{oddities}");
    assert!(oddities.contains("10002 (copy).png"), "{oddities}");
}

const VISA_TREE: [&str; 6] = [
    "candle/Data/Images/Normal/0001.JPG",
    "candle/Data/Images/Normal/0000.JPG",
    "candle/Data/Images/Normal/0002.JPG",
    "candle/Data/Images/Anomaly/000.JPG",
    "candle/Data/Masks/Anomaly/000.png",
    "cashew/Data/Images/Normal/0000.JPG",
];

const VISA_SPLIT: &str = "object,split,label,image,mask
candle,train,normal,candle/Data/Images/Normal/0001.JPG,
candle,train,normal,candle/Data/Images/Normal/0000.JPG,
cashew,train,normal,cashew/Data/Images/Normal/0000.JPG,
candle,test,anomaly,candle/Data/Images/Anomaly/000.JPG,candle/Data/Masks/Anomaly/000.png
";

fn visa(split: &str) -> tempfile::TempDir {
    let root = folder_with(&VISA_TREE);
    fs::create_dir(root.path().join("split_csv")).unwrap();
    fs::write(root.path().join("split_csv/1cls.csv"), split).unwrap();
    root
}

#[test]
fn visa_goes_by_its_split_file() {
    let root = visa(VISA_SPLIT);
    let categories = find_for(root.path(), Purpose::Teaching).unwrap();
    assert_eq!(
        categories.iter().map(|c| c.name.as_str()).collect::<Vec<_>>(),
        ["candle", "cashew"]
    );
    let candle = only(&root.path().join("candle"));
    assert_eq!(candle, categories[0]);
    assert_eq!(candle.layout, Layout::Visa);
    assert_eq!(names(&candle.train), ["Normal/0000.JPG", "Normal/0001.JPG"]);
    assert_eq!(seen(&candle.test), [("Anomaly/000.JPG", Some("anomaly"), Some("000.png".into()))]);
    assert!(candle.oddities[0].contains("1 pictures in Data/Images are not in"));
}

#[test]
fn visa_converted_is_still_visa() {
    let root = folder_with(&[
        "visa_pytorch/pcb1/train/good/0000.JPG",
        "visa_pytorch/pcb1/test/good/0001.JPG",
        "visa_pytorch/pcb1/test/bad/000.JPG",
        "visa_pytorch/pcb1/ground_truth/bad/000.png",
    ]);
    let category = only(root.path());
    assert_eq!((category.layout, category.name.as_str()), (Layout::Visa, "pcb1"));
    assert_eq!(
        seen(&category.test),
        [("bad/000.JPG", Some("bad"), Some("000.png".into())), ("good/0001.JPG", None, None)]
    );
}

#[test]
fn of_good_beside_defects_every_fifth_good_is_tested_with() {
    let root = folder_with(&[
        "cap/dent/0.png",
        "cap/scratch/0.png",
        "cap/ground_truth/scratch/0_mask.png",
        "cap/ground_truth/dent/0_mask.png",
    ]);
    for i in 10..21 {
        save(root.path(), &format!("cap/good/{i}.png"), 9);
    }
    let category = only(root.path());
    assert_eq!((category.layout, category.name.as_str()), (Layout::GoodDefect, "cap"));
    assert_eq!(category.train.len(), 9);
    assert_eq!(
        seen(&category.test),
        [
            ("dent/0.png", Some("dent"), Some("0_mask.png".into())),
            ("good/14.png", None, None),
            ("good/19.png", None, None),
            ("scratch/0.png", Some("scratch"), Some("0_mask.png".into())),
        ]
    );
    assert!(!names(&category.train).contains(&"good/14.png"));
}

#[test]
fn what_is_missing_is_named() {
    struct Case {
        files: &'static [&'static str],
        says: &'static [&'static str],
    }
    let cases = [
        Case { files: &["train/good/0.png"], says: &["no folder test", "test/good", "MVTec AD"] },
        Case { files: &["test/good/0.png"], says: &["no folder train/good with good pictures"] },
        Case {
            files: &["train/good/0.txt", "test/good/0.png"],
            says: &["train/good has no picture"],
        },
        Case {
            files: &["train/good/0.png", "test/good/notes.txt"],
            says: &["test has no picture in any"],
        },
        Case {
            files: &["train/good/0.png", "test/dent/7.png", "ground_truth/dent/8_mask.png"],
            says: &["dent/7_mask.png (or 7.png) is missing", "remove the folder ground_truth"],
        },
        Case {
            files: &["train/good/0.png", "test/dent/7.png", "ground_truth/scratch/8_mask.png"],
            says: &["dent/7_mask.png (or 7.png) is missing"],
        },
        Case { files: &["train/bottle/0.png"], says: &["no folder train/good"] },
        Case { files: &["01/train/ok/0.png"], says: &["no folder test", "test/ok", "BTAD"] },
        Case { files: &["01/test/ko/0.png"], says: &["no folder train/ok", "BTAD"] },
        Case {
            files: &["train/ok/0.png", "test/ko/1.png", "ground_truth/ko/2.png"],
            says: &["ko/1.png (or 1.bmp, 1_mask.png) is missing"],
        },
        Case {
            files: &["Class1/Train/0.PNG", "Class1/Train/Label/Labels.txt"],
            says: &["no folder Test", "DAGM 2007"],
        },
        Case { files: &["Class1/Train/0.PNG"], says: &["no folder Train/Label"] },
        Case { files: &["Class1/0.png", "Class1_def/0.png"], says: &["competition release"] },
        Case {
            files: &["train/1.png"],
            says: &["train/1_GT.png is missing", "black if", "Kolektor"],
        },
        Case { files: &["train/1.png", "train/1_GT.png"], says: &["no folder test with NNNNN"] },
        Case { files: &VISA_TREE, says: &["split_csv/1cls.csv is missing", "get it from"] },
        Case { files: &["candle/Data/Masks/0.png"], says: &["no folder Data/Images"] },
        Case { files: &["good/0.png"], says: &["none of defects beside it", "scratch"] },
        Case { files: &["good/0.txt", "dent/0.png"], says: &["good has no picture"] },
        Case { files: &["0.png"], says: &["it has no folders", "docs/datasets.md"] },
        Case {
            files: &["a/0.png", "b/0.png", "c/0.png", "d/0.png", "e/0.png", "f/0.png"],
            says: &["(a, b, c, d, e, …)", "train/good and test/<defect> (MVTec AD)"],
        },
    ];
    for case in cases {
        let error = format!("{:#}", find(folder_with(case.files).path()).unwrap_err());
        for says in case.says {
            assert!(error.contains(says), "{:?}: {error}", case.files);
        }
    }
    let error = find(Path::new("/no/such/set")).unwrap_err().to_string();
    assert!(error.contains("/no/such/set is no folder"), "{error}");
}

#[test]
fn a_wrong_row_of_visas_split_file_is_named() {
    struct Case {
        from: &'static str,
        to: &'static str,
        says: &'static str,
    }
    let cases = [
        Case { from: "split,label", to: "fold,label", says: "needs the columns object, split" },
        Case {
            from: "test,anomaly",
            to: "valid,anomaly",
            says: "row 4 below the head: split = \"valid\"",
        },
        Case { from: "test,anomaly", to: "test,odd", says: "label = \"odd\"" },
        Case { from: "Normal/0001.JPG", to: "Normal/0007.JPG", says: "Normal/0007.JPG is missing" },
        Case {
            from: "Masks/Anomaly/000",
            to: "Masks/Anomaly/7",
            says: "Masks/Anomaly/7.png is missing",
        },
        Case { from: "Normal/0001.JPG", to: "Normal/0000.JPG", says: "comes twice" },
        Case { from: "candle,test", to: "cashew,test", says: "object = candle, split = test" },
        Case { from: "candle,train", to: "cashew,train", says: "object = candle, split = train" },
    ];
    for case in cases {
        let root = visa(&VISA_SPLIT.replace(case.from, case.to));
        let error = format!("{:#}", find(&root.path().join("candle")).unwrap_err());
        assert!(error.contains(case.says), "{}: {error}", case.to);
    }
}

#[test]
fn a_half_may_be_missing_where_it_is_not_wanted() {
    let cases = [
        (Purpose::Teaching, "train/good/0.png", (1, 0)),
        (Purpose::Testing, "test/good/0.png", (0, 1)),
        (Purpose::Teaching, "train/ok/0.png", (1, 0)),
        (Purpose::Testing, "test/ok/0.png", (0, 1)),
        (Purpose::Teaching, "good/0.png", (1, 0)),
    ];
    for (purpose, file, counts) in cases {
        let category = find_for(folder_with(&[file]).path(), purpose).unwrap().remove(0);
        assert_eq!((category.train.len(), category.test.len()), counts, "{file}");
    }
    // A half that is there must still be whole.
    let root = folder_with(&["train/good/0.png", "test/a/0.png", "ground_truth/a/1.png"]);
    assert!(find_for(root.path(), Purpose::Teaching).is_err());
}

#[test]
fn the_test_folder_alone_is_not_taken_for_good_beside_defects() {
    let root = folder_with(&MVTEC_TREE);
    for half in ["train", "test"] {
        let error = find(&root.path().join(half)).unwrap_err().to_string();
        assert!(error.contains(&format!("is the {half} half of a data set; give")), "{error}");
    }
}

#[test]
fn a_set_has_each_of_its_categories_and_leaves_other_folders() {
    let root = folder_with(&["textures/a/0.png", "readme.txt", ".cache/good/0.png"]);
    for name in ["tile", "bottle", "gear"] {
        add(&root.path().join(name), &MVTEC_TREE);
    }
    let categories = find(root.path()).unwrap();
    let found: Vec<_> = categories.iter().map(|c| (c.name.as_str(), c.surface)).collect();
    let want =
        [("bottle", Some(Surface::Object)), ("gear", None), ("tile", Some(Surface::Texture))];
    assert_eq!(found, want);
    assert_eq!(categories[0].oddities.len(), 3);
    let says = "bottle has 2 good pictures to learn from; MVTec AD, if this is it, has 209";
    assert_eq!(categories[0].oddities[0], says);
    assert!(categories[1].oddities.is_empty());
    // A half category spoils the set rather than being left out.
    add(root.path(), &["half/train/good/0.png"]);
    let error = format!("{:#}", find(root.path()).unwrap_err());
    assert!(error.contains("half has no folder test"), "{error}");
}

#[test]
fn the_counts_of_mvtec_are_the_papers() {
    let sum = |of: fn(&census::Row) -> usize| census::MVTEC.iter().map(of).sum::<usize>();
    // Bergmann et al. 2019: 3629 pictures to learn from, 1725 to test with.
    assert_eq!((sum(|row| row.1), sum(|row| row.2 + row.3)), (3629, 1725));
    let sum = |of: fn(&census::Row) -> usize| census::VISA.iter().map(of).sum::<usize>();
    assert_eq!((sum(|row| row.1), sum(|row| row.2), sum(|row| row.3)), (8659, 962, 1200));
}

#[test]
fn the_sets_beside_the_repository_are_whole() {
    struct Case {
        name: &'static str,
        train: usize,
        goods: usize,
        defects: usize,
    }
    let cases = [
        Case { name: "bottle", train: 209, goods: 20, defects: 63 },
        Case { name: "hazelnut_toy", train: 28, goods: 6, defects: 17 },
        Case { name: "magnetic_tile", train: 150, goods: 50, defects: 152 },
    ];
    for case in cases {
        let Some(root) = shared(&format!("data/{}", case.name)) else { return };
        let category = only(&root);
        let (goods, defects): (Vec<_>, Vec<_>) =
            category.test.iter().partition(|sample| sample.defect.is_none());
        assert!(defects.iter().all(|sample| sample.mask.is_some()), "{}", case.name);
        let counts = (category.train.len(), goods.len(), defects.len());
        assert_eq!(counts, (case.train, case.goods, case.defects), "{}", case.name);
        assert_eq!(category.oddities, [""; 0]);
    }
    let Some(root) = shared("data") else { return };
    assert_eq!(find(&root).unwrap().len(), 3);
}
