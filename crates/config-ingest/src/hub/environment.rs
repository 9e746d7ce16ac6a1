//! Tokens, caches and addresses, as users of the hub expect them from its own client
//! (`huggingface_hub/constants.py`, `utils/_auth.py`).

use std::path::{Path, PathBuf};
use std::string::{String, ToString};

use crate::http::{Patience, Watch};

const USUAL_ENDPOINT: &str = "https://huggingface.co";

/// Everything about a hub that does not depend on the model.
#[derive(Clone)]
pub struct Environment {
    /// Address of the hub (`HF_ENDPOINT`), without a slash at the end.
    pub endpoint: String,
    /// Access token (`HF_TOKEN`, `HUGGING_FACE_HUB_TOKEN`, or the file that `hf auth login` writes).
    pub token: Option<String>,
    /// The hub's own cache (`HF_HUB_CACHE`, or `hub` in `HF_HOME`).
    pub hub_cache: Option<PathBuf>,
    /// Our cache (`PLIMSOLL_CACHE`, or `plimsoll` in the user's cache folder); `None` keeps nothing.
    pub own_cache: Option<PathBuf>,
    /// Whether the network must not be used (`HF_HUB_OFFLINE`, `TRANSFORMERS_OFFLINE`).
    pub offline: bool,
    /// How patient to be with the network.
    pub patience: Patience,
    /// Who is told of the bytes that come over the network.
    pub watch: Option<Watch>,
}

impl core::fmt::Debug for Environment {
    fn fmt(&self, formatter: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        // Never the token.
        formatter
            .debug_struct("Environment")
            .field("endpoint", &self.endpoint)
            .field("token", &self.token.is_some())
            .field("hub_cache", &self.hub_cache)
            .field("own_cache", &self.own_cache)
            .field("offline", &self.offline)
            .finish_non_exhaustive()
    }
}

impl Environment {
    /// From the variables of this process.
    #[must_use]
    pub fn from_process() -> Self {
        Self::from_lookup(|name| std::env::var(name).ok())
    }

    /// From variables that `lookup` knows.
    #[must_use]
    pub fn from_lookup(lookup: impl Fn(&str) -> Option<String>) -> Self {
        let set = |name: &str| lookup(name).map(|value| value.trim().to_string()).filter(|value| !value.is_empty());
        let home = set("HOME").or_else(|| set("USERPROFILE")).map(PathBuf::from);
        let folder = |name: &str| {
            set(name).map(|value| match (value.strip_prefix("~/"), &home) {
                (Some(rest), Some(home)) => home.join(rest),
                _ => PathBuf::from(value),
            })
        };
        let truth = |name: &str| {
            set(name).is_some_and(|value| ["1", "on", "yes", "true"].iter().any(|word| value.eq_ignore_ascii_case(word)))
        };
        let caches = folder("XDG_CACHE_HOME").or_else(|| home.as_ref().map(|home| home.join(".cache")));
        let hf_home = folder("HF_HOME").or_else(|| caches.as_ref().map(|caches| caches.join("huggingface")));
        let hub_cache = folder("HF_HUB_CACHE")
            .or_else(|| folder("HUGGINGFACE_HUB_CACHE"))
            .or_else(|| hf_home.as_ref().map(|home| home.join("hub")));
        let token_file = folder("HF_TOKEN_PATH").or_else(|| hf_home.as_ref().map(|home| home.join("token")));
        let token = set("HF_TOKEN")
            .or_else(|| set("HUGGING_FACE_HUB_TOKEN"))
            .or_else(|| if truth("HF_HUB_DISABLE_IMPLICIT_TOKEN") { None } else { token_file.as_deref().and_then(read_token) });
        Self {
            endpoint: set("HF_ENDPOINT").unwrap_or_else(|| USUAL_ENDPOINT.to_string()).trim_end_matches('/').to_string(),
            token: token.filter(|token| token.bytes().all(|byte| byte.is_ascii_graphic())),
            hub_cache,
            own_cache: folder("PLIMSOLL_CACHE").or_else(|| caches.map(|caches| caches.join("plimsoll"))),
            offline: truth("HF_HUB_OFFLINE") || truth("TRANSFORMERS_OFFLINE"),
            patience: Patience::default(),
            watch: None,
        }
    }
}

fn read_token(path: &Path) -> Option<String> {
    const LONGEST: u64 = 4096;
    let bytes = crate::source::read_small_file(path, "token", LONGEST).ok()?;
    let text = String::from_utf8(bytes).ok()?;
    Some(text.trim().to_string()).filter(|token| !token.is_empty())
}
