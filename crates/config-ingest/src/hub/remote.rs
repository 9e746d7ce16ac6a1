//! A repository of the hub as a folder.

use std::boxed::Box;
use std::cell::RefCell;
use std::format;
use std::string::{String, ToString};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::vec::Vec;

use serde::{Deserialize, Serialize};

use super::cache::{self, Kept, OwnCache};
use super::environment::Environment;
use super::id::{HubId, Select, is_path};
use crate::error::IngestError;
use crate::http::{Client, Explain, HttpSource, Reply};
use crate::resolve::{Door, FileInfo, Folder, LocalFolder, Opened, Options, open_folder};
use crate::safetensors::shown;
use crate::source::RangeSource;

/// Longest answer of the hub's API, one page.
const LONGEST_PAGE: u64 = 32 << 20;
/// Most pages of a file list; a page has a thousand files or more.
const MOST_PAGES: u32 = 100;
/// Header requests at the same time.
const WORKERS: usize = 8;
/// The first bytes of a shard: its header, mostly.
const FIRST_READ: usize = 64 << 10;
/// Longest part of a large file that is remembered while it is read.
const LONGEST_HEAD: u64 = 128 << 20;

/// Reads a model of the hub, from the caches where they have it.
///
/// # Errors
/// [`IngestError`]: what is missing or wrong, in one sentence.
pub fn open(id: &HubId, environment: &Environment, options: &Options) -> Result<Opened, IngestError> {
    if let Some((folder, commit)) =
        environment.hub_cache.as_deref().and_then(|cache| cache::snapshot(cache, &id.repo, id.revision()))
    {
        let folder = LocalFolder::list(&folder)?.named(id.repo.clone());
        let opened = open_folder(&folder, id.select.as_ref(), options);
        let config_was_named = matches!(&id.select, Some(Select::File(file)) if file.ends_with("config.json"));
        match opened {
            // A config without weights may be all that was downloaded; the hub has the rest.
            Ok(opened) if opened.door == Door::Config && !config_was_named && !environment.offline => {}
            Ok(mut opened) => {
                opened.ingested.notes.push(format!("{} was read from the local cache (commit {commit})", id.repo));
                return Ok(opened);
            }
            Err(error) if environment.offline => return Err(error),
            Err(_) => {}
        }
    }
    let folder = RemoteFolder::list(id, environment)?;
    open_folder(&folder, id.select.as_ref(), options)
}

/// Reads something of a repository: from the cached copy where that has it, else from the hub.
///
/// # Errors
/// What `read` answers, or why the repository cannot be reached.
pub fn in_folder<T>(
    id: &HubId,
    environment: &Environment,
    read: &mut dyn FnMut(&dyn Folder) -> Result<T, IngestError>,
) -> Result<T, IngestError> {
    let cached = environment.hub_cache.as_deref().and_then(|cache| cache::snapshot(cache, &id.repo, id.revision()));
    if let Some((folder, _)) = cached {
        match read(&LocalFolder::list(&folder)?.named(id.repo.clone())) {
            Err(_) if !environment.offline => {}
            answer => return answer,
        }
    }
    read(&RemoteFolder::list(id, environment)?)
}

#[derive(Deserialize)]
struct Revision {
    sha: String,
}

#[derive(Serialize, Deserialize)]
struct TreeEntry {
    #[serde(rename = "type", default)]
    kind: String,
    path: String,
    #[serde(default)]
    size: Option<u64>,
}

/// The first bytes of a file, or why there are none.
type Head = Result<Vec<u8>, IngestError>;

struct RemoteFolder {
    link: Link,
    commit: String,
    files: Vec<FileInfo>,
    notes: Vec<String>,
}

/// What is needed to reach files of one repository; can be sent to workers.
#[derive(Clone)]
struct Link {
    /// `None` when offline.
    client: Option<Client>,
    endpoint: String,
    repo: String,
    with_token: bool,
    own: Option<OwnCache>,
    /// Where things were looked for, for the message of an offline miss.
    places: String,
}

impl Link {
    fn new(id: &HubId, environment: &Environment) -> Self {
        let local =
            ["http://127.0.0.1", "http://localhost", "http://[::1]"].iter().any(|host| environment.endpoint.starts_with(host));
        let client = (!environment.offline).then(|| {
            let client = Client::new(environment.patience);
            let client = if local { client.without_proxy() } else { client };
            let client = match &environment.watch {
                Some(watch) => client.watched(watch.clone()),
                None => client,
            };
            match &environment.token {
                Some(token) => client.with_token(&environment.endpoint, token),
                None => client,
            }
        });
        let places: Vec<String> = [&environment.hub_cache, &environment.own_cache]
            .into_iter()
            .flatten()
            .map(|place| place.display().to_string())
            .collect();
        Self {
            client,
            endpoint: environment.endpoint.clone(),
            repo: id.repo.clone(),
            with_token: environment.token.is_some(),
            own: environment.own_cache.as_deref().map(|root| OwnCache::new(root, &environment.endpoint, &id.repo)),
            places: places.join(", "),
        }
    }

    fn client(&self, what: &str) -> Result<&Client, IngestError> {
        self.client.as_ref().ok_or_else(|| IngestError::Unavailable {
            what: what.to_string(),
            why: format!("HF_HUB_OFFLINE is set and the local caches do not have it ({})", self.places),
        })
    }

    /// One page of the API.
    fn page(&self, url: &str, what: &str) -> Result<(Vec<u8>, Option<String>), IngestError> {
        let reply = self.client(what)?.get(url, None)?;
        if reply.status() != 200 {
            return Err(self.refusal(&reply, what));
        }
        let next = reply.header("link").and_then(next_page);
        Ok((reply.body(LONGEST_PAGE)?, next))
    }

    fn url(&self, commit: &str, path: &str) -> String {
        format!("{}/{}/resolve/{commit}/{}", self.endpoint, self.repo, encoded(path, true))
    }

    /// What an answer that is no success means here. The hub states its reason in `X-Error-Code`
    /// (`huggingface_hub/utils/_http.py`); mirrors may only have the status.
    fn refusal(&self, reply: &Reply, what: &str) -> IngestError {
        let page = format!("{}/{}", self.endpoint, self.repo);
        let how = "set HF_TOKEN or run `hf auth login`";
        let why = match (reply.status(), reply.header("x-error-code")) {
            (_, Some("GatedRepo")) | (403, None) if self.with_token => {
                format!("access is gated and this token has none: accept the terms at {page}, or use another token")
            }
            (_, Some("GatedRepo")) | (403, None) => format!("access is gated: accept the terms at {page}, then {how}"),
            (_, Some("RevisionNotFound")) => "no such revision".to_string(),
            (_, Some("EntryNotFound")) => "no such file".to_string(),
            (_, Some("DisabledRepo")) => "the repository is disabled".to_string(),
            (401, _) if self.with_token => {
                format!("the token is not accepted, or has no access to a repository of that name: {how}")
            }
            (401, _) => format!("no such repository, or a private one: check the name, or {how}"),
            (404, Some("RepoNotFound")) => "no such repository".to_string(),
            (404, _) => "not found".to_string(),
            (status, _) => {
                let said = reply.header("x-error-message").map(|text| format!(": {}", shown(text))).unwrap_or_default();
                format!("the hub answers with status {status}{said}")
            }
        };
        IngestError::Unavailable { what: what.to_string(), why }
    }

    fn head(&self, commit: &str, path: &str) -> Vec<u8> {
        self.own.as_ref().and_then(|own| own.get(commit, Kept::Head, path)).unwrap_or_default()
    }

    fn http(&self, commit: &str, path: &str, length: Option<u64>) -> Option<HttpSource> {
        let client = self.client.clone()?;
        let name = format!("{}:{path}", self.repo);
        let link = self.clone();
        let what = name.clone();
        let explain: Explain = Arc::new(move |reply: &Reply| link.refusal(reply, &what));
        Some(HttpSource::new(client, self.url(commit, path)).described(name, length, explain))
    }

    /// Fetches what a safetensors header needs, if it is one.
    fn fetch_head(&self, commit: &str, path: &str, length: Option<u64>) -> Result<Vec<u8>, IngestError> {
        let kept = self.head(commit, path);
        if !kept.is_empty() {
            return Ok(kept);
        }
        let Some(source) = self.http(commit, path, length) else { return Ok(kept) };
        let mut bytes = source.read(0, FIRST_READ)?;
        if let Some(json) = bytes.first_chunk::<8>().map(|length| u64::from_le_bytes(*length))
            && json <= crate::safetensors::Limits::default().header_bytes
        {
            let have = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
            let missing = json.saturating_add(8).saturating_sub(have);
            bytes.extend_from_slice(&source.read(have, usize::try_from(missing).unwrap_or(0))?);
        }
        if let Some(own) = &self.own {
            own.keep(commit, Kept::Head, path, &bytes);
        }
        Ok(bytes)
    }
}

impl RemoteFolder {
    fn list(id: &HubId, environment: &Environment) -> Result<Self, IngestError> {
        let link = Link::new(id, environment);
        let what = match &id.revision {
            Some(revision) => format!("{}@{revision}", id.repo),
            None => id.repo.clone(),
        };
        let commit = commit(&link, id, &what)?;
        let mut notes = Vec::new();
        let entries = match link.own.as_ref().and_then(|own| own.get(&commit, Kept::List, "")) {
            Some(bytes) => tree_entries(&bytes)?,
            None => fetch_list(&link, &commit, &what)?,
        };
        let mut files: Vec<FileInfo> = Vec::new();
        for entry in entries {
            if entry.kind == "directory" {
                continue;
            }
            if is_path(&entry.path) {
                files.push(FileInfo { path: entry.path, bytes: entry.size });
            } else {
                notes.push(format!("the file list has {}, which is left out", shown(&entry.path)));
            }
        }
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(Self { link, commit, files, notes })
    }

    fn length(&self, path: &str) -> Option<u64> {
        self.files.iter().find(|file| file.path == path).and_then(|file| file.bytes)
    }
}

/// The commit a revision means now; offline, the one it meant when we last asked.
fn commit(link: &Link, id: &HubId, what: &str) -> Result<String, IngestError> {
    let revision = id.revision();
    if cache::is_commit(revision) {
        return Ok(revision.to_string());
    }
    if link.client.is_none()
        && let Some(commit) = link.own.as_ref().and_then(|own| own.commit(revision))
    {
        return Ok(commit);
    }
    let url = format!("{}/api/models/{}/revision/{}", link.endpoint, id.repo, encoded(revision, false));
    let (bytes, _) = link.page(&url, what)?;
    let answer: Revision = serde_json::from_slice(&bytes).map_err(|error| broken(&url, &error))?;
    if !cache::is_commit(&answer.sha) {
        return Err(IngestError::Field {
            place: "$.sha".to_string(),
            found: shown(&answer.sha),
            expected: "a commit of 40 hexadecimal digits".to_string(),
        });
    }
    if let Some(own) = &link.own {
        own.keep_commit(revision, &answer.sha);
    }
    Ok(answer.sha)
}

fn fetch_list(link: &Link, commit: &str, what: &str) -> Result<Vec<TreeEntry>, IngestError> {
    const MOST_FILES: usize = 200_000;
    let mut entries = Vec::new();
    let mut url = Some(format!("{}/api/models/{}/tree/{commit}?recursive=true", link.endpoint, link.repo));
    let mut pages = 0_u32;
    while let Some(address) = url {
        pages = pages.saturating_add(1);
        if pages > MOST_PAGES || entries.len() > MOST_FILES {
            return Err(IngestError::Limit {
                format: "hub",
                what: format!("the number of pages of the file list of {}", link.repo),
                found: u64::from(pages),
                limit: u64::from(MOST_PAGES),
            });
        }
        let (bytes, next) = link.page(&address, what)?;
        entries.extend(tree_entries(&bytes)?);
        url = next;
    }
    if let Some(own) = &link.own
        && let Ok(bytes) = serde_json::to_vec(&entries)
    {
        own.keep(commit, Kept::List, "", &bytes);
    }
    Ok(entries)
}

fn tree_entries(bytes: &[u8]) -> Result<Vec<TreeEntry>, IngestError> {
    serde_json::from_slice(bytes).map_err(|error| broken("the hub's file list", &error))
}

fn broken(what: &str, error: &serde_json::Error) -> IngestError {
    IngestError::Unavailable { what: shown(what), why: format!("the answer is not what a hub says: {error}") }
}

/// The address after `rel="next"` of a `Link` header.
fn next_page(link: &str) -> Option<String> {
    link.split(',').find_map(|part| {
        let (address, attributes) = part.trim().strip_prefix('<')?.split_once('>')?;
        let is_next = attributes.split(';').any(|attribute| matches!(attribute.trim(), "rel=\"next\"" | "rel=next"));
        (is_next && (address.starts_with("https://") || address.starts_with("http://"))).then(|| address.to_string())
    })
}

/// Percent-encoding of a path (slashes stay) or of one part of it.
fn encoded(text: &str, slashes: bool) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) || (slashes && byte == b'/') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

impl Folder for RemoteFolder {
    fn name(&self) -> String {
        self.link.repo.clone()
    }
    fn title(&self) -> Option<String> {
        Some(self.link.repo.clone())
    }
    fn files(&self) -> &[FileInfo] {
        &self.files
    }
    fn small(&self, path: &str, format: &'static str, limit: u64) -> Result<Vec<u8>, IngestError> {
        let what = format!("{}:{path}", self.link.repo);
        let own = self.link.own.as_ref();
        if let Some(bytes) = own.and_then(|own| own.get(&self.commit, Kept::File, path)) {
            return Ok(bytes);
        }
        if let Some(found) = self.length(path).filter(|length| *length > limit) {
            return Err(IngestError::Limit { format, what, found, limit });
        }
        let reply = self.link.client(&what)?.get(&self.link.url(&self.commit, path), None)?;
        if reply.status() != 200 {
            return Err(self.link.refusal(&reply, &what));
        }
        let bytes = reply.body(limit)?;
        let length = u64::try_from(bytes.len()).ok();
        if self.length(path).is_some_and(|stated| Some(stated) != length) {
            let why = format!("{} bytes came, and the file list says otherwise", bytes.len());
            return Err(IngestError::Unavailable { what, why });
        }
        if let Some(own) = own {
            own.keep(&self.commit, Kept::File, path, &bytes);
        }
        Ok(bytes)
    }
    fn source(&self, path: &str) -> Result<Box<dyn RangeSource>, IngestError> {
        let head = self.link.head(&self.commit, path);
        Ok(Box::new(HeadSource::new(self, path, head)))
    }
    fn sources(&self, paths: &[String]) -> Vec<Result<Box<dyn RangeSource>, IngestError>> {
        let results: Mutex<Vec<Option<Head>>> = Mutex::new(paths.iter().map(|_| None).collect());
        let next = AtomicUsize::new(0);
        let jobs: Vec<(&str, Option<u64>)> = paths.iter().map(|path| (path.as_str(), self.length(path))).collect();
        let (link, commit) = (&self.link, self.commit.as_str());
        std::thread::scope(|scope| {
            for _ in 0..WORKERS.min(jobs.len()) {
                scope.spawn(|| {
                    while let Some((position, (path, length))) = Some(next.fetch_add(1, Ordering::Relaxed))
                        .and_then(|position| jobs.get(position).map(|job| (position, *job)))
                    {
                        let result = link.fetch_head(commit, path, length);
                        if let Ok(mut results) = results.lock()
                            && let Some(slot) = results.get_mut(position)
                        {
                            *slot = Some(result);
                        }
                    }
                });
            }
        });
        let results = results.into_inner().unwrap_or_default();
        let lost = || IngestError::Unavailable { what: self.link.repo.clone(), why: "a request was lost".to_string() };
        paths
            .iter()
            .zip(results)
            .map(|(path, result)| {
                let listed = self.files.iter().any(|file| &file.path == path);
                match result {
                    _ if !listed => Err(IngestError::Unavailable {
                        what: format!("{}:{path}", self.link.repo),
                        why: "no such file".to_string(),
                    }),
                    Some(Ok(head)) => {
                        let source: Box<dyn RangeSource> = Box::new(HeadSource::new(self, path, head));
                        Ok(source)
                    }
                    Some(Err(error)) => Err(error),
                    None => Err(lost()),
                }
            })
            .collect()
    }
    fn address(&self, path: &str) -> String {
        format!("{}:{path}", self.link.repo)
    }
    fn only_config(&self, path: &str) -> String {
        format!("name {}:{path} to plan from the config alone", self.link.repo)
    }
    fn notes(&self) -> Vec<String> {
        self.notes.clone()
    }
}

/// A large file of which the first bytes are kept: what was read once is not asked for again, in this run or the next.
struct HeadSource {
    link: Link,
    commit: String,
    path: String,
    length: Option<u64>,
    http: Option<HttpSource>,
    head: RefCell<Vec<u8>>,
    kept: usize,
}

impl HeadSource {
    fn new(folder: &RemoteFolder, path: &str, head: Vec<u8>) -> Self {
        let length = folder.length(path);
        Self {
            http: folder.link.http(&folder.commit, path, length),
            link: folder.link.clone(),
            commit: folder.commit.clone(),
            path: path.to_string(),
            length,
            kept: head.len(),
            head: RefCell::new(head),
        }
    }
}

impl RangeSource for HeadSource {
    fn len(&self) -> Result<Option<u64>, IngestError> {
        match (&self.http, self.length) {
            (_, Some(length)) => Ok(Some(length)),
            (Some(http), None) => http.len(),
            (None, None) => Ok(None),
        }
    }
    fn read(&self, offset: u64, length: usize) -> Result<Vec<u8>, IngestError> {
        let have = u64::try_from(self.head.borrow().len()).unwrap_or(u64::MAX);
        let wanted = offset.saturating_add(u64::try_from(length).unwrap_or(u64::MAX));
        let end = self.length.map_or(wanted, |length| wanted.min(length));
        if end > have {
            let Some(http) = &self.http else {
                self.link.client(&self.name())?;
                return Ok(Vec::new());
            };
            if offset > have || end > LONGEST_HEAD {
                return http.read(offset, length);
            }
            let more = http.read(have, usize::try_from(end.saturating_sub(have)).unwrap_or(usize::MAX))?;
            self.head.borrow_mut().extend_from_slice(&more);
        }
        self.head.borrow().as_slice().read(offset, length)
    }
    fn name(&self) -> String {
        format!("{}:{}", self.link.repo, self.path)
    }
}

impl Drop for HeadSource {
    fn drop(&mut self) {
        let head = self.head.borrow();
        if head.len() > self.kept
            && let Some(own) = &self.link.own
        {
            own.keep(&self.commit, Kept::Head, &self.path, &head);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{encoded, next_page};

    #[test]
    fn the_next_page_is_found_among_links() {
        let link = r#"<https://hub/a?cursor=1>; rel="prev", <https://hub/a?cursor=2&x=3>; rel="next""#;
        assert_eq!(next_page(link).as_deref(), Some("https://hub/a?cursor=2&x=3"));
        assert_eq!(next_page(r#"<file:///etc/passwd>; rel="next""#), None);
        assert_eq!(next_page("nonsense"), None);
    }

    #[test]
    fn paths_are_encoded() {
        assert_eq!(encoded("a b/ü.json", true), "a%20b/%C3%BC.json");
        assert_eq!(encoded("refs/pr/1", false), "refs%2Fpr%2F1");
    }
}
