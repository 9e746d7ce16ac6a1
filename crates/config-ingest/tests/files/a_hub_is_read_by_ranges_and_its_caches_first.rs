//! The hub's routes as its servers answer them, on this machine: pages, redirects to another host, ranges, gates,
//! broken connections, caches, and no network at all.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::made::server::{Answer, Request, Server};
use crate::made::{Made, Scratch, index, llama, safetensors};
use plimsoll_ingest::error::IngestError;
use plimsoll_ingest::http::Patience;
use plimsoll_ingest::hub::Environment;
use plimsoll_ingest::resolve::{Door, Opened, Options, open};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const TOKEN: &str = "hf_secretsecret";

fn environment(endpoint: &str, scratch: &Scratch) -> Environment {
    Environment {
        endpoint: endpoint.to_owned(),
        token: None,
        hub_cache: Some(scratch.path().join("hub")),
        own_cache: Some(scratch.path().join("own")),
        offline: false,
        patience: Patience {
            retries: 2,
            pause: Duration::from_millis(1),
            connect: Duration::from_secs(5),
            read: Duration::from_secs(5),
        },
        watch: None,
    }
}

fn check(model: &str, environment: &Environment) -> Result<Opened, IngestError> {
    open(model, &Options { hub: Some(environment.clone()), ..Options::default() })
}

fn refusal(model: &str, environment: &Environment) -> String {
    let error = check(model, environment).expect_err(model);
    assert_eq!(error.code(), "unavailable", "{error}");
    error.to_string()
}

/// A repository: path to file.
type Files = BTreeMap<String, Answer>;

/// A sharded model.
fn sharded() -> Files {
    let (config, tensors) = llama(2, false);
    let (first, second) = tensors.split_at(9);
    let shards: [(&str, &[Made]); 2] =
        [("model-00001-of-00002.safetensors", first), ("model-00002-of-00002.safetensors", second)];
    let mut files = Files::new();
    files.insert("config.json".to_owned(), Answer::bytes(config));
    files.insert("model.safetensors.index.json".to_owned(), Answer::bytes(index(&shards, "0")));
    files.insert("tokenizer.json".to_owned(), Answer::bytes("never asked for"));
    for (name, tensors) in shards {
        let (head, length) = safetensors(tensors);
        files.insert(name.to_owned(), Answer::sparse(head, length));
    }
    files
}

/// The routes of a hub for one repository; large files are redirected to `cdn` where there is one.
fn hub(repo: &'static str, files: Files, cdn: Option<String>) -> impl Fn(&Request) -> Answer + Send + Sync + 'static {
    move |request: &Request| {
        let path = request.path.as_str();
        if path == format!("/api/models/{repo}/revision/main") || path == format!("/api/models/{repo}/revision/refs%2Fpr%2F1") {
            return Answer::bytes(format!(r#"{{"id":"{repo}","sha":"{COMMIT}","siblings":[]}}"#))
                .with("content-type", "application/json");
        }
        if let Some(query) = path.strip_prefix(&format!("/api/models/{repo}/tree/{COMMIT}")) {
            // Two files a page.
            let from: usize = query.split("cursor=").nth(1).and_then(|cursor| cursor.parse().ok()).unwrap_or(0);
            let rows: Vec<String> = files
                .iter()
                .skip(from)
                .take(2)
                .map(|(path, file)| format!(r#"{{"type":"file","oid":"x","size":{},"path":"{path}"}}"#, file.length))
                .collect();
            let answer = Answer::bytes(format!("[{}]", rows.join(",")));
            if from + 2 >= files.len() {
                return answer;
            }
            let host = request.header("host").unwrap();
            let next =
                format!("<http://{host}/api/models/{repo}/tree/{COMMIT}?recursive=true&cursor={}>; rel=\"next\"", from + 2);
            return answer.with("link", &next);
        }
        if let Some(file) = path.strip_prefix(&format!("/{repo}/resolve/{COMMIT}/")) {
            return match (files.get(file), &cdn) {
                (None, _) => Answer::status(404).with("x-error-code", "EntryNotFound"),
                (Some(_), Some(cdn)) if file.ends_with("safetensors") => {
                    Answer::redirect(&format!("{cdn}/blobs/{file}?signature=1"))
                }
                (Some(answer), _) => answer.clone().with("etag", "\"1\""),
            };
        }
        Answer::status(404).with("x-error-code", "RepoNotFound")
    }
}

#[test]
fn a_sharded_repository_by_ranges_through_another_host_without_the_token() {
    let scratch = Scratch::new();
    let files = sharded();
    let blobs = files.clone();
    let cdn = Server::start(move |request| {
        let name = request.path.trim_start_matches("/blobs/").split('?').next().unwrap();
        blobs[name].clone()
    });
    let server = Server::start(hub("org/model", files, Some(cdn.url.clone())));
    let mut environment = environment(&server.url, &scratch);
    environment.token = Some(TOKEN.to_owned());

    let opened = check("org/model", &environment).unwrap();
    assert_eq!(
        (opened.door, opened.name.as_deref(), opened.reference.as_str()),
        (Door::Checkpoint, Some("org/model"), "org/model")
    );
    let checkpoint = opened.checkpoint.as_ref().unwrap();
    assert_eq!(checkpoint.summary.params, opened.ingested.tensors.total_params().unwrap());
    assert_eq!(checkpoint.shards.len(), 2);

    for request in server.requests() {
        assert_eq!(request.header("authorization"), Some(format!("Bearer {TOKEN}").as_str()), "{}", request.path);
    }
    assert_eq!(cdn.requests().len(), 2);
    for request in cdn.requests() {
        assert_eq!(request.header("authorization"), None, "{}", request.path);
        assert_eq!(request.header("range"), Some("bytes=0-65535"));
    }
    assert_eq!(server.paths().iter().filter(|path| path.contains("/tree/")).count(), 3);
    assert!(!server.paths().iter().any(|path| path.contains("tokenizer")));

    // Again: only the question what main means now.
    server.forget();
    cdn.forget();
    assert_eq!(check("org/model", &environment).unwrap(), opened);
    assert_eq!(server.paths(), ["/api/models/org/model/revision/main"]);
    assert!(cdn.paths().is_empty());

    // Without a network, not even that; by commit neither.
    server.forget();
    environment.offline = true;
    assert_eq!(check("org/model", &environment).unwrap(), opened);
    environment.offline = false;
    check(&format!("org/model@{COMMIT}"), &environment).unwrap();
    assert!(server.paths().is_empty());

    // The token is in no file.
    let mut folders = vec![scratch.path().to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let bytes = std::fs::read(&path).unwrap();
                assert!(!bytes.windows(TOKEN.len()).any(|window| window == TOKEN.as_bytes()), "{}", path.display());
                assert!(!path.file_name().unwrap().to_string_lossy().starts_with('.'), "left over: {}", path.display());
            }
        }
    }
}

#[test]
fn a_revision_with_slashes_and_one_file_of_it() {
    let scratch = Scratch::new();
    let server = Server::start(hub("org/model", sharded(), None));
    let environment = environment(&server.url, &scratch);
    let opened = check("org/model@refs/pr/1:config.json", &environment).unwrap();
    assert_eq!((opened.door, opened.quantization), (Door::Config, None));
    assert!(!server.paths().iter().any(|path| path.ends_with(".safetensors")));
    let opened =
        check(&format!("{}/org/model/blob/main/config.json", server.url.replace("http://", "https://")), &environment).unwrap();
    assert_eq!(opened.door, Door::Config);
    let opened = check("hf:org/model:Q4_K_M", &environment).unwrap();
    assert_eq!(opened.quantization.as_deref(), Some("Q4_K_M"));
}

#[test]
fn a_gguf_by_its_quantization() {
    let scratch = Scratch::new();
    let zoo = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/truth/llama.cpp/gguf-zoo/bloom-dense.gguf.header.gz");
    let mut head = Vec::new();
    std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(std::fs::File::open(zoo).unwrap()), &mut head).unwrap();
    // Fixtures hold headers only; the data are a hole.
    let data: u64 = {
        let source = plimsoll_ingest::source::PrefixSource::new("x".to_owned(), head.clone(), None);
        let header = plimsoll_ingest::gguf::Header::read(&source, &plimsoll_ingest::gguf::Limits::default()).unwrap();
        header.data_offset + (1 << 30)
    };
    let mut files = Files::new();
    for name in ["Bloom-Q4_K_M.gguf", "Bloom-Q8_0.gguf", "mmproj-F16.gguf"] {
        files.insert(name.to_owned(), Answer::sparse(head.clone(), data));
    }
    let server = Server::start(hub("org/bloom-GGUF", files, None));
    let environment = environment(&server.url, &scratch);
    let opened = check("org/bloom-GGUF:q8_0", &environment).unwrap();
    assert_eq!((opened.door, opened.reference.as_str()), (Door::Gguf, "org/bloom-GGUF:Bloom-Q8_0.gguf"));
    let asked: u64 = server
        .requests()
        .iter()
        .filter_map(|request| {
            request
                .header("range")?
                .strip_prefix("bytes=")?
                .split_once('-')
                .map(|(first, last)| (first.to_owned(), last.to_owned()))
        })
        .map(|(first, last)| last.parse::<u64>().unwrap() + 1 - first.parse::<u64>().unwrap())
        .sum();
    let header = u64::try_from(head.len()).unwrap();
    assert!(asked <= 2 * header + (128 << 10), "{asked} bytes asked for a header of {header}");

    // The header is kept: nothing is asked twice.
    server.forget();
    assert_eq!(check("org/bloom-GGUF:Q8_0", &environment).unwrap(), opened);
    assert_eq!(server.paths(), ["/api/models/org/bloom-GGUF/revision/main"]);

    let text = refusal("org/bloom-GGUF:Q2_K", &environment);
    assert!(text.ends_with("no file is a Q2_K; there are Bloom-Q4_K_M.gguf, Bloom-Q8_0.gguf"), "{text}");
    let opened = check("org/bloom-GGUF", &environment).unwrap();
    assert!(opened.reference.ends_with("Bloom-Q4_K_M.gguf"));
}

#[test]
fn what_a_hub_refuses_and_why() {
    let scratch = Scratch::new();
    for (status, code, with_token, expected) in [
        (401, Some("GatedRepo"), false, "accept the terms at"),
        (403, Some("GatedRepo"), true, "this token has none"),
        (403, None, false, "set HF_TOKEN"),
        (401, Some("RepoNotFound"), false, "no such repository, or a private one"),
        (401, None, true, "the token is not accepted"),
        (404, Some("RepoNotFound"), true, "no such repository"),
        (404, Some("RevisionNotFound"), false, "no such revision"),
        (404, None, false, "not found"),
        (418, None, false, "status 418: short and stout"),
    ] {
        let server = Server::start(move |_| {
            let answer = Answer::status(status).with("x-error-message", "short and stout");
            match code {
                Some(code) => answer.with("x-error-code", code),
                None => answer,
            }
        });
        let mut environment = environment(&server.url, &scratch);
        environment.token = with_token.then(|| TOKEN.to_owned());
        let text = refusal("org/model", &environment);
        assert!(text.starts_with("org/model: ") && text.contains(expected), "{status} {code:?}: {text}");
        assert!(!text.contains(TOKEN));
        assert_eq!(server.requests().len(), 1, "{status} is not worth a second try");
    }
    let server = Server::start(hub("org/model", sharded(), None));
    let text = refusal("org/model:absent.gguf", &environment(&server.url, &scratch));
    assert_eq!(text, "org/model:absent.gguf: no such file");
}

#[test]
fn a_gate_on_the_files_of_a_public_list() {
    let scratch = Scratch::new();
    let routes = hub("org/model", sharded(), None);
    let server = Server::start(move |request| {
        if request.path.contains("/resolve/") { Answer::status(401).with("x-error-code", "GatedRepo") } else { routes(request) }
    });
    let text = refusal("org/model", &environment(&server.url, &scratch));
    assert!(text.starts_with("org/model:") && text.contains("access is gated"), "{text}");
}

#[test]
fn broken_connections_go_on_where_they_stopped_and_busy_servers_are_asked_again() {
    let scratch = Scratch::new();
    let routes = hub("org/model", sharded(), None);
    let tries = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&tries);
    let server = Server::start(move |request| {
        let answer = routes(request);
        if request.path.ends_with("00001-of-00002.safetensors") {
            return match count.fetch_add(1, Ordering::Relaxed) {
                0 => Answer::status(503),
                1 => Answer { break_after: Some(100), ..answer },
                _ => answer,
            };
        }
        answer
    });
    let opened = check("org/model", &environment(&server.url, &scratch)).unwrap();
    assert_eq!(opened.checkpoint.unwrap().summary.params, opened.ingested.tensors.total_params().unwrap());
    let ranges: Vec<String> = server
        .requests()
        .iter()
        .filter(|request| request.path.ends_with("00001-of-00002.safetensors"))
        .map(|request| request.header("range").unwrap().to_owned())
        .collect();
    assert_eq!(ranges.len(), 3);
    assert!(ranges[0].starts_with("bytes=0-") && ranges[1] == ranges[0], "{ranges:?}");
    assert!(ranges[2].starts_with("bytes=100-"), "{ranges:?}");
}

#[test]
fn a_server_that_never_recovers_is_given_up_on() {
    let scratch = Scratch::new();
    let server = Server::start(|_| Answer::status(500));
    let text = refusal("org/model", &environment(&server.url, &scratch));
    assert!(text.contains("status 500"), "{text}");
    assert_eq!(server.requests().len(), 3);
    let circle = Server::start(|request| Answer::redirect(&request.path));
    let text = refusal("org/model", &environment(&circle.url, &scratch));
    assert!(text.ends_with("more than 10 redirects"), "{text}");
    // Nobody listens there.
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    refusal("org/model", &environment(&format!("http://{closed}"), &scratch));
}

#[test]
fn a_server_without_ranges_is_read_from_its_beginning() {
    let scratch = Scratch::new();
    let mut files = sharded();
    for file in files.values_mut() {
        file.ranges = false;
    }
    let server = Server::start(hub("org/model", files, None));
    check("org/model", &environment(&server.url, &scratch)).unwrap();
}

#[test]
fn answers_that_are_no_hubs() {
    let scratch = Scratch::new();
    let server = Server::start(|_| Answer::bytes("<html>sign in</html>"));
    assert!(refusal("org/model", &environment(&server.url, &scratch)).contains("the answer is not what a hub says"));
    let server = Server::start(|_| Answer::bytes(r#"{"sha":"../../etc"}"#));
    assert_eq!(check("org/model", &environment(&server.url, &scratch)).unwrap_err().code(), "field");
    // Names that lead out of the cache are left out, whatever the list says.
    let routes = hub("org/model", sharded(), None);
    let server = Server::start(move |request| match request.path.contains("/tree/") {
        true => Answer::bytes(r#"[{"type":"file","path":"../../evil","size":1},{"type":"file","path":"config.json"}]"#),
        false => routes(request),
    });
    let opened = check("org/model", &environment(&server.url, &scratch)).unwrap();
    assert!(opened.ingested.notes.iter().any(|note| note.contains("../../evil")), "{:?}", opened.ingested.notes);
    // More than was announced.
    let server = Server::start(hub(
        "org/model",
        [("config.json".to_owned(), Answer { length: 1 << 30, ..Answer::bytes("{}") })].into(),
        None,
    ));
    assert_eq!(check("org/model", &environment(&server.url, &Scratch::new())).unwrap_err().code(), "limit");
}

#[test]
fn the_hubs_own_cache_is_asked_first_and_never_written() {
    let scratch = Scratch::new();
    let repo = "hub/models--org--model";
    scratch.write(&format!("{repo}/refs/main"), COMMIT);
    for (name, file) in sharded() {
        let path = format!("{repo}/snapshots/{COMMIT}/{name}");
        scratch.write(&path, &file.body);
        std::fs::File::options().write(true).open(scratch.path().join(path)).unwrap().set_len(file.length).unwrap();
    }
    let server = Server::start(|_| Answer::status(500));
    let mut environment = environment(&server.url, &scratch);
    let opened = check("org/model", &environment).unwrap();
    assert_eq!(opened.door, Door::Checkpoint);
    assert!(opened.ingested.notes.iter().any(|note| note.contains(COMMIT)), "{:?}", opened.ingested.notes);
    assert!(server.paths().is_empty());

    // A part of a model in the cache: offline the config does, a missing shard is named.
    environment.offline = true;
    let shard = scratch.path().join(format!("{repo}/snapshots/{COMMIT}/model-00002-of-00002.safetensors"));
    std::fs::remove_file(shard).unwrap();
    assert!(refusal("org/model", &environment).contains("model-00002-of-00002.safetensors"));
    let text = refusal("org/other", &environment);
    assert!(text.contains("HF_HUB_OFFLINE is set"), "{text}");
    // Online the hub has it.
    let server = Server::start(hub("org/model", sharded(), None));
    environment.offline = false;
    environment.endpoint = server.url.clone();
    check("org/model", &environment).unwrap();
    let below: Vec<String> = walk(&scratch.path().join("hub"));
    assert!(!below.iter().any(|path| path.ends_with("model-00002-of-00002.safetensors")), "{below:?}");
}

fn walk(folder: &std::path::Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(walk(&path)) } else { found.push(path.display().to_string()) }
    }
    found
}

#[test]
fn repositories_of_pickles_say_what_to_do() {
    let scratch = Scratch::new();
    let (config, _) = llama(2, false);
    let mut files: Files = [("pytorch_model.bin".to_owned(), Answer::bytes("PK"))].into();
    files.insert("config.json".to_owned(), Answer::bytes(config));
    let server = Server::start(hub("org/old", files, None));
    let environment = environment(&server.url, &scratch);
    let error = check("org/old", &environment).unwrap_err();
    assert_eq!(error.code(), "unsupported_source");
    assert!(error.to_string().contains("name org/old:config.json to plan from the config alone"), "{error}");
    check("org/old:config.json", &environment).unwrap();
}

#[test]
fn variables_of_the_hubs_users() {
    let scratch = Scratch::new();
    scratch.write("hf/token", "hf_from_file\n");
    let from = |pairs: &[(&str, &str)]| {
        let pairs: BTreeMap<String, String> =
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Environment::from_lookup(move |name| pairs.get(name).cloned())
    };
    let home = scratch.text();
    let plain = from(&[("HOME", &home)]);
    assert_eq!(plain.endpoint, "https://huggingface.co");
    assert_eq!(plain.hub_cache, Some(scratch.path().join(".cache/huggingface/hub")));
    assert_eq!(plain.own_cache, Some(scratch.path().join(".cache/plimsoll")));
    assert_eq!((plain.token, plain.offline), (None, false));
    let hf = from(&[("HOME", &home), ("HF_HOME", "~/hf"), ("HF_ENDPOINT", "https://mirror.example/"), ("HF_HUB_OFFLINE", "1")]);
    assert_eq!(hf.token.as_deref(), Some("hf_from_file"));
    assert_eq!((hf.endpoint.as_str(), hf.offline), ("https://mirror.example", true));
    assert_eq!(hf.hub_cache, Some(scratch.path().join("hf/hub")));
    let own = from(&[
        ("HOME", &home),
        ("HF_HOME", "~/hf"),
        ("HF_TOKEN", " hf_a "),
        ("HUGGING_FACE_HUB_TOKEN", "hf_b"),
        ("HF_HUB_OFFLINE", "0"),
    ]);
    assert_eq!((own.token.as_deref(), own.offline), (Some("hf_a"), false));
    assert_eq!(from(&[("HUGGING_FACE_HUB_TOKEN", "hf_b")]).token.as_deref(), Some("hf_b"));
    assert_eq!(from(&[("HF_TOKEN", "two\nlines")]).token, None);
    assert_eq!(from(&[("HF_HOME", &scratch.join("hf")), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]).token, None);
    assert_eq!(from(&[("HF_HUB_CACHE", "/models")]).hub_cache, Some("/models".into()));
    assert_eq!(from(&[("XDG_CACHE_HOME", "/c")]).hub_cache, Some("/c/huggingface/hub".into()));
    assert!(!format!("{own:?}").contains("hf_a"));
}

#[test]
fn a_repository_named_like_the_prefix_is_written_with_it() {
    let id = plimsoll_ingest::hub::HubId::parse("hf://hf:org/name.gguf").unwrap();
    assert_eq!(plimsoll_ingest::hub::HubId::parse(&id.to_string()), Ok(id));
}

#[test]
fn whoever_watches_hears_of_every_request_and_its_bytes() {
    use std::sync::{Arc, Mutex};
    let scratch = Scratch::new();
    let server = Server::start(hub("org/name", sharded(), None));
    let heard: Arc<Mutex<Vec<(String, u64)>>> = Arc::default();
    let ears = Arc::clone(&heard);
    let mut environment = environment(&server.url, &scratch);
    environment.watch = Some(plimsoll_ingest::http::Watch::new(move |address, bytes| {
        ears.lock().unwrap().push((address.to_owned(), bytes));
    }));
    check("org/name", &environment).unwrap();
    let heard = heard.lock().unwrap();
    let bytes = |name: &str| -> u64 { heard.iter().filter(|(address, _)| address.ends_with(name)).map(|(_, bytes)| bytes).sum() };
    assert!(bytes("model-00001-of-00002.safetensors") > 0 && bytes("model-00002-of-00002.safetensors") > 0, "{heard:?}");
    assert!(heard.iter().any(|(address, bytes)| address.contains("/api/models/") && *bytes == 0));
}
