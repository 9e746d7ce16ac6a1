//! Choosing what to read of a folder or repository.

use std::boxed::Box;
use std::format;
use std::string::{String, ToString};
use std::vec::Vec;

use super::{Door, Opened, Options, some_names, weights};
use crate::error::IngestError;
use crate::gguf;
use crate::hf;
use crate::hub::Select;
use crate::safetensors::{is_pickle, shown};
use crate::source::RangeSource;

/// One file of a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileInfo {
    /// Its path in the folder, with `/`.
    pub path: String,
    /// Its length, where the list states it.
    pub bytes: Option<u64>,
}

/// A folder of model files, on disk or on a hub.
pub trait Folder {
    /// Its path or name, for messages.
    fn name(&self) -> String;
    /// What to call the model in it.
    fn title(&self) -> Option<String>;
    /// Its files.
    fn files(&self) -> &[FileInfo];
    /// The whole of a file that is no longer than `limit` bytes.
    ///
    /// # Errors
    /// [`IngestError::Unavailable`] or [`IngestError::Limit`].
    fn small(&self, path: &str, format: &'static str, limit: u64) -> Result<Vec<u8>, IngestError>;
    /// A file of any length.
    ///
    /// # Errors
    /// [`IngestError::Unavailable`].
    fn source(&self, path: &str) -> Result<Box<dyn RangeSource>, IngestError>;
    /// Several files of which the headers will be read.
    fn sources(&self, paths: &[String]) -> Vec<Result<Box<dyn RangeSource>, IngestError>> {
        paths.iter().map(|path| self.source(path)).collect()
    }
    /// What an engine would be pointed at for this file.
    fn address(&self, path: &str) -> String;
    /// How to ask for the config alone.
    fn only_config(&self, path: &str) -> String;
    /// What is noteworthy about how the folder was reached.
    fn notes(&self) -> Vec<String> {
        Vec::new()
    }
}

/// llama.cpp's own choice where a repository has several files and none is named (`common/download.cpp`).
const USUAL_QUANT: &str = "Q4_K_M";

/// Reads the model of a folder.
///
/// # Errors
/// [`IngestError`]: what is missing or wrong, in one sentence.
pub fn open_folder(folder: &dyn Folder, select: Option<&Select>, options: &Options) -> Result<Opened, IngestError> {
    let mut opened = match select {
        Some(Select::File(path)) => open_file(folder, path, options),
        Some(Select::Quant(quant)) => open_quant(folder, quant, options),
        None => open_default(folder, options),
    }?;
    opened.ingested.notes.extend(folder.notes());
    Ok(opened)
}

fn has(folder: &dyn Folder, path: &str) -> bool {
    folder.files().iter().any(|file| file.path == path)
}

fn open_file(folder: &dyn Folder, path: &str, options: &Options) -> Result<Opened, IngestError> {
    if !has(folder, path) {
        return Err(IngestError::Unavailable { what: folder.address(path), why: "no such file".to_string() });
    }
    let lower = path.to_ascii_lowercase();
    if lower.ends_with(".gguf") {
        return open_gguf(folder, path, options);
    }
    if lower.ends_with(".safetensors") || lower.ends_with(".safetensors.index.json") || lower.ends_with(".npz") {
        return open_weights(folder, path, options);
    }
    if is_pickle(&lower) {
        return Err(crate::safetensors::pickles(&folder.address(path)));
    }
    if lower.ends_with(".json") {
        return open_config(folder, path, None, options);
    }
    // No telling by the name: GGUF files say what they are.
    if folder.source(path)?.read(0, 4)? == *b"GGUF" {
        return open_gguf(folder, path, options);
    }
    Err(IngestError::UnsupportedSource {
        found: folder.address(path),
        why: "is no config.json, GGUF, safetensors or npz file".to_string(),
    })
}

fn open_quant(folder: &dyn Folder, quant: &str, options: &Options) -> Result<Opened, IngestError> {
    let files = models(folder);
    match by_quant(&files, quant).as_slice() {
        [one] => open_gguf(folder, one, options),
        [] if has(folder, "config.json") => {
            let mut opened = open_default(folder, options)?;
            opened.quantization = Some(quant.to_string());
            Ok(opened)
        }
        [] if files.is_empty() => Err(nothing(folder)),
        [] => Err(IngestError::Unavailable {
            what: folder.name(),
            why: format!("no file is a {}; there are {}", shown(quant), some_names(&files)),
        }),
        several => Err(IngestError::Unavailable {
            what: folder.name(),
            why: format!("{} is ambiguous: {}; name the file", shown(quant), some_names(several)),
        }),
    }
}

fn open_default(folder: &dyn Folder, options: &Options) -> Result<Opened, IngestError> {
    if has(folder, "config.json") {
        let weights = weights::find(folder)?;
        if weights.is_none()
            && models(folder).is_empty()
            && let Some(pickle) = folder.files().iter().find(|file| is_pickle(&file.path) && !is_small_pickle(&file.path))
        {
            return Err(IngestError::UnsupportedSource {
                found: format!("{} (weights only as {})", folder.name(), shown(&pickle.path)),
                why: format!(
                    "a PyTorch checkpoint is a program that builds its tensors when run, so its shapes cannot be read safely; \
                     {}, or convert the checkpoint to safetensors or GGUF",
                    folder.only_config("config.json")
                ),
            });
        }
        return open_config(folder, "config.json", weights, options);
    }
    let files = models(folder);
    match files.as_slice() {
        [] => Err(nothing(folder)),
        [one] => open_gguf(folder, one, options),
        [first, ..] => {
            let usual = by_quant(&files, USUAL_QUANT);
            let chosen = usual.first().unwrap_or(first);
            let mut opened = open_gguf(folder, chosen, options)?;
            opened.ingested.notes.push(format!(
                "{} has {} GGUF models; {} was taken, as llama.cpp would; others are named after a colon: {}",
                folder.name(),
                files.len(),
                shown(chosen),
                some_names(&files)
            ));
            Ok(opened)
        }
    }
}

/// A folder that holds no model we can read: which kind it is decides what to say.
fn nothing(folder: &dyn Folder) -> IngestError {
    let any = |test: &dyn Fn(&str) -> bool| folder.files().iter().find(|file| test(&file.path)).map(|file| file.path.clone());
    let found = folder.name();
    if has(folder, "adapter_config.json") {
        let why = "is an adapter for another model; name the model it was trained on".to_string();
        return IngestError::UnsupportedSource { found, why };
    }
    if let Some(file) = any(&|path| is_pickle(path) && !is_small_pickle(path)) {
        return crate::safetensors::pickles(&format!("{found} ({})", shown(&file)));
    }
    if let Some(file) = any(&|path| path.ends_with(".safetensors") || path.ends_with(".npz")) {
        let why = format!("has weights ({}) and no config.json that says what they are", shown(&file));
        return IngestError::UnsupportedSource { found, why };
    }
    if let Some(file) =
        any(&|path| path.ends_with(".h5") || path.ends_with(".msgpack") || path.ends_with(".onnx") || path.ends_with(".tflite"))
    {
        let why = format!(
            "holds {}, a format whose headers are not read; name a repository with safetensors or GGUF files",
            shown(&file)
        );
        return IngestError::UnsupportedSource { found, why };
    }
    IngestError::UnsupportedSource { found, why: "holds no config.json and no GGUF file".to_string() }
}

/// PyTorch files beside the weights: training state, tokenizer state.
fn is_small_pickle(path: &str) -> bool {
    ["training_args", "optimizer", "scheduler", "rng_state", "scaler"].iter().any(|word| path.contains(word))
}

/// The GGUF files that are models: first files of split sets, no projectors, no importance matrices.
fn models(folder: &dyn Folder) -> Vec<&str> {
    folder.files().iter().map(|file| file.path.as_str()).filter(|path| is_model(path)).collect()
}

fn is_model(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path).to_ascii_lowercase();
    let later_part = split_number(&name).is_some_and(|number| number > 1);
    name.ends_with(".gguf") && !later_part && !name.contains("mmproj") && !name.contains("imatrix")
}

/// `…-00002-of-00003.gguf` is part 2.
fn split_number(name: &str) -> Option<u64> {
    let (stem, _) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
    stem.rsplit_once('-')?.1.parse().ok()
}

/// The files with a quantization: those whose name ends with it, else those that contain it as a word, else those in a
/// folder of that name. `Q4_K_M` does not mean `UD-Q4_K_M` where both are there.
fn by_quant<'a>(files: &[&'a str], quant: &str) -> Vec<&'a str> {
    let quant = quant.to_ascii_lowercase();
    let stem = |path: &str| {
        let lower = path.to_ascii_lowercase();
        let name = lower.rsplit('/').next().unwrap_or(&lower).trim_end_matches(".gguf").to_string();
        match split_number(&format!("{name}.gguf")) {
            Some(_) => name
                .rsplit_once("-of-")
                .and_then(|(left, _)| left.rsplit_once('-'))
                .map_or(name.clone(), |(left, _)| left.to_string()),
            None => name,
        }
    };
    let ends =
        |path: &str| stem(path).strip_suffix(&quant).is_some_and(|rest| rest.is_empty() || rest.ends_with(['-', '.', '_']));
    let dynamic = |path: &str| stem(path).strip_suffix(&quant).is_some_and(|rest| rest.ends_with("ud-"));
    let word = |path: &str| stem(path).split(['-', '.']).any(|word| word == quant);
    let inside = |path: &str| path.to_ascii_lowercase().rsplit('/').skip(1).any(|folder| folder == quant);
    let tests: [&dyn Fn(&str) -> bool; 4] = [&|path| ends(path) && !dynamic(path), &ends, &word, &inside];
    tests
        .iter()
        .map(|test| files.iter().copied().filter(|path| test(path)).collect::<Vec<&str>>())
        .find(|found| !found.is_empty())
        .unwrap_or_default()
}

fn open_gguf(folder: &dyn Folder, path: &str, options: &Options) -> Result<Opened, IngestError> {
    let source = folder.source(path)?;
    let settings = gguf::Options { assume_generic: options.assume_generic, ..gguf::Options::default() };
    let beside = path.rsplit_once('/').map(|(below, _)| below);
    let ingested = gguf::ingest_set(source.as_ref(), &settings, |name| {
        folder.source(&beside.map_or_else(|| name.to_string(), |below| format!("{below}/{name}")))
    })?;
    let file = path.rsplit('/').next().unwrap_or(path);
    let name = file.strip_suffix(".gguf").map(ToString::to_string).or_else(|| folder.title());
    let reference = folder.address(path);
    Ok(Opened { ingested, door: Door::Gguf, name, reference, checkpoint: None, quantization: None })
}

/// A weights file that was named: the config beside it says what it is.
fn open_weights(folder: &dyn Folder, path: &str, options: &Options) -> Result<Opened, IngestError> {
    let below = path.rsplit_once('/').map_or(String::new(), |(below, _)| format!("{below}/"));
    let config = format!("{below}config.json");
    if !has(folder, &config) {
        // Whether the file is one at all is worth knowing first.
        if path.ends_with(".safetensors") {
            crate::safetensors::read_header(folder.source(path)?.as_ref(), &crate::safetensors::Limits::default())?;
        }
        return Err(IngestError::UnsupportedSource {
            found: folder.address(path),
            why: "names and shapes of tensors do not say which architecture they are; put the model's config.json beside it"
                .to_string(),
        });
    }
    open_config(folder, &config, Some(weights::Weights::named(folder, path)?), options)
}

fn open_config(
    folder: &dyn Folder,
    path: &str,
    weights: Option<weights::Weights>,
    options: &Options,
) -> Result<Opened, IngestError> {
    let settings = hf::Options { assume_generic: options.assume_generic, ..hf::Options::default() };
    let limit = u64::try_from(settings.limits.bytes).unwrap_or(u64::MAX);
    let bytes = folder.small(path, "config.json", limit)?;
    let mut ingested = hf::ingest(&bytes, &settings)?;
    let checkpoint = match weights {
        Some(weights) => Some(weights::read(folder, &weights, &bytes, &mut ingested)?),
        None => None,
    };
    let file = path.rsplit('/').next().unwrap_or(path);
    let name = match file.strip_suffix(".config.json") {
        Some(stem) => Some(stem.to_string()),
        None => folder.title().or_else(|| ingested.spec.name.clone()),
    };
    let door = if checkpoint.is_some() { Door::Checkpoint } else { Door::Config };
    let reference = if file == "config.json" && !path.contains('/') { folder.name() } else { folder.address(path) };
    Ok(Opened { ingested, door, name, reference, checkpoint, quantization: None })
}

#[cfg(test)]
mod tests {
    use super::{by_quant, is_model};

    #[test]
    fn quantizations_are_found_in_names_as_publishers_write_them() {
        let files = [
            "Model-UD-Q4_K_M.gguf",
            "Model-Q4_K_M.gguf",
            "Model-Q4_K_S.gguf",
            "model.Q8_0.gguf",
            "UD-Q2_K_XL/Model-UD-Q2_K_XL-00001-of-00003.gguf",
            "BF16/Model-00001-of-00002.gguf",
            "Model-MXFP4_MOE.gguf",
        ];
        assert_eq!(by_quant(&files, "q4_k_m"), ["Model-Q4_K_M.gguf"]);
        assert_eq!(by_quant(&files, "UD-Q4_K_M"), ["Model-UD-Q4_K_M.gguf"]);
        assert_eq!(by_quant(&files, "Q8_0"), ["model.Q8_0.gguf"]);
        assert_eq!(by_quant(&files, "UD-Q2_K_XL"), ["UD-Q2_K_XL/Model-UD-Q2_K_XL-00001-of-00003.gguf"]);
        assert_eq!(by_quant(&files, "Q2_K_XL"), ["UD-Q2_K_XL/Model-UD-Q2_K_XL-00001-of-00003.gguf"]);
        assert_eq!(by_quant(&files, "BF16"), ["BF16/Model-00001-of-00002.gguf"]);
        assert_eq!(by_quant(&files, "mxfp4_moe"), ["Model-MXFP4_MOE.gguf"]);
        assert!(by_quant(&files, "K_M").is_empty() || by_quant(&files, "K_M").len() > 1);
        assert!(by_quant(&files, "Q3_K_M").is_empty());
    }

    #[test]
    fn projectors_and_later_parts_are_no_models() {
        assert!(is_model("a/b-00001-of-00002.gguf"));
        assert!(!is_model("a/b-00002-of-00002.gguf"));
        assert!(!is_model("mmproj-F16.gguf"));
        assert!(!is_model("imatrix_unsloth.gguf"));
        assert!(!is_model("config.json"));
    }
}
