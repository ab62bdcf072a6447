//! A proxy before the API server, with faults that a test switches on and off.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use axum::{
    Router,
    body::Body,
    extract::Request,
    http::{Method, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use futures::StreamExt as _;
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use scopeprobe_tests::{ControlPlane, Error, Result};
use serde_json::json;
use tokio::{net::TcpListener, sync::watch};

/// Maximum size of a request's body.
const MAX_BODY: usize = 8 << 20;

/// Answer to a request in the place of the API server's.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// This status, with `Retry-After` in seconds if there is one, and these words.
    Refusal(StatusCode, Option<u64>, &'static str),
    /// No answer while the fault lasts.
    Silence,
    /// An event of a watch: the version from which it continues is compacted.
    Expired,
}

/// Requests that get a fault.
pub type Selector = fn(&Method, &Uri) -> bool;

/// A request that the operator sent.
#[derive(Clone, Debug)]
pub struct Sent {
    pub method: Method,
    pub uri: Uri,
}

/// State of the proxy.
#[derive(Clone, Copy, Default)]
struct State {
    fault: Option<(Selector, Fault)>,
    /// No request and no answer passes.
    is_cut: bool,
    /// Grows when open answers are to end.
    round: u64,
}

/// The proxy. Listens until the test ends.
#[derive(Clone)]
pub struct Proxy {
    kubeconfig: PathBuf,
    client: Client,
    state: watch::Sender<State>,
    sent: Arc<Mutex<Vec<Sent>>>,
}

impl Proxy {
    /// Starts a proxy of this name.
    pub async fn start(control_plane: &ControlPlane, name: &str) -> Result<Self> {
        let unusable = |error: &dyn std::error::Error| Error::Unexpected(format!("cannot make a proxy: {error}"));
        let kubeconfig = Kubeconfig::read_from(control_plane.kubeconfig()).map_err(|error| unusable(&error))?;
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
        let mut config = config.map_err(|error| unusable(&error))?;
        config.default_retry = false;
        let client = Client::try_from(config).map_err(|error| unusable(&error))?;
        let listener = TcpListener::bind("127.0.0.1:0").await.map_err(Error::io("listen on the loopback"))?;
        let address = listener.local_addr().map_err(Error::io("listen on the loopback"))?;
        let text = format!(
            "{{apiVersion: v1, kind: Config, current-context: a, contexts: [{{name: a, context: {{cluster: a, user: a}}}}], \
             clusters: [{{name: a, cluster: {{server: 'http://{address}'}}}}], users: [{{name: a, user: {{}}}}]}}\n"
        );
        let kubeconfig = control_plane.kubeconfig().with_file_name(format!("kubeconfig-{name}"));
        std::fs::write(&kubeconfig, text).map_err(Error::io("write a kubeconfig"))?;
        let proxy = Self { kubeconfig, client, state: watch::Sender::default(), sent: Arc::default() };
        let serving = proxy.clone();
        let router = Router::new().fallback(move |request| {
            let proxy = serving.clone();
            async move { proxy.answer(request).await }
        });
        tokio::spawn(async { axum::serve(listener, router).await });
        Ok(proxy)
    }

    /// The kubeconfig that leads to the proxy.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// Ends all open answers, and gives the selected requests a fault from now on.
    pub fn fail(&self, selector: Selector, fault: Fault) {
        self.forget_sent();
        self.state.send_modify(|state| {
            state.fault = Some((selector, fault));
            state.round += 1;
        });
    }

    /// Makes all requests and open answers wait, as a network that drops all packets.
    pub fn cut(&self) {
        self.state.send_modify(|state| state.is_cut = true);
    }

    /// Passes all requests.
    pub fn heal(&self) {
        self.forget_sent();
        self.state.send_modify(|state| (state.fault, state.is_cut) = (None, false));
    }

    fn forget_sent(&self) {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// The requests since the last change.
    pub fn sent(&self, selector: Selector) -> Vec<Sent> {
        let sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        sent.iter().filter(|sent| selector(&sent.method, &sent.uri)).cloned().collect()
    }

    async fn answer(&self, request: Request) -> Response {
        let (parts, body) = request.into_parts();
        let sent = Sent { method: parts.method.clone(), uri: parts.uri.clone() };
        self.sent.lock().unwrap_or_else(PoisonError::into_inner).push(sent);
        self.passing().await;
        let State { fault, round, .. } = *self.state.borrow();
        match fault.filter(|(selector, _)| selector(&parts.method, &parts.uri)) {
            None => {}
            Some((_, Fault::Refusal(status, seconds, words))) => return refusal(status, seconds, words),
            Some((_, Fault::Expired)) => return expired().into_response(),
            Some((_, Fault::Silence)) => {
                // The proxy lives as long as the test.
                let _ = self.state.subscribe().wait_for(|state| state.fault.is_none()).await;
                return refusal(StatusCode::GATEWAY_TIMEOUT, None, "the proxy was silent");
            }
        }
        let Ok(body) = axum::body::to_bytes(body, MAX_BODY).await else {
            return StatusCode::PAYLOAD_TOO_LARGE.into_response();
        };
        let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
        let mut forwarded = Request::builder().method(parts.method).uri(path);
        for name in [header::CONTENT_TYPE, header::ACCEPT] {
            if let Some(value) = parts.headers.get(&name) {
                forwarded = forwarded.header(name, value);
            }
        }
        let Ok(forwarded) = forwarded.body(kube::client::Body::from(body)) else {
            return StatusCode::BAD_REQUEST.into_response();
        };
        match self.client.send(forwarded).await {
            Ok(answer) => self.passed(answer, round),
            Err(error) => refusal(StatusCode::BAD_GATEWAY, None, &error.to_string()),
        }
    }

    async fn passing(&self) {
        // The proxy lives as long as the test.
        let _ = self.state.subscribe().wait_for(|state| !state.is_cut).await;
    }

    /// Passes an answer on, piece by piece, until open answers are to end.
    fn passed(&self, answer: axum::http::Response<kube::client::Body>, round: u64) -> Response {
        let (parts, body) = answer.into_parts();
        let mut state = self.state.subscribe();
        let ended = async move { drop(state.wait_for(|state| state.round != round).await.map(|_| ())) };
        let proxy = self.clone();
        let pieces = Body::new(body).into_data_stream().then(move |piece| {
            let proxy = proxy.clone();
            async move {
                proxy.passing().await;
                piece
            }
        });
        let mut passed = Response::new(Body::from_stream(pieces.take_until(Box::pin(ended))));
        *passed.status_mut() = parts.status;
        if let Some(kind) = parts.headers.get(header::CONTENT_TYPE) {
            passed.headers_mut().insert(header::CONTENT_TYPE, kind.clone());
        }
        passed
    }
}

fn refusal(status: StatusCode, seconds: Option<u64>, words: &str) -> Response {
    let body = json!({
        "apiVersion": "v1", "kind": "Status", "status": "Failure", "message": words, "code": status.as_u16(),
    });
    let mut answer = (status, body.to_string()).into_response();
    if let Some(seconds) = seconds {
        answer.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    answer
}

fn expired() -> String {
    let status = json!({
        "apiVersion": "v1", "kind": "Status", "status": "Failure", "code": 410, "reason": "Expired",
        "message": "too old resource version",
    });
    format!("{}\n", json!({"type": "ERROR", "object": status}))
}
