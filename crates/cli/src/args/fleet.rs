//! Arguments of the verbs that plan for more than one machine.

use std::path::PathBuf;

use clap::{Args, ValueHint};
use plimsoll::planner::capacity::lengths::Lengths;

use super::Asked;

#[derive(Debug, Args)]
#[command(after_help = "A fleet file:\n\n  \
    headroom = \"5%\"               # or \"1GiB\": kept free on every device\n\n  \
    [[host]]\n  \
    name = \"rack\"\n  \
    count = 4\n  \
    devices = [\"RTX 4090 x2\"]     # names of `plimsoll devices`, or of [[device]] sections as in --devices-file\n  \
    memory = \"128GiB\"\n  \
    price = 5000                  # optional, for the cheapest fix\n\n  \
    [[model]]\n  \
    name = \"chat\"\n  \
    model = \"org/name\"            # a MODEL of `plimsoll fit`\n  \
    replicas = 3\n  \
    priority = 10                 # what a placed replica is worth\n  \
    spread = \"host\"               # no two on one host\n  \
    apart_from = [\"embed\"]\n  \
    devices = [1, 2]              # how many a replica may span\n  \
    options = { context = 32768, sequences = 4, quant = \"Q4_K_M\", engine = \"llama.cpp\" }")]
pub(crate) struct FleetArgs {
    /// A TOML or JSON file with hosts and models
    #[arg(value_name = "FLEET", value_hint = ValueHint::FilePath)]
    pub(crate) file: PathBuf,
    /// How long a solver may look for something better, seconds; 0 for the greedy placement alone
    #[arg(long, value_name = "S")]
    pub(crate) solver_seconds: Option<u64>,
    /// Answer as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

fn prompt(text: &str) -> Result<Lengths, String> {
    Lengths::parse("lengths", text).map_err(|_| format!("expected {}", plimsoll::planner::capacity::lengths::LENGTHS_GRAMMAR))
}

fn seconds(text: &str) -> Result<f64, String> {
    let (number, scale) = match text.trim().strip_suffix("ms") {
        Some(number) => (number, 1e-3),
        None => (text.trim().trim_end_matches('s'), 1.0),
    };
    let value: Option<f64> = number.trim().parse().ok().map(|value: f64| value * scale);
    value
        .filter(|value| *value > 0.0 && value.is_finite())
        .ok_or_else(|| "expected seconds above 0, such as 2, 2s or 50ms".to_owned())
}

#[derive(Debug, Args)]
pub(crate) struct CapacityArgs {
    /// A MODEL as for `plimsoll fit`
    #[command(flatten)]
    pub(crate) source: super::Source,
    #[command(flatten)]
    pub(crate) asked: Asked,
    /// Requests per second
    #[arg(long, value_name = "R", conflicts_with = "trace", required_unless_present = "trace", help_heading = "Load")]
    pub(crate) rate: Option<f64>,
    /// Tokens of prompts: 500, uniform:LOW,HIGH, exponential:MEAN or lognormal:MEDIAN,P95
    #[arg(long, value_name = "LENGTHS", value_parser = prompt, default_value = "512", conflicts_with = "trace", help_heading = "Load")]
    pub(crate) prompt: Lengths,
    /// Tokens of answers, in the same way
    #[arg(long, value_name = "LENGTHS", value_parser = prompt, default_value = "128", conflicts_with = "trace", help_heading = "Load")]
    pub(crate) output: Lengths,
    /// A CSV with the columns TIMESTAMP, ContextTokens and GeneratedTokens instead, as the Azure LLM inference traces have them; its
    /// busiest stretch is played
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = "Load")]
    pub(crate) trace: Option<PathBuf>,
    /// Requests to play
    #[arg(long, value_name = "N", default_value_t = 1000, conflicts_with = "trace", help_heading = "Load")]
    pub(crate) requests: u32,
    /// What the requests are drawn from: the same seed, the same answer
    #[arg(long, value_name = "N", default_value_t = 1, conflicts_with = "trace", help_heading = "Load")]
    pub(crate) seed: u64,
    /// Within which time 95 of 100 first tokens must come, such as 2s
    #[arg(long, value_name = "TIME", value_parser = seconds, help_heading = "Promises")]
    pub(crate) ttft: f64,
    /// What 95 of 100 answers may take for each further token, such as 50ms
    #[arg(long, value_name = "TIME", value_parser = seconds, help_heading = "Promises")]
    pub(crate) tpot: Option<f64>,
    /// Devices of one replica to try, such as "RTX 4090x2"; repeat it to compare places. --device when left out
    #[arg(long, value_name = "NAME", help_heading = "Where")]
    pub(crate) on: Vec<String>,
    /// Replicas at most
    #[arg(long, value_name = "N", default_value_t = 1024, help_heading = "Where")]
    pub(crate) max_replicas: u64,
    /// Answer as JSON
    #[arg(long)]
    pub(crate) json: bool,
}
