//! The figures that a test set is compared by, each under one name everywhere.

use serde::{Serialize, Serializer};

use super::{Figures, Intervals};
use crate::metrics::bootstrap::Interval;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Metric {
    ImageAuroc,
    ImageAp,
    F1Max,
    /// Goods kept where 2 % of the defects escape, and defects caught where 2 % of the goods are
    /// rejected.
    Pg2,
    Pb2,
    PixelAuroc,
    PixelAp,
    Aupro,
    Iap,
    Iap90,
}

impl Metric {
    pub const ALL: [Metric; 10] = [
        Metric::ImageAuroc,
        Metric::ImageAp,
        Metric::F1Max,
        Metric::Pg2,
        Metric::Pb2,
        Metric::PixelAuroc,
        Metric::PixelAp,
        Metric::Aupro,
        Metric::Iap,
        Metric::Iap90,
    ];

    /// As JSON and CSV call it.
    pub fn key(self) -> &'static str {
        match self {
            Metric::ImageAuroc => "image_auroc",
            Metric::ImageAp => "image_ap",
            Metric::F1Max => "f1_max",
            Metric::Pg2 => "pg2",
            Metric::Pb2 => "pb2",
            Metric::PixelAuroc => "pixel_auroc",
            Metric::PixelAp => "pixel_ap",
            Metric::Aupro => "aupro_0_3",
            Metric::Iap => "pixel_iap",
            Metric::Iap90 => "pixel_iap_90",
        }
    }

    /// As people read it.
    pub fn word(self) -> &'static str {
        match self {
            Metric::ImageAuroc => "image AUROC",
            Metric::ImageAp => "image AP",
            Metric::F1Max => "F1-max",
            Metric::Pg2 => "PG2",
            Metric::Pb2 => "PB2",
            Metric::PixelAuroc => "pixel AUROC",
            Metric::PixelAp => "pixel AP",
            Metric::Aupro => "AUPRO@0.3",
            Metric::Iap => "IAP",
            Metric::Iap90 => "IAP@90",
        }
    }

    /// As the table of published figures calls it.
    pub fn published(self) -> Option<&'static str> {
        match self {
            Metric::ImageAuroc | Metric::PixelAuroc | Metric::PixelAp => Some(self.key()),
            Metric::Iap | Metric::Iap90 => Some(self.key()),
            Metric::Aupro => Some("aupro"),
            Metric::ImageAp | Metric::F1Max | Metric::Pg2 | Metric::Pb2 => None,
        }
    }

    pub fn of(self, figures: &Figures) -> Option<f64> {
        match self {
            Metric::ImageAuroc => figures.image_auroc,
            Metric::ImageAp => figures.image_ap,
            Metric::F1Max => figures.f1_max,
            Metric::Pg2 => figures.pg2,
            Metric::Pb2 => figures.pb2,
            Metric::PixelAuroc => figures.pixel_auroc,
            Metric::PixelAp => figures.pixel_ap,
            Metric::Aupro => figures.aupro_0_3,
            Metric::Iap => figures.pixel_iap,
            Metric::Iap90 => figures.pixel_iap_90,
        }
    }

    /// `None` also where no interval is taken of this figure.
    pub fn interval(self, intervals: &Intervals) -> Option<Interval> {
        match self {
            Metric::ImageAuroc => intervals.image_auroc,
            Metric::ImageAp => intervals.image_ap,
            Metric::F1Max => intervals.f1_max,
            Metric::PixelAuroc => intervals.pixel_auroc,
            Metric::PixelAp => intervals.pixel_ap,
            Metric::Aupro => intervals.aupro_0_3,
            Metric::Pg2 | Metric::Pb2 | Metric::Iap | Metric::Iap90 => None,
        }
    }
}

impl Serialize for Metric {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.key())
    }
}
