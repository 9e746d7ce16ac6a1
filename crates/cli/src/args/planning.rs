//! Arguments of the verbs that ask more than one question at a time.

use std::path::PathBuf;

use clap::{Args, ValueEnum, ValueHint};
use plimsoll::planner::axis::{names, numbers};
use plimsoll::planner::custom::Decimal;
use plimsoll::planner::prices;
use plimsoll::planner::speed::PerSecond;
use plimsoll::planner::sweep::Axes;
use plimsoll::planner::which_device::Target;
use plimsoll::planner::which_quant::Grid;
use plimsoll::planner::{Options, PlanError};
use serde::Deserialize;

use crate::places::load;

use super::{Question, Setting, Source, bytes};

#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    #[command(flatten)]
    pub(crate) question: Question,
    /// One component alone: weights, kv_cache, recurrent_state, compute, output, draft, projector or driver_context
    #[arg(value_name = "TERM")]
    pub(crate) term: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct WhichQuantArgs {
    #[command(flatten)]
    pub(crate) question: Question,
    /// Contexts across, such as 4k,8k,32k or 4k..128k*2; powers of two up to the model's maximum when left out
    #[arg(long, value_name = "LIST")]
    contexts: Option<String>,
    /// Quantizations down, such as Q8_0,Q4_K_M; the usual ones when left out
    #[arg(long, value_name = "LIST")]
    quants: Option<String>,
    /// What the host has for what is left to it, such as 64GiB
    #[arg(long, visible_alias = "ram", value_name = "SIZE", value_parser = bytes)]
    host_memory: Option<u64>,
}

fn list<T>(text: Option<&String>, read: impl FnOnce(&str) -> Result<Vec<T>, PlanError>) -> Result<Vec<T>, PlanError> {
    text.map_or_else(|| Ok(Vec::new()), |text| read(text))
}

impl WhichQuantArgs {
    pub(crate) fn grid(&self) -> Result<Grid, PlanError> {
        Ok(Grid {
            quants: list(self.quants.as_ref(), |text| names("quants", text))?,
            contexts: list(self.contexts.as_ref(), |text| numbers("contexts", text))?,
            host_memory: self.host_memory,
        })
    }
}

#[derive(Debug, Args)]
pub(crate) struct OffloadArgs {
    #[command(flatten)]
    pub(crate) question: Question,
    /// What the host has for what is left to it, such as 64GiB
    #[arg(long, visible_alias = "ram", value_name = "SIZE", value_parser = bytes)]
    pub(crate) host_memory: Option<u64>,
    /// What to leave free on every device beyond the upper bounds; nothing when left out
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    pub(crate) margin: Option<u64>,
}

fn rate(text: &str) -> Result<PerSecond, String> {
    let rate: f64 = text.trim().parse().map_err(|_| "expected tokens per second, such as 20".to_owned())?;
    if rate.is_finite() && rate >= 0.001 {
        Ok(PerSecond::new(rate))
    } else {
        Err("expected tokens per second above 0".to_owned())
    }
}

fn price(text: &str) -> Result<prices::Asked, String> {
    prices::parse(text).map_err(|error| error.to_string())
}

/// A file of prices.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PriceFile {
    price: Vec<Priced>,
}

/// One price of a file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Priced {
    device: String,
    price: Decimal,
    date: Option<String>,
}

impl Priced {
    fn asked(&self) -> Result<prices::Asked, PlanError> {
        let thousandths = self.price.thousandths();
        if !thousandths.is_multiple_of(10) {
            return Err(PlanError::request(
                "price",
                format!("{thousandths} thousandths for {}", self.device),
                "at most two decimals",
            ));
        }
        Ok(prices::Asked { device: self.device.clone(), cents: thousandths / 10, date: self.date.clone() })
    }
}

fn cents(text: &str) -> Result<u64, String> {
    prices::parse(&format!("budget={text}")).map(|price| price.cents).map_err(|_| "expected a price such as 1500".to_owned())
}

#[derive(Debug, Args)]
#[command(after_help = "--device names the devices to choose among here; the whole catalogue when left out.")]
pub(crate) struct WhichDeviceArgs {
    #[command(flatten)]
    pub(crate) question: Question,
    /// Tokens per second that one sequence has to reach half way through its context
    #[arg(long, value_name = "TOK/S", value_parser = rate)]
    min_decode: Option<PerSecond>,
    /// Tokens per second that a prompt has to reach
    #[arg(long, value_name = "TOK/S", value_parser = rate)]
    min_prefill: Option<PerSecond>,
    /// At most so many devices of a kind; 8 when left out
    #[arg(long, value_name = "N")]
    most: Option<u64>,
    /// The most that all of them together may cost
    #[arg(long, value_name = "PRICE", value_parser = cents)]
    max_price: Option<u64>,
    /// What a device costs you, such as "RTX 3090=700" or, with its day, "RTX 3090=700@2026-11-20"; repeatable. No prices are built in
    #[arg(long, value_name = "NAME=PRICE", value_parser = price)]
    price: Vec<prices::Asked>,
    /// A TOML or JSON file of prices: sections [[price]] with device, price and, if you like, date
    #[arg(long, value_name = "FILE")]
    prices: Option<PathBuf>,
    /// Show so many sets; 12 when left out
    #[arg(long, value_name = "N", default_value_t = 12, hide_default_value = true)]
    pub(crate) show: usize,
}

impl WhichDeviceArgs {
    /// What has to be reached, and the question without a device.
    pub(crate) fn target(&self) -> Result<(Target, Options), PlanError> {
        let mut options = self.question.options()?;
        let devices = options.device.take().into_iter().chain(options.devices.take().into_iter().flatten()).collect();
        let mut prices = self.price.clone();
        if let Some(path) = &self.prices {
            // The command line counts first.
            prices.extend(load::<PriceFile>(path)?.price.iter().map(Priced::asked).collect::<Result<Vec<_>, _>>()?);
        }
        let target = Target {
            min_decode: self.min_decode,
            min_prefill: self.min_prefill,
            devices,
            most: self.most,
            max_cents: self.max_price,
            prices,
        };
        Ok((target, options))
    }
}

/// How a sweep is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Columns for people
    Table,
    /// Comma-separated values
    Csv,
    /// One JSON object a line
    Jsonl,
    /// Columns for data frames, into a file; only where it was compiled in
    Parquet,
}

#[derive(Debug, Args)]
#[command(after_help = "Lists are separated by commas; numbers may be ranges: 4k..128k*2 doubles, 1k..16k+1k adds.")]
pub(crate) struct SweepArgs {
    #[command(flatten)]
    pub(crate) source: Source,
    /// Contexts, such as 4k,8k or 4k..128k*2
    #[arg(long, value_name = "LIST", conflicts_with = "context")]
    contexts: Option<String>,
    /// Concurrent sequences, such as 1,4,16
    #[arg(long, value_name = "LIST")]
    sequences: Option<String>,
    /// Formats of cached keys and values, such as f16,q8_0
    #[arg(long, value_name = "LIST", conflicts_with_all = ["kv_type", "kv_type_k", "kv_type_v"])]
    kv_types: Option<String>,
    /// Quantizations, such as Q8_0,Q4_K_M
    #[arg(long, value_name = "LIST", conflicts_with = "quant")]
    quants: Option<String>,
    /// Devices, such as "RTX 4090,H100 SXM x2"
    #[arg(long, value_name = "LIST", conflicts_with = "device")]
    devices: Option<String>,
    /// Engines, such as llama.cpp,vllm
    #[arg(long, value_name = "LIST")]
    engines: Option<String>,
    #[command(flatten)]
    setting: Setting,
    /// How to write the rows; table when left out
    #[arg(long, value_enum, value_name = "FORMAT", conflicts_with = "json")]
    pub(crate) format: Option<Format>,
    /// A file to write to instead of standard output
    #[arg(long, short, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) output: Option<PathBuf>,
    /// Draw memory and speed over the context as well: a file that ends in .svg or .png
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) plot: Option<PathBuf>,
    /// Draw memory over the context in the terminal instead of a table
    #[arg(long, conflicts_with_all = ["json", "format", "output"])]
    pub(crate) chart: bool,
    /// Answer as one JSON document
    #[arg(long)]
    pub(crate) json: bool,
}

impl SweepArgs {
    pub(crate) fn axes(&self) -> Result<Axes, PlanError> {
        Ok(Axes {
            engines: list(self.engines.as_ref(), |text| names("engines", text))?,
            devices: list(self.devices.as_ref(), |text| names("devices", text))?,
            quants: list(self.quants.as_ref(), |text| names("quants", text))?,
            kv_types: list(self.kv_types.as_ref(), |text| names("kv_types", text))?,
            sequences: list(self.sequences.as_ref(), |text| numbers("sequences", text))?,
            contexts: list(self.contexts.as_ref(), |text| numbers("contexts", text))?,
        })
    }

    pub(crate) fn options(&self) -> Result<Options, PlanError> {
        Ok(Options { assume_generic: self.source.assume_generic.then_some(true), ..self.setting.options()? })
    }
}
