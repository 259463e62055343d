//! Digital I/O of the machine itself on a card with a Linux driver. Where `INSPECTD_GPIO_CHIP` names no
//! chip these say so and are skipped; `tests/qemu/gpio.sh` runs them in a machine that has one, a
//! PCI-IDIO-16 with outputs `OUT0` to `OUT15` and inputs `IIN0` to `IIN15` (lines 16 to 31), whose registers
//! lie at `INSPECTD_GPIO_BAR`. One test at a time.
#![cfg(feature = "gpio")]
#![allow(clippy::unwrap_used)]

use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::time::Instant;

use inspectd::output::io::{Config, DigitalIo};

/// The card, seen from the field's side.
struct Card {
    chip: String,
    registers: u64,
}

impl Card {
    fn find() -> Option<Card> {
        let Ok(chip) = std::env::var("INSPECTD_GPIO_CHIP") else {
            println!("SKIPPED: INSPECTD_GPIO_CHIP names no chip; tests/qemu/gpio.sh has one");
            return None;
        };
        let bar = std::env::var("INSPECTD_GPIO_BAR").unwrap();
        let registers = u64::from_str_radix(bar.trim_start_matches("0x"), 16).unwrap();
        Some(Card { chip, registers })
    }

    /// Lines 0 to 7 as they are.
    fn outputs(&self) -> u8 {
        let address = self.registers.to_string();
        let read = Command::new("devmem").args([&address, "8"]).output().unwrap();
        let said = String::from_utf8(read.stdout).unwrap();
        u8::from_str_radix(said.trim().trim_start_matches("0x"), 16).unwrap()
    }

    /// Lines 16 to 23 from now on.
    fn set_inputs(&self, levels: u8) {
        let address = (self.registers + 1).to_string();
        let set = Command::new("devmem").args([address, "8".into(), levels.to_string()]).status();
        assert!(set.unwrap().success());
    }

    fn station(&self, lines: &str) -> Box<dyn DigitalIo> {
        let config = format!("kind = \"gpio\"\nchip = \"{}\"\n{lines}", self.chip);
        toml::from_str::<Config>(&config).unwrap().open().unwrap()
    }
}

#[expect(clippy::disallowed_methods, reason = "a test's own clock")]
fn now() -> Instant {
    Instant::now()
}

#[test]
fn lines_follow_the_turns_and_are_safe_at_the_end() {
    let Some(card) = Card::find() else { return };
    // The second output is on when its line is low, and that is safe.
    let mut station = card.station(
        "inputs = [{ line = 16 }, { line = \"IIN1\" }, { line = 18, active_low = true }]\n\
         outputs = [{ line = \"OUT0\" }, { line = 3, active_low = true, safe_on = true }]",
    );
    for (outputs, lines) in [(0b01, 0b1001), (0b00, 0b1000), (0b11, 0b0001), (0b10, 0b0000)] {
        // Bits beyond the second mean nothing.
        station.exchange(outputs | 0xFFFF_FF00, now()).unwrap();
        assert_eq!(card.outputs(), lines, "{outputs:b}");
    }
    for (levels, bits) in [(0b000, 0b100), (0b101, 0b001), (0b010, 0b110), (0b111, 0b011)] {
        card.set_inputs(levels);
        let inputs = station.exchange(0b01, now()).unwrap();
        assert_eq!((inputs.bits, inputs.encoder), (bits, None), "{levels:b}");
    }
    // A line has one owner.
    let error =
        format!("{:#}", card.station("outputs = [{ line = 3 }]").exchange(0, now()).unwrap_err());
    assert!(error.contains("requesting io.outputs"), "{error}");
    assert_eq!(card.outputs(), 0b1001);
    drop(station);
    assert_eq!(card.outputs(), 0b0000);
    let mut station = card.station("outputs = [{ line = 3 }]");
    station.exchange(1, now()).unwrap();
    assert_eq!(card.outputs(), 0b1000, "it is free again");
}

#[test]
fn a_line_that_is_not_there_is_named() {
    let Some(card) = Card::find() else { return };
    for (lines, says) in [
        ("inputs = [{ line = \"NONE\" }]", "io.chip has no line \"NONE\""),
        ("outputs = [{ line = 99 }]", "requesting io.outputs"),
    ] {
        let error = format!("{:#}", card.station(lines).exchange(0, now()).unwrap_err());
        assert!(error.contains(says) && error.contains(&card.chip), "{error}");
    }
}

const DIES: &str = "INSPECTD_GPIO_DIES";

/// What docs/plc.md warns of: the kernel leaves a line as it is when its owner dies.
#[test]
fn a_dead_process_leaves_its_outputs_as_they_were() {
    let Some(card) = Card::find() else { return };
    if std::env::var_os(DIES).is_some() {
        let mut station = card.station("outputs = [{ line = 5 }]");
        station.exchange(1, now()).unwrap();
        std::process::abort();
    }
    let died = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_dead_process_leaves_its_outputs_as_they_were"])
        .env(DIES, "yes")
        .status()
        .unwrap();
    assert_eq!(died.signal(), Some(6), "it aborted");
    assert_eq!(card.outputs() & 0b10_0000, 0b10_0000, "its output is still on");
    // Until the next start.
    card.station("outputs = [{ line = 5 }]").exchange(0, now()).unwrap();
    assert_eq!(card.outputs() & 0b10_0000, 0);
}
