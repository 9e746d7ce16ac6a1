//! Files on a web server, read by ranges.
//!
//! Redirects are followed here rather than in the client library, because of what goes along: a token belongs to one
//! host and is never sent to another, and an encrypted address never leads to a plain one.

use std::boxed::Box;
use std::cell::RefCell;
use std::format;
use std::io::Read;
use std::string::{String, ToString};
use std::sync::Arc;
use std::time::Duration;
use std::vec::Vec;

use ureq::http::{HeaderMap, Response};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body};

use crate::error::IngestError;
use crate::safetensors::shown;
use crate::source::RangeSource;

/// Redirects that are followed before a server is taken to be going in circles.
const MOST_REDIRECTS: u32 = 10;
/// Longest single range. Headers are far below.
const LONGEST_RANGE: u64 = 256 << 20;

/// How patient a client is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// How often a request is repeated after a server error, a broken connection or "too many requests".
    pub retries: u32,
    /// Pause before the first repetition; it doubles each time.
    pub pause: Duration,
    /// How long to wait for a connection.
    pub connect: Duration,
    /// How long to wait for the next bytes.
    pub read: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { retries: 3, pause: Duration::from_millis(300), connect: Duration::from_secs(10), read: Duration::from_secs(30) }
    }
}

/// Who is told an address and the bytes that it yielded.
type Heard = dyn Fn(&str, u64) + Send + Sync;

/// Told of every request when it starts, with 0 bytes, and of what came when it ends: for those who show progress.
#[derive(Clone)]
pub struct Watch(Arc<Heard>);

impl Watch {
    /// Calls `heard` with the address and the bytes that it yielded.
    pub fn new(heard: impl Fn(&str, u64) + Send + Sync + 'static) -> Self {
        Self(Arc::new(heard))
    }
}

impl core::fmt::Debug for Watch {
    fn fmt(&self, formatter: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        formatter.write_str("Watch")
    }
}

/// A secret for one host.
#[derive(Clone)]
struct Token {
    origin: String,
    secret: String,
}

/// An HTTP client that reads files. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    agent: Agent,
    patience: Patience,
    token: Option<Arc<Token>>,
    watch: Option<Watch>,
}

impl core::fmt::Debug for Client {
    fn fmt(&self, formatter: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        // Never the secret.
        formatter
            .debug_struct("Client")
            .field("patience", &self.patience)
            .field("token", &self.token.is_some())
            .finish_non_exhaustive()
    }
}

/// An answer with its status, whatever it is.
#[derive(Debug)]
pub struct Reply {
    /// The address that answered, after redirects.
    pub url: String,
    response: Response<Body>,
}

impl Reply {
    /// The HTTP status.
    #[must_use]
    pub fn status(&self) -> u16 {
        self.response.status().as_u16()
    }
    /// A header, where it is text.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        header(self.response.headers(), name)
    }
    /// The body, no longer than `limit`.
    ///
    /// # Errors
    /// [`IngestError::Limit`], or [`IngestError::Unavailable`] when the connection breaks.
    pub fn body(self, limit: u64) -> Result<Vec<u8>, IngestError> {
        let url = self.url;
        let mut bytes = Vec::new();
        let reader = self.response.into_body().into_reader();
        reader.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(|error| unavailable(&url, &error))?;
        let found = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        if found > limit {
            return Err(IngestError::Limit { format: "HTTP", what: format!("the length of {}", shown(&url)), found, limit });
        }
        Ok(bytes)
    }
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

impl Client {
    /// A client that follows the process's environment for proxies (`HTTPS_PROXY` and kin) and certificates
    /// (`REQUESTS_CA_BUNDLE`, `CURL_CA_BUNDLE`, `SSL_CERT_FILE`: the first that names a file replaces the built-in ones).
    #[must_use]
    pub fn new(patience: Patience) -> Self {
        let tls = match certificates() {
            Some(roots) => TlsConfig::builder().root_certs(roots).build(),
            None => TlsConfig::default(),
        };
        let config = Agent::config_builder()
            .tls_config(tls)
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("plimsoll/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(patience.connect))
            .timeout_recv_response(Some(patience.read))
            .timeout_per_read(Some(patience.read));
        Self { agent: config.build().new_agent(), patience, token: None, watch: None }
    }

    /// The same client, which says what it reads.
    #[must_use]
    pub fn watched(self, watch: Watch) -> Self {
        Self { watch: Some(watch), ..self }
    }

    fn heard(&self, url: &str, bytes: u64) {
        if let Some(Watch(heard)) = &self.watch {
            heard(url, bytes);
        }
    }

    /// The same client without a proxy, for servers on this machine.
    #[must_use]
    pub fn without_proxy(self) -> Self {
        let config = self.agent.config().clone();
        let agent = rebuilt(config);
        Self { agent, ..self }
    }

    /// The same client with a bearer token for the server of `url`, and for no other.
    #[must_use]
    pub fn with_token(self, url: &str, secret: &str) -> Self {
        let token = origin(url).map(|origin| Arc::new(Token { origin, secret: secret.to_string() }));
        Self { token, ..self }
    }

    /// Asks for a file, or for bytes `first..=last` of it. Answers with any status but a redirect; server errors and
    /// broken connections are retried before.
    ///
    /// # Errors
    /// [`IngestError::Unavailable`] when no answer comes or a redirect must not be followed.
    pub fn get(&self, url: &str, range: Option<(u64, u64)>) -> Result<Reply, IngestError> {
        self.heard(url, 0);
        let mut pause = self.patience.pause;
        let mut attempt = 0_u32;
        loop {
            let answer = self.follow(url, range);
            let wait = match &answer {
                Ok(reply) if matches!(reply.status(), 429 | 500 | 502 | 503 | 504) => {
                    // A server may ask for more patience than we have.
                    let asked = reply.header("retry-after").and_then(|seconds| seconds.parse().ok()).map(Duration::from_secs);
                    asked.map_or(pause, |asked| asked.min(Duration::from_secs(10)))
                }
                Err(Failure::Transport(error)) if is_passing(error) => pause,
                _ => return answer.map_err(|failure| failure.into_error(url)),
            };
            if attempt >= self.patience.retries {
                return answer.map_err(|failure| failure.into_error(url));
            }
            attempt = attempt.saturating_add(1);
            std::thread::sleep(wait);
            pause = pause.saturating_mul(2);
        }
    }

    fn follow(&self, url: &str, range: Option<(u64, u64)>) -> Result<Reply, Failure> {
        let mut url = url.to_string();
        for _ in 0..=MOST_REDIRECTS {
            let mut request = self.agent.get(&url).header("accept-encoding", "identity");
            if let Some((first, last)) = range {
                request = request.header("range", format!("bytes={first}-{last}"));
            }
            if let Some(token) = self.token.as_ref().filter(|token| origin(&url).as_ref() == Some(&token.origin)) {
                request = request.header("authorization", format!("Bearer {}", token.secret));
            }
            let response = request.call().map_err(|error| Failure::Transport(Box::new(error)))?;
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(Reply { url, response });
            }
            let Some(next) = header(response.headers(), "location").and_then(|location| join(&url, location)) else {
                return Err(Failure::Redirect(format!("{} redirects without saying where to", shown(&url))));
            };
            if url.starts_with("https://") && !next.starts_with("https://") {
                return Err(Failure::Redirect(format!("{} redirects to an unencrypted address", shown(&url))));
            }
            url = next;
        }
        Err(Failure::Redirect(format!("more than {MOST_REDIRECTS} redirects")))
    }
}

/// A client's settings without its proxy. `ureq` has no way to change one setting of an agent.
fn rebuilt(old: ureq::config::Config) -> Agent {
    Agent::config_builder()
        .tls_config(old.tls_config().clone())
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .user_agent(concat!("plimsoll/", env!("CARGO_PKG_VERSION")))
        .timeout_connect(old.timeouts().connect)
        .timeout_recv_response(old.timeouts().recv_response)
        .timeout_per_read(old.timeout_per_read())
        .proxy(None)
        .build()
        .new_agent()
}

enum Failure {
    Transport(Box<ureq::Error>),
    Redirect(String),
}

impl Failure {
    fn into_error(self, url: &str) -> IngestError {
        match self {
            Self::Transport(error) => unavailable(url, &error),
            Self::Redirect(why) => IngestError::Unavailable { what: shown(url), why },
        }
    }
}

/// Whether trying again may help.
fn is_passing(error: &ureq::Error) -> bool {
    matches!(error, ureq::Error::Io(_) | ureq::Error::Timeout(_) | ureq::Error::ConnectionFailed)
}

fn unavailable(url: &str, error: &dyn core::fmt::Display) -> IngestError {
    IngestError::Unavailable { what: shown(url), why: error.to_string() }
}

fn certificates() -> Option<RootCerts> {
    const LONGEST: u64 = 16 << 20;
    let file = ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"]
        .iter()
        .filter_map(std::env::var_os)
        .find(|file| std::path::Path::new(file).is_file())?;
    let pem = crate::source::read_small_file(file, "certificates", LONGEST).ok()?;
    let found: Vec<_> = parse_pem(&pem)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    (!found.is_empty()).then(|| RootCerts::new_with_certs(&found))
}

/// Scheme, host and port.
fn origin(url: &str) -> Option<String> {
    let (scheme, rest) = url.split_once("://")?;
    let authority = rest.split(['/', '?', '#']).next()?.to_ascii_lowercase();
    let host = authority.rsplit('@').next()?;
    let usual = if scheme == "https" { ":443" } else { ":80" };
    Some(format!("{scheme}://{}", host.strip_suffix(usual).unwrap_or(host)))
}

/// The address that `location` means when `base` says it.
fn join(base: &str, location: &str) -> Option<String> {
    if location.starts_with("https://") || location.starts_with("http://") {
        return Some(location.to_string());
    }
    let (scheme, rest) = base.split_once("://")?;
    if let Some(other) = location.strip_prefix("//") {
        return Some(format!("{scheme}://{other}"));
    }
    let authority = rest.split(['/', '?', '#']).next()?;
    if location.starts_with('/') {
        return Some(format!("{scheme}://{authority}{location}"));
    }
    let path = rest.split(['?', '#']).next()?;
    let folder = path.rsplit_once('/').map_or(authority, |(folder, _)| folder);
    (!location.contains(':')).then(|| format!("{scheme}://{folder}/{location}"))
}

/// Turns an answer that is no success into the sentence for it.
pub type Explain = Arc<dyn Fn(&Reply) -> IngestError>;

/// A file on a web server.
pub struct HttpSource {
    client: Client,
    url: String,
    name: String,
    explain: Explain,
    known: RefCell<Known>,
}

/// What answers have said about the file so far.
#[derive(Debug, Clone, Default)]
struct Known {
    length: Option<u64>,
    etag: Option<String>,
}

impl core::fmt::Debug for HttpSource {
    fn fmt(&self, formatter: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        formatter.debug_struct("HttpSource").field("url", &self.url).field("known", &self.known).finish_non_exhaustive()
    }
}

impl HttpSource {
    /// The file at `url`. Nothing is asked for yet.
    #[must_use]
    pub fn new(client: Client, url: String) -> Self {
        let explain: Explain = Arc::new(|reply: &Reply| IngestError::Unavailable {
            what: shown(&reply.url),
            why: format!("the server answers with status {}", reply.status()),
        });
        Self { client, name: url.clone(), url, explain, known: RefCell::default() }
    }

    /// The same file with a name and sentences of its own, and its length if a list has stated it.
    #[must_use]
    pub fn described(self, name: String, length: Option<u64>, explain: Explain) -> Self {
        let known = RefCell::new(Known { length, ..Known::default() });
        Self { name, explain, known, ..self }
    }

    fn problem(&self, why: &str) -> IngestError {
        IngestError::Unavailable { what: shown(&self.name), why: why.to_string() }
    }

    /// Remembers length and version of the file; a file that changes while it is read is no file.
    fn learn(&self, length: Option<u64>, etag: Option<&str>) -> Result<(), IngestError> {
        let mut known = self.known.borrow_mut();
        let same = |old: &Option<String>| old.is_none() || etag.is_none() || old.as_deref() == etag;
        if !same(&known.etag) || matches!((known.length, length), (Some(old), Some(new)) if old != new) {
            return Err(self.problem("the file changed while it was read, or its length is not the announced one"));
        }
        known.length = known.length.or(length);
        known.etag = known.etag.take().or_else(|| etag.map(ToString::to_string));
        Ok(())
    }

    /// One request: appends what comes to `bytes`, and says whether the range is complete.
    fn piece(&self, offset: u64, want: u64, bytes: &mut Vec<u8>) -> Result<Piece, IngestError> {
        let have = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        let first = offset.saturating_add(have);
        let last = offset.saturating_add(want).saturating_sub(1);
        let reply = self.client.get(&self.url, Some((first, last)))?;
        let range = reply.header("content-range").and_then(content_range);
        let etag = reply.header("etag").map(ToString::to_string);
        match (reply.status(), range) {
            (206, Some((start, total))) if start == Some(first) => self.learn(total, etag.as_deref())?,
            (206, _) => return Err(self.problem("the server answers with another range than the one asked for")),
            (416, range) => {
                self.learn(range.and_then(|(_, total)| total), None)?;
                return Ok(Piece::Complete);
            }
            // The whole file instead of a range: its beginning is of use, the rest is not read.
            (200, _) if first == 0 => {
                let length = reply.header("content-length").and_then(|length| length.parse().ok());
                self.learn(length, etag.as_deref())?;
            }
            (200, _) => return Err(self.problem("the server does not answer range requests")),
            _ => return Err((self.explain)(&reply)),
        }
        let length = self.known.borrow().length;
        let end = length.map_or(want, |length| want.min(length.saturating_sub(offset)));
        let read = reply.response.into_body().into_reader().take(end.saturating_sub(have)).read_to_end(bytes);
        let now = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.client.heard(&self.url, now.saturating_sub(have));
        let complete = now >= end;
        match read {
            _ if complete => Ok(Piece::Complete),
            Ok(_) if length.is_none() => Ok(Piece::Complete),
            Ok(0) => Ok(Piece::Broken("the connection ended early".to_string())),
            Ok(_) => Ok(Piece::More),
            Err(error) => Ok(Piece::Broken(error.to_string())),
        }
    }
}

/// How one request ended.
enum Piece {
    Complete,
    More,
    Broken(String),
}

/// `bytes 0-99/1000`, `bytes 0-99/*`, `bytes */1000`: the first byte and the whole length.
fn content_range(text: &str) -> Option<(Option<u64>, Option<u64>)> {
    let (range, total) = text.strip_prefix("bytes")?.trim_start().split_once('/')?;
    let first = range.split_once('-').and_then(|(first, _)| first.trim().parse().ok());
    Some((first, total.trim().parse().ok()))
}

impl RangeSource for HttpSource {
    fn len(&self) -> Result<Option<u64>, IngestError> {
        if self.known.borrow().length.is_none() {
            self.read(0, 1)?;
        }
        Ok(self.known.borrow().length)
    }

    fn read(&self, offset: u64, length: usize) -> Result<Vec<u8>, IngestError> {
        let mut want = u64::try_from(length).unwrap_or(u64::MAX);
        if let Some(known) = self.known.borrow().length {
            want = want.min(known.saturating_sub(offset));
        }
        if want > LONGEST_RANGE {
            let what = format!("one range of {}", shown(&self.name));
            return Err(IngestError::Limit { format: "HTTP", what, found: want, limit: LONGEST_RANGE });
        }
        let mut bytes = Vec::new();
        if want == 0 {
            return Ok(bytes);
        }
        // A transfer that breaks goes on where it stopped. Each failure counts, whether or not it brought some bytes:
        // a server that sends one byte at a time does not hold us for ever.
        let mut failures = 0_u32;
        loop {
            match self.piece(offset, want, &mut bytes)? {
                Piece::Complete => return Ok(bytes),
                Piece::More if failures < self.client.patience.retries => failures = failures.saturating_add(1),
                Piece::Broken(_) if failures < self.client.patience.retries => {
                    failures = failures.saturating_add(1);
                    std::thread::sleep(self.client.patience.pause);
                }
                Piece::Broken(why) => return Err(self.problem(&why)),
                Piece::More => return Err(self.problem("the connection keeps ending early")),
            }
        }
    }

    fn name(&self) -> String {
        self.name.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::{content_range, join, origin};

    #[test]
    fn addresses_are_joined_as_browsers_do() {
        let base = "https://host:8443/a/b?c=d/e";
        let cases = [
            ("https://other/x", "https://other/x"),
            ("//cdn/x", "https://cdn/x"),
            ("/x/y", "https://host:8443/x/y"),
            ("y", "https://host:8443/a/y"),
        ];
        for (location, expected) in cases {
            assert_eq!(join(base, location).as_deref(), Some(expected));
        }
        assert_eq!(join(base, "ftp://x/y"), None);
    }

    #[test]
    fn a_host_is_the_same_with_its_usual_port_and_different_with_another() {
        assert_eq!(origin("https://Hub.example:443/x"), origin("https://hub.example"));
        assert_ne!(origin("https://hub.example:8443"), origin("https://hub.example"));
        assert_ne!(origin("http://hub.example"), origin("https://hub.example"));
        // What stands before an @ is no host.
        assert_eq!(origin("https://hub.example@evil.example/x").as_deref(), Some("https://evil.example"));
    }

    #[test]
    fn content_ranges() {
        assert_eq!(content_range("bytes 5-9/100"), Some((Some(5), Some(100))));
        assert_eq!(content_range("bytes 5-9/*"), Some((Some(5), None)));
        assert_eq!(content_range("bytes */100"), Some((None, Some(100))));
        assert_eq!(content_range("items 5-9/100"), None);
    }
}
