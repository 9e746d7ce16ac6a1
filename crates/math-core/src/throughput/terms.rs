//! Terms of a step's time, and the names of the coefficients that scale them.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use super::coefficients::{KEYS, VALUES};

/// How a term joins the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// Overlaps with the others of this group: the square root of the sum of squares.
    Overlapped,
    /// Adds up.
    Added,
}

/// One term: the time physics asks for, and what scales it.
#[derive(Debug, Clone)]
pub struct Term {
    /// How it joins the others.
    pub group: Group,
    /// Seconds at perfect efficiency.
    pub base: f64,
    /// Keys of the coefficients.
    pub keys: Vec<u32>,
}

/// Names by key, kept while calibrating.
pub type Recorder = BTreeMap<u32, String>;

/// The terms of one prediction.
#[derive(Debug, Default)]
pub struct Built<'a> {
    /// The terms.
    pub terms: Vec<Term>,
    /// Coefficients that scale all of them.
    pub common: Vec<u32>,
    recorder: Option<&'a mut Recorder>,
}

/// FNV-1a over the parts with a slash between them.
fn key(parts: &[&str]) -> u32 {
    let mut hash: u32 = 0x811c_9dc5;
    for (index, part) in parts.iter().enumerate() {
        if index > 0 {
            hash = (hash ^ 0x2f).wrapping_mul(0x0100_0193);
        }
        for byte in part.bytes() {
            hash = (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
        }
    }
    hash
}

/// The level of a coefficient: what stands second in its name (`backend`, `arch`, `device` …), nothing for a top one.
#[must_use]
pub fn level_of(name: &str) -> &str {
    name.split('/').nth(1).unwrap_or("")
}

impl<'a> Built<'a> {
    pub(super) fn new(recorder: Option<&'a mut Recorder>) -> Self {
        Self { terms: Vec::new(), common: Vec::new(), recorder }
    }

    fn note(&mut self, parts: &[&str]) -> u32 {
        let key = key(parts);
        if let Some(recorder) = self.recorder.as_deref_mut() {
            recorder.entry(key).or_insert_with(|| parts.join("/"));
        }
        key
    }

    /// A term with its coefficients: `name` itself, then one per level.
    pub(super) fn add(&mut self, group: Group, name: &str, base: f64, levels: &[&[&str]]) {
        if !(base > 0.0 && base.is_finite()) {
            return;
        }
        let mut keys = Vec::with_capacity(levels.len() + 1);
        keys.push(self.note(&[name]));
        for level in levels {
            let mut parts = Vec::with_capacity(level.len() + 1);
            parts.push(name);
            parts.extend_from_slice(level);
            keys.push(self.note(&parts));
        }
        self.terms.push(Term { group, base, keys });
    }

    /// A coefficient of the whole step.
    pub(super) fn scale(&mut self, parts: &[&str]) {
        let key = self.note(parts);
        self.common.push(key);
    }
}

fn coefficient(key: u32) -> f64 {
    let place = KEYS.binary_search(&key).ok();
    place.and_then(|place| VALUES.get(place)).map_or(0.0, |thousandths| f64::from(*thousandths) / 1000.0)
}

/// Seconds of each term and of all, with coefficients from `lookup`.
pub fn share_of(built: &Built<'_>, lookup: impl Fn(u32) -> f64) -> (Vec<f64>, f64) {
    let common: f64 = built.common.iter().map(|key| lookup(*key)).sum();
    let each: Vec<f64> = built
        .terms
        .iter()
        .map(|term| {
            let exponent: f64 = common + term.keys.iter().map(|key| lookup(*key)).sum::<f64>();
            term.base * libm::exp(exponent.clamp(-8.0, 8.0))
        })
        .collect();
    let (mut squares, mut sum) = (0.0, 0.0);
    for (term, seconds) in built.terms.iter().zip(&each) {
        match term.group {
            Group::Overlapped => squares += seconds * seconds,
            Group::Added => sum += seconds,
        }
    }
    (each, libm::sqrt(squares) + sum)
}

/// Seconds that the terms take, by the calibrated table.
#[must_use]
pub fn seconds(built: &Built<'_>) -> f64 {
    share_of(built, coefficient).1
}
