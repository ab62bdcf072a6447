//! An operator in this process that speaks the real protocol over a real connection.

use std::{
    collections::{HashSet, VecDeque},
    sync::{Arc, Mutex},
};

use report::v1alpha1::{
    AgentReport, CollectorReply,
    collector_server::{Collector, CollectorServer},
};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, mpsc},
};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming, transport::Server};

/// Behavior of the operator on one stream.
#[derive(Clone, Copy, Debug)]
#[allow(dead_code, reason = "not every test has all of them")]
pub enum Manner {
    /// Acknowledges every message.
    Answer,
    /// Acknowledges so many messages and ends the stream.
    EndAfter(u64),
    /// Acknowledges what was never sent.
    Garbage,
    /// Repeats old acknowledgements before the right one.
    Repeat,
    /// Never answers.
    Silent,
    /// Doesn't accept the stream.
    Reject,
    /// Says after so many messages that another stream has taken the place, and ends the epoch.
    ReplaceAfter(u64),
}

/// Plays the operator.
struct Operator {
    /// For the next streams; then [`Manner::Answer`].
    manners: Arc<Mutex<VecDeque<Manner>>>,
    streams: Arc<Mutex<usize>>,
    ended: Arc<Mutex<HashSet<Vec<u8>>>>,
    /// Received messages, with the number of their stream.
    received: mpsc::UnboundedSender<(usize, AgentReport)>,
    /// A permit for each answer.
    answers: Arc<Semaphore>,
}

#[tonic::async_trait]
impl Collector for Operator {
    type ReportStream = ReceiverStream<Result<CollectorReply, Status>>;

    async fn report(&self, request: Request<Streaming<AgentReport>>) -> Result<Response<Self::ReportStream>, Status> {
        let manner = self.manners.lock().unwrap().pop_front().unwrap_or(Manner::Answer);
        if matches!(manner, Manner::Reject) {
            return Err(Status::unavailable("not the leader"));
        }
        let number = {
            let mut streams = self.streams.lock().unwrap();
            *streams += 1;
            *streams
        };
        let (replies, stream) = mpsc::channel(8);
        let (received, answers) = (self.received.clone(), Arc::clone(&self.answers));
        let ended = Arc::clone(&self.ended);
        let mut reports = request.into_inner();
        tokio::spawn(async move {
            while let Ok(Some(report)) = reports.message().await {
                let (sequence, epoch) = (report.sequence, report.epoch.clone());
                if ended.lock().unwrap().contains(&epoch) {
                    let _ = replies.send(Err(Status::failed_precondition("epoch: it has ended"))).await;
                    return;
                }
                let _ = received.send((number, report));
                answers.acquire().await.unwrap().forget();
                let sequences = match manner {
                    Manner::Garbage => vec![sequence + 100],
                    Manner::Silent => vec![],
                    Manner::Repeat => vec![sequence.saturating_sub(1), 0, sequence],
                    _ => vec![sequence],
                };
                for sequence in sequences {
                    let _ = replies.send(Ok(CollectorReply { sequence, ..CollectorReply::default() })).await;
                }
                if matches!(manner, Manner::ReplaceAfter(last) if last == sequence) {
                    ended.lock().unwrap().insert(epoch);
                    let _ = replies.send(Err(Status::aborted("another stream has taken this one's place"))).await;
                    return;
                }
                if matches!(manner, Manner::EndAfter(last) if last == sequence) {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

/// Serves an operator on a listener; it answers as fast as there are permits, at first as many as there can be.
pub fn serve(
    listener: TcpListener,
    manners: &[Manner],
) -> (mpsc::UnboundedReceiver<(usize, AgentReport)>, Arc<Semaphore>) {
    let (sender, received) = mpsc::unbounded_channel();
    let answers = Arc::new(Semaphore::new(Semaphore::MAX_PERMITS / 2));
    let operator = Operator {
        manners: Arc::new(Mutex::new(manners.iter().copied().collect())),
        streams: Arc::default(),
        ended: Arc::default(),
        received: sender,
        answers: Arc::clone(&answers),
    };
    let server = Server::builder().add_service(CollectorServer::new(operator));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    (received, answers)
}
