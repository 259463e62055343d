//! The physics of a part's way: how long there is for a verdict, and whether this machine can keep to
//! it.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde::Deserialize;

/// `[camera.deadline]`: the way of the part, either as times or, with a table `belt`, as what the times
/// follow from.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// From the trigger to the moment the ejector must act.
    pub travel_ms: Option<f64>,
    /// Kept free for the way from here to the ejector: PLC scan, network, valve.
    pub output_latency_ms: Option<f64>,
    /// Instead of both.
    pub belt: Option<Belt>,
}

/// `[camera.deadline.belt]`
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Belt {
    /// From where a part is triggered to the ejector.
    pub distance_mm: f64,
    /// The fastest that it runs.
    pub speed_mm_s: f64,
    /// From the trigger until the picture is here: exposure, readout, transfer. The deadline counts from
    /// then.
    #[serde(default)]
    pub exposure_ms: f64,
    /// The PLC's longest scan. A result that just missed one is read by the next, and the output is
    /// set at its end: it counts twice.
    pub plc_scan_ms: f64,
    /// From the output to the valve's full force.
    pub valve_ms: f64,
    /// The least from one part to the next.
    pub pitch_mm: Option<f64>,
}

/// Where `output_latency_ms` is not given.
const OUTPUT_LATENCY_MS: f64 = 10.0;

impl Config {
    /// Of times alone.
    pub fn of_times(travel_ms: f64, output_latency_ms: f64) -> Config {
        Config {
            travel_ms: Some(travel_ms),
            output_latency_ms: Some(output_latency_ms),
            belt: None,
        }
    }

    /// From the picture's arrival to the decision time.
    pub fn decide_within(&self) -> Duration {
        Duration::from_secs_f64((self.travel_ms() - self.before_ms() - self.after_ms()) / 1000.0)
    }

    /// From the decision time to the moment the ejector must act.
    pub fn output_latency(&self) -> Duration {
        Duration::from_secs_f64(self.after_ms() / 1000.0)
    }

    /// The least time from one part to the next, where it is known.
    pub fn part_every(&self) -> Option<Duration> {
        let belt = self.belt?;
        Some(Duration::from_secs_f64(belt.pitch_mm? / belt.speed_mm_s))
    }

    /// How [`Config::decide_within`] comes about, for people.
    pub fn arithmetic(&self) -> String {
        let left = self.decide_within().as_secs_f64() * 1000.0;
        match &self.belt {
            Some(belt) => format!(
                "{} mm / {} mm/s = {:.1} ms to the ejector - {} ms exposure - 2 x {} ms PLC scan - \
                 {} ms valve = {left:.1} ms to decide",
                belt.distance_mm,
                belt.speed_mm_s,
                self.travel_ms(),
                belt.exposure_ms,
                belt.plc_scan_ms,
                belt.valve_ms
            ),
            None => format!(
                "travel_ms {} - output_latency_ms {} = {left:.1} ms to decide",
                self.travel_ms(),
                self.after_ms()
            ),
        }
    }

    /// Refuses a way that leaves no time; the text names the key below `[camera.deadline]`.
    pub fn check(&self) -> Result<()> {
        match (&self.belt, self.travel_ms) {
            (Some(belt), _) => {
                ensure!(
                    self.travel_ms.is_none() && self.output_latency_ms.is_none(),
                    "travel_ms and output_latency_ms follow from [camera.deadline.belt]: give either \
                     them or the belt"
                );
                belt.check()?;
            }
            (None, Some(_)) => self.check_times()?,
            (None, None) => anyhow::bail!(
                "travel_ms is missing; give it, or a table [camera.deadline.belt] that it follows from"
            ),
        }
        let taken = self.before_ms() + self.after_ms();
        ensure!(
            taken < self.travel_ms(),
            "{}: the part is at the ejector before a verdict can be out",
            self.impossible()
        );
        Ok(())
    }

    /// The same as [`Config::arithmetic`] where nothing is left.
    fn impossible(&self) -> String {
        match &self.belt {
            Some(belt) => format!(
                "{} mm / {} mm/s = {:.1} ms to the ejector leave nothing after {} ms exposure + 2 x {} \
                 ms PLC scan + {} ms valve",
                belt.distance_mm,
                belt.speed_mm_s,
                self.travel_ms(),
                belt.exposure_ms,
                belt.plc_scan_ms,
                belt.valve_ms
            ),
            None => format!(
                "travel_ms = {} leaves nothing after output_latency_ms = {}",
                self.travel_ms(),
                self.after_ms()
            ),
        }
    }

    fn check_times(&self) -> Result<()> {
        let (travel_ms, output_latency_ms) = (self.travel_ms(), self.after_ms());
        ensure!(
            travel_ms.is_finite() && travel_ms > 0.0 && travel_ms <= LONGEST_MS,
            "travel_ms = {travel_ms} must lie between 0 and {LONGEST_MS}"
        );
        ensure!(
            output_latency_ms.is_finite() && output_latency_ms >= 0.0,
            "output_latency_ms = {output_latency_ms} must be 0 or more"
        );
        Ok(())
    }

    fn travel_ms(&self) -> f64 {
        let of_belt = self.belt.map(|belt| belt.distance_mm / belt.speed_mm_s * 1000.0);
        of_belt.or(self.travel_ms).unwrap_or(0.0)
    }

    /// Gone when the picture is here.
    fn before_ms(&self) -> f64 {
        self.belt.map_or(0.0, |belt| belt.exposure_ms)
    }

    /// Kept free behind the verdict.
    fn after_ms(&self) -> f64 {
        let of_belt = self.belt.map(|belt| 2.0 * belt.plc_scan_ms + belt.valve_ms);
        of_belt.or(self.output_latency_ms).unwrap_or(OUTPUT_LATENCY_MS)
    }
}

const LONGEST_MS: f64 = 3.6e6;

impl Belt {
    fn check(&self) -> Result<()> {
        let above_zero = [
            ("distance_mm", Some(self.distance_mm)),
            ("speed_mm_s", Some(self.speed_mm_s)),
            ("pitch_mm", self.pitch_mm),
        ];
        for (key, value) in above_zero {
            if let Some(value) = value {
                ensure!(value.is_finite() && value > 0.0, "belt.{key} = {value} must be above 0");
            }
        }
        let times = [
            ("exposure_ms", self.exposure_ms),
            ("plc_scan_ms", self.plc_scan_ms),
            ("valve_ms", self.valve_ms),
        ];
        for (key, value) in times {
            ensure!(value.is_finite() && value >= 0.0, "belt.{key} = {value} must be 0 or more");
        }
        let travel_ms = self.distance_mm / self.speed_mm_s * 1000.0;
        ensure!(
            travel_ms <= LONGEST_MS,
            "belt.distance_mm = {} at belt.speed_mm_s = {} takes {travel_ms:.0} ms; more than \
             {LONGEST_MS} can't be meant",
            self.distance_mm,
            self.speed_mm_s
        );
        Ok(())
    }
}

/// What one inspection was seen to take on this machine.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Timing {
    pub median: Duration,
    /// Of those that were timed.
    pub slowest: Duration,
}

/// A camera's share of the infer thread, for [`Load::check`].
pub struct Load<'a> {
    pub camera: &'a str,
    pub deadline: &'a Config,
    pub inspection: Timing,
}

impl Load<'_> {
    /// Whether the machine can keep up with all cameras of a line, which share one infer thread that
    /// takes up to `batch` parts at once. What is only bad luck is returned as warnings.
    ///
    /// # Errors
    /// A line on which every part, or one after the other, would be too late; the arithmetic is shown.
    pub fn check(line: &[Load<'_>], batch: usize) -> Result<Vec<String>> {
        let ms = |time: Duration| time.as_secs_f64() * 1000.0;
        let mut warnings = Vec::new();
        for load in line {
            let (within, takes) = (load.deadline.decide_within(), load.inspection);
            ensure!(
                takes.median < within,
                "camera \"{}\": one inspection takes {:.1} ms on this machine, but [camera.deadline] \
                 leaves less ({}); every part would be too late. A smaller model, a lower teach --size, \
                 more threads or a longer way would help",
                load.camera,
                ms(takes.median),
                load.deadline.arithmetic()
            );
            // A part that comes when a whole batch has just begun waits for it to end.
            let in_hand = line.iter().map(|other| other.inspection.slowest).max();
            let wait = in_hand.unwrap_or_default() * batch as u32;
            if wait + takes.slowest > within {
                warnings.push(format!(
                    "camera={} a part that comes while {batch} are inspected waits {:.1} ms and takes \
                     up to {:.1} ms: more than there is ({}); lower queue.batch",
                    load.camera,
                    ms(wait),
                    ms(takes.slowest),
                    load.deadline.arithmetic()
                ));
            }
        }
        let shares: Option<Vec<(f64, String)>> = line.iter().map(Load::share).collect();
        if let Some(shares) = shares {
            let busy: f64 = shares.iter().map(|(share, _)| share).sum();
            let words: Vec<String> = shares.into_iter().map(|(_, words)| words).collect();
            ensure!(
                busy < 1.0,
                "the parts come faster than this machine inspects: {} = {:.0} % of its time; parts \
                 would wait longer and longer",
                words.join(" + "),
                busy * 100.0
            );
            if busy > BUSY {
                warnings.push(format!(
                    "inspections take {:.0} % of the time ({}): little is left for a burst",
                    busy * 100.0,
                    words.join(" + ")
                ));
            }
        }
        Ok(warnings)
    }

    /// Of the infer thread's time, where it is known how fast parts come.
    fn share(&self) -> Option<(f64, String)> {
        let (every, takes) = (self.deadline.part_every()?, self.inspection.median);
        let words = format!(
            "{} {:.1} ms every {:.1} ms",
            self.camera,
            takes.as_secs_f64() * 1000.0,
            every.as_secs_f64() * 1000.0
        );
        Some((takes.as_secs_f64() / every.as_secs_f64(), words))
    }
}

/// Share of the time above which a person should know.
const BUSY: f64 = 0.8;

#[cfg(test)]
mod tests {
    use super::*;

    fn belt() -> Belt {
        Belt {
            distance_mm: 350.0,
            speed_mm_s: 700.0,
            exposure_ms: 2.0,
            plc_scan_ms: 10.0,
            valve_ms: 15.0,
            pitch_mm: Some(70.0),
        }
    }

    fn with(belt: Belt) -> Config {
        Config { travel_ms: None, output_latency_ms: None, belt: Some(belt) }
    }

    fn millis(ms: f64) -> Duration {
        Duration::from_secs_f64(ms / 1000.0)
    }

    #[test]
    fn a_way_that_leaves_no_time_is_refused() {
        let config = Config::of_times;
        assert!(config(200.0, 10.0).check().is_ok());
        assert_eq!(config(200.0, 10.0).decide_within(), Duration::from_millis(190));
        for bad in [config(10.0, 10.0), config(f64::NAN, 1.0), config(0.0, 0.0), config(5.0, -1.0)]
        {
            assert!(bad.check().is_err(), "{bad:?}");
        }
        let text = |toml: &str| -> Result<Config> {
            let config: Config = toml::from_str(toml)?;
            config.check().map(|()| config)
        };
        assert_eq!(text("travel_ms = 30").unwrap().decide_within(), Duration::from_millis(20));
        assert!(
            text("output_latency_ms = 3").unwrap_err().to_string().contains("travel_ms is missing")
        );
    }

    #[test]
    fn times_follow_from_the_belt() {
        let config = with(belt());
        config.check().unwrap();
        // 500 ms on the way, 2 before the picture is here, two scans and the valve behind it.
        assert_eq!(config.output_latency(), millis(35.0));
        assert_eq!(config.decide_within(), millis(463.0));
        assert_eq!(config.part_every(), Some(millis(100.0)));
        let words = config.arithmetic();
        assert!(words.contains("350 mm / 700 mm/s = 500.0 ms"), "{words}");
        assert!(words.contains("= 463.0 ms to decide"), "{words}");
    }

    #[test]
    fn a_belt_that_cannot_be_is_refused_with_its_arithmetic() {
        let refused = |config: Config| config.check().unwrap_err().to_string();
        let fast = refused(with(Belt { speed_mm_s: 10_000.0, ..belt() }));
        assert!(fast.contains("350 mm / 10000 mm/s = 35.0 ms"), "{fast}");
        assert!(fast.contains("2 ms exposure + 2 x 10 ms PLC scan + 15 ms valve"), "{fast}");
        assert!(refused(with(Belt { valve_ms: -1.0, ..belt() })).contains("belt.valve_ms = -1"));
        assert!(
            refused(with(Belt { pitch_mm: Some(0.0), ..belt() })).contains("belt.pitch_mm = 0")
        );
        let still = refused(with(Belt { speed_mm_s: 1e-6, ..belt() }));
        assert!(still.contains("can't be meant"), "{still}");
        let both = refused(Config { travel_ms: Some(5.0), ..with(belt()) });
        assert!(both.contains("either them or the belt"), "{both}");
    }

    #[test]
    fn a_machine_that_cannot_keep_up_is_refused() {
        let deadline = with(belt());
        let times = Config::of_times(500.0, 20.0);
        let timing =
            |median: f64, slowest: f64| Timing { median: millis(median), slowest: millis(slowest) };
        let check = |loads: &[(&Config, Timing)], batch| {
            let line: Vec<Load<'_>> = loads
                .iter()
                .map(|&(deadline, inspection)| Load { camera: "left", deadline, inspection })
                .collect();
            Load::check(&line, batch)
        };
        assert!(check(&[(&deadline, timing(20.0, 25.0))], 4).unwrap().is_empty());
        let late = check(&[(&times, timing(480.0, 500.0))], 1).unwrap_err().to_string();
        assert!(late.contains("takes 480.0 ms") && late.contains("= 480.0 ms to decide"), "{late}");
        // 30 ms every 100 ms are fine, of three and more cameras not.
        let thirds = [(&deadline, timing(30.0, 30.0)); 4];
        assert!(check(&thirds[..3], 1).unwrap().iter().any(|words| words.contains("90 % of")));
        let full = check(&thirds, 1).unwrap_err().to_string();
        assert!(full.contains("left 30.0 ms every 100.0 ms + left"), "{full}");
        assert!(full.contains("= 120 % of its time"), "{full}");
        // Where one camera's parts come at unknown times nothing can be said.
        let mut unknown = thirds;
        unknown[0].0 = &times;
        assert!(check(&unknown, 1).is_ok());
        let waits = check(&[(&times, timing(60.0, 100.0))], 4).unwrap();
        assert!(waits[0].contains("while 4 are inspected waits 400.0 ms"), "{waits:?}");
    }
}
