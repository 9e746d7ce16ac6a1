//! `quantization` of an MLX `config.json`.
//!
//! A quantized matrix is three tensors (mlx `nn/layers/quantized.py`): 32-bit words that hold the values, one scale per
//! group, and in affine mode one bias per group. Scales and biases have the number type of the original weights; the
//! microscaling modes have one-byte scales and no biases.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use plimsoll_math::error::MathError;
use plimsoll_math::units::{add, mul};
use serde_json::{Map, Value};

use crate::error::IngestError;

/// How a group's values are coded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[non_exhaustive]
pub enum Mode {
    /// Whole numbers with a scale and a bias per group.
    #[default]
    Affine,
    /// 4-bit floats with one power-of-two scale byte per 32.
    Mxfp4,
    /// 8-bit floats with one power-of-two scale byte per 32.
    Mxfp8,
    /// 4-bit floats with one fp8 scale per 16.
    Nvfp4,
}

impl Mode {
    /// Every mode.
    pub const ALL: &'static [Self] = &[Self::Affine, Self::Mxfp4, Self::Mxfp8, Self::Nvfp4];

    /// As the config spells it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Affine => "affine",
            Self::Mxfp4 => "mxfp4",
            Self::Mxfp8 => "mxfp8",
            Self::Nvfp4 => "nvfp4",
        }
    }

    /// Group size and bits when the config leaves them out (mlx `mlx/ops.cpp`, `quantization_params_from_mode`).
    const fn defaults(self) -> (u64, u64) {
        match self {
            Self::Affine => (64, 4),
            Self::Mxfp4 => (32, 4),
            Self::Mxfp8 => (32, 8),
            Self::Nvfp4 => (16, 4),
        }
    }
}

/// How one matrix is quantized.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Group {
    /// Values that share a scale.
    pub group_size: u64,
    /// Bits of a value.
    pub bits: u64,
    /// How they are coded.
    pub mode: Mode,
}

impl Group {
    /// Bytes of a row of `n_in` values: words, scales and biases. `None` when the row is no whole number of groups, in
    /// which case MLX leaves the matrix as it is.
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn row_bytes(&self, n_in: u64, original_bytes: u64) -> Result<Option<u64>, MathError> {
        if n_in == 0 || !n_in.is_multiple_of(self.group_size) {
            return Ok(None);
        }
        let groups = n_in / self.group_size;
        let words = mul(n_in, self.bits)? / 8;
        let scales = match self.mode {
            Mode::Affine => mul(mul(groups, 2)?, original_bytes)?,
            Mode::Mxfp4 | Mode::Mxfp8 | Mode::Nvfp4 => groups,
        };
        Ok(Some(add(words, scales)?))
    }

    fn parse(map: &Map<String, Value>, place: &str, default: Option<Self>) -> Result<Self, IngestError> {
        let wrong = |key: &str, found: &Value, expected: &str| IngestError::Field {
            place: format!("{place}.{key}"),
            found: super::super::safetensors::shown(&found.to_string()),
            expected: expected.to_owned(),
        };
        let mode = match map.get("mode") {
            None | Some(Value::Null) => default.map_or(Mode::Affine, |group| group.mode),
            Some(value) => value
                .as_str()
                .and_then(|name| Mode::ALL.iter().copied().find(|mode| mode.name() == name))
                .ok_or_else(|| wrong("mode", value, "affine, mxfp4, mxfp8 or nvfp4"))?,
        };
        let (usual_group, usual_bits) = match default.filter(|group| group.mode == mode) {
            Some(group) => (group.group_size, group.bits),
            None => mode.defaults(),
        };
        let one_of = |key: &str, usual: u64, allowed: &[u64], expected: &str| match map.get(key) {
            None | Some(Value::Null) => Ok(usual),
            Some(value) => value.as_u64().filter(|number| allowed.contains(number)).ok_or_else(|| wrong(key, value, expected)),
        };
        let group_size = one_of("group_size", usual_group, &[16, 32, 64, 128], "16, 32, 64 or 128")?;
        let bits = one_of("bits", usual_bits, &[2, 3, 4, 5, 6, 8], "2, 3, 4, 5, 6 or 8")?;
        Ok(Self { group_size, bits, mode })
    }
}

impl core::fmt::Display for Group {
    fn fmt(&self, formatter: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self.mode {
            Mode::Affine => write!(formatter, "{}-bit, groups of {}", self.bits, self.group_size),
            mode => formatter.write_str(mode.name()),
        }
    }
}

/// The whole `quantization` object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quantization {
    /// For every module that has no entry of its own.
    pub default: Group,
    /// Modules by path (`model.layers.3.mlp.gate`), sorted; `None` for one that is left as it is.
    pub modules: Vec<(String, Option<Group>)>,
}

impl Quantization {
    /// Reads `quantization` of a config; `Ok(None)` when it has none of MLX's kind.
    ///
    /// # Errors
    /// [`IngestError::Field`].
    pub fn from_config(config: &Value) -> Result<Option<Self>, IngestError> {
        // Newer files repeat the object as quantization_config, where other formats state theirs with a quant_method.
        let found = ["quantization", "quantization_config"].iter().find_map(|key| match config.get(key) {
            Some(Value::Object(map))
                if map.contains_key("group_size") && map.contains_key("bits") && !map.contains_key("quant_method") =>
            {
                Some((map, format!("$.{key}")))
            }
            Some(Value::Object(map)) if map.contains_key("mode") && !map.contains_key("quant_method") => {
                Some((map, format!("$.{key}")))
            }
            _ => None,
        });
        let Some((map, place)) = found else { return Ok(None) };
        let default = Group::parse(map, &place, None)?;
        let mut modules = Vec::new();
        for (path, value) in map {
            match value {
                Value::Object(own) => {
                    modules.push((path.clone(), Some(Group::parse(own, &format!("{place}[{path}]"), Some(default))?)))
                }
                Value::Bool(false) => modules.push((path.clone(), None)),
                Value::Bool(true) => modules.push((path.clone(), Some(default))),
                _ => {}
            }
        }
        modules.sort_by(|(a, _), (b, _)| a.cmp(b));
        Ok(Some(Self { default, modules }))
    }

    /// How the module with this path is quantized; `None` when the config leaves it as it is.
    #[must_use]
    pub fn of_module(&self, path: &str) -> Option<Group> {
        match self.modules.binary_search_by(|(module, _)| module.as_str().cmp(path)) {
            Ok(position) => self.modules.get(position).and_then(|(_, group)| *group),
            Err(_) => Some(self.default),
        }
    }

    /// A short description.
    #[must_use]
    pub fn describe(&self) -> String {
        match self.modules.len() {
            0 => format!("mlx {}", self.default),
            others => format!("mlx {}, {others} modules of their own", self.default).to_string(),
        }
    }
}
