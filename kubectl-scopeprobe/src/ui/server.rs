//! Answers the page's requests.

use std::{convert::Infallible, io, sync::Arc};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header},
    response::{
        IntoResponse as _, Response, Sse,
        sse::{Event, KeepAlive},
    },
};
use futures::{Stream, stream};
use serde::Serialize;
use tokio::net::TcpListener;
use view::live::{CatchUp, Delta, Graph};

use super::{
    assets,
    feed::{Feed, Reader},
    guard::{self, Token},
};

/// The page runs its own code alone, and reaches no other origin.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; worker-src 'self'; style-src 'self'; \
     connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Headers of every answer.
const HEADERS: [(header::HeaderName, &str); 7] = [
    (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
    (header::CACHE_CONTROL, "no-store"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (header::HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

/// Server of one page.
pub struct Server {
    token: Token,
    feed: Feed,
    arguments: Vec<String>,
}

/// The whole map.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Snapshot<'s> {
    revision: u64,
    /// True if the map follows a cluster.
    is_live: bool,
    /// Arguments of the plugin by which it reads the same objects.
    arguments: &'s [String],
    #[serde(flatten)]
    graph: &'s Graph,
}

/// A change, with the revision to which it leads.
#[derive(Serialize)]
struct Change<'c> {
    revision: u64,
    #[serde(flatten)]
    delta: &'c Delta,
}

impl Server {
    /// Returns a server of this feed. The page shows the arguments in commands to copy.
    pub fn new(token: Token, feed: Feed, arguments: Vec<String>) -> Self {
        Self { token, feed, arguments }
    }

    /// Answers requests until the listener fails.
    pub async fn serve(self, listener: TcpListener) -> io::Result<()> {
        axum::serve(listener, Router::new().fallback(answer).with_state(Arc::new(self))).await
    }

    fn respond(&self, request: &Request) -> Response {
        let path = match guard::admit(&self.token, request.uri().path(), request.headers()) {
            Ok(path) => path,
            Err(status) => return status.into_response(),
        };
        if request.method() != Method::GET {
            return StatusCode::METHOD_NOT_ALLOWED.into_response();
        }
        match path {
            "api/graph" => match self.snapshot() {
                Ok(json) => ([(header::CONTENT_TYPE, "application/json")], json).into_response(),
                Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
            },
            "api/events" => match known_revision(request.uri(), request.headers()) {
                Some(revision) => self.events(revision),
                None => (StatusCode::BAD_REQUEST, "since has to be a revision").into_response(),
            },
            other => match assets::asset(other) {
                Some(asset) => ([(header::CONTENT_TYPE, asset.media_type)], Body::from(asset.content)).into_response(),
                None => StatusCode::NOT_FOUND.into_response(),
            },
        }
    }

    fn snapshot(&self) -> serde_json::Result<String> {
        self.feed.read(|journal| {
            serde_json::to_string(&Snapshot {
                revision: journal.revision(),
                is_live: self.feed.is_live(),
                arguments: &self.arguments,
                graph: journal.graph(),
            })
        })
    }

    fn events(&self, revision: u64) -> Response {
        Sse::new(events(self.feed.reader(), revision)).keep_alive(KeepAlive::default()).into_response()
    }
}

async fn answer(State(server): State<Arc<Server>>, request: Request) -> Response {
    let mut response = server.respond(&request);
    let headers = HEADERS.map(|(name, value)| (name, HeaderValue::from_static(value)));
    for (name, value) in headers {
        response.headers_mut().insert(name, value);
    }
    response
}

/// Returns the revision that the page has: the last event's, or after a snapshot that of the address.
fn known_revision(uri: &Uri, headers: &HeaderMap) -> Option<u64> {
    if let Some(last) = headers.get("last-event-id") {
        return last.to_str().ok()?.parse().ok();
    }
    uri.query()?.strip_prefix("since=")?.parse().ok()
}

/// Returns all changes after a revision, as they come. `reset` asks the page for a snapshot.
fn events(reader: Reader, revision: u64) -> impl Stream<Item = Result<Event, Infallible>> {
    stream::unfold((reader, revision, Vec::new().into_iter()), |(mut reader, mut revision, mut ready)| async move {
        loop {
            if let Some((at, event)) = ready.next() {
                return Some((Ok(event), (reader, at, ready)));
            }
            let pending: Vec<(u64, Event)> = reader.read(|journal| match journal.since(revision) {
                CatchUp::Snapshot => {
                    let at = journal.revision();
                    vec![(at, Event::default().event("reset").id(at.to_string()).data(at.to_string()))]
                }
                CatchUp::Deltas(deltas) => deltas.into_iter().map(|(at, delta)| (at, change(at, delta))).collect(),
            });
            if pending.is_empty() {
                reader.changed().await?;
            }
            if let Some((at, _)) = pending.first() {
                revision = *at;
            }
            ready = pending.into_iter();
        }
    })
}

fn change(revision: u64, delta: &Delta) -> Event {
    let event = Event::default().id(revision.to_string());
    match serde_json::to_string(&Change { revision, delta }) {
        Ok(json) => event.event("delta").data(json),
        // The page reads the snapshot instead.
        Err(_) => event.event("reset").data(revision.to_string()),
    }
}
