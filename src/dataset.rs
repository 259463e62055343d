//! Public data sets in their own layouts, and folders of one's own. Workshop: nothing on the line may
//! use it.
//!
//! Each layout is recognised by its own folders; `docs/datasets.md` shows them. Folders, and the
//! pictures in each, come in the order of the bytes of their names. Source: `datasets.md` of the
//! specification.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

mod census;
mod dagm;
mod good_defect;
mod ksdd2;
mod listing;
pub mod mask;
mod mvtec;
pub mod pictures;
pub mod split;
mod visa;

/// One picture of a data set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    pub path: PathBuf,
    /// Told apart by it within a category. Of a test picture the path below the test folder:
    /// `scratch/003.png`; of one to learn from the path below the category's: `train/good/003.png`.
    pub name: String,
    /// The kind of defect, as its folder is called; `None` on a good part.
    pub defect: Option<String>,
    /// The picture of where the defect is; `None` on a good part and where the set has no masks.
    pub mask: Option<PathBuf>,
}

/// How a data set lies in its folders.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layout {
    /// MVTec AD, and what was converted to it.
    Mvtec,
    Btad,
    Dagm,
    Ksdd2,
    /// As published, and converted to MVTec AD's layout.
    Visa,
    /// A folder of good parts beside folders of defects.
    GoodDefect,
}

/// What fills the picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Surface {
    /// A part before a background.
    Object,
    /// The part's surface everywhere.
    Texture,
}

/// The pictures of one sort of part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Category {
    /// As its folder is called.
    pub name: String,
    pub layout: Layout,
    pub root: PathBuf,
    /// `None` where it is not known.
    pub surface: Option<Surface>,
    /// Good parts to learn from.
    pub train: Vec<Sample>,
    /// Defects beside them, where the set has such; nobody learns from them unasked.
    pub train_defects: Vec<Sample>,
    pub test: Vec<Sample>,
    /// What a person should know, a sentence each: numbers of pictures that are not the published
    /// ones, files that belong to nothing.
    pub oddities: Vec<String>,
}

/// What a data set is wanted for. The folders of the other half may then be missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    Teaching,
    Testing,
    Both,
}

/// The categories in `root`, which is the folder of one or of a set of them; never none.
///
/// # Errors
/// A folder of no layout that is known; a folder, picture or mask that its layout needs and that is
/// missing. The message names it.
pub fn find(root: &Path) -> Result<Vec<Category>> {
    find_for(root, Purpose::Both)
}

/// [`find`], where half of a layout may do.
pub fn find_for(root: &Path, purpose: Purpose) -> Result<Vec<Category>> {
    ensure!(root.is_dir(), "{} is no folder; give the folder of a data set", root.display());
    if let Some(layout) = recognise(root)? {
        if layout == Layout::GoodDefect {
            refuse_half(root)?;
        }
        return Ok(vec![Category::read(root, layout, purpose)?]);
    }
    let mut wrapped = WRAPPERS.map(|name| root.join(name)).to_vec();
    wrapped.retain(|folder| folder.is_dir());
    for set in [vec![root.to_owned()], wrapped].concat() {
        let mut categories = Vec::new();
        for folder in listing::folders(&set)? {
            if let Some(layout) = recognise(&folder)? {
                categories.push(Category::read(&folder, layout, purpose)?);
            }
        }
        if !categories.is_empty() {
            return Ok(categories);
        }
    }
    bail!(unknown(root)?)
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Layout::Mvtec => "MVTec AD",
            Layout::Btad => "BTAD",
            Layout::Dagm => "DAGM 2007",
            Layout::Ksdd2 => "KolektorSDD2",
            Layout::Visa => "VisA",
            Layout::GoodDefect => "good and defects",
        })
    }
}

impl Category {
    fn read(root: &Path, layout: Layout, purpose: Purpose) -> Result<Category> {
        let reading = || format!("reading {} as {layout}", root.display());
        // `.` has no name.
        let root = &match root.file_name() {
            Some(_) => root.to_owned(),
            None => root.canonicalize().with_context(reading)?,
        };
        let contents = match layout {
            Layout::Mvtec => mvtec::MVTEC.read(root, purpose),
            Layout::Btad => mvtec::BTAD.read(root, purpose),
            Layout::Dagm => dagm::read(root, purpose),
            Layout::Ksdd2 => ksdd2::read(root, purpose),
            Layout::Visa => visa::read(root, purpose),
            Layout::GoodDefect => good_defect::read(root, purpose),
        };
        let Contents { train, train_defects, test, oddities } = contents.with_context(reading)?;
        let name = listing::name(root);
        let layout = match layout {
            Layout::Mvtec if census::is_converted_visa(&name, &test) => Layout::Visa,
            layout => layout,
        };
        let mut category = Category {
            surface: census::surface(layout, &name),
            name,
            layout,
            root: root.to_owned(),
            train,
            train_defects,
            test,
            oddities,
        };
        category.oddities.extend(census::oddities(&category));
        Ok(category)
    }
}

/// What a layout finds in a category's folder.
#[derive(Default)]
struct Contents {
    train: Vec<Sample>,
    train_defects: Vec<Sample>,
    test: Vec<Sample>,
    oddities: Vec<String>,
}

impl Purpose {
    /// Whether a half that is not there may stay away.
    fn needs_train(self) -> bool {
        self != Purpose::Testing
    }

    fn needs_test(self) -> bool {
        self != Purpose::Teaching
    }
}

/// Folders that releases put around their categories.
const WRAPPERS: [&str; 2] = ["BTech_Dataset_transformed", "visa_pytorch"];

/// The layout that a category's folder seems to have, whole or half; the order decides where two
/// have a folder in common, also on disks to which `Train` and `train` are the same.
fn recognise(folder: &Path) -> Result<Option<Layout>> {
    let has = |names: &[&str]| names.iter().any(|name| folder.join(name).is_dir());
    Ok(if has(&["Data/Images", "Data/Masks"]) {
        Some(Layout::Visa)
    } else if has(&["train/good", "test/good"]) {
        Some(Layout::Mvtec)
    } else if has(&["train/ok", "test/ok", "test/ko"]) {
        Some(Layout::Btad)
    } else if ksdd2::is_in(folder)? {
        Some(Layout::Ksdd2)
    } else if has(&["Train/Label", "Test/Label"]) || is_dagm_without_labels(folder)? {
        Some(Layout::Dagm)
    } else if has(&["train", "test"]) {
        Some(Layout::Mvtec)
    } else if has(&["good"]) {
        Some(Layout::GoodDefect)
    } else {
        None
    })
}

fn is_dagm_without_labels(folder: &Path) -> Result<bool> {
    let inside: Vec<String> = listing::folders(folder)?.iter().map(|p| listing::name(p)).collect();
    Ok(inside.iter().any(|name| name == "Train" || name == "Test"))
}

/// The folder `test` of MVTec AD looks like good parts beside defects, and is half of a set.
fn refuse_half(root: &Path) -> Result<()> {
    let whole = root.canonicalize().with_context(|| format!("reading {}", root.display()))?;
    let half = listing::name(&whole);
    if let ("train" | "test", Some(parent)) = (half.as_str(), whole.parent()) {
        bail!("{} is the {half} half of a data set; give {}", root.display(), parent.display());
    }
    Ok(())
}

fn unknown(root: &Path) -> Result<String> {
    let folders: Vec<String> = listing::folders(root)?.iter().map(|p| listing::name(p)).collect();
    let mut seen = folders.iter().take(5).cloned().collect::<Vec<_>>().join(", ");
    if folders.len() > 5 {
        seen.push_str(", …");
    }
    let seen = match folders.len() {
        0 => "it has no folders".to_owned(),
        _ => format!("neither it nor a folder in it ({seen}) is one"),
    };
    let competition = if folders.iter().any(|name| name.ends_with("_def")) {
        "; the competition release of DAGM 2007 (ClassN, ClassN_def) is not read: get the one with \
         ClassN/Train/Label"
    } else {
        ""
    };
    Ok(format!(
        "{} is no data set whose layout is known: {seen}. A category has train/good and \
         test/<defect> (MVTec AD), train/ok and test/ko (BTAD), Train/Label and Test/Label (DAGM \
         2007), train/<digits>_GT.png (KolektorSDD2), Data/Images and ../split_csv/1cls.csv (VisA), or \
         good and <defect>; see docs/datasets.md{competition}",
        root.display()
    ))
}

#[cfg(test)]
mod tests;
