//! Several clusters, each behind an API server that answers with recorded objects.

#![expect(clippy::expect_used, reason = "a test")]

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::{TcpListener, TcpStream},
    path::PathBuf,
    process::{Command, Output},
    thread,
};

use serde_json::{Value, json};

/// Starts an API server with the objects of a file, and returns its address.
fn serve(file: &str) -> String {
    let text = fs::read_to_string(format!("tests/cmd/shop.in/{file}")).expect("the file is there");
    let objects: Value = serde_yaml::from_str(&text).expect("it is YAML");
    let list = json!({
        "apiVersion": "scopeprobe.io/v1alpha1", "kind": "TopologyList", "metadata": {},
        "items": objects.get("items").cloned().unwrap_or_else(|| json!([objects])),
    });
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port is free");
    let address = listener.local_addr().expect("it has an address");
    // It ends with the test's process.
    thread::spawn(move || {
        for stream in listener.incoming() {
            answer(stream.expect("a client connects"), &list.to_string());
        }
    });
    format!("http://{address}")
}

fn answer(mut stream: TcpStream, list: &str) {
    let reader = BufReader::new(stream.try_clone().expect("it is a stream"));
    let mut lines = reader.lines().map(|line| line.expect("it sends a request"));
    let request = lines.next().expect("it has a first line");
    let (status, body) = match request.split([' ', '?']).nth(1) {
        Some("/apis/scopeprobe.io/v1alpha1/topologies") => ("200 OK", list),
        _ => ("404 Not Found", "{}"),
    };
    lines.take_while(|line| !line.is_empty()).for_each(drop);
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n"
    );
    stream.write_all(format!("{head}\r\n{body}").as_bytes()).expect("it reads the answer");
}

/// Writes a kubeconfig with a context for each file, and returns its path.
fn kubeconfig(name: &str, contexts: &[(&str, &str)]) -> PathBuf {
    let clusters = contexts.iter().map(|(context, file)| json!({"name": context, "cluster": {"server": serve(file)}}));
    let contexts =
        contexts.iter().map(|(context, _)| json!({"name": context, "context": {"cluster": context, "user": "reader"}}));
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "clusters": clusters.collect::<Vec<_>>(),
        "contexts": contexts.collect::<Vec<_>>(), "users": [{"name": "reader", "user": {}}],
    });
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.kubeconfig"));
    fs::write(&path, config.to_string()).expect("the folder is there");
    path
}

/// Returns the exit code and both outputs of the plugin.
fn run(arguments: &[&str]) -> (i32, String, String) {
    let Output { status, stdout, stderr } =
        Command::new(env!("CARGO_BIN_EXE_kubectl-scopeprobe")).args(arguments).output().expect("the plugin starts");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("it is UTF-8");
    (status.code().expect("it ends"), text(stdout), text(stderr))
}

/// Returns the first three words of each row.
fn rows(table: &str) -> Vec<String> {
    let words = |line: &str| line.split_whitespace().take(3).collect::<Vec<_>>().join(" ");
    table.lines().skip(1).map(words).collect()
}

#[test]
fn clusters_are_read_in_any_order_and_their_map_is_read_again() {
    let path = kubeconfig("joined", &[("prod", "shop.yaml"), ("staging", "later.yaml")]);
    let path = path.to_str().expect("it is UTF-8");
    let with = |command: &[&str], contexts: [&str; 2]| {
        let options = ["-A", "--kubeconfig", path, "--context", contexts[0], "--context", contexts[1]];
        run(&[command, &options].concat())
    };
    let table = with(&["table"], ["prod", "staging"]);
    assert_eq!(
        rows(&table.1),
        [
            "shop/cart@prod data/redis@prod data/redis:6379",
            "shop/web@prod shop/cart@prod shop/cart:80",
            "shop/web@prod api.example.com@prod -",
            "shop/web@staging shop/cart@staging shop/cart:80",
            "shop/web@staging 192.0.2.9@staging -",
        ]
    );
    assert_eq!(
        (table.0, table.2.as_str()),
        (0, "incomplete: prod: shop/cart: 3 ingress edges are not listed; the totals count them.\n")
    );
    assert_eq!(with(&["table"], ["staging", "prod"]), table);
    assert_eq!(rows(&with(&["table", "--to", "cart@staging"], ["prod", "staging"]).1).len(), 1);
    assert_eq!(rows(&with(&["external"], ["prod", "staging"]).1).len(), 2);

    let (code, json, _) = with(&["graph", "-o", "json"], ["prod", "staging"]);
    assert_eq!((code, &json), (0, &with(&["graph", "-o", "json"], ["staging", "prod"]).1));
    let file = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("joined.json");
    fs::write(&file, &json).expect("the folder is there");
    let file = file.to_str().expect("it is UTF-8");
    assert_eq!(run(&["table", "-f", file]), table);
    assert_eq!(run(&["graph", "-o", "json", "-f", file]).1, json);
    assert_eq!(run(&["diff", file, file]).0, 0);

    let (code, _, error) = with(&["unused"], ["prod", "staging"]);
    assert_eq!((code, error.as_str()), (2, "error: this command reads one cluster; name one --context\n"));
    let one = run(&["table", "-A", "--kubeconfig", path, "--context", "prod", "--context", "prod"]);
    assert!(!one.1.contains('@'), "one cluster needs no names: {}", one.1);
}

#[test]
fn clusters_are_compared() {
    let path = kubeconfig("compared", &[("prod", "shop.yaml"), ("staging", "later.yaml")]);
    let path = path.to_str().expect("it is UTF-8");
    let diff = |contexts: &[&str]| {
        let options = contexts.iter().flat_map(|context| ["--context", context]);
        run(&["diff", "-A", "--kubeconfig", path].into_iter().chain(options).collect::<Vec<_>>())
    };
    let (code, text, gaps) = diff(&["prod", "staging"]);
    assert_eq!(code, 1);
    assert_eq!(
        text,
        "- shop/cart -> data/redis:6379\n- shop/web -> api.example.com:443\n+ shop/web -> 192.0.2.9:443\n\
         ! failing in staging only: shop/web -> shop/cart:80\n"
    );
    assert_eq!(gaps, "incomplete: prod: shop/cart: 3 ingress edges are not listed; the totals count them.\n");
    let (code, text, _) = diff(&["staging", "prod"]);
    assert_eq!((code, text.lines().count()), (1, 3), "the failing edge is that of the first cluster: {text}");
    assert_eq!(diff(&["prod"]).0, 2);
    let (code, _, error) = diff(&["prod", "missing"]);
    assert!(code == 2 && error.starts_with("error: context missing: "), "{error}");
}
