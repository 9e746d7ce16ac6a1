//! The settings that every model is asked for.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::install::hash;
use super::places::{Placed, Where};

/// One setting. `None` is the engine's own choice.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Setting {
    pub(crate) context: u64,
    pub(crate) sequences: u64,
    pub(crate) unified: bool,
    pub(crate) swa_full: bool,
    pub(crate) ubatch: u64,
    pub(crate) keys: &'static str,
    pub(crate) values: &'static str,
    pub(crate) flash: &'static str,
    pub(crate) repack: bool,
    pub(crate) placed: Placed,
}

impl Setting {
    /// The engine's defaults for one sequence.
    pub(crate) fn plain() -> Self {
        Self {
            context: 4096,
            sequences: 1,
            unified: false,
            swa_full: false,
            ubatch: 512,
            keys: "f16",
            values: "f16",
            flash: "auto",
            repack: true,
            placed: Placed::default(),
        }
    }

    /// As the checker reads it.
    pub(crate) fn line(&self) -> String {
        let mut out = String::new();
        let Self { context, sequences, unified, swa_full, ubatch, keys, values, flash, repack, placed } = self;
        let _ = write!(out, "context={context}\tsequences={sequences}\tunified={unified}\tswa_full={swa_full}\tubatch={ubatch}");
        let _ = write!(out, "\tkey_type={keys}\tvalue_type={values}\tflash={flash}\trepack={repack}");
        out.push_str(&placed.line());
        out
    }

    /// As the fixtures keep it.
    pub(crate) fn params(&self) -> Value {
        let mut params = json!({
            "n_ctx": self.context, "parallel": self.sequences, "kv_unified": self.unified, "swa_full": self.swa_full,
            "n_ubatch": self.ubatch, "type_k": self.keys, "type_v": self.values, "fa": self.flash, "extra_bufts": self.repack,
        });
        if let Value::Object(params) = &mut params {
            self.placed.add_params(params);
        }
        params
    }

    /// As the fixtures keep it, read again.
    pub(crate) fn from_params(params: &Value) -> Option<Self> {
        let number = |key: &str| params.get(key).and_then(Value::as_u64);
        let flag = |key: &str| params.get(key).and_then(Value::as_bool);
        let word = |key: &str, known: &[&'static str]| {
            let word = params.get(key).and_then(Value::as_str)?;
            known.iter().copied().find(|known| *known == word)
        };
        let formats = CACHES.map(|(keys, ..)| keys);
        Some(Self {
            context: number("n_ctx")?,
            sequences: number("parallel")?,
            unified: flag("kv_unified")?,
            swa_full: flag("swa_full")?,
            ubatch: number("n_ubatch")?,
            keys: word("type_k", &formats)?,
            values: word("type_v", &formats)?,
            flash: word("fa", &["on", "off", "auto"])?,
            repack: flag("extra_bufts")?,
            placed: Placed::from_params(params)?,
        })
    }

    /// As people read it.
    pub(crate) fn short(&self) -> String {
        let mut out = format!("-c {} -np {} -ub {} -fa {}", self.context, self.sequences, self.ubatch, self.flash);
        if (self.keys, self.values) != ("f16", "f16") {
            let _ = write!(out, " -ctk {} -ctv {}", self.keys, self.values);
        }
        for (set, option) in [(self.unified, " -kvu"), (self.swa_full, " --swa-full"), (!self.repack, " --no-repack")] {
            if set {
                out.push_str(option);
            }
        }
        out.push_str(&self.placed.short());
        out
    }
}

const CONTEXTS: [u64; 5] = [4096, 32_768, 1000, 131_072, 5000];
const SEQUENCES: [(u64, bool); 5] = [(1, false), (4, true), (4, false), (3, false), (16, true)];
const UBATCHES: [u64; 4] = [512, 64, 700, 2048];
const CACHES: [(&str, &str, &str); 8] = [
    ("f16", "f16", "auto"),
    ("f16", "f16", "off"),
    ("q8_0", "q8_0", "on"),
    ("f16", "f16", "on"),
    ("q4_0", "q4_0", "auto"),
    ("q8_0", "f16", "off"),
    ("bf16", "bf16", "on"),
    ("f32", "f32", "auto"),
];

fn nth<T: Copy>(all: &[T], index: u64) -> Option<T> {
    let len = u64::try_from(all.len()).ok()?;
    all.get(usize::try_from(index % len).ok()?).copied()
}

/// `count` settings for a model in a place: the engine's defaults, the server's defaults, and a part of the whole grid that is
/// another for each model and place and the same in every run.
pub(crate) fn settings(model: &str, place: Where, count: usize) -> Vec<Setting> {
    let plain = Setting::plain();
    let mut all = match place {
        Where::Processor | Where::Cuda(_) | Where::Two(_) => {
            vec![plain.clone(), Setting { context: 16_384, sequences: 4, unified: true, ..plain }]
        }
        Where::Partial(_) => Vec::new(),
    };
    let mut draw = 0_u64;
    while all.len() < count && draw < 1000 {
        let text = format!("{model} {draw}");
        let seed = hash(text.as_bytes());
        draw += 1;
        let parts = (nth(&CONTEXTS, seed), nth(&SEQUENCES, seed >> 8), nth(&UBATCHES, seed >> 16), nth(&CACHES, seed >> 24));
        let (Some(context), Some((sequences, unified)), Some(ubatch), Some((keys, values, flash))) = parts else { continue };
        let (swa_full, repack) = (seed >> 32 & 3 == 0, seed >> 34 & 3 != 0);
        let placed = Placed::drawn(&text, place);
        let setting = Setting { context, sequences, unified, swa_full, ubatch, keys, values, flash, repack, placed };
        if !all.contains(&setting) {
            all.push(setting);
        }
    }
    all.truncate(count);
    all
}
