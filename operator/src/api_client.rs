//! Clients of the API server. They write nothing without the lease, and send nothing before the time for which the API
//! server asks. They do not retry: each caller does, within a second or two. The library would double its pauses for
//! minutes, within one request.

use std::{
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use kube::{Client, Config, client::Body};
use tokio::time::{Instant, sleep_until};
use tonic::codegen::{
    Service,
    http::{Method, Request, Response, StatusCode, header::RETRY_AFTER},
};

use crate::fence::Fence;

/// Maximum time for which a refusal of the API server delays further requests.
const LONGEST_DELAY: Duration = Duration::from_secs(30);
/// Path of requests that ask for an opinion, with the method of a write.
const REVIEWS: &str = "/apis/authentication.k8s.io/";

/// Write that was not sent.
#[derive(Debug, thiserror::Error)]
#[error("this operator does not hold its lease, so it writes nothing")]
struct FenceClosed;

/// Clients of the API server.
pub struct Clients {
    /// Without a time limit for answers: a watch is silent as long as nothing changes.
    pub watching: Client,
    /// For single requests.
    pub requesting: Client,
}

impl Clients {
    /// Prepares the clients, without a request. They write only while the fence is open.
    ///
    /// # Errors
    /// Returns an error if the configuration allows no client.
    pub fn new(mut config: Config, answer_timeout: Duration, fence: &Fence) -> kube::Result<Self> {
        let delay = Delay::default();
        let watching = guarded(config.clone(), fence, &delay)?;
        config.read_timeout = Some(answer_timeout);
        Ok(Self { watching, requesting: guarded(config, fence, &delay)? })
    }
}

/// Returns a client for the lease itself, which may always write, and at any time: the lease would lapse while one API server
/// of several asks for time, as each does that shuts down.
///
/// # Errors
/// Returns an error if the configuration allows no client.
pub fn unfenced(mut config: Config) -> kube::Result<Client> {
    config.default_retry = false;
    Client::try_from(config)
}

fn guarded(config: Config, fence: &Fence, delay: &Delay) -> kube::Result<Client> {
    let namespace = config.default_namespace.clone();
    let guard = Guard { inner: unfenced(config)?, fence: fence.clone(), delay: delay.clone() };
    Ok(Client::new(guard, namespace))
}

/// Time before which the API server wants no request. All clones share one state.
#[derive(Clone, Debug, Default)]
struct Delay(Arc<Mutex<Option<Instant>>>);

impl Delay {
    fn end(&self) -> Option<Instant> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn pass(&self) {
        // Another refusal may have come meanwhile.
        while let Some(end) = self.end().filter(|end| *end > Instant::now()) {
            sleep_until(end).await;
        }
    }

    fn note<B>(&self, answer: &Response<B>, now: Instant) {
        if let Some(delay) = asked_delay(answer) {
            let end = now + delay.min(LONGEST_DELAY);
            let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            *known = (*known).max(Some(end));
        }
    }
}

/// Returns the time for which the API server asks by `Retry-After`, in seconds. The other form of that header, a date, is of
/// another clock.
fn asked_delay<B>(answer: &Response<B>) -> Option<Duration> {
    if !matches!(answer.status(), StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
        return None;
    }
    let seconds = answer.headers().get(RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds))
}

fn is_write<B>(request: &Request<B>) -> bool {
    !matches!(*request.method(), Method::GET | Method::HEAD) && !request.uri().path().starts_with(REVIEWS)
}

/// Service before a client.
struct Guard {
    inner: Client,
    fence: Fence,
    delay: Delay,
}

impl Service<Request<Body>> for Guard {
    type Response = Response<Body>;
    type Error = kube::Error;
    type Future = BoxFuture<'static, kube::Result<Response<Body>>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<kube::Result<()>> {
        // The client is waited for in each request, so that none waits for another one.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (inner, fence, delay) = (self.inner.clone(), self.fence.clone(), self.delay.clone());
        async move {
            delay.pass().await;
            if is_write(&request) && !fence.is_open(Instant::now()) {
                return Err(kube::Error::Service(FenceClosed.into()));
            }
            let answer = inner.send(request).await?;
            delay.note(&answer, Instant::now());
            Ok(answer)
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use axum::{Router, http::HeaderMap};
    use k8s_openapi::api::{authentication::v1::TokenReview, core::v1::ConfigMap};
    use kube::{Api, api::PostParams};
    use serde_json::json;
    use tokio::{net::TcpListener, sync::mpsc};

    use super::*;

    const TIMEOUT: Duration = Duration::from_millis(100);

    /// Answers each request with this status and `Retry-After`. Sends each method to the receiver.
    async fn server(status: StatusCode, seconds: &str) -> (Config, mpsc::UnboundedReceiver<Method>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let (sender, requests) = mpsc::unbounded_channel();
        let headers = HeaderMap::from_iter([(RETRY_AFTER, seconds.parse().unwrap())]);
        let router = Router::new().fallback(move |method: Method| {
            sender.send(method).unwrap();
            let answer = (status, headers.clone(), "{}");
            async { answer }
        });
        tokio::spawn(async { axum::serve(listener, router).await });
        (Config::new(url), requests)
    }

    fn maps(client: &Client) -> Api<ConfigMap> {
        Api::namespaced(client.clone(), "default")
    }

    #[tokio::test]
    async fn write_is_sent_only_while_the_lease_is_held() {
        let (config, mut requests) = server(StatusCode::OK, "0").await;
        let fence = Fence::default();
        let Clients { watching, requesting } = Clients::new(config, TIMEOUT, &fence).unwrap();
        for client in [&watching, &requesting] {
            let create = async || maps(client).create(&PostParams::default(), &ConfigMap::default()).await;
            let error = create().await.unwrap_err();
            assert!(error.to_string().contains("does not hold its lease"), "{error}");
            maps(client).get("a").await.unwrap();
            let review: TokenReview = serde_json::from_value(json!({"spec": {}})).unwrap();
            // The answer is no review, which does not matter.
            let _ = Api::all(client.clone()).create(&PostParams::default(), &review).await;
            fence.open_until(Instant::now() + Duration::from_mins(1));
            create().await.unwrap();
            fence.close();
            create().await.unwrap_err();
        }
        let seen: Vec<_> = std::iter::from_fn(|| requests.try_recv().ok()).collect();
        let [get, post] = [Method::GET, Method::POST];
        assert_eq!(seen, [&get, &post, &post, &get, &post, &post].map(Clone::clone));
    }

    #[tokio::test]
    async fn refused_request_is_not_repeated_and_delays_the_next_one() {
        let (config, mut requests) = server(StatusCode::TOO_MANY_REQUESTS, "1").await;
        let Clients { watching, requesting } = Clients::new(config, TIMEOUT, &Fence::default()).unwrap();
        maps(&requesting).get("a").await.unwrap_err();
        let refused = Instant::now();
        assert!(requests.try_recv().is_ok() && requests.try_recv().is_err());
        maps(&watching).get("a").await.unwrap_err();
        // A part of the second passed before the answer arrived.
        assert!(refused.elapsed() >= Duration::from_millis(500), "{:?}", refused.elapsed());
    }

    #[test]
    fn delay_is_bounded_and_only_grows() {
        let (delay, now) = (Delay::default(), Instant::now());
        let note = |status: u16, seconds: &str| {
            let answer = Response::builder().status(status).header(RETRY_AFTER, seconds).body(()).unwrap();
            delay.note(&answer, now);
            delay.end().map(|end| end.duration_since(now).as_secs())
        };
        assert_eq!([note(200, "5"), note(500, "5"), note(429, "soon"), note(429, "-1")], [None; 4]);
        assert_eq!([note(503, "5"), note(429, "2"), note(429, "86400")], [Some(5), Some(5), Some(30)]);
        assert_eq!(note(429, &u64::MAX.to_string()), Some(30));
    }

    #[tokio::test]
    async fn request_without_an_answer_fails_while_watches_wait() {
        // Connections wait in its queue.
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", silent.local_addr().unwrap()).parse().unwrap();
        let clients = Clients::new(Config::new(url), TIMEOUT, &Fence::default()).unwrap();
        let (watching, requesting) = (maps(&clients.watching), maps(&clients.requesting));
        tokio::select! {
            _ = watching.get("a") => panic!("a request without an answer ended"),
            answer = requesting.get("a") => assert!(answer.is_err()),
        }
    }
}
