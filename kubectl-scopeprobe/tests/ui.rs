//! The server of the page, as a browser or another program on the machine reaches it.

#![expect(clippy::expect_used, reason = "a test")]

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    process::{Child, Command, Stdio},
};

/// Plugin that serves the shop of the transcripts.
struct Page {
    program: Child,
    host: String,
    token: String,
}

impl Page {
    fn start() -> Self {
        let mut program = Command::new(env!("CARGO_BIN_EXE_kubectl-scopeprobe"))
            .args(["ui", "--file", "tests/cmd/shop.in/shop.yaml"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("the plugin starts");
        let mut address = String::new();
        BufReader::new(program.stdout.take().expect("it is piped")).read_line(&mut address).expect("it prints a line");
        let address = address.trim().strip_prefix("http://").expect("it is an address");
        let (host, path) = address.split_once('/').expect("it has a path");
        Self { program, host: host.to_owned(), token: path.trim_end_matches('/').to_owned() }
    }

    fn send(&self, request: &str) -> BufReader<TcpStream> {
        let mut stream = TcpStream::connect(&self.host).expect("it listens");
        stream.write_all(request.as_bytes()).expect("it reads");
        BufReader::new(stream)
    }

    /// Returns the answer to a request for a path below the token.
    fn get(&self, path: &str) -> String {
        self.request(&format!("/{}/{path}", self.token), &self.host, "")
    }

    fn request(&self, path: &str, host: &str, headers: &str) -> String {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{headers}\r\n");
        let mut answer = String::new();
        self.send(&request).read_to_string(&mut answer).expect("it answers");
        answer
    }

    /// Returns the fields of the first event after a revision.
    fn first_event(&self, query: &str, headers: &str) -> Vec<String> {
        let path = format!("/{}/api/events{query}", self.token);
        let request = format!("GET {path} HTTP/1.1\r\nHost: {}\r\n{headers}\r\n", self.host);
        let lines = self.send(&request).lines().map(|line| line.expect("it sends events"));
        let is_field = |line: &String| ["id: ", "event: ", "data: "].iter().any(|field| line.starts_with(field));
        let fields: Vec<String> =
            lines.skip_while(|line| !is_field(line)).take_while(|line| !line.is_empty()).collect();
        fields
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        _ = self.program.kill();
        _ = self.program.wait();
    }
}

fn status(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or_default()
}

fn json(answer: &str) -> serde_json::Value {
    let (_, body) = answer.split_once("\r\n\r\n").expect("it has a body");
    serde_json::from_str(body).expect("it is JSON")
}

#[test]
fn page_reaches_no_other_origin() {
    let page = Page::start();
    for path in ["", "app.js", "layout.js", "app.css", "licenses.txt", "api/graph", "missing"] {
        let answer = page.get(path);
        assert_eq!(status(&answer), if path == "missing" { "404" } else { "200" }, "{path}");
        let headers = answer.split("\r\n\r\n").next().unwrap_or_default().to_ascii_lowercase();
        let policy =
            headers.lines().find_map(|line| line.strip_prefix("content-security-policy: ")).unwrap_or_default();
        assert_eq!(
            policy.split("; ").collect::<Vec<_>>(),
            [
                "default-src 'none'",
                "script-src 'self'",
                "worker-src 'self'",
                "style-src 'self'",
                "connect-src 'self'",
                "img-src 'self' data:",
                "base-uri 'none'",
                "form-action 'none'",
                "frame-ancestors 'none'"
            ]
        );
        for header in ["cache-control: no-store", "referrer-policy: no-referrer", "x-content-type-options: nosniff"] {
            assert!(headers.contains(header), "{path}: {header}");
        }
        assert!(!headers.contains("access-control-allow-origin"), "{path}");
    }
}

#[test]
fn page_needs_the_token_and_a_loopback_host() {
    let page = Page::start();
    let path = format!("/{}/api/graph", page.token);
    assert_eq!(page.token.len(), 32);
    assert_eq!(status(&page.request(&path, &page.host, "")), "200");
    assert_eq!(status(&page.request(&path, "localhost:1", "")), "200");
    assert_eq!(status(&page.request(&path, "rebound.example", "")), "421");
    assert_eq!(status(&page.request(&path, &page.host, "Origin: http://evil.example\r\n")), "403");
    assert_eq!(status(&page.request(&path, &page.host, "Sec-Fetch-Site: cross-site\r\n")), "403");
    for wrong in ["/", "/api/graph", "/00000000000000000000000000000000/api/graph"] {
        assert_eq!(status(&page.request(wrong, &page.host, "")), "404", "{wrong}");
    }
    let request =
        format!("POST {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", page.host);
    let mut answer = String::new();
    page.send(&request).read_to_string(&mut answer).expect("it answers");
    assert_eq!(status(&answer), "405");
}

#[test]
fn snapshot_has_the_edges_of_the_file() {
    let page = Page::start();
    let graph = json(&page.get("api/graph"));
    assert_eq!(graph["revision"], 1);
    assert_eq!(graph["isLive"], false);
    assert_eq!(graph["arguments"], serde_json::json!(["--file", "tests/cmd/shop.in/shop.yaml"]));
    let edges = graph["edges"].as_object().expect("it has edges");
    assert_eq!(edges.keys().collect::<Vec<_>>(), ["0000000000000001", "0000000000000002", "0000000000000003"]);
    let failing = &edges["0000000000000003"];
    assert_eq!(failing["failed"], 7);
    assert_eq!(failing["methods"], serde_json::json!(["EBPF"]));
    assert_eq!(failing["server"], "Workload/data/StatefulSet.apps/redis");
    assert_eq!(graph["nodes"]["Workload/data/StatefulSet.apps/redis"]["label"], "data/redis");
    assert_eq!(graph["caveats"][0], "shop/cart: 3 ingress edges are not listed; the totals count them.");
}

#[test]
fn events_resume_after_the_last_one() {
    let page = Page::start();
    let graph = json(&page.get("api/graph"));
    let resumed = [page.first_event("?since=0", ""), page.first_event("?since=7", "Last-Event-ID: 0\r\n")];
    for fields in resumed {
        let field = |name: &str| fields.iter().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        assert_eq!((field("id: "), field("event: ")), ("1", "delta"));
        let delta: serde_json::Value = serde_json::from_str(field("data: ")).expect("it is JSON");
        assert_eq!((&delta["nodes"], &delta["edges"]), (&graph["nodes"], &graph["edges"]));
    }
    let unknown = page.first_event("?since=7", "");
    assert!(unknown.contains(&"event: reset".to_owned()), "{unknown:?}");
    assert_eq!(status(&page.get("api/events?since=x")), "400");
    assert_eq!(status(&page.get("api/events")), "400");
}
