//! What goes wrong on a line, one after the other.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;

use super::daemon::Daemon;
use super::plc::{Heard, PlcTrouble};
use super::{Shared, now};

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Fault {
    /// Frames with packets missing.
    HalfFrame,
    /// Frames that never come though they have a number.
    FrameMissing,
    /// Frames that come twice.
    FrameRepeated,
    /// Two frames in the wrong order.
    FrameOutOfOrder,
    /// Three frames where one part is.
    TriggerBurst,
    /// Parts that the camera is not triggered for.
    PartUnseen,
    /// The camera's cable.
    CameraUnplugged,
    /// The daemon stands still for half a second (SIGSTOP).
    DaemonStopped,
    /// The daemon is killed (SIGKILL) and started again.
    DaemonKilled,
    /// The disk takes nothing for two seconds: no record, picture or line of the log.
    DiskFull,
    /// The config is re-read while parts are under way.
    ConfigReloaded,
    /// The PLC polls no more for three seconds.
    PlcFrozen,
    /// The PLC's connection ends and comes back, again and again.
    PlcLinkFlaps,
    /// The PLC acknowledges twice, what is old, and what never was.
    PlcAcksWrongly,
    /// The PLC acknowledges nothing.
    PlcNeverAcks,
    /// The I/O station does not answer for a while.
    StationFrozen,
    /// The I/O station's connection ends.
    StationCut,
    /// The belt stops and goes on.
    BeltStopped,
    /// The belt runs back for some parts' length and goes on.
    BeltReversed,
    /// The encoder leaps by some parts' length.
    EncoderLeaps,
}

impl Fault {
    /// The word in the report.
    pub fn word(self) -> &'static str {
        match self {
            Fault::HalfFrame => "half_frame",
            Fault::FrameMissing => "frame_missing",
            Fault::FrameRepeated => "frame_repeated",
            Fault::FrameOutOfOrder => "frame_out_of_order",
            Fault::TriggerBurst => "trigger_burst",
            Fault::PartUnseen => "part_unseen",
            Fault::CameraUnplugged => "camera_unplugged",
            Fault::DaemonStopped => "daemon_stopped",
            Fault::DaemonKilled => "daemon_killed",
            Fault::DiskFull => "disk_full",
            Fault::ConfigReloaded => "config_reloaded",
            Fault::PlcFrozen => "plc_frozen",
            Fault::PlcLinkFlaps => "plc_link_flaps",
            Fault::PlcAcksWrongly => "plc_acks_wrongly",
            Fault::PlcNeverAcks => "plc_never_acks",
            Fault::StationFrozen => "station_frozen",
            Fault::StationCut => "station_cut",
            Fault::BeltStopped => "belt_stopped",
            Fault::BeltReversed => "belt_reversed",
            Fault::EncoderLeaps => "encoder_leaps",
        }
    }

    /// Plays it to its end.
    pub(super) fn play(
        self,
        daemon: &mut Daemon,
        shared: &Shared,
        plc: &Mutex<Heard>,
    ) -> Result<()> {
        let sleep = |ms| std::thread::sleep(Duration::from_millis(ms));
        let plc_does = |trouble: PlcTrouble, ms| {
            plc.lock().unwrap_or_else(PoisonError::into_inner).trouble = trouble;
            sleep(ms);
            plc.lock().unwrap_or_else(PoisonError::into_inner).trouble = PlcTrouble::None;
        };
        match self {
            Fault::HalfFrame => shared.plant().camera.half = 3,
            Fault::FrameMissing => shared.plant().camera.missing = 2,
            Fault::FrameRepeated => shared.plant().camera.repeated = 2,
            Fault::FrameOutOfOrder => shared.plant().camera.out_of_order = 2,
            Fault::TriggerBurst => shared.plant().camera.burst = 2,
            Fault::PartUnseen => shared.plant().camera.unseen = 2,
            Fault::CameraUnplugged => {
                shared.plant().camera.unplugged = true;
                sleep(1500);
                shared.plant().camera.unplugged = false;
            }
            Fault::DaemonStopped => {
                daemon.signal("-STOP")?;
                sleep(500);
                daemon.signal("-CONT")?;
            }
            Fault::DaemonKilled => daemon.kill_and_restart()?,
            Fault::DiskFull => {
                // One that starts on a full disk ends with an error, as it should: without a record
                // of its start it would give the same numbers again.
                let ready = || plc.lock().unwrap_or_else(PoisonError::into_inner).ready;
                let give_up = now() + Duration::from_secs(10);
                while !ready() && now() < give_up {
                    sleep(20);
                }
                daemon.limit_files(Some(0))?;
                sleep(2000);
                daemon.limit_files(None)?;
            }
            Fault::ConfigReloaded => daemon.reload()?,
            Fault::PlcFrozen => plc_does(PlcTrouble::Frozen, 3000),
            Fault::PlcLinkFlaps => plc_does(PlcTrouble::Flaps, 2000),
            Fault::PlcAcksWrongly => plc_does(PlcTrouble::AcksWrongly, 1000),
            Fault::PlcNeverAcks => plc_does(PlcTrouble::NeverAcks, 3000),
            Fault::StationFrozen => {
                shared.plant().station_deaf = true;
                sleep(300);
                shared.plant().station_deaf = false;
            }
            Fault::StationCut => {
                shared.plant().station_cut = true;
                sleep(100);
                shared.plant().station_cut = false;
            }
            Fault::BeltStopped => {
                shared.plant().run_belt(0.0, now());
                sleep(1000);
                shared.plant().run_belt(1.0, now());
            }
            Fault::BeltReversed => {
                shared.plant().run_belt(-0.5, now());
                sleep(400);
                shared.plant().run_belt(1.0, now());
            }
            Fault::EncoderLeaps => shared.plant().make_encoder_leap(3300),
        }
        Ok(())
    }
}
