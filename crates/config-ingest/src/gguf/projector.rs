//! Files of multimodal projectors (`general.architecture` is `clip`): towers for images and sound, and their tensors.

use alloc::format;
use alloc::string::ToString;
use alloc::vec::Vec;

use plimsoll_math::projector::{Activation, Modality, Projector, ProjectorTower};

use super::door::{Options, plain_table};
use super::keys::Keys;
use super::reader::Header;
use super::value::{Value, printable};
use crate::error::IngestError;
use crate::source::RangeSource;

/// What projector files call their architecture.
pub(super) const ARCHITECTURE: &str = "clip";

/// The projector in a GGUF file.
///
/// # Errors
/// As [`Header::read`], [`IngestError::UnsupportedSource`] for files of anything else, [`IngestError::Field`] for metadata
/// that a tower lacks.
pub fn ingest_projector(source: &dyn RangeSource, options: &Options) -> Result<Projector, IngestError> {
    projector_from_header(&Header::read(source, &options.limits)?)
}

/// The projector that a header describes.
///
/// # Errors
/// As [`ingest_projector`].
pub fn projector_from_header(header: &Header) -> Result<Projector, IngestError> {
    let architecture = header.get("general.architecture").and_then(Value::as_text).unwrap_or("");
    if architecture != ARCHITECTURE {
        return Err(IngestError::UnsupportedSource {
            found: format!("a GGUF file of {}", printable(architecture)),
            why: "it is no multimodal projector, whose architecture is clip (converters write them as mmproj-*.gguf)".to_string(),
        });
    }
    let keys = Keys { header, architecture: ARCHITECTURE };
    let mut towers = Vec::new();
    // In the engine's order (`tools/mtmd/clip.cpp:clip_init`).
    for (modality, switch, section) in [
        (Modality::Vision, "has_vision_encoder", "vision"),
        (Modality::Audio, "has_audio_encoder", "audio"),
        (Modality::Speech, "has_gen_audio_encoder", "gen.audio"),
    ] {
        if keys.bool(switch)? == Some(true) {
            towers.push(tower(&keys, modality, section)?);
        }
    }
    if towers.is_empty() {
        return Err(IngestError::Field {
            place: "clip.has_vision_encoder".to_string(),
            found: "no tower: neither this nor clip.has_audio_encoder is true".to_string(),
            expected: "a projector with a tower for images or sound".to_string(),
        });
    }
    Ok(Projector {
        name: header.get("general.name").and_then(Value::as_text).map(printable),
        towers,
        tensors: plain_table(header)?,
    })
}

/// The kind of a tower: one word for the file, or one for each tower (`clip.cpp:load_hparams`).
fn kind<'a>(keys: &Keys<'a>, section: &str) -> Result<&'a str, IngestError> {
    let text = |name: &str| keys.text(name).filter(|text| !text.is_empty());
    text("projector_type").or_else(|| text(&format!("{section}.projector_type"))).ok_or_else(|| IngestError::Field {
        place: format!("clip.{section}.projector_type"),
        found: "nothing".to_string(),
        expected: "the kind of projector".to_string(),
    })
}

fn tower(keys: &Keys<'_>, modality: Modality, section: &str) -> Result<ProjectorTower, IngestError> {
    let own = |name: &str| format!("{section}.{name}");
    let number = |name: &str| keys.u64(&own(name));
    let must = |name: &str| keys.must(&own(name));
    let seen = |name: &str| if modality == Modality::Vision { keys.must(&own(name)) } else { Ok(0) };
    let (gelu, silu) = (keys.bool("use_gelu")? == Some(true), keys.bool("use_silu")? == Some(true));
    Ok(ProjectorTower {
        modality,
        kind: printable(kind(keys, section)?),
        width: must("embedding_length")?,
        heads: must("attention.head_count")?,
        kv_heads: number("attention.head_count_kv")?,
        head_width: number("attention.head_dim")?.filter(|width| *width > 0),
        feed_forward: must("feed_forward_length")?,
        layers: must("block_count")?,
        output: must("projection_dim")?,
        activation: match (gelu, silu) {
            (true, _) => Activation::Gelu,
            (false, true) => Activation::Silu,
            (false, false) => Activation::QuickGelu,
        },
        feature_layers: keys.list(&own("feature_layer"))?,
        image_size: seen("image_size")?,
        patch_size: seen("patch_size")?,
        scale_factor: number("projector.scale_factor")?,
        merge_size: number("spatial_merge_size")?,
        min_pixels: number("image_min_pixels")?,
        max_pixels: number("image_max_pixels")?,
        longest_side: number("preproc_image_size")?,
        window_pattern: number("n_wa_pattern")?,
        version: keys.u64("minicpmv_version")?,
        queries: keys.u64("minicpmv_query_num")?,
        bands: number("num_mel_bins")?,
        stacked_frames: number("projector.stack_factor")?,
    })
}
