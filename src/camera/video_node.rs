//! Which `/dev/video<n>` a camera is, by its number, its path or a link that stays with it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use serde::Deserialize;

use super::CameraFault;

/// Which camera, as the config names it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum VideoNode {
    /// n of `/dev/video<n>`.
    Number(u32),
    /// `/dev/video<n>` or a link to it, such as those in `/dev/v4l/by-id`, which stay with the
    /// camera when the plugs change.
    Path(PathBuf),
}

impl VideoNode {
    /// Refuses what can be no camera's path. A link is not followed yet: it comes and goes with the
    /// plug.
    pub fn check(&self) -> Result<()> {
        if let VideoNode::Path(path) = self
            && number_of(path).is_none()
            && !path.starts_with("/dev/v4l")
        {
            bail!(
                "device = {:?} is no camera's path; give the n of /dev/video<n>, that path, or one \
                 below /dev/v4l/by-id",
                path.display()
            );
        }
        Ok(())
    }

    /// n of its `/dev/video<n>`, links followed; where there is none, the fault says which there are.
    pub fn find(&self) -> Result<u32, CameraFault> {
        let path = match self {
            VideoNode::Number(number) => path_of(*number),
            VideoNode::Path(path) if number_of(path).is_some() => path.clone(),
            VideoNode::Path(link) => fs::canonicalize(link).map_err(|error| {
                CameraFault(format!(
                    "there is no camera {}: {error}; {}",
                    link.display(),
                    what_is_there()
                ))
            })?,
        };
        let Some(number) = number_of(&path) else {
            return Err(CameraFault(format!(
                "{} is no camera: it is not a /dev/video<n>",
                path.display()
            )));
        };
        if !path.exists() {
            return Err(CameraFault(format!(
                "there is no camera {}; {}",
                path.display(),
                what_is_there()
            )));
        }
        Ok(number)
    }
}

/// `/dev/video<n>`.
pub fn path_of(number: u32) -> PathBuf {
    format!("/dev/video{number}").into()
}

/// n of `/dev/video<n>`.
fn number_of(path: &Path) -> Option<u32> {
    path.to_str()?.strip_prefix("/dev/video")?.parse().ok()
}

fn what_is_there() -> String {
    let mut numbers: Vec<u32> = fs::read_dir("/dev")
        .into_iter()
        .flatten()
        .filter_map(|entry| number_of(&entry.ok()?.path()))
        .collect();
    numbers.sort_unstable();
    if numbers.is_empty() {
        return "this machine has no /dev/video<n> at all: is the camera plugged in, and its driver \
                loaded?"
            .to_owned();
    }
    let names: Vec<_> = numbers.iter().map(|number| format!("/dev/video{number}")).collect();
    format!("there are {}", names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct Table {
        device: VideoNode,
    }

    fn device(text: &str) -> VideoNode {
        toml::from_str::<Table>(&format!("device = {text}")).unwrap().device
    }

    #[test]
    fn a_device_is_a_number_or_a_path_of_a_camera() {
        assert_eq!(device("2"), VideoNode::Number(2));
        for good in ["0", "'/dev/video11'", "'/dev/v4l/by-id/usb-Acme_Cam-video-index0'"] {
            device(good).check().unwrap();
        }
        for bad in ["'/dev/video'", "'/dev/sda'", "'video0'", "''"] {
            assert!(device(bad).check().unwrap_err().to_string().contains("/dev/video<n>"));
        }
    }

    #[test]
    fn a_camera_that_is_not_there_is_named() {
        for (text, says) in
            [("987", "/dev/video987"), ("'/dev/v4l/by-id/none'", "/dev/v4l/by-id/none")]
        {
            let CameraFault(fault) = device(text).find().unwrap_err();
            assert!(fault.contains(&format!("there is no camera {says}")), "{fault}");
        }
    }
}
