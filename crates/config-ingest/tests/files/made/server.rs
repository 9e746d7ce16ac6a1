//! A web server on this machine that speaks as much HTTP as the tests need: it answers by ranges, redirects, refuses,
//! breaks off in the middle, and remembers what it was asked.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// One request as it came.
#[derive(Debug, Clone)]
pub struct Request {
    pub path: String,
    pub headers: BTreeMap<String, String>,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

/// One answer.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Whether ranges of the body may be asked for.
    pub ranges: bool,
    /// Length that is claimed beyond the body: the rest is a hole of zeros.
    pub length: u64,
    /// Break the connection after that many bytes of body.
    pub break_after: Option<usize>,
}

impl Answer {
    pub fn status(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Vec::new(), ranges: false, length: 0, break_after: None }
    }
    pub fn bytes(body: impl Into<Vec<u8>>) -> Self {
        let body = body.into();
        let length = u64::try_from(body.len()).unwrap();
        Self { body, length, ranges: true, ..Self::status(200) }
    }
    /// A file that begins with `head` and is `length` long.
    pub fn sparse(head: Vec<u8>, length: u64) -> Self {
        Self { length, ..Self::bytes(head) }
    }
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }
    pub fn redirect(to: &str) -> Self {
        Self::status(302).with("location", to)
    }
}

/// A running server.
pub struct Server {
    pub url: String,
    log: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    /// Starts a server; it runs until the test program ends.
    pub fn start(handler: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let log: Arc<Mutex<Vec<Request>>> = Arc::default();
        let (handler, seen) = (Arc::new(handler), Arc::clone(&log));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (handler, seen) = (Arc::clone(&handler), Arc::clone(&seen));
                std::thread::spawn(move || serve(stream, &*handler, &seen));
            }
        });
        Self { url, log }
    }
    /// What was asked for so far.
    pub fn requests(&self) -> Vec<Request> {
        self.log.lock().unwrap().clone()
    }
    pub fn paths(&self) -> Vec<String> {
        self.requests().into_iter().map(|request| request.path).collect()
    }
    pub fn forget(&self) {
        self.log.lock().unwrap().clear();
    }
}

fn serve(stream: TcpStream, handler: &dyn Fn(&Request) -> Answer, log: &Mutex<Vec<Request>>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut stream = stream;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
        let mut headers = BTreeMap::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) == 0 || line.trim().is_empty() {
                break;
            }
            if let Some((name, value)) = line.split_once(':') {
                headers.insert(name.trim().to_ascii_lowercase(), value.trim().to_owned());
            }
        }
        let request = Request { path, headers };
        log.lock().unwrap().push(request.clone());
        let answer = handler(&request);
        let broken = answer.break_after.is_some();
        if send(&mut stream, &request, answer).is_err() || broken {
            return;
        }
    }
}

fn send(stream: &mut TcpStream, request: &Request, answer: Answer) -> std::io::Result<()> {
    let range = request.header("range").filter(|_| answer.ranges && answer.status == 200).and_then(|range| {
        let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
        Some((first.parse::<u64>().ok()?, last.parse::<u64>().ok()?))
    });
    let mut head = String::new();
    let (status, first, end) = match range {
        Some((first, _)) if first >= answer.length => {
            head.push_str(&format!("content-range: bytes */{}\r\n", answer.length));
            (416, 0, 0)
        }
        Some((first, last)) => {
            let last = last.min(answer.length - 1);
            head.push_str(&format!("content-range: bytes {first}-{last}/{}\r\n", answer.length));
            (206, first, last + 1)
        }
        None => (answer.status, 0, answer.length),
    };
    for (name, value) in &answer.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    let count = end - first;
    write!(stream, "HTTP/1.1 {status} OK\r\ncontent-length: {count}\r\n{head}\r\n")?;
    let body = answer.body.get(usize::try_from(first).unwrap()..).unwrap_or_default();
    let mut bytes = body.chain(std::io::repeat(0)).take(count);
    match answer.break_after {
        Some(after) => {
            let mut part = vec![0; after.min(usize::try_from(count).unwrap())];
            bytes.read_exact(&mut part)?;
            stream.write_all(&part)?;
            stream.flush()?;
            stream.shutdown(std::net::Shutdown::Both)
        }
        None => std::io::copy(&mut bytes, stream).map(|_| ()),
    }
}
