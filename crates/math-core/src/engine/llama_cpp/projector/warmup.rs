//! The picture that a projector reserves memory for before it has seen one (`clip.cpp:load_hparams`, `warmup_image_size`).

use alloc::format;
use alloc::string::ToString;

use super::ProjectorSetting;
use super::kinds::Kind;
use crate::engine::llama_cpp::build::Build;
use crate::engine::llama_cpp::graph::towers::Subject;
use crate::error::MathError;
use crate::projector::{Modality, ProjectorTower};
use crate::units::mul;

/// Frames of sound that a tower for sound reserves for (`clip-model.h:warmup_audio_size`).
const FRAMES: u64 = 3000;

/// How a kind chooses the side of the picture.
enum Rule {
    /// That of its images.
    ImageSize,
    /// So many patches of the merged grid.
    Side(u64),
    /// As many pixels as an image of the most tokens has, where so many are the most by default.
    MostTokens(u64),
}

/// Patches of a side that are merged into one (`n_merge`): the file's word for it, or what the kind has without it.
pub(super) fn merge(tower: &ProjectorTower, kind: Kind) -> u64 {
    match kind.name {
        "gemma3" | "minicpmv4_6" | "minicpmv4_7" | "minicpm_ocr_1_0" | "step3vl" => tower.scale_factor.unwrap_or(4),
        "gemma4v" => tower.scale_factor.unwrap_or(3),
        "gemma4uv" | "phi4" => 1,
        "pixtral" | "lightonocr" => tower.merge_size.unwrap_or(1),
        "qwen2vl_merger" | "qwen2.5vl_merger" | "qwen3vl_merger" | "ling3vl" | "minimax_m3" | "muse-glimmer" | "mimovl"
        | "youtuvl" | "glm4v" | "glm5v" | "hunyuanvl" | "exaone4_5" | "sensenova_u1" => tower.merge_size.unwrap_or(2),
        "paddleocr" => 2,
        "dots3note_v" => tower.merge_size.unwrap_or(1),
        _ => tower.scale_factor.unwrap_or(1),
    }
}

/// Pixels of a side of a patch.
pub(super) fn patch(tower: &ProjectorTower, kind: Kind) -> u64 {
    match kind.name {
        // Tokens are merged by the convolution already.
        "gemma4uv" => tower.patch_size.saturating_mul(tower.scale_factor.unwrap_or(3)),
        "deepseekocr" | "deepseekocr2" => 16,
        _ => tower.patch_size,
    }
}

fn rule(kind: Kind) -> Rule {
    match kind.name {
        "phi4" | "pixtral" | "lightonocr" | "kimivl" | "gemma4v" | "gemma4uv" | "minimax_m3" | "youtuvl" => Rule::Side(16),
        "dots_ocr" | "dots3note_v" | "qwen2vl_merger" | "qwen2.5vl_merger" | "qwen3vl_merger" | "ling3vl" | "mimovl"
        | "glm4v" | "glm5v" | "exaone4_5" => Rule::Side(46),
        "muse-glimmer" | "hunyuanvl" => Rule::Side(32),
        "paddleocr" => Rule::Side(28),
        "lfm2" | "d1omni_v" => Rule::MostTokens(256),
        "kimik25" => Rule::MostTokens(4096),
        _ => Rule::ImageSize,
    }
}

/// Pixels of a side of the picture, or frames of the sound.
///
/// # Errors
/// [`MathError::Overflow`].
pub(super) fn side(tower: &ProjectorTower, kind: Kind, setting: &ProjectorSetting, build: Build) -> Result<u64, MathError> {
    if tower.modality != Modality::Vision {
        return Ok(FRAMES);
    }
    let cell = mul(patch(tower, kind), merge(tower, kind))?;
    Ok(match rule(kind) {
        Rule::ImageSize if matches!(kind.name, "deepseekocr" | "deepseekocr2") => 1024,
        Rule::ImageSize => tower.image_size,
        Rule::Side(cells) => {
            let allowed = setting.max_tokens.filter(|_| build.reserves_towers_within_limits());
            let within = allowed.filter(|tokens| *tokens < cells.saturating_mul(cells)).map(|tokens| tokens.isqrt().max(1));
            mul(within.unwrap_or(cells), cell)?
        }
        Rule::MostTokens(_) if kind.name == "kimik25" && tower.min_pixels > Some(0) && tower.max_pixels > Some(0) => {
            tower.max_pixels.unwrap_or(0).isqrt()
        }
        Rule::MostTokens(tokens) => mul(setting.max_tokens.unwrap_or(tokens), mul(cell, cell)?)?.isqrt(),
    })
}

/// The side of a square picture of the most tokens, where pictures may be larger than the one that is reserved for
/// (`clip.cpp:load_hparams`, `image_max_pixels`).
///
/// # Errors
/// [`MathError::Overflow`].
pub(super) fn largest_side(
    tower: &ProjectorTower,
    kind: Kind,
    setting: &ProjectorSetting,
    build: Build,
) -> Result<Option<u64>, MathError> {
    let cell = mul(patch(tower, kind), merge(tower, kind))?;
    let tokens = match kind.name {
        "pixtral" | "kimivl" => 1024,
        // b12032 takes the file's limit where nothing is asked.
        "qwen2vl_merger" | "qwen2.5vl_merger" | "qwen3vl_merger" | "ling3vl"
            if build >= Build::B12032 && setting.max_tokens.is_none() && tower.max_pixels.is_some() =>
        {
            tower.max_pixels.unwrap_or(0) / mul(cell, cell)?.max(1)
        }
        "qwen2vl_merger" | "qwen2.5vl_merger" | "qwen3vl_merger" | "ling3vl" | "glm4v" => 4096,
        "gemma4v" => 1120,
        _ => return Ok(None),
    };
    let across = setting.max_tokens.unwrap_or(tokens).isqrt();
    Ok(Some(mul(across, cell)?))
}

/// The tower with its picture.
///
/// # Errors
/// [`MathError::Overflow`].
pub(super) fn subject<'a>(
    tower: &'a ProjectorTower,
    kind: Kind,
    setting: &ProjectorSetting,
    side: u64,
    build: Build,
) -> Result<Subject<'a>, MathError> {
    let (patch, merge) = (patch(tower, kind), merge(tower, kind));
    if tower.modality == Modality::Vision && (patch == 0 || merge == 0) {
        return Err(MathError::Invalid {
            field: "projector.patch_size".to_string(),
            found: format!("patches of {patch} pixels, merged by {merge}"),
            expected: "both above 0".to_string(),
        });
    }
    Ok(Subject { tower, kind: kind.name, side, patch, merge, backend: setting.backend, build })
}
