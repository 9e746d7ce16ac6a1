//! The projector among the files of a folder or repository.

use std::string::{String, ToString};
use std::vec::Vec;

use plimsoll_math::projector::Projector;

use super::folder::Folder;
use super::some_names;
use crate::error::IngestError;
use crate::gguf;
use crate::hub::Select;

/// The projector of a folder with the file that an engine would be pointed at: the file that is named, the one whose name
/// contains what is named, or the only one.
pub(super) fn of_folder(folder: &dyn Folder, select: Option<&Select>) -> Result<(Projector, String), IngestError> {
    let unavailable = |why: String| IngestError::Unavailable { what: folder.name(), why };
    let wanted = match select {
        Some(Select::File(path)) => path.to_ascii_lowercase(),
        Some(Select::Quant(quant)) => quant.to_ascii_lowercase(),
        None => String::new(),
    };
    let all: Vec<&str> = folder.files().iter().map(|file| file.path.as_str()).filter(|path| is_projector(path)).collect();
    let fitting: Vec<&str> = match select {
        Some(Select::File(path)) => folder.files().iter().map(|file| file.path.as_str()).filter(|file| file == path).collect(),
        _ => all.iter().copied().filter(|path| path.to_ascii_lowercase().contains(&wanted)).collect(),
    };
    match fitting.as_slice() {
        [path] => {
            let projector = gguf::ingest_projector(&*folder.source(path)?, &gguf::Options::default())?;
            Ok((projector, folder.address(path)))
        }
        [] if all.is_empty() => Err(unavailable("holds no projector (mmproj-*.gguf)".to_string())),
        [] => Err(unavailable(std::format!("has no such projector; there are {}", some_names(&all)))),
        several => Err(unavailable(std::format!("has several projectors: name one of {}", some_names(several)))),
    }
}

fn is_projector(path: &str) -> bool {
    let lower = path.to_ascii_lowercase();
    lower.ends_with(".gguf") && lower.contains("mmproj")
}
