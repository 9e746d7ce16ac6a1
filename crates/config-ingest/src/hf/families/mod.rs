//! The families: which names belong to which row, and what a row says.
//!
//! A family is a [`Family`] row in one of the tables below. To add one: a file with a `FAMILIES` table, and a line
//! in `TABLES`.

// Attention in every layer.
pub mod asia;
pub mod cohere;
pub mod gemma;
pub mod glm;
pub mod gpt;
pub mod granite;
pub mod llama;
pub mod moe;
pub mod olmo;
pub mod phi;
pub mod qwen;
pub mod rare;

// State spaces, linear attention, latent attention.
pub mod deepseek_vl;
pub mod latent;
pub mod linear;
pub mod mamba;
pub mod nemotron;
pub mod newest;
pub mod rwkv;
pub mod sparse;

// Encoders, encoder-decoders, towers.
pub mod bert;
pub mod bert_kin;
pub mod gemma3;
pub mod modernbert;
pub mod multimodal;
pub mod omni;
pub mod seamless;
pub mod seq2seq;
pub mod t5_kin;

use plimsoll_math::spec::ModelSpec;

use super::reader::Reader;
use crate::error::IngestError;

/// One row: the names that select it, the values of keys that a config leaves out, and the recipe.
#[derive(Debug)]
pub struct Family {
    /// Values of `model_type`; the first is the family's name.
    pub model_types: &'static [&'static str],
    /// Class names in `architectures`.
    pub architectures: &'static [&'static str],
    /// The architecture's name in llama.cpp, where its converter knows the family.
    pub llama_cpp: Option<&'static str>,
    /// Whether the language model sits in a nested object.
    pub is_wrapper: bool,
    /// A JSON object with the values of keys that a config leaves out; empty for none. They are those of the
    /// family's configuration class in transformers 5.23.0, or of the published modeling code where that has none.
    pub defaults: &'static str,
    /// The recipe.
    pub build: fn(&Reader<'_>) -> Result<ModelSpec, IngestError>,
}

impl Family {
    /// A row for a family whose config is that of the language model itself.
    const fn new(
        model_types: &'static [&'static str],
        architectures: &'static [&'static str],
        llama_cpp: Option<&'static str>,
        defaults: &'static str,
        build: fn(&Reader<'_>) -> Result<ModelSpec, IngestError>,
    ) -> Self {
        Self { model_types, architectures, llama_cpp, is_wrapper: false, defaults, build }
    }
    /// The family's name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.model_types.first().or(self.architectures.first()).copied().unwrap_or_default()
    }
}

/// Every table.
const TABLES: &[&[Family]] = &[
    // Attention in every layer.
    asia::FAMILIES,
    cohere::FAMILIES,
    gemma::FAMILIES,
    glm::FAMILIES,
    gpt::FAMILIES,
    granite::FAMILIES,
    llama::FAMILIES,
    moe::FAMILIES,
    olmo::FAMILIES,
    phi::FAMILIES,
    qwen::FAMILIES,
    rare::FAMILIES,
    // State spaces, linear attention, latent attention.
    mamba::FAMILIES,
    nemotron::FAMILIES,
    deepseek_vl::FAMILIES,
    latent::FAMILIES,
    linear::FAMILIES,
    newest::FAMILIES,
    rwkv::FAMILIES,
    sparse::FAMILIES,
    // Encoders, encoder-decoders, towers.
    bert::FAMILIES,
    bert_kin::FAMILIES,
    gemma3::FAMILIES,
    modernbert::FAMILIES,
    seamless::FAMILIES,
    seq2seq::FAMILIES,
    t5_kin::FAMILIES,
    multimodal::FAMILIES,
    omni::FAMILIES,
];

/// Every row.
pub fn all() -> impl Iterator<Item = &'static Family> {
    TABLES.iter().flat_map(|table| table.iter())
}

#[cfg(test)]
mod tests {
    use alloc::collections::BTreeSet;

    /// Two rows for one name would let the order of the tables decide which of them is read.
    #[test]
    fn no_model_type_stands_in_two_rows() {
        let mut seen = BTreeSet::new();
        for name in super::all().flat_map(|family| family.model_types) {
            assert!(seen.insert(name), "{name} stands in two rows");
        }
    }
}
