//! Two deployments of one model, two models, two engines: term by term, with what separates them.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use plimsoll_math::allocation::{Term, TermKind};
use plimsoll_math::units::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::PlanError;
use crate::fit::fit;
use crate::model::Model;
use crate::request::Options;
use crate::response::Fit;
use crate::speed::Rate;

/// Schema name of [`Compare`].
pub const COMPARE_SCHEMA: &str = "plimsoll.compare/1";

/// One component on the devices or on the host, on both sides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TermPair {
    /// `devices` or `host`.
    pub place: String,
    /// The component.
    pub component: TermKind,
    /// Bytes of the first.
    pub a: Bytes,
    /// Bytes of the second.
    pub b: Bytes,
    /// How many bytes more the second takes; negative for fewer.
    pub difference: i64,
    /// Formulas of the first, one for each term.
    pub a_formulas: Vec<String>,
    /// Formulas of the second.
    pub b_formulas: Vec<String>,
}

/// A value that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// Where in the answer of `fit`: `model.quantization`, `deployment.context`, `engine.name`.
    pub field: String,
    /// On the first side.
    pub a: Value,
    /// On the second side.
    pub b: Value,
}

/// A speed on both sides, where both are modelled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RatePair {
    /// Which speed, as `throughput` of `fit` names it.
    pub metric: String,
    /// Of the first.
    pub a: Option<Rate>,
    /// Of the second.
    pub b: Option<Rate>,
}

/// Answer of `compare`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compare {
    /// [`COMPARE_SCHEMA`].
    pub schema: String,
    /// What differs between the questions.
    pub differences: Vec<Difference>,
    /// Term by term.
    pub terms: Vec<TermPair>,
    /// Upper bounds of all devices on the first side.
    pub devices_a: Bytes,
    /// The same of the second side.
    pub devices_b: Bytes,
    /// How many bytes more the second side takes on devices.
    pub devices_difference: i64,
    /// Upper bounds of the host on the first side.
    pub host_a: Bytes,
    /// The same of the second side.
    pub host_b: Bytes,
    /// How many bytes more the second side takes on the host.
    pub host_difference: i64,
    /// Speeds.
    pub speed: Vec<RatePair>,
    /// The first side's answer in full.
    pub a: Fit,
    /// The second side's.
    pub b: Fit,
}

/// Bytes of `b` beyond `a`. Both are at most 2^53 - 1.
fn beyond(a: Bytes, b: Bytes) -> i64 {
    let signed = |bytes: Bytes| i64::try_from(bytes.get()).unwrap_or(i64::MAX);
    signed(b).saturating_sub(signed(a))
}

#[derive(Default)]
struct Sum {
    bytes: [u64; 2],
    formulas: [Vec<String>; 2],
}

fn gather<'t>(sums: &mut BTreeMap<TermKind, Sum>, side: usize, terms: impl Iterator<Item = &'t Term>) {
    for term in terms {
        let sum = sums.entry(term.component).or_default();
        if let (Some(bytes), Some(formulas)) = (sum.bytes.get_mut(side), sum.formulas.get_mut(side)) {
            *bytes = bytes.saturating_add(term.bytes.get());
            if !formulas.contains(&term.formula) {
                formulas.push(term.formula.clone());
            }
        }
    }
}

fn pairs(place: &str, sums: BTreeMap<TermKind, Sum>) -> Result<Vec<TermPair>, PlanError> {
    sums.into_iter()
        .map(|(component, Sum { bytes: [a, b], formulas: [a_formulas, b_formulas] })| {
            let (a, b) = (Bytes::new(a)?, Bytes::new(b)?);
            Ok(TermPair { place: place.to_string(), component, a, b, difference: beyond(a, b), a_formulas, b_formulas })
        })
        .collect()
}

/// The fields of both sides' model, engine and deployment that are not alike.
fn differences(a: &Fit, b: &Fit) -> Vec<Difference> {
    let mut out = Vec::new();
    let value = |part: Result<Value, serde_json::Error>| part.unwrap_or(Value::Null);
    for (part, left, right) in [
        ("model", value(serde_json::to_value(&a.model)), value(serde_json::to_value(&b.model))),
        ("engine", value(serde_json::to_value(&a.engine)), value(serde_json::to_value(&b.engine))),
        ("deployment", value(serde_json::to_value(&a.deployment)), value(serde_json::to_value(&b.deployment))),
    ] {
        walk(part.to_string(), &left, &right, &mut out);
    }
    out
}

fn walk(path: String, a: &Value, b: &Value, out: &mut Vec<Difference>) {
    if a == b {
        return;
    }
    let (Value::Object(left), Value::Object(right)) = (a, b) else {
        out.push(Difference { field: path, a: a.clone(), b: b.clone() });
        return;
    };
    let mut keys: Vec<&String> = left.keys().collect();
    keys.extend(right.keys().filter(|key| !left.contains_key(*key)));
    for key in keys {
        let side = |map: &serde_json::Map<String, Value>| map.get(key).cloned().unwrap_or(Value::Null);
        walk(format!("{path}.{key}"), &side(left), &side(right), out);
    }
}

fn speeds(a: &Fit, b: &Fit) -> Vec<RatePair> {
    let rates = |fit: &Fit| fit.throughput.as_ref().map(crate::speed::Throughput::rates);
    let (left, right) = (rates(a), rates(b));
    let Some(names) = left.as_ref().or(right.as_ref()) else { return Vec::new() };
    let names: Vec<&'static str> = names.iter().map(|(name, _)| *name).collect();
    let of = |rates: &Option<Vec<(&'static str, Rate)>>, name: &str| -> Option<Rate> {
        rates.as_ref()?.iter().find(|(other, _)| *other == name).map(|(_, rate)| *rate)
    };
    names.into_iter().map(|name| RatePair { metric: name.to_string(), a: of(&left, name), b: of(&right, name) }).collect()
}

/// Compares what two questions take.
///
/// # Errors
/// As [`fit`], of either side.
pub fn compare(a: (&Model, &Options), b: (&Model, &Options)) -> Result<Compare, PlanError> {
    let (a, b) = (fit(a.0, a.1)?, fit(b.0, b.1)?);
    let (mut on_devices, mut on_host) = (BTreeMap::new(), BTreeMap::new());
    let used = |fit: &Fit| Bytes::sum(fit.devices.iter().map(|device| device.used));
    for (side, fit) in [&a, &b].into_iter().enumerate() {
        gather(&mut on_devices, side, fit.devices.iter().flat_map(|device| &device.terms));
        gather(&mut on_host, side, fit.host.terms.iter());
    }
    let mut terms = pairs("devices", on_devices)?;
    terms.extend(pairs("host", on_host)?);
    let (devices_a, devices_b) = (used(&a)?, used(&b)?);
    let (host_a, host_b) = (a.host.used, b.host.used);
    Ok(Compare {
        schema: COMPARE_SCHEMA.to_string(),
        differences: differences(&a, &b),
        terms,
        devices_a,
        devices_b,
        devices_difference: beyond(devices_a, devices_b),
        host_a,
        host_b,
        host_difference: beyond(host_a, host_b),
        speed: speeds(&a, &b),
        a,
        b,
    })
}
