//! Bounds the memory of messages that are being received: a message is read once its size fits into a budget of all
//! connections, and has to be complete within a time limit.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use http_body::{Frame, SizeHint};
use tokio::{
    sync::{AcquireError, OwnedSemaphorePermit, Semaphore},
    time::{Instant, Sleep, sleep_until},
};
use tonic::{
    Status,
    body::Body,
    codegen::{Bytes, Service, http},
};

/// Maximum size of one message on the wire.
pub(super) const MAX_MESSAGE_BYTES: usize = 4 << 20;
/// Length of a message's header in gRPC: a flag and the length of the rest.
const HEADER_BYTES: usize = 5;

/// Budget of all connections. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct ByteBudget {
    bytes: Arc<Semaphore>,
    /// Time limit of a message from its first byte to its last one, with the time for which it waits.
    patience: Duration,
}

impl ByteBudget {
    pub fn new(bytes: u32, patience: Duration) -> Self {
        let bytes = usize::try_from(bytes).unwrap_or(Semaphore::MAX_PERMITS);
        Self { bytes: Arc::new(Semaphore::new(bytes)), patience }
    }
}

/// Service whose requests are read within the budget.
#[derive(Clone, Debug)]
pub(super) struct Budgeted<S> {
    pub inner: S,
    pub budget: ByteBudget,
}

impl<S: Service<http::Request<Body>>> Service<http::Request<Body>> for Budgeted<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> S::Future {
        let budget = self.budget.clone();
        self.inner.call(request.map(|body| Body::new(BudgetedBody::new(body, budget))))
    }
}

/// Position in a sequence of messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Position {
    /// Within a header of which these bytes have come.
    Header([u8; HEADER_BYTES], usize),
    /// Within a message of this length, of which so many bytes are left.
    Message { length: usize, left: usize },
}

impl Position {
    const START: Self = Self::Header([0; HEADER_BYTES], 0);

    /// Follows the bytes. Returns the total length of the messages that begin in them.
    fn follow(&mut self, mut bytes: &[u8]) -> usize {
        let mut begun = 0;
        while !bytes.is_empty() {
            match self {
                Self::Header(header, filled) => {
                    let taken = bytes.len().min(HEADER_BYTES - *filled);
                    header[*filled..*filled + taken].copy_from_slice(&bytes[..taken]);
                    *filled += taken;
                    bytes = &bytes[taken..];
                    if *filled == HEADER_BYTES {
                        let [_, length @ ..] = *header;
                        // Longer messages are refused before they are stored.
                        let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
                        let length = length.min(MAX_MESSAGE_BYTES);
                        begun += length;
                        *self = if length == 0 { Self::START } else { Self::Message { length, left: length } };
                    }
                }
                Self::Message { left, .. } => {
                    let taken = bytes.len().min(*left);
                    *left -= taken;
                    bytes = &bytes[taken..];
                    if *left == 0 {
                        *self = Self::START;
                    }
                }
            }
        }
        begun
    }

    /// Returns the length of the message that has begun and not ended.
    fn unfinished(&self) -> usize {
        match self {
            Self::Header(..) => 0,
            Self::Message { length, .. } => *length,
        }
    }

    fn is_start(&self) -> bool {
        matches!(self, Self::Header(_, 0))
    }
}

type Acquiring = Pin<Box<dyn Future<Output = Result<OwnedSemaphorePermit, AcquireError>> + Send + Sync>>;

/// Body of a request. The bytes of a message that was taken in are free again when the next one is asked for.
struct BudgetedBody {
    inner: Body,
    budget: ByteBudget,
    position: Position,
    held: Option<OwnedSemaphorePermit>,
    /// Bytes that wait for their budget.
    waiting: Option<(Bytes, Acquiring)>,
    deadline: Option<Pin<Box<Sleep>>>,
}

impl BudgetedBody {
    fn new(inner: Body, budget: ByteBudget) -> Self {
        Self { inner, budget, position: Position::START, held: None, waiting: None, deadline: None }
    }

    /// Frees the bytes of messages that ended: the consumer asks for more once it has taken them in.
    fn free(&mut self) {
        let unfinished = self.position.unfinished();
        if let Some(held) = &mut self.held {
            let excess = held.num_permits().saturating_sub(unfinished);
            drop(held.split(excess));
        }
    }

    fn take(&mut self, bytes: Bytes) -> Option<Bytes> {
        let begun = self.position.follow(&bytes);
        if begun > 0 || (self.deadline.is_none() && !self.position.is_start()) {
            self.deadline = Some(Box::pin(sleep_until(Instant::now() + self.budget.patience)));
        } else if self.position.is_start() {
            self.deadline = None;
        }
        if begun == 0 {
            return Some(bytes);
        }
        // A frame may begin many small messages; what is beyond the whole budget could never be had.
        let begun = u32::try_from(begun.min(MAX_MESSAGE_BYTES)).unwrap_or(u32::MAX);
        let acquiring = Arc::clone(&self.budget.bytes).acquire_many_owned(begun);
        self.waiting = Some((bytes, Box::pin(acquiring)));
        None
    }

    fn hold(&mut self, permit: OwnedSemaphorePermit) {
        match &mut self.held {
            Some(held) => held.merge(permit),
            None => self.held = Some(permit),
        }
    }
}

impl http_body::Body for BudgetedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        if this.waiting.is_none() {
            this.free();
        }
        loop {
            if let Some(deadline) = &mut this.deadline
                && deadline.as_mut().poll(context).is_ready()
            {
                let patience = this.budget.patience;
                return Poll::Ready(Some(Err(Status::deadline_exceeded(format!(
                    "a message was not complete within {patience:?}, or there was no room for it; come again"
                )))));
            }
            if let Some((_, acquiring)) = &mut this.waiting {
                let permit = ready!(acquiring.as_mut().poll(context));
                let permit = permit.map_err(|_| Status::unavailable("the operator stops; come again"))?;
                this.hold(permit);
                if this.position.is_start() {
                    this.deadline = None;
                }
                // It is there, as the condition above says.
                let bytes = this.waiting.take().map(|(bytes, _)| bytes).unwrap_or_default();
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            let Some(frame) = ready!(Pin::new(&mut this.inner).poll_frame(context)) else {
                this.deadline = None;
                return Poll::Ready(None);
            };
            match frame?.into_data() {
                Ok(bytes) => {
                    if let Some(bytes) = this.take(bytes) {
                        return Poll::Ready(Some(Ok(Frame::data(bytes))));
                    }
                }
                Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.waiting.is_none() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt as _, SinkExt as _, StreamExt as _};
    use http_body::Body as _;

    use super::*;

    fn message(length: u32) -> Vec<u8> {
        let header = [&[0][..], &length.to_be_bytes()].concat();
        [header, vec![7; usize::try_from(length).unwrap()]].concat()
    }

    #[test]
    fn position_is_the_same_for_every_division_into_frames() {
        let stream = [message(3), message(0), message(300), message(1)].concat();
        for size in 1..=stream.len() {
            let mut position = Position::START;
            let begun: usize = stream.chunks(size).map(|bytes| position.follow(bytes)).sum();
            assert_eq!((begun, position), (304, Position::START), "{size}");
        }
        let mut position = Position::START;
        assert_eq!((position.follow(&message(9)[..7]), position.unfinished()), (9, 9));
        let mut position = Position::START;
        assert_eq!(position.follow(&[0, 0xff, 0xff, 0xff, 0xff, 1]), MAX_MESSAGE_BYTES, "no more is ever stored");
    }

    /// A body of which a test sends the frames, and the budget's free bytes.
    struct Scripted {
        sender: futures::channel::mpsc::Sender<Bytes>,
        body: BudgetedBody,
    }

    struct Frames(futures::channel::mpsc::Receiver<Bytes>);

    impl http_body::Body for Frames {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            self.0.poll_next_unpin(context).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
        }
    }

    impl Scripted {
        fn new(budget: &ByteBudget) -> Self {
            let (sender, receiver) = futures::channel::mpsc::channel(8);
            Self { sender, body: BudgetedBody::new(Body::new(Frames(receiver)), budget.clone()) }
        }

        async fn send(&mut self, bytes: &[u8]) {
            self.sender.send(Bytes::copy_from_slice(bytes)).await.unwrap();
        }

        /// Returns the length of the next frame, if it is there.
        fn receive(&mut self) -> Option<Result<usize, tonic::Code>> {
            let frame = std::future::poll_fn(|context| Pin::new(&mut self.body).poll_frame(context)).now_or_never()?;
            Some(frame?.map(|frame| frame.into_data().unwrap().len()).map_err(|status| status.code()))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn message_waits_until_another_connection_has_taken_its_own_in() {
        let budget = ByteBudget::new(100, Duration::from_secs(10));
        let [mut one, mut other] = [(); 2].map(|()| Scripted::new(&budget));
        one.send(&message(60)[..30]).await;
        other.send(&message(60)).await;
        assert_eq!(one.receive(), Some(Ok(30)));
        assert_eq!(other.receive(), None, "there is no room");
        one.send(&message(60)[30..]).await;
        assert_eq!(one.receive(), Some(Ok(35)));
        assert_eq!(other.receive(), None, "the first message was not taken in");
        assert_eq!(one.receive(), None, "asks for the next one");
        assert_eq!(other.receive(), Some(Ok(65)));
        drop((one, other));
        assert_eq!(budget.bytes.available_permits(), 100);
    }

    #[tokio::test(start_paused = true)]
    async fn half_a_message_ends_its_stream_and_frees_its_bytes() {
        let budget = ByteBudget::new(100, Duration::from_secs(10));
        let [mut half, mut whole] = [(); 2].map(|()| Scripted::new(&budget));
        half.send(&message(90)[..50]).await;
        assert_eq!((half.receive(), half.receive()), (Some(Ok(50)), None));
        whole.send(&message(20)).await;
        assert_eq!(whole.receive(), None);
        tokio::time::advance(Duration::from_secs(9)).await;
        half.send(&[1]).await;
        assert_eq!((half.receive(), half.receive()), (Some(Ok(1)), None), "a byte now and then does not help");
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(half.receive(), Some(Err(tonic::Code::DeadlineExceeded)));
        drop(half);
        assert_eq!(whole.receive(), Some(Err(tonic::Code::DeadlineExceeded)), "it has waited as long");
        let mut again = Scripted::new(&budget);
        again.send(&message(20)).await;
        assert_eq!(again.receive(), Some(Ok(25)));
        assert_eq!(again.receive(), None);
        tokio::time::advance(Duration::from_mins(1)).await;
        assert_eq!(again.receive(), None, "there is no time limit between messages");
    }
}
