//! Making and writing: pictures, masks, the manifest, the sheet.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use image::RgbImage;
use image::buffer::ConvertBuffer;
use indicatif::{ProgressBar, ProgressStyle};
use inspectd::frame::Image;
use inspectd::picture;
use inspectd::picture::sheet::Tile;
use inspectd::synth::synthesizer::{Choice, Synthesizer};
use inspectd::synth::{Config, Kind, Synthetic, sheet};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde::Serialize;

use super::{Args, MAKER, MANIFEST, Parts};

/// What is to be made, and the folder that it is written into.
pub struct Work<'a> {
    pub args: &'a Args,
    pub kinds: &'a [Kind],
    pub parts: &'a Parts,
    pub synthesizer: &'a Synthesizer,
    pub config: &'a Config,
    pub folder: &'a Path,
}

/// What became of one sample.
pub struct Made {
    kind: Kind,
    entry: Entry,
    tile: Option<Tile>,
}

impl Work<'_> {
    /// Writes everything, with the threads of the pool that it is called in.
    pub fn fill(&self) -> Result<Vec<Made>> {
        for kind in self.kinds {
            for half in ["test", "ground_truth"] {
                make_folder(&self.folder.join(half).join(kind.word()))?;
            }
        }
        let goods = self.goods()?;
        let jobs: Vec<(Kind, u64)> = self
            .kinds
            .iter()
            .flat_map(|&kind| (0..self.args.count).map(move |index| (kind, index)))
            .collect();
        let bar = ProgressBar::new(jobs.len() as u64).with_style(
            ProgressStyle::with_template("{wide_bar} {pos}/{len} pictures, {eta} left")
                .expect("the template is well-formed"),
        );
        let make = |&(kind, index): &(Kind, u64)| {
            let made = self.make(kind, index)?;
            bar.inc(1);
            Ok(made)
        };
        let mut made: Vec<Made> = jobs.par_iter().map(make).collect::<Result<_>>()?;
        bar.finish_and_clear();
        put(&self.folder.join("sheet.png"), &picture::rgb_png(&self.sheet(&mut made))?)?;
        // The last: where it is, everything is.
        let text = serde_json::to_string_pretty(&self.manifest(&made, goods))? + "\n";
        put(&self.folder.join(MANIFEST), text.as_bytes())?;
        Ok(made)
    }

    /// Puts good parts beside the anomalies; their names.
    fn goods(&self) -> Result<Vec<String>> {
        let normals = &self.synthesizer.stock().normals;
        let (wanted, all) = (self.args.goods, normals.len());
        ensure!(wanted <= all, "goods = {wanted}: there are no more than {all} good parts");
        if wanted > 0 {
            make_folder(&self.folder.join("test/good"))?;
        }
        let mut rng = ChaCha8Rng::seed_from_u64(self.args.seed);
        let mut chosen = rand::seq::index::sample(&mut rng, all, wanted).into_vec();
        chosen.sort_unstable();
        let write = |(i, &normal): (usize, &usize)| {
            let path = self.folder.join(format!("test/good/{i:04}.png"));
            put(&path, &picture::rgb_png(&*normals.get(normal)?)?)?;
            Ok(self.name_of(normal))
        };
        chosen.iter().enumerate().map(write).collect()
    }

    fn make(&self, kind: Kind, index: u64) -> Result<Made> {
        let choice = self.synthesizer.choose(kind, 0, index);
        let made = self
            .synthesizer
            .make(&choice)
            .with_context(|| format!("{kind} {index} of seed {}", self.args.seed))?;
        let entry = self.write(&made, &choice)?;
        let tile = (index < self.shown())
            .then(|| sheet::tile(&made, format!("{index:04} on {}", entry.normal)))
            .transpose()?;
        Ok(Made { kind, entry, tile })
    }

    fn write(&self, made: &Synthetic, choice: &Choice) -> Result<Entry> {
        let (kind, index) = (choice.kind, choice.key.index);
        let image = format!("test/{kind}/{index:04}.png");
        let mask = format!("ground_truth/{kind}/{index:04}_mask.png");
        let picture: RgbImage = made.image.convert();
        put(&self.folder.join(&image), &picture::rgb_png(&picture)?)?;
        put(&self.folder.join(&mask), &picture::png(&Image::Gray(made.mask.to_gray()))?)?;
        let seen = choice.seen.filter(|_| kind == Kind::Extended);
        Ok(Entry {
            image,
            mask,
            normal: self.name_of(choice.normal),
            other: (kind == Kind::Homogeneous).then(|| self.name_of(choice.other)),
            seen: seen.map(|seen| self.synthesizer.stock().seen[seen].name.clone()),
            mask_area: made.mask.area(),
        })
    }

    /// Anomalies of each kind that are on the sheet.
    fn shown(&self) -> u64 {
        let lines = if self.kinds.len() > 1 { LINES_OF_SEVERAL } else { LINES_OF_ONE };
        u64::from(lines * sheet::COLUMNS)
    }

    fn sheet(&self, made: &mut [Made]) -> RgbImage {
        let mut sections = Vec::new();
        for &kind in self.kinds {
            let heading = words(kind, made);
            let tiles = made.iter_mut().filter(|one| one.kind == kind);
            sections.push((heading, tiles.filter_map(|one| one.tile.take()).collect()));
        }
        let Args { kind, seed, .. } = self.args;
        sheet::sheet(format!("{}: {kind}, seed {seed}", self.parts.name), sections)
    }

    fn manifest<'a>(&'a self, made: &'a [Made], goods: Vec<String>) -> Manifest<'a> {
        let stock = self.synthesizer.stock();
        Manifest {
            made_by: MAKER,
            version: env!("CARGO_PKG_VERSION"),
            kinds: self.kinds.iter().map(|kind| kind.word()).collect(),
            count: self.args.count,
            seed: self.args.seed,
            size: self.args.size,
            data: self.args.data.display().to_string(),
            category: &self.parts.name,
            source: stock.source.words(),
            config: self.config,
            seen: stock.seen.iter().map(|seen| seen.name.as_str()).collect(),
            empty_masks: made.iter().filter(|one| one.entry.mask_area == 0).count(),
            goods,
            samples: made.iter().map(|one| &one.entry).collect(),
        }
    }

    /// The path of a good part below the folder of all.
    fn name_of(&self, normal: usize) -> String {
        let path = self.synthesizer.stock().normals.path(normal);
        path.strip_prefix(&self.args.data).unwrap_or(path).display().to_string()
    }
}

/// How large the masks of a kind are, for people.
pub fn words(kind: Kind, made: &[Made]) -> String {
    let areas = made.iter().filter(|one| one.kind == kind).map(|one| one.entry.mask_area);
    let mut areas: Vec<usize> = areas.collect();
    areas.sort_unstable();
    let (Some(&least), Some(&most)) = (areas.first(), areas.last()) else {
        return format!("{kind}: none");
    };
    let empty = match areas.iter().filter(|&&area| area == 0).count() {
        0 => String::new(),
        empty => format!("; {empty} EMPTY"),
    };
    let median = areas[areas.len() / 2];
    let count = areas.len();
    format!("{kind}: {count}, masks of {least} to {most} pixels, median {median}{empty}")
}

const LINES_OF_ONE: u32 = 4;
const LINES_OF_SEVERAL: u32 = 1;

/// One sample in the manifest; paths are below the folder.
#[derive(Serialize)]
struct Entry {
    image: String,
    mask: String,
    /// The good part it is made on.
    normal: String,
    /// The good part that a homogeneous source was made of.
    #[serde(skip_serializing_if = "Option::is_none")]
    other: Option<String>,
    /// The defect that it is made of.
    #[serde(skip_serializing_if = "Option::is_none")]
    seen: Option<String>,
    /// Pixels.
    mask_area: usize,
}

/// The keys are stable.
#[derive(Serialize)]
struct Manifest<'a> {
    made_by: &'static str,
    version: &'static str,
    kinds: Vec<&'static str>,
    /// Of each kind.
    count: u64,
    seed: u64,
    size: usize,
    data: String,
    category: &'a str,
    source: String,
    config: &'a Config,
    /// Defects of the data set that anomalies were made of: not to be tested with.
    seen: Vec<&'a str>,
    empty_masks: usize,
    goods: Vec<String>,
    samples: Vec<&'a Entry>,
}

fn make_folder(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("making {}", path.display()))
}

fn put(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).with_context(|| format!("writing {}", path.display()))
}
