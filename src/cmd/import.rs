//! `inspectd import`: weights that were trained elsewhere in, a bundle out.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use inspectd::dataset::{self, Purpose};
use inspectd::detector::bundle::{self, BackboneCard, System};
use inspectd::detector::destseg;
use inspectd::detector::input::Input;
use inspectd::nn::destseg::{Segmentation, Variant};
use inspectd::nn::engine::{self, Engine};
use inspectd::nn::weights::Weights;
use inspectd::teach::{self, Good};
use inspectd::train::finish::{self, Goods, Origin};
use inspectd::train::parameters::Parameters;

/// Make a bundle of a network that was trained elsewhere: a published checkpoint of DeSTSeg
#[derive(clap::Args)]
pub struct Args {
    /// destseg (the other systems have no published code, and so no published checkpoints)
    #[arg(long)]
    system: String,

    /// The state dict: safetensors or what torch.save wrote (zip .pth, .pckl), under the names of the
    /// published code; nothing in it is run
    #[arg(long, value_name = "FILE")]
    weights: PathBuf,

    /// Good parts for the thresholds, none of which it was trained on: a category of a data set, or a
    /// folder of pictures
    #[arg(long, value_name = "DIR")]
    data: PathBuf,

    /// Folder to make, the bundle
    #[arg(long, value_name = "BUNDLE")]
    out: PathBuf,

    /// Without its segmentation network: the map is the product of the distances (DeST)
    #[arg(long)]
    no_segmentation: bool,

    /// T, how many of the map's largest values the score is the mean of
    #[arg(long, default_value_t = destseg::TOP)]
    top: usize,

    /// Rate of good parts that may be rejected; 0.001 is 1000 ppm
    #[arg(long, value_name = "RATE", default_value_t = 0.001)]
    false_rejects: f64,

    /// Side of the square that the model sees, pixels; a multiple of 32
    #[arg(long, value_name = "PIXELS", default_value_t = 256)]
    size: usize,

    /// Bits a sample that 16-bit files really carry: 10 or 12 for many cameras
    #[arg(long, value_name = "BITS", default_value_t = 16)]
    significant_bits: u32,

    /// Threads [default: all CPUs]
    #[arg(long)]
    threads: Option<usize>,

    /// Replace a bundle that is already there
    #[arg(long)]
    force: bool,
}

pub fn run(args: &Args) -> Result<()> {
    bundle::check_place(&args.out, args.force)?;
    ensure!(
        args.system == destseg::SYSTEM,
        "system {}: must be destseg; of the others no checkpoints are published",
        args.system
    );
    let input = Input { width: args.size, height: args.size };
    input.check()?;
    let segmentation =
        if args.no_segmentation { Segmentation::None } else { Segmentation::default() };
    let variant = Variant { segmentation, ..Variant::default() };
    let path = args.weights.display().to_string();
    let bytes = fs::read(&args.weights).with_context(|| format!("reading weights {path}"))?;
    let weights = Weights::from_bytes(&path, &bytes)?;
    let graph = variant.graph(input.height, input.width);
    let mut parameters = Parameters::default();
    parameters.take(&graph, "", &weights).context(
        "these are not the weights of DeSTSeg; the names of its published code are \
         teacher_net.…, student_net.… and segmentation_net.…",
    )?;
    let goods = goods(args)?;
    println!("{} good parts for the thresholds", goods.len());

    let engine = Engine::new(&engine::Config { threads: args.threads, ..Default::default() })?;
    let origin = Origin {
        system: System::DeStSeg(destseg::Card { variant, top: args.top }),
        input,
        backbone: BackboneCard {
            network: "resnet18".to_owned(),
            sha256: weights.sha256().to_owned(),
        },
        seed: 0,
        significant_bits: args.significant_bits,
        training: None,
        seen_anomalies: Vec::new(),
    };
    let goods = Goods { taught: &[], held_out: &goods };
    let finished = finish::finish(&parameters, &origin, &goods, args.false_rejects, &engine)?;
    let tensors = parameters.tensors()?;
    bundle::write(&args.out, finished.card, &tensors, &finished.golden, args.force)?;
    let bundle = bundle::load(&args.out, 1, &engine).context("the bundle just written")?;
    println!(
        "wrote {}, threshold {:.4} ({:?}, from {} good parts)",
        args.out.display(),
        bundle.card.threshold.score,
        bundle.card.calibration.rule,
        bundle.card.calibration.held_out
    );
    Ok(())
}

fn goods(args: &Args) -> Result<Vec<Good>> {
    let mut found = match dataset::find_for(&args.data, Purpose::Teaching) {
        Ok(found) => found,
        // A data set holds its pictures in folders.
        Err(unknown) => return teach::pictures_in(&args.data).map_err(|_| unknown),
    };
    if found.len() > 1 {
        bail!(
            "{} holds {} sorts of parts ({}, …); give the folder of one",
            args.data.display(),
            found.len(),
            found[0].name
        );
    }
    let category = found.pop().context("a data set has a category")?;
    let good = |sample: dataset::Sample| Good::File { name: sample.name, path: sample.path };
    Ok(category.train.into_iter().map(good).collect())
}
