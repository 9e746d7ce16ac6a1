//! From headers to a model: the door for GGUF files.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use plimsoll_math::engine::vllm::facts::Checkpoint;
use plimsoll_math::format::StorageFormat;
use plimsoll_math::spec::{
    Attention, Embedding, Encoder, FeedForward, Head, KvSource, Layer, LayerOperations, LmHead, Mixer, ModelSpec, MtpLayer, Norm,
    Operations, Weight,
};
use plimsoll_math::synth;
use plimsoll_math::tensor::{Component, Counts, Place, Shape, Tensor, TensorTable};
use plimsoll_math::units::Bytes;

use super::arch::{self, Repeats};
use super::hparams::Hparams;
use super::keys::Keys;
use super::layers::{Builder, LayerTensors};
use super::limits::Limits;
use super::reader::{Header, TensorInfo};
use super::value::printable;
use super::{file_type, names, operations, split};
use crate::Ingested;
use crate::error::IngestError;
use crate::source::RangeSource;

/// How to read a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options {
    /// Read an unknown architecture as a plain decoder, and say so.
    pub assume_generic: bool,
    /// Bounds on what a header may claim.
    pub limits: Limits,
}

/// The model in a GGUF file. A file of a split set is refused with the names of its siblings; see [`ingest_set`].
///
/// # Errors
/// As [`Header::read`], and [`IngestError::UnknownArchitecture`], [`IngestError::UnsupportedSource`] for files that hold
/// no language model, [`IngestError::Field`] for metadata and tensors that contradict each other.
pub fn ingest(source: &dyn RangeSource, options: &Options) -> Result<Ingested, IngestError> {
    ingest_set(source, options, |name| {
        Err(IngestError::Unavailable { what: name.to_string(), why: "one file of a split set does not do alone".to_string() })
    })
}

/// The model in a GGUF file or in the split set whose first file `source` is: `open` answers with the sibling of the
/// given file name (no folder).
///
/// # Errors
/// As [`ingest`], and whatever `open` answers, with the missing file's name.
pub fn ingest_set(
    source: &dyn RangeSource,
    options: &Options,
    open: impl FnMut(&str) -> Result<Box<dyn RangeSource>, IngestError>,
) -> Result<Ingested, IngestError> {
    let mut header = Header::read(source, &options.limits)?;
    split::join(&mut header, &source.name(), &options.limits, open)?;
    from_header(header, options)
}

/// The model that a header describes.
///
/// # Errors
/// As [`ingest`].
pub fn from_header(header: Header, options: &Options) -> Result<Ingested, IngestError> {
    let mut notes = header.notes.clone();
    // Keys were made printable as they were read, so the prefix still fits them.
    let architecture = &printable(architecture(&header)?);
    let (row, generic) = match arch::find(architecture) {
        Some(row) => (row, false),
        None if options.assume_generic => {
            notes.push(format!(
                "{} is unknown: read as a generic decoder, so every figure is a rough estimate",
                printable(architecture)
            ));
            (&arch::GENERIC, true)
        }
        None => return Err(unknown(architecture)),
    };
    let keys = Keys { header: &header, architecture };
    let mut by_place: BTreeMap<Place, LayerTensors<'_>> = BTreeMap::new();
    for tensor in &header.tensors {
        let parts = names::parts(&tensor.name);
        by_place.entry(parts.place).or_default().insert(parts.inner, tensor.shape);
    }
    let has_mtp_tensors = |layer: u64| header.tensors.iter().any(|t| t.name == format!("blk.{layer}.nextn.eh_proj.weight"));
    let hparams = Hparams::read(&keys, row, has_mtp_tensors)?;
    let builder = Builder { keys, arch: row, hparams: &hparams };
    if let Some(key) = operations::missing_key(&builder.keys) {
        notes.push(format!("llama.cpp does not load this file: key not found in model: {}.{key}", builder.keys.architecture));
    }
    let mut spec = assemble(&builder, &by_place, &mut notes)?;
    let tensors = table(&header, &spec)?;
    file_extras(&mut spec, &tensors)?;
    if header.tensors.iter().any(|tensor| names::parts(&tensor.name).inner == "ffn_down.0.weight") {
        notes.push("experts are stored one by one, as before stacks of them, which llama.cpp no longer loads".to_string());
    }
    let quantization = header
        .get("general.file_type")
        .and_then(super::Value::as_u64)
        .and_then(file_type::name)
        .filter(|name| !matches!(*name, "F32" | "F16" | "BF16"))
        .map(ToString::to_string);
    Ok(Ingested { spec, tensors, quantization, checkpoint: Checkpoint::default(), generic, notes })
}

fn architecture(header: &Header) -> Result<&str, IngestError> {
    const KEY: &str = "general.architecture";
    let wrong = |found: String| IngestError::Field { place: KEY.to_string(), found, expected: "a text".to_string() };
    let value = header.get(KEY).ok_or_else(|| wrong("nothing".to_string()))?;
    let architecture = value.as_text().ok_or_else(|| wrong(value.describe()))?;
    let kind = header.get("general.type").and_then(super::Value::as_text).unwrap_or("model");
    let what = match (architecture, kind) {
        ("clip", _) | (_, "mmproj") => "a vision or audio projector",
        (_, "adapter") => "an adapter",
        (_, "imatrix") | ("imatrix", _) => "an importance matrix",
        (_, "vocab") => "a vocabulary",
        _ if header.tensors.is_empty() => "a vocabulary or a template: it holds no tensors",
        _ => return Ok(architecture),
    };
    let instead = if architecture == super::projector::ARCHITECTURE {
        "name the model's own file, and this one as its --mmproj"
    } else {
        "use the model's own file"
    };
    Err(IngestError::UnsupportedSource {
        found: format!("a GGUF file of {}", printable(architecture)),
        why: format!("it is {what}, not a language model; {instead}"),
    })
}

fn unknown(found: &str) -> IngestError {
    let mut ranked: Vec<(usize, &str)> =
        arch::ALL.iter().map(|row| (crate::nearest::distance(found, row.name), row.name)).collect();
    ranked.sort_unstable();
    let nearest: Vec<&str> = ranked.iter().take(3).map(|(_, name)| *name).collect();
    IngestError::UnknownArchitecture {
        place: "general.architecture".to_string(),
        found: found.to_string(),
        nearest: nearest.join(", "),
    }
}

fn assemble(
    builder: &Builder<'_>,
    by_place: &BTreeMap<Place, LayerTensors<'_>>,
    notes: &mut Vec<String>,
) -> Result<ModelSpec, IngestError> {
    let Builder { keys, arch, hparams } = builder;
    let header = keys.header;
    let nothing = LayerTensors::default();
    let told = operations::of_layers(keys, hparams)?;
    let mut layers = Vec::new();
    let mut mtp = Vec::new();
    let (mut without_tensors, mut n_missing_layers) = (0_u64, 0_u32);
    let mut first_with: BTreeMap<usize, u32> = BTreeMap::new();
    for (il, index) in (0..hparams.n_layers).zip(0_u32..) {
        let physical = hparams.physical(keys, arch, il)?;
        let place = Place::Layer(u32::try_from(physical).unwrap_or(u32::MAX));
        let tensors = by_place.get(&place);
        let mut layer = builder.layer(il, tensors.unwrap_or(&nothing))?;
        layer.told =
            LayerOperations { one_matrix: layer.told.one_matrix, ..told.get(il).copied().unwrap_or(LayerOperations::NONE) };
        if let Some(first) = first_with.get(&physical) {
            layer.weights_of = Some(*first);
        } else {
            first_with.insert(physical, index);
        }
        if il < hparams.n_trunk {
            without_tensors = without_tensors.saturating_add(u64::from(tensors.is_none()));
            layers.push(layer);
        } else if tensors.is_some() {
            mtp.push(MtpLayer { layer, extra: Vec::new() });
        } else {
            n_missing_layers = n_missing_layers.saturating_add(1);
            notes.push(format!("the prediction layer {il} that the metadata count has no tensors"));
        }
    }
    let reads_another = layers.iter().zip(&hparams.kv_source);
    if reads_another.filter(|(layer, source)| source.is_some() && matches!(layer.mixer, Mixer::Mla(_))).count() > 0 {
        notes.push("layers that read the latents of another layer are counted as if they kept their own".to_string());
    }
    if without_tensors > 0 {
        notes.push(format!("{without_tensors} of {} layers have no tensors in the file", hparams.n_trunk));
    }
    if arch.repeats == Repeats::Router {
        layers.push(router_layer(hparams));
    }
    let shape = |name: &str| header.tensors.iter().find(|tensor| tensor.name == name).map(|tensor| tensor.shape);
    let norm = |name: &str| -> Option<Norm> {
        let width = shape(&format!("{name}.weight"))?.row();
        let inner = name.trim_start_matches("dec.").trim_start_matches("enc.").to_string();
        Some(Norm { name: inner, width, bias: shape(&format!("{name}.bias")).is_some() })
    };
    let rows = |name: &str| shape(name).map_or(0, |shape| shape.rows().unwrap_or(0));
    let token_embedding = shape("token_embd.weight");
    let n_vocab = rows("token_embd.weight");
    let output_rows = rows("output.weight");
    let encoder = encoder(builder, by_place, norm("enc.output_norm"))?;
    let is_encoder_decoder = encoder.is_some() && by_place.keys().any(|place| matches!(place, Place::Layer(_)));
    Ok(ModelSpec {
        name: header.get("general.name").and_then(super::Value::as_text).map(printable),
        architecture: keys.architecture.to_string(),
        llama_cpp_arch: (!arch.name.is_empty()).then(|| arch.name.to_string()),
        d_model: hparams.d_model,
        max_context: keys.or_zero("context_length")?,
        weight_dtype: most_common(&header.tensors),
        embedding: Embedding {
            n_vocab,
            d_embedding: token_embedding.map(Shape::row).filter(|width| *width != hparams.d_model),
            n_positions: rows("position_embd.weight"),
            n_token_types: rows("token_types.weight"),
            norm: norm("token_embd_norm"),
            extra: Vec::new(),
        },
        layers,
        head: Head {
            norm: if is_encoder_decoder { norm("dec.output_norm") } else { norm("output_norm") },
            lm_head: if output_rows > 0 {
                LmHead::Own { bias: shape("output.bias").is_some() }
            } else if arch.tied_head && n_vocab > 0 {
                LmHead::Tied
            } else {
                LmHead::None
            },
            n_outputs: Some(output_rows).filter(|rows| *rows > 0 && *rows != n_vocab),
            extra: Vec::new(),
        },
        encoder,
        towers: Vec::new(),
        mtp,
        mtp_is_left_out: false,
        causal: hparams.causal,
        operations: Operations { n_missing_layers, ..operations::of_model(builder)? },
    })
}

/// The router layer of a Granite switch model: one head's keys and values for every token, and no weights
/// (`granite-switch.cpp:load_arch_hparams`).
fn router_layer(hparams: &Hparams) -> Layer {
    Layer {
        mixer: Mixer::Attention(Attention {
            k_head_dim: hparams.k_head_dim,
            v_head_dim: hparams.v_head_dim,
            ..Attention::new(1, 1, hparams.k_head_dim)
        }),
        cross_attention: None,
        feed_forward: FeedForward::None,
        norms: Vec::new(),
        extra: Vec::new(),
        hash_history: 0,
        told: LayerOperations::NONE,
        // No weights of its own: nothing is counted for it.
        weights_of: Some(0),
    }
}

fn encoder(
    builder: &Builder<'_>,
    by_place: &BTreeMap<Place, LayerTensors<'_>>,
    norm: Option<Norm>,
) -> Result<Option<Encoder>, IngestError> {
    let mut layers = Vec::new();
    for (place, tensors) in by_place {
        if let Place::EncoderLayer(index) = place {
            let index = usize::try_from(*index).unwrap_or(usize::MAX).min(builder.hparams.n_layers.saturating_sub(1));
            let mut layer = builder.layer(index, tensors)?;
            if let Mixer::Attention(attention) = &mut layer.mixer {
                attention.bidirectional = true;
                attention.kv_source = KvSource::NotCached;
            }
            layers.push(layer);
        }
    }
    if layers.is_empty() {
        return Ok(None);
    }
    Ok(Some(Encoder { d_model: builder.hparams.d_model, layers, norm, extra: Vec::new() }))
}

/// The format that most bytes are stored in.
fn most_common(tensors: &[TensorInfo]) -> StorageFormat {
    let mut bytes: BTreeMap<StorageFormat, u64> = BTreeMap::new();
    for tensor in tensors {
        if let (Some(format), Some(size)) = (tensor.format, tensor.bytes) {
            let sum = bytes.entry(format).or_default();
            *sum = sum.saturating_add(size);
        }
    }
    bytes.iter().max_by_key(|(_, size)| **size).map_or(StorageFormat::F32, |(format, _)| *format)
}

fn table(header: &Header, spec: &ModelSpec) -> Result<TensorTable, IngestError> {
    let nvfp4: BTreeSet<&str> = header
        .tensors
        .iter()
        .filter(|tensor| tensor.format == Some(StorageFormat::Nvfp4))
        .filter_map(|tensor| tensor.name.strip_suffix(".weight"))
        .collect();
    let mut tensors = Vec::with_capacity(header.tensors.len());
    for info in &header.tensors {
        let parts = names::parts(&info.name);
        let is_scale = info.name.strip_suffix(".scale").is_some_and(|stem| nvfp4.contains(stem));
        let counts = counts(names::counts(parts), is_scale, parts, spec);
        tensors.push(Tensor { component: component(parts, spec), place: parts.place, counts, ..tensor(info)? });
    }
    Ok(TensorTable { tensors })
}

/// A tensor of a tower as the file stores it.
fn tensor(info: &TensorInfo) -> Result<Tensor, IngestError> {
    let opaque_bytes = match info.format {
        Some(_) => None,
        None => Some(Bytes::new(info.bytes.unwrap_or(0))?),
    };
    Ok(Tensor {
        name: info.name.clone(),
        shape: info.shape,
        format: info.format.unwrap_or(StorageFormat::U8),
        component: Component::VisionAudio,
        place: Place::Tower,
        counts: Counts::Parameter,
        opaque_bytes,
    })
}

/// The tensors of a file of towers.
pub(super) fn plain_table(header: &Header) -> Result<TensorTable, IngestError> {
    Ok(TensorTable { tensors: header.tensors.iter().map(tensor).collect::<Result<_, _>>()? })
}

/// The part of the model a tensor belongs to: as its name says, unless its layer says otherwise.
fn component(parts: names::Parts<'_>, spec: &ModelSpec) -> Component {
    let by_name = names::component(parts);
    let Place::Layer(index) = parts.place else { return by_name };
    let Some(layer) = usize::try_from(index).ok().and_then(|index| spec.layers.get(index)) else { return by_name };
    // Linear attention has projections named like those of softmax attention, and a norm of its own output.
    let is_linear = matches!(layer.mixer, Mixer::GatedDeltaNet(_) | Mixer::KimiDelta(_) | Mixer::LightningAttention(_));
    let is_output_norm = matches!(layer.mixer, Mixer::LightningAttention(_)) && parts.inner.starts_with("attn_norm_2");
    match (by_name, &layer.feed_forward) {
        (Component::Attention, _) if is_linear => Component::SsmLinear,
        (Component::Norms, _) if is_output_norm => Component::SsmLinear,
        (Component::SharedExperts, FeedForward::Moe(moe)) => moe.shared_component,
        _ => by_name,
    }
}

fn counts(by_name: Counts, is_scale: bool, parts: names::Parts<'_>, spec: &ModelSpec) -> Counts {
    let Place::Layer(index) = parts.place else { return if is_scale { Counts::Buffer } else { by_name } };
    let index = usize::try_from(index).unwrap_or(usize::MAX);
    if index >= spec.layers.len() && index < spec.layers.len().saturating_add(spec.mtp.len()) {
        return Counts::MultiTokenPrediction;
    }
    let reads_another = spec.layers.get(index).is_some_and(|layer| match &layer.mixer {
        Mixer::Attention(attention) => matches!(attention.kv_source, KvSource::Layer { .. }),
        _ => false,
    });
    let of_keys = ["attn_k.", "attn_v.", "attn_k_norm."].iter().any(|prefix| parts.inner.starts_with(prefix));
    if is_scale {
        Counts::Buffer
    } else if reads_another && of_keys {
        Counts::Unused
    } else {
        by_name
    }
}

/// Hands every tensor that no mechanism's fields describe to the place it sits in.
fn file_extras(spec: &mut ModelSpec, table: &TensorTable) -> Result<(), IngestError> {
    let described: BTreeSet<String> = synth::tensor_table(spec)?.tensors.into_iter().map(|tensor| tensor.name).collect();
    let n_trunk = spec.layers.len();
    for tensor in &table.tensors {
        if described.contains(&tensor.name) {
            continue;
        }
        let parts = names::parts(&tensor.name);
        let name = parts.inner.to_string();
        let weight = Weight { name, shape: tensor.shape, component: tensor.component, counts: tensor.counts };
        let at = |index: u32| usize::try_from(index).unwrap_or(usize::MAX);
        let extras = match tensor.place {
            Place::Layer(index) => match at(index).checked_sub(n_trunk) {
                None => spec.layers.get_mut(at(index)).map(|layer| &mut layer.extra),
                Some(index) => spec.mtp.get_mut(index).map(|layer| &mut layer.extra),
            },
            Place::EncoderLayer(index) => {
                spec.encoder.as_mut().and_then(|encoder| encoder.layers.get_mut(at(index))).map(|layer| &mut layer.extra)
            }
            Place::Input => Some(&mut spec.embedding.extra),
            _ => Some(&mut spec.head.extra),
        };
        if let Some(extras) = extras {
            extras.push(weight);
        } else {
            // A layer beyond those that the metadata count: kept, so that nothing is lost from the sums.
            spec.head.extra.push(Weight { name: tensor.name.clone(), component: Component::Other, ..weight });
        }
    }
    Ok(())
}
