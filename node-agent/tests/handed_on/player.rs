//! Process at one address: one pod after the other. Each responds with its name, calls others, and counts the
//! responses.

use std::{
    collections::BTreeMap,
    io::{self, BufRead as _, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd as _,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, SystemTime},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::eventfd::EventFd,
};

/// At which every pod listens.
pub const PORT: u16 = 8080;
/// A pod's name, as it goes over the wire.
const NAME: usize = 16;

/// Reads `be <name> <milliseconds between calls> <number> <addresses>` from standard input until `end`. The answer to
/// that lists all calls: `<name>=<times>` for responses, `<address>/<since>/<until>` (milliseconds since 1970) for each
/// call that was neither answered nor refused.
pub fn play() {
    let mut lines = io::stdin().lock().lines();
    while let Some(Ok(line)) = lines.next() {
        if line == "netns" {
            println!("@ there");
            continue;
        }
        let words: Vec<&str> = line.split(' ').collect();
        let ["be", name, pause, number, targets] = words[..] else { panic!("{line:?}") };
        let (stop, over) = (EventFd::new().unwrap(), AtomicBool::new(false));
        // In the cgroup in which this process is by now.
        let listener = TcpListener::bind(("0.0.0.0", PORT)).unwrap();
        listener.set_nonblocking(true).unwrap();
        println!("@ ready");
        let pause = Duration::from_millis(pause.parse().unwrap());
        let targets: Vec<IpAddr> = targets.split(',').map(|target| target.parse().unwrap()).collect();
        let calls = thread::scope(|scope| {
            scope.spawn(|| answer(&listener, name, &stop));
            let calling = scope.spawn(|| call(pause, number.parse().unwrap(), &targets, &over));
            assert_eq!(lines.next().unwrap().unwrap(), "end");
            over.store(true, Ordering::Relaxed);
            calling.thread().unpark();
            let calls = calling.join().unwrap();
            stop.write(1).unwrap();
            calls
        });
        drop(listener);
        println!("@ {}", calls.join(" "));
    }
}

fn padded(name: &str) -> [u8; NAME] {
    let mut bytes = [b' '; NAME];
    bytes[..name.len()].copy_from_slice(name.as_bytes());
    bytes
}

/// Answers each accepted connection, including those that wait at the end.
fn answer(listener: &TcpListener, name: &str, stop: &EventFd) {
    loop {
        while let Ok((mut stream, _)) = listener.accept() {
            // On the listener's terms otherwise.
            stream.set_nonblocking(false).unwrap();
            let _ = stream.write_all(&padded(name));
        }
        let mut ready =
            [PollFd::new(listener.as_fd(), PollFlags::POLLIN), PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
        poll(&mut ready, PollTimeout::NONE).unwrap();
        if ready[1].any() == Some(true) && ready[0].any() != Some(true) {
            return;
        }
    }
}

fn call(pause: Duration, number: u64, targets: &[IpAddr], over: &AtomicBool) -> Vec<String> {
    let (mut answered, mut unanswered) = (BTreeMap::<String, u64>::new(), Vec::new());
    let mut state = number | 1;
    while !over.load(Ordering::Relaxed) {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let target = targets[usize::try_from(state >> 33).unwrap() % targets.len()];
        let since = unix_ms();
        let connected = TcpStream::connect_timeout(&SocketAddr::new(target, PORT), Duration::from_secs(2));
        match connected.and_then(ask) {
            Ok(server) => *answered.entry(server).or_default() += 1,
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
            // It may have been established: a late check finds a connection that was reset meanwhile.
            Err(_) => unanswered.push(format!("{target}/{since}/{}", unix_ms())),
        }
        thread::park_timeout(pause);
    }
    answered.into_iter().map(|(server, times)| format!("{server}={times}")).chain(unanswered).collect()
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
