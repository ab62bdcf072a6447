//! Scripted process at one address: it is one pod after the other. Each pod answers clients with its name, calls other
//! pods, and counts the answers.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, SystemTime},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::eventfd::EventFd,
};
use traffic::script::{
    self,
    pod::{PodAnswer, PodCalls, PodCommand, PodScript, UnansweredCall},
};

/// Port at which every pod listens.
pub const PORT: u16 = 8080;
/// Length of a pod's name, as it is sent over a connection.
const NAME: usize = 16;

/// Executes commands until standard input ends, where a test started this process.
pub fn run_pods() {
    if script::is_scripted() {
        let mut running = None;
        script::execute_stdin(|command| execute(&mut running, command)).unwrap();
    }
}

fn execute(running: &mut Option<RunningPod>, command: PodCommand) -> io::Result<PodAnswer> {
    match command {
        PodCommand::Start(pod) => {
            if running.is_some() {
                return Err(io::Error::other("another pod is running"));
            }
            *running = Some(RunningPod::start(pod)?);
            Ok(PodAnswer::Done)
        }
        PodCommand::Stop => {
            let pod = running.take().ok_or_else(|| io::Error::other("no pod is running"))?;
            pod.stop().map(PodAnswer::Calls)
        }
    }
}

/// Pod with a server and a client.
struct RunningPod {
    stop_server: Arc<EventFd>,
    stop_client: Arc<AtomicBool>,
    server: JoinHandle<()>,
    client: JoinHandle<PodCalls>,
}

impl RunningPod {
    fn start(pod: PodScript) -> io::Result<Self> {
        let (stop_server, stop_client) = (Arc::new(EventFd::new()?), Arc::new(AtomicBool::new(false)));
        // In the cgroup in which this process is by now.
        let listener = TcpListener::bind(("0.0.0.0", PORT))?;
        listener.set_nonblocking(true)?;
        let (stop, name) = (Arc::clone(&stop_server), padded(&pod.name)?);
        let server = thread::spawn(move || answer(&listener, &name, &stop));
        let stop = Arc::clone(&stop_client);
        let client = thread::spawn(move || call(&pod, &stop));
        Ok(Self { stop_server, stop_client, server, client })
    }

    /// Stops the client first, then the server, which closes its listener.
    fn stop(self) -> io::Result<PodCalls> {
        self.stop_client.store(true, Ordering::Relaxed);
        self.client.thread().unpark();
        let calls = join(self.client);
        self.stop_server.write(1)?;
        join(self.server);
        Ok(calls)
    }
}

/// Returns a thread's result. A panic of the thread goes on in this one, with its text.
fn join<T>(thread: JoinHandle<T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn padded(name: &str) -> io::Result<[u8; NAME]> {
    let mut bytes = [b' '; NAME];
    let start = bytes.get_mut(..name.len()).ok_or_else(|| io::Error::other(format!("{name} has over {NAME} bytes")))?;
    start.copy_from_slice(name.as_bytes());
    Ok(bytes)
}

/// Answers each accepted connection, including those that wait at the end.
fn answer(listener: &TcpListener, name: &[u8; NAME], stop: &EventFd) {
    loop {
        while let Ok((mut stream, _)) = listener.accept() {
            // On the listener's terms otherwise.
            stream.set_nonblocking(false).unwrap();
            let _ = stream.write_all(name);
        }
        let mut ready =
            [PollFd::new(listener.as_fd(), PollFlags::POLLIN), PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
        poll(&mut ready, PollTimeout::NONE).unwrap();
        if ready[1].any() == Some(true) && ready[0].any() != Some(true) {
            return;
        }
    }
}

fn call(pod: &PodScript, stop: &AtomicBool) -> PodCalls {
    let mut calls = PodCalls::default();
    let mut state = pod.seed | 1;
    while !stop.load(Ordering::Relaxed) {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let target = pod.targets[usize::try_from(state >> 33).unwrap() % pod.targets.len()];
        let since_unix_ms = unix_ms();
        let connected = TcpStream::connect_timeout(&SocketAddr::new(target, PORT), Duration::from_secs(2));
        match connected.and_then(ask) {
            Ok(server) => *calls.answered.entry(server).or_default() += 1,
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
            // It may have been established: a late check finds a connection that was reset meanwhile.
            Err(_) => calls.unanswered.push(UnansweredCall { target, since_unix_ms, until_unix_ms: unix_ms() }),
        }
        thread::park_timeout(Duration::from_millis(pod.pause_ms));
    }
    calls
}

fn ask(mut stream: TcpStream) -> io::Result<String> {
    let mut name = [0; NAME];
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    stream.read_exact(&mut name)?;
    Ok(String::from_utf8_lossy(&name).trim().to_owned())
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    u64::try_from(since.as_millis()).unwrap()
}
