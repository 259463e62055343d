//! What a card's driver is asked for, seen by one that is made of C and has no card
//! (`tests/driver/fake_cuda.c`): arguments, what is given back, and what its errors become.
//!
//! A process loads one driver, so that each scene plays in a child of its own: this test program
//! again, with the fake on the library path.
#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use anyhow::Result;
use inspectd::cuda::driver::{Card, Context};
use inspectd::cuda::{Arg, DeviceMemory, Gpu, Launch, Module, Prepared};

/// Bytes of an upload that takes the pinned pieces in turn: more than twice both of them.
const LARGE: usize = (17 << 20) + 12345;

const MODULE: Module = Module {
    name: "made_up",
    ptx: "//\n.version 9.0\n.target sm_80\n.address_size 64\n\
          .visible .entry all_kinds(\n\t.param .u64 a,\n\t.param .u32 b,\n\t.param .s32 c,\n\t\
          .param .f32 d,\n\t.param .align 8 .b8 e[12]\n)\n{ ret; }\n\
          .visible .entry none(\n)\n{ ret; }\n",
};

/// The fake, compiled once.
fn fake() -> PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("fake_cuda");
        fs::create_dir_all(&folder).unwrap();
        let source = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/driver/fake_cuda.c");
        let outcome = Command::new("cc")
            .args(["-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-o"])
            .arg(folder.join("libcuda.so.1"))
            .arg(source)
            .status()
            .unwrap();
        assert!(outcome.success(), "the fake driver does not compile");
        folder
    });
    folder.clone()
}

/// What a scene said, and the fake's log.
struct Played {
    said: String,
    log: Vec<String>,
}

impl Played {
    /// Lines of the log that begin with `word`.
    fn lines(&self, word: &str) -> Vec<&str> {
        self.log.iter().map(String::as_str).filter(|line| line.starts_with(word)).collect()
    }

    fn gave_all_back(&self) {
        let left = self.log.last().unwrap();
        let counts = left.split(' ').skip(1).map(|count| count.split_once('=').unwrap().1);
        assert!(left.starts_with("left ") && counts.clone().count() == 8, "{left}");
        assert!(counts.clone().all(|count| count == "0"), "{left}");
    }
}

/// Plays `scene` with the fake driver in a child, with these variables.
fn play(scene: &str, variables: &[(&str, &str)]) -> Played {
    let log = tempfile::NamedTempFile::new().unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "scene", "--ignored", "--nocapture", "--test-threads=1"])
        .env("LD_LIBRARY_PATH", fake())
        .env("FAKE_CUDA_LOG", log.path())
        .env("SCENE", scene)
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{scene} {variables:?}: {said}\n{errors}");
    let log = fs::read_to_string(log.path()).unwrap().lines().map(str::to_owned).collect();
    Played { said, log }
}

#[test]
#[ignore = "the others play it in a child, with the fake driver"]
fn scene() {
    let outcome = match std::env::var("SCENE").unwrap().as_str() {
        "work" => work(),
        "first" => Context::first().map(|context| context.about().to_string()),
        "third" => Context::open(2).map(|context| context.about().to_string()),
        "lost" => Ok(lost()),
        other => panic!("no scene {other}"),
    };
    match outcome {
        Ok(text) => println!("\nfine: {text}"),
        Err(error) => println!("\nerror: {error:#}"),
    }
}

/// Everything that a detector does.
fn work() -> Result<String> {
    let context = Context::open(0)?;
    let mut card = Card::new(&context)?;
    let memory = card.alloc(LARGE)?;
    let sent: Vec<u8> = (0..LARGE).map(|i| ((i * 2_654_435_761) >> 24) as u8).collect();
    let mut fetched = vec![0; LARGE];
    for _ in 0..2 {
        card.upload(&sent, memory.region())?;
    }
    card.download(memory.region(), &mut fetched)?;
    assert!(fetched == sent, "what was sent is not what came back");

    let all_kinds = Launch {
        module: MODULE,
        entry: "all_kinds",
        grid: [3, 2, 1],
        block: [32, 4, 2],
        shared_bytes: 96 << 10,
        args: vec![
            Arg::Memory(memory.region().part(256, 4)),
            Arg::U32(0xDEAD_BEEF),
            Arg::I32(-2),
            Arg::F32(1.5),
            Arg::Struct((1..=12).collect()),
        ],
    };
    let none = Launch {
        entry: "none",
        grid: [1, 1, 1],
        block: [1, 1, 1],
        shared_bytes: 0,
        args: Vec::new(),
        ..all_kinds.clone()
    };
    card.launch(&all_kinds)?;
    let prepared = Prepared::new(vec![all_kinds.clone(), none]);
    for _ in 0..3 {
        card.run(&prepared)?;
    }
    card.forget(prepared);
    let took = card.timed(|card| card.launch(&all_kinds))?;
    card.wait()?;
    Ok(format!("{} {:x} {took}", context.about(), memory.region().address))
}

/// A kernel breaks down, as a wait is told; what two detectors on that card are told then.
fn lost() -> String {
    let context = Context::open(0).unwrap();
    let (mut first, mut second) = (Card::new(&context).unwrap(), Card::new(&context).unwrap());
    let memory = second.alloc(4).unwrap();
    let errors = [
        first.wait().unwrap_err(),
        first.wait().unwrap_err(),
        second.upload(&[0; 4], memory.region()).unwrap_err(),
        second.download(memory.region(), &mut [0; 4]).unwrap_err(),
        second.alloc(4).err().unwrap(),
        second.run(&Prepared::new(Vec::new())).unwrap_err(),
        Card::new(&context).err().unwrap(),
    ];
    errors.map(|error| format!("{error:#}")).join("\n")
}

#[test]
fn a_card_is_given_each_argument_in_its_width_and_gets_everything_back() {
    let played = play("work", &[]);
    let about = "fine: Fake 0 (cuda:0, compute capability 9.0, 80.0 GiB, driver for CUDA 13.0) ";
    let rest = played.said.lines().find_map(|line| line.strip_prefix(about)).unwrap();
    let (address, took) = rest.split_once(' ').unwrap();
    assert_eq!(took, "1.5");
    let address = u64::from_str_radix(address, 16).unwrap() + 256;
    let address: String = address.to_le_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    let all_kinds = format!(
        " all_kinds (3,2,1) (32,4,2) 98304: {address} efbeadde feffffff 0000c03f \
         0102030405060708090a0b0c"
    );
    let (launched, recorded) = (format!("launch{all_kinds}"), format!("record{all_kinds}"));
    let none = |word| format!("{word} none (1,1,1) (1,1,1) 0:");
    // By itself, then for the first time among those that come again, and in the end timed.
    let want = [&launched, &launched, &none("launch"), &launched];
    assert_eq!(played.lines("launch"), want.map(String::as_str));
    assert_eq!(played.lines("record"), [&recorded, &none("record")].map(String::as_str));
    assert_eq!(played.lines("graph").len(), 2);
    assert_eq!(played.lines("module").len(), 1, "kernels are translated once");
    played.gave_all_back();
}

#[test]
fn what_a_call_says_becomes_a_sentence_and_nothing_is_kept() {
    struct Case {
        fail: &'static str,
        want: &'static [&'static str],
    }
    let cases = [
        Case { fail: "cuInit:1:100", want: &["starting the NVIDIA driver", "sees no card"] },
        Case { fail: "cuInit:1:803", want: &["different versions", "restart the machine"] },
        Case { fail: "cuInit:1:34", want: &["is a stub for compiling, not a driver"] },
        Case { fail: "cuInit:1:12345", want: &["error 12345 of the driver"] },
        Case { fail: "cuDevicePrimaryCtxRetain:1:46", want: &["taking Fake 0", "another program"] },
        Case { fail: "cuStreamCreate:1:2", want: &["making a stream", "no more memory"] },
        Case { fail: "cuMemHostAlloc:2:2", want: &["pinning 4194304 bytes", "CUDA_ERROR_2, 2"] },
        Case { fail: "cuMemAlloc_v2:1:2", want: &["of Fake 0", "no more memory"] },
        Case {
            fail: "cuModuleLoadDataEx:1:222",
            want: &["made_up (PTX 9.0) for Fake 0 by a driver for CUDA 13.0", "too old for the"],
        },
        Case { fail: "cuModuleLoadDataEx:1:221", want: &["libnvidia-ptxjitcompiler.so.1"] },
        Case { fail: "cuModuleGetFunction:2:500", want: &["finding the kernel none in made_up"] },
        Case { fail: "cuFuncSetAttribute:1:1", want: &["all_kinds 98304 bytes of shared memory"] },
        Case {
            fail: "cuLaunchKernel:1:701",
            want: &["launching the kernel all_kinds on [3, 2, 1] blocks of [32, 4, 2] threads"],
        },
        // In the middle of recording, and at its end.
        Case { fail: "cuLaunchKernel:5:701", want: &["launching the kernel none"] },
        Case { fail: "cuStreamEndCapture:1:901", want: &["ending a recording of launches"] },
        Case { fail: "cuGraphInstantiateWithFlags:1:2", want: &["making a graph of 2 launches"] },
        Case { fail: "cuGraphLaunch:1:1", want: &["starting 2 launches"] },
        Case { fail: "cuEventCreate:4:2", want: &["making an event"] },
    ];
    for Case { fail, want } in cases {
        let played = play("work", &[("FAKE_CUDA_FAIL", fail)]);
        let said =
            played.said.lines().find(|line| line.starts_with("error: ")).unwrap_or_else(|| {
                panic!("{fail}: {}", played.said);
            });
        assert!(said.starts_with("error: device = \"cuda:0\": ") || !fail.starts_with("cuInit"));
        for want in want {
            assert!(said.contains(want), "{fail}: {said}");
        }
        if !fail.starts_with("cuInit") {
            played.gave_all_back();
        }
    }
}

#[test]
fn a_card_that_is_lost_stays_so_for_all_detectors_on_it() {
    let played = play("lost", &[("FAKE_CUDA_FAIL", "cuStreamSynchronize:1:700")]);
    let said: Vec<&str> =
        played.said.lines().filter(|line| line.contains("memory that is not its own")).collect();
    assert_eq!(said.len(), 7, "{}", played.said);
    assert!(said[0].contains("waiting for the card"), "{}", said[0]);
    for said in &said[1..] {
        assert!(said.contains("the card was lost and comes back with a restart"), "{said}");
    }
}

#[test]
fn cards_that_do_not_do_are_named_with_the_reason() {
    struct Case {
        scene: &'static str,
        variables: &'static [(&'static str, &'static str)],
        want: &'static str,
    }
    let cases = [
        Case {
            scene: "third",
            variables: &[("FAKE_CUDA_COUNT", "2")],
            want: "device = \"cuda:2\": there is no such card: the driver sees 2, cuda:0 to cuda:1",
        },
        Case {
            scene: "work",
            variables: &[("FAKE_CUDA_CAPABILITY", "75")],
            want: "device = \"cuda:0\": Fake 0 has compute capability 7.5: the kernels need 8.0",
        },
        Case {
            scene: "first",
            variables: &[("FAKE_CUDA_CAPABILITY", "75"), ("FAKE_CUDA_COUNT", "2")],
            want: "no card can be used: device = \"cuda:0\": Fake 0 has compute capability 7.5",
        },
        Case {
            scene: "first",
            variables: &[("FAKE_CUDA_COUNT", "0")],
            want: "counting the cards: the driver sees no card",
        },
        // The first is taken: the second is used.
        Case {
            scene: "first",
            variables: &[
                ("FAKE_CUDA_COUNT", "2"),
                ("FAKE_CUDA_FAIL", "cuDevicePrimaryCtxRetain:1:46"),
            ],
            want: "fine: Fake 1 (cuda:1, ",
        },
    ];
    for Case { scene, variables, want } in cases {
        let played = play(scene, variables);
        assert!(played.said.contains(want), "{scene} {variables:?}: {}", played.said);
    }
}

#[test]
fn a_machine_without_a_driver_says_so() {
    if ["/usr/lib", "/usr/lib64", "/usr/lib/x86_64-linux-gnu"]
        .iter()
        .any(|folder| PathBuf::from(folder).join("libcuda.so.1").exists())
    {
        eprintln!("skipped: this machine has a driver");
        return;
    }
    let error = format!("{:#}", Context::open(0).err().unwrap());
    assert!(
        error.starts_with("device = \"cuda:0\": there is no NVIDIA driver here (libcuda.so.1"),
        "{error}"
    );
}

/// Kernels are not run by the fake: a trial that a card passes by doing nothing would be worth
/// nothing.
#[test]
fn a_card_that_computes_nothing_does_not_pass_the_trial() {
    let log = tempfile::NamedTempFile::new().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_inspectd"))
        .args(["selftest", "--device", "auto"])
        .env("LD_LIBRARY_PATH", fake())
        .env("FAKE_CUDA_LOG", log.path())
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}\n{errors}");
    let cases = said.lines().filter(|line| line.starts_with("WRONG ")).count();
    assert!(cases > 40, "{said}");
    assert!(!said.contains("\nok ") && !said.contains("FAILED"), "{said}");
    let failed = format!("{cases} of {cases} cases are not what the CPU makes of them");
    assert!(errors.contains(&failed), "{errors}");
    let log = fs::read_to_string(log.path()).unwrap();
    let log: Vec<String> = log.lines().map(str::to_owned).collect();
    Played { said, log }.gave_all_back();
}
