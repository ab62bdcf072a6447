//! Watches that continue after errors. An object that does not decode affects no other object. Requests to an unreachable
//! API server are retried within seconds. Each malformed object and each outage is logged once.

use std::{collections::BTreeMap, error::Error, fmt::Debug, iter, time::Duration};

use futures::{
    Stream, StreamExt, TryStreamExt,
    stream::{self, BoxStream},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{
    Api, Client, Resource,
    runtime::{
        utils::{Backoff, ResetTimerBackoff},
        watcher::{self, Event, ExponentialBackoff, watcher},
    },
};
use serde::de::DeserializeOwned;

use crate::guarded::{Guarded, Malformed};

/// Minimum pause after a failure.
const MIN_PAUSE: Duration = Duration::from_millis(200);
/// Maximum pause after failures, without jitter: the operator continues within seconds after the API server does.
const MAX_PAUSE: Duration = Duration::from_secs(1);
/// Time without a failure after which pauses are short again.
const CALM: Duration = Duration::from_mins(1);

/// Returns the pauses between attempts to reach the API server: growing, short, and with jitter.
#[must_use]
pub fn backoff() -> impl Backoff {
    let growing = backon::ExponentialBuilder::default()
        .with_min_delay(MIN_PAUSE)
        .with_max_delay(MAX_PAUSE)
        .with_jitter()
        .without_max_times();
    ResetTimerBackoff::new(ExponentialBackoff::from(growing), CALM)
}

/// Returns the error with its innermost cause, which the client leaves out, for example "connection refused".
#[must_use]
pub fn with_cause(error: &dyn Error) -> String {
    let message = error.to_string();
    let last = iter::successors(error.source(), |cause: &&dyn Error| (*cause).source()).last().map(ToString::to_string);
    match last.filter(|last| !message.contains(last)) {
        Some(last) => format!("{message}: {last}"),
        None => message,
    }
}

/// Watches all objects of a kind, without end. Failures are logged and retried, and are no events.
pub fn watch<K>(client: &Client) -> impl Stream<Item = Event<Guarded<K>>> + Send + use<K>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
{
    watch_with(client, Box::new(|_| ()))
}

/// Receives the words of each failure of a watch, and `None` after a success.
pub type Note = Box<dyn Fn(Option<&str>) + Send>;

/// The same with a receiver of failures.
pub fn watch_with<K>(client: &Client, note: Note) -> impl Stream<Item = Event<Guarded<K>>> + Send + use<K>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let watch = Watch::<K>::new(client.clone(), note);
    stream::unfold(watch, async |mut watch| watch.next().await.map(|event| (event, watch)))
}

struct Watch<K: Resource> {
    client: Client,
    events: BoxStream<'static, watcher::Result<Event<Guarded<K>>>>,
    is_guarded: bool,
    is_failing: bool,
    pauses: Box<dyn Backoff>,
    malformed: MalformedObjects,
    note: Note,
}

impl<K> Watch<K>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
{
    fn new(client: Client, note: Note) -> Self {
        let events = unguarded(&client);
        Self {
            client,
            events,
            is_guarded: false,
            is_failing: false,
            pauses: Box::new(backoff()),
            malformed: MalformedObjects::default(),
            note,
        }
    }

    async fn next(&mut self) -> Option<Event<Guarded<K>>> {
        loop {
            match self.events.next().await? {
                Ok(event) => {
                    self.succeed(&event);
                    return Some(event);
                }
                Err(error) if is_malformed(&error) && !self.is_guarded => {
                    self.is_guarded = true;
                    self.events = guarded(&self.client);
                }
                Err(error) => self.fail(error).await,
            }
        }
    }

    fn succeed(&mut self, event: &Event<Guarded<K>>) {
        // The event of a list's beginning precedes the request.
        if self.is_failing && !matches!(event, Event::Init) {
            self.is_failing = false;
            self.pauses.reset();
            (self.note)(None);
            tracing::info!(kind = %K::kind(&()), "watching again");
        }
        if let Some(Malformed { error, metadata, left_out, rest }) = self.malformed.note(event) {
            let (namespace, name) = key(metadata);
            let left_out = if rest.is_some() { left_out.join(" ") } else { "all but its metadata".to_owned() };
            tracing::warn!(kind = %K::kind(&()), namespace, name, error, left_out, "an object does not decode; the rest of it counts");
        }
    }

    async fn fail(&mut self, error: watcher::Error) {
        let error = with_cause(&error);
        (self.note)(Some(&error));
        if std::mem::replace(&mut self.is_failing, true) {
            tracing::debug!(kind = %K::kind(&()), error, "still cannot watch");
        } else {
            tracing::warn!(kind = %K::kind(&()), error, "cannot watch; trying again");
        }
        tokio::time::sleep(self.pauses.next().unwrap_or(MAX_PAUSE)).await;
    }
}

/// Watches without the guard, which parses each object twice: most clusters never need it.
fn unguarded<K>(client: &Client) -> BoxStream<'static, watcher::Result<Event<Guarded<K>>>>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let events = watcher(Api::<K>::all(client.clone()), watcher::Config::default());
    events.map_ok(with_guard).boxed()
}

fn guarded<K>(client: &Client) -> BoxStream<'static, watcher::Result<Event<Guarded<K>>>>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
{
    watcher(Api::<Guarded<K>>::all(client.clone()), watcher::Config::default()).boxed()
}

fn with_guard<K>(event: Event<K>) -> Event<Guarded<K>> {
    match event {
        Event::Apply(object) => Event::Apply(Guarded(Ok(object))),
        Event::Delete(object) => Event::Delete(Guarded(Ok(object))),
        Event::Init => Event::Init,
        Event::InitApply(object) => Event::InitApply(Guarded(Ok(object))),
        Event::InitDone => Event::InitDone,
    }
}

fn is_malformed(error: &watcher::Error) -> bool {
    use watcher::Error::{InitialListFailed, WatchFailed, WatchStartFailed};
    match error {
        // The client reads an event that does not decode as a status, of which every field may be absent.
        WatchFailed(kube::Error::Api(status)) => status.code == 0,
        InitialListFailed(source) | WatchStartFailed(source) | WatchFailed(source) => {
            matches!(source, kube::Error::SerdeError(_))
        }
        _ => false,
    }
}

/// Namespace and name.
type ObjectKey = (String, String);

/// Objects that do not decode, with the error of each, so that each is logged once.
#[derive(Default)]
struct MalformedObjects {
    known: BTreeMap<ObjectKey, String>,
    /// Malformed objects of the list in progress.
    listed: Option<BTreeMap<ObjectKey, String>>,
}

impl MalformedObjects {
    /// Records an event. Returns its object if that is malformed in a new way.
    fn note<'a, K: Resource<DynamicType = ()>>(&mut self, event: &'a Event<Guarded<K>>) -> Option<&'a Malformed<K>> {
        match event {
            Event::Init => self.listed = Some(BTreeMap::new()),
            Event::InitDone => self.known = self.listed.take().unwrap_or_default(),
            Event::Apply(object) | Event::InitApply(object) => match &object.0 {
                Ok(_) => self.forget(object.meta()),
                Err(malformed) => return self.add(malformed).then_some(malformed),
            },
            Event::Delete(object) => self.forget(object.meta()),
        }
        None
    }

    fn forget(&mut self, metadata: &ObjectMeta) {
        if !self.known.is_empty() {
            self.known.remove(&key(metadata));
        }
    }

    /// Records a malformed object. Returns whether the error is new.
    fn add<K>(&mut self, Malformed { error, metadata, .. }: &Malformed<K>) -> bool {
        if let Some(listed) = &mut self.listed {
            listed.insert(key(metadata), error.clone());
        }
        self.known.insert(key(metadata), error.clone()).as_ref() != Some(error)
    }
}

fn key(metadata: &ObjectMeta) -> ObjectKey {
    (metadata.namespace.clone().unwrap_or_default(), metadata.name.clone().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::{
        pin::pin,
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
    };

    use axum::{
        Router,
        body::Body,
        http::{StatusCode, Uri},
        response::{IntoResponse, Response},
    };
    use k8s_openapi::api::core::v1::Pod;
    use kube::{Config, ResourceExt};
    use serde_json::{Value, json};
    use tokio::net::TcpListener;

    use super::*;

    fn pod(name: &str) -> Value {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "resourceVersion": "2"}, "spec": {"containers": []}})
    }

    fn malformed(name: &str) -> Value {
        let mut pod = pod(name);
        pod["spec"]["containers"] = json!("none");
        pod
    }

    /// An API server that lists and then adds these pods. Its first answers are errors.
    #[derive(Clone, Default)]
    struct Server {
        listed: Vec<Value>,
        added: Vec<Value>,
        errors: usize,
        lists: Arc<AtomicUsize>,
    }

    impl Server {
        async fn client(&self) -> Client {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
            let server = self.clone();
            let router = Router::new().fallback(move |uri: Uri| {
                let server = server.clone();
                async move { server.answer(&uri) }
            });
            tokio::spawn(async { axum::serve(listener, router).await });
            Client::try_from(Config::new(url)).unwrap()
        }

        fn answer(&self, uri: &Uri) -> Response {
            if uri.query().is_some_and(|query| query.contains("watch=true")) {
                let added = self.added.iter().map(|object| format!("{}\n", json!({"type": "ADDED", "object": object})));
                let added: Vec<_> = added.map(Ok::<_, std::io::Error>).collect();
                return Body::from_stream(stream::iter(added).chain(stream::pending())).into_response();
            }
            if self.lists.fetch_add(1, Ordering::Relaxed) < self.errors {
                return StatusCode::INTERNAL_SERVER_ERROR.into_response();
            }
            json!({"apiVersion": "v1", "kind": "PodList", "metadata": {"resourceVersion": "1"}, "items": self.listed})
                .to_string()
                .into_response()
        }
    }

    /// Returns as many pods as the watch yields, by name and whether they decode.
    async fn seen(client: &Client, pods: usize) -> Vec<(String, bool)> {
        let mut events = pin!(watch::<Pod>(client));
        let mut seen = Vec::new();
        while seen.len() < pods {
            match events.next().await.expect("a watch has no end") {
                Event::Init => seen.clear(),
                Event::Apply(pod) | Event::InitApply(pod) => seen.push((pod.name_any(), pod.0.is_ok())),
                Event::InitDone | Event::Delete(_) => {}
            }
        }
        seen
    }

    fn pods(pods: &[(&str, bool)]) -> Vec<(String, bool)> {
        pods.iter().map(|(name, decodes)| ((*name).to_owned(), *decodes)).collect()
    }

    #[tokio::test]
    async fn malformed_object_of_list_costs_only_itself() {
        let server = Server { listed: vec![pod("a"), malformed("b"), pod("c")], ..Server::default() };
        assert_eq!(seen(&server.client().await, 3).await, pods(&[("a", true), ("b", false), ("c", true)]));
        assert_eq!(server.lists.load(Ordering::Relaxed), 2, "it is not asked for again and again");
    }

    #[tokio::test]
    async fn malformed_object_of_watch_costs_only_itself() {
        let added = vec![pod("b"), malformed("c"), pod("d")];
        let server = Server { listed: vec![pod("a")], added, ..Server::default() };
        let expected = pods(&[("a", true), ("b", true), ("c", false), ("d", true)]);
        assert_eq!(seen(&server.client().await, 4).await, expected);
        assert_eq!(server.lists.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn watch_goes_on_after_errors() {
        let server = Server { listed: vec![pod("a")], errors: 3, ..Server::default() };
        assert_eq!(seen(&server.client().await, 1).await, pods(&[("a", true)]));
        assert_eq!(server.lists.load(Ordering::Relaxed), 4);
    }

    #[test]
    fn malformed_object_is_news_once() {
        let mut objects = MalformedObjects::default();
        let invalid = |error: &str| {
            let metadata = ObjectMeta { name: Some("a".to_owned()), ..ObjectMeta::default() };
            Guarded::<Pod>(Err(Malformed { error: error.to_owned(), metadata, left_out: Vec::new(), rest: None }))
        };
        let mut is_news = |event: Event<Guarded<Pod>>| objects.note(&event).is_some();
        assert!(!is_news(Event::Init));
        assert!(is_news(Event::InitApply(invalid("one"))));
        assert!(!is_news(Event::InitDone));
        assert!(!is_news(Event::Apply(invalid("one"))));
        assert!(!is_news(Event::Init));
        assert!(!is_news(Event::InitApply(invalid("one"))), "a list tells it again");
        assert!(!is_news(Event::InitDone));
        assert!(is_news(Event::Apply(invalid("two"))), "something else is wrong now");
        assert!(!is_news(Event::Delete(invalid("two"))));
        assert!(is_news(Event::Apply(invalid("two"))), "it is another object");
        assert!(!is_news(Event::Init));
        assert!(!is_news(Event::InitDone));
        assert!(is_news(Event::Apply(invalid("two"))), "it was gone from the list");
    }
}
