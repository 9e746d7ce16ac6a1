//! The question and the answer.

use alloc::string::String;
use alloc::vec::Vec;

use plimsoll_math::units::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::custom::{CustomDevice, Decimal, Size};
use crate::request::Options;
use crate::size::parse_bytes;

/// Schema name of [`Fleet`].
pub const FLEET_SCHEMA: &str = "plimsoll.fleet/1";

/// What is kept free on every device: a share such as `5%`, or a size such as `1GiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Headroom {
    /// Thousandths of what is usable.
    Share(u64),
    /// Bytes.
    Size(u64),
}

impl Headroom {
    /// Bytes to keep free of `usable`.
    #[must_use]
    pub fn of(self, usable: u64) -> u64 {
        match self {
            Self::Share(thousandths) => {
                u64::try_from((u128::from(usable) * u128::from(thousandths)).div_ceil(1000)).unwrap_or(u64::MAX)
            }
            Self::Size(bytes) => bytes,
        }
    }
}

impl Serialize for Headroom {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Share(thousandths) => serializer.collect_str(&format_args!("{}.{}%", thousandths / 10, thousandths % 10)),
            Self::Size(bytes) => serializer.serialize_u64(*bytes),
        }
    }
}

impl<'de> Deserialize<'de> for Headroom {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error;
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Bytes(u64),
            Text(String),
        }
        let wrong = || D::Error::custom("headroom: expected a share such as 5%, below 100%, or a size such as 1GiB");
        match Written::deserialize(deserializer).map_err(|_| wrong())? {
            Written::Bytes(bytes) => Ok(Self::Size(bytes)),
            Written::Text(text) => match text.trim().strip_suffix('%') {
                None => parse_bytes("headroom", &text).map(Self::Size).map_err(|_| wrong()),
                Some(percent) => {
                    let (whole, fraction) = percent.trim().split_once('.').unwrap_or((percent.trim(), "0"));
                    let whole: u64 = whole.parse().map_err(|_| wrong())?;
                    let tenths: u64 =
                        if fraction.len() == 1 { fraction.parse().map_err(|_| wrong())? } else { return Err(wrong()) };
                    if whole >= 100 { Err(wrong()) } else { Ok(Self::Share(whole * 10 + tenths)) }
                }
            },
        }
    }
}

/// How far the replicas of one model must be from each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Spread {
    /// Anywhere.
    #[default]
    None,
    /// No two on one host.
    Host,
}

/// Hosts of one kind.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FleetHost {
    /// The name; numbered where there are several.
    pub name: String,
    /// How many alike; one when left out.
    pub count: Option<u64>,
    /// Devices by name and number, such as `RTX 4090 x2`.
    pub devices: Vec<String>,
    /// The host's own memory; not limited when left out.
    pub memory: Option<Size>,
    /// What one such host costs, in any unit: the cheapest fix is the least of these.
    pub price: Option<Decimal>,
}

/// A model to place.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FleetModel {
    /// What to call it.
    pub name: String,
    /// Where it comes from: a MODEL of `fit`. Its name when left out.
    pub model: Option<String>,
    /// Replicas; one when left out.
    pub replicas: Option<u64>,
    /// What a placed replica is worth beside others; 1 when left out.
    pub priority: Option<u64>,
    /// Numbers of devices that a replica may span; the fewest of 1, 2, 4, 8 that hold it when left out.
    pub devices: Option<Vec<u64>>,
    /// How far its replicas must be from each other.
    pub spread: Spread,
    /// Models that no replica may share a host with.
    pub apart_from: Option<Vec<String>>,
    /// Options of `fit`: context, sequences, engine, quant, cache types and the others, without devices.
    pub options: Options,
}

/// A fleet.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FleetRequest {
    /// What is kept free on every device.
    pub headroom: Option<Headroom>,
    /// How long a solver may look for something better, seconds; 2 when left out. 0 for the greedy placement as it is.
    pub solver_seconds: Option<u64>,
    /// Hosts.
    pub host: Vec<FleetHost>,
    /// Models.
    pub model: Vec<FleetModel>,
    /// Devices that the catalogue does not have.
    pub device: Vec<CustomDevice>,
}

/// How the placement was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// The hardest first, each where it leaves the least.
    Greedy,
    /// The greedy placement, made better by clearing hosts and filling them again.
    Improved,
    /// By a mixed-integer program that ran out of time.
    Solver,
    /// By a mixed-integer program: nothing better exists.
    Proven,
}

/// Bytes of a replica on one device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OnDevice {
    /// The device's number on its host.
    pub index: u64,
    /// Its name.
    pub name: String,
    /// Upper bound of what the replica takes there.
    pub bytes: Bytes,
}

/// A replica where it goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// The model.
    pub model: String,
    /// The replica's number, from 0.
    pub replica: u64,
    /// The host.
    pub host: String,
    /// What it takes of each device.
    pub devices: Vec<OnDevice>,
    /// What it takes of the host's memory.
    pub host_bytes: Bytes,
    /// The engine's command line.
    pub command: Vec<String>,
}

/// What is on a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceLoad {
    /// Its name.
    pub name: String,
    /// What a program can get.
    pub usable: Bytes,
    /// What the headroom leaves of that.
    pub limit: Bytes,
    /// What the replicas take.
    pub used: Bytes,
}

/// What is on a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostLoad {
    /// Its name.
    pub name: String,
    /// Its devices.
    pub devices: Vec<DeviceLoad>,
    /// Its memory, where it is limited.
    pub memory: Option<Bytes>,
    /// What the replicas take of it.
    pub memory_used: Option<Bytes>,
}

/// Something that would place more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fix {
    /// In words.
    pub change: String,
    /// As options of the model, where it is one.
    pub options: Vec<String>,
    /// Whether something has to be bought.
    pub hardware: bool,
    /// What that costs, where prices are given.
    pub price: Option<Decimal>,
}

/// Replicas without a place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unplaced {
    /// The model.
    pub model: String,
    /// How many of them.
    pub replicas: u64,
    /// Why.
    pub reason: String,
    /// What would place one more, the cheapest first, each verified by prediction.
    pub fixes: Vec<Fix>,
}

/// Where everything goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fleet {
    /// The schema's name.
    pub schema: String,
    /// How it was found.
    pub method: Method,
    /// Whether nothing better exists.
    pub optimal: bool,
    /// How far from the bound the placed priorities are at most, percent.
    pub gap_percent: u64,
    /// Replicas that have a place.
    pub placed_replicas: u64,
    /// Replicas that were asked for.
    pub wanted_replicas: u64,
    /// What is on every host.
    pub hosts: Vec<HostLoad>,
    /// Where every replica goes.
    pub placements: Vec<Placement>,
    /// What does not fit.
    pub unplaced: Vec<Unplaced>,
    /// What had to be assumed.
    pub notes: Vec<String>,
}
