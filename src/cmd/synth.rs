//! `inspectd synth`: pictures of made-up anomalies, their masks, and a sheet to look at.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail, ensure};
use inspectd::camera::folder;
use inspectd::dataset::pictures::Pictures;
use inspectd::dataset::split::{self, Pool, SeenAnomalies};
use inspectd::dataset::{self, Category, Purpose, Surface};
use inspectd::detector::input::Input;
use inspectd::synth::source::Source;
use inspectd::synth::synthesizer::{Seen, Stock, Synthesizer};
use inspectd::synth::{Config, Kind};
use inspectd::unfinished::Unfinished;

use self::work::Work;

mod work;

/// Make anomalies on pictures of good parts: pictures, masks and a contact sheet
#[derive(clap::Args)]
pub struct Args {
    /// A category of a data set, or a folder of pictures of good parts
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// confetti, cutpaste, cutpaste-scar, cutpaste-union, perlin, heterogeneous, homogeneous,
    /// simulated, extended, or all
    #[arg(long)]
    kind: String,
    /// Folder to make: test/KIND, ground_truth/KIND (as MVTec AD), manifest.json and sheet.png
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Pictures of each kind
    #[arg(long, value_name = "N", default_value_t = 12, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    count: u64,
    /// Good parts that are put into test/good beside them
    #[arg(long, value_name = "N", default_value_t = 0)]
    goods: usize,
    /// Folder of textures, such as DTD [default: textures that are made here]
    #[arg(long, value_name = "DIR")]
    source: Option<PathBuf>,
    /// What is set of each kind (TOML; see docs/synthesis.md)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// What every draw comes from; same seed, same pictures: same bytes
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Side of the square pictures, pixels; a multiple of 32
    #[arg(long, value_name = "PIXELS", default_value_t = 256)]
    size: usize,
    /// Defects of the data set that extended anomalies are made of
    #[arg(long, value_name = "N", default_value_t = 10)]
    seen: usize,
    /// Threads [default: all CPUs]
    #[arg(long)]
    threads: Option<usize>,
    /// Bits a sample that 16-bit files really carry: 10 or 12 for many cameras
    #[arg(long, value_name = "BITS", default_value_t = 16)]
    significant_bits: u32,
    /// Replace a folder that this command made
    #[arg(long)]
    force: bool,
}

pub fn run(args: &Args) -> Result<()> {
    #[expect(clippy::disallowed_methods, reason = "a command reports how long it took")]
    let started = Instant::now();
    check_place(&args.out, args.force)?;
    let input = Input { width: args.size, height: args.size };
    input.check()?;
    let mut kinds = kinds(&args.kind)?;
    let config = config(args.config.as_deref())?;
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(args.threads.unwrap_or(0))
        .build()
        .context("starting threads")?;

    let parts = Parts::find(args, &kinds)?;
    let seen = parts.seen(args, &mut kinds)?;
    let mut normals = Pictures::open(
        parts.goods.clone(),
        (args.size, args.size),
        CACHE_BYTES,
        args.significant_bits,
    )?;
    for (path, why) in pool.install(|| normals.scan())? {
        println!("left out, can't be read: {}: {why}", path.display());
    }
    println!("{}: {} good parts; {}", parts.name, normals.len(), normals.words());
    let stock = Stock {
        normals: Arc::new(normals),
        source: Arc::new(Source::open(args.source.as_deref())?),
        seen,
        category: parts.name.clone(),
        surface: parts.surface,
    };
    println!("{}", stock.source.words());
    let synthesizer = Synthesizer::new(stock, config.clone(), args.seed)?;

    let unfinished = Unfinished::beside(&args.out)?;
    let work = Work {
        args,
        kinds: &kinds,
        parts: &parts,
        synthesizer: &synthesizer,
        config: &config,
        folder: unfinished.path(),
    };
    let made = pool
        .install(|| work.fill())
        .with_context(|| format!("{} is not made, nothing of it is left", args.out.display()))?;
    unfinished.take_the_place_of(&args.out)?;
    for &kind in &kinds {
        println!("{}", work::words(kind, &made));
    }
    let seconds = started.elapsed().as_secs_f64();
    println!("wrote {} pictures to {} in {seconds:.1} s", made.len(), args.out.display());
    Ok(())
}

/// For good parts at the working size.
const CACHE_BYTES: usize = 512 << 20;
const MANIFEST: &str = "manifest.json";
/// What the manifest says of its maker, by which `--force` knows what it may replace.
const MAKER: &str = "inspectd synth";

fn kinds(word: &str) -> Result<Vec<Kind>> {
    if word == "all" {
        return Ok(Kind::ALL.to_vec());
    }
    let kind = word.parse::<Kind>().map_err(|error| anyhow!("{error}, or all"))?;
    Ok(vec![kind])
}

fn config(file: Option<&Path>) -> Result<Config> {
    let Some(path) = file else { return Ok(Config::default()) };
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let config: Config = toml::from_str(&text).with_context(|| path.display().to_string())?;
    config.check().with_context(|| path.display().to_string())?;
    Ok(config)
}

/// Refuses a place that is taken, before the work.
fn check_place(out: &Path, force: bool) -> Result<()> {
    ensure!(out.file_name().is_some(), "{}: the folder needs a name", out.display());
    if out.symlink_metadata().is_err() {
        return Ok(());
    }
    ensure!(
        force,
        "{} is already there: choose another name, or replace it with --force",
        out.display()
    );
    let text = fs::read_to_string(out.join(MANIFEST)).unwrap_or_default();
    let maker = serde_json::from_str::<serde_json::Value>(&text).unwrap_or_default();
    ensure!(
        maker["made_by"] == MAKER,
        "{} was not made by {MAKER} (it has no such {MANIFEST}) and is not replaced, even with \
         --force",
        out.display()
    );
    Ok(())
}

/// The good parts, and where they are from.
struct Parts {
    name: String,
    surface: Option<Surface>,
    goods: Vec<PathBuf>,
    /// `None` of a plain folder of pictures.
    category: Option<Category>,
}

impl Parts {
    fn find(args: &Args, kinds: &[Kind]) -> Result<Parts> {
        let root = &args.data;
        // Only extended anomalies alone cannot do without defects.
        let purpose = if kinds == [Kind::Extended] { Purpose::Both } else { Purpose::Teaching };
        let unknown = match dataset::find_for(root, purpose) {
            Ok(categories) => return Parts::of(categories, root),
            Err(unknown) => unknown,
        };
        // A data set holds its pictures in folders.
        let Ok(files) = folder::list(root, false) else { return Err(unknown) };
        let goods = files.into_iter().map(|file| root.join(file));
        let whole = root.canonicalize().unwrap_or_else(|_| root.clone());
        let name = whole.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Parts { name, surface: None, goods: goods.collect(), category: None })
    }

    fn of(mut categories: Vec<Category>, root: &Path) -> Result<Parts> {
        if categories.len() > 1 {
            let names: Vec<&str> =
                categories.iter().map(|category| category.name.as_str()).collect();
            bail!(
                "{} holds {} sorts of parts ({}); give one of them: {}",
                root.display(),
                names.len(),
                names.join(", "),
                categories[0].root.display()
            );
        }
        let category = categories.pop().context("a data set has a category")?;
        for oddity in &category.oddities {
            println!("{}: {oddity}", category.name);
        }
        Ok(Parts {
            name: category.name.clone(),
            surface: category.surface,
            goods: category.train.iter().map(|good| good.path.clone()).collect(),
            category: Some(category),
        })
    }

    /// The defects that extended anomalies are made of. Where there are none at all, that kind is
    /// left out of several.
    fn seen(&self, args: &Args, kinds: &mut Vec<Kind>) -> Result<Vec<Seen>> {
        if !kinds.contains(&Kind::Extended) {
            return Ok(Vec::new());
        }
        let category = self.category.as_ref().filter(|category| {
            category.test.iter().chain(&category.train_defects).any(|one| one.defect.is_some())
        });
        let Some(category) = category else {
            ensure!(
                kinds.len() > 1,
                "{} has no defects, and extended anomalies are made of such; give the folder of a \
                 data set's category",
                args.data.display()
            );
            println!("extended: left out, {} has no defects to make them of", args.data.display());
            kinds.retain(|kind| *kind != Kind::Extended);
            return Ok(Vec::new());
        };
        ensure!(args.seen > 0, "seen = 0: extended anomalies are made of at least one defect");
        let seen = SeenAnomalies {
            count: args.seen,
            seed: args.seed,
            draw: split::Draw::Pooled,
            pool: Pool::usual(category.layout),
        };
        let split = seen.split(category).context("--seen")?;
        let size = (args.size, args.size);
        split.seen.iter().map(|one| Seen::read(one, size, args.significant_bits)).collect()
    }
}
