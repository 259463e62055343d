//! To be written.
use super::*;
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub device: u32,
    #[serde(default)]
    pub width: u32,
    #[serde(default)]
    pub height: u32,
    #[serde(default)]
    pub rate_hz: u32,
}
impl Config {
    pub fn check(&self) -> Result<()> {
        Ok(())
    }
}
pub fn open(_: &Config) -> Result<Box<dyn FrameSource>, CameraFault> {
    Err(CameraFault(String::new()))
}
