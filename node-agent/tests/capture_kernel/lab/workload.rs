//! Many connections at once, counted by the processes that make them.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd as _,
    sync::mpsc,
    thread::{self, ScopedJoinHandle},
    time::{Duration, Instant},
};

use traffic::script::step::{ShortConnections, StepAnswer};

use super::scripted::{call, reset, serve};

/// Serves connections at each listener. Of every `server_closes_every`, this end closes one first; 0: none. Answers the
/// number that each listener has served.
pub fn serve_each(
    listeners: &[&TcpListener],
    connections: ShortConnections,
    server_closes_every: u64,
) -> io::Result<StepAnswer> {
    let serve = |mut stream: TcpStream, closes: bool| {
        stream.read_exact(&mut vec![0; connections.request])?;
        stream.write_all(&vec![1; connections.response])?;
        if !closes {
            // An end or a reset.
            let _ = stream.read(&mut [0]);
        }
        Ok(1)
    };
    let serve_all = |listener: &TcpListener| {
        thread::scope(|scope| {
            let mut served = Vec::new();
            for time in 1..=connections.count {
                let (stream, _) = listener.accept()?;
                let closes = server_closes_every > 0 && time % server_closes_every == 0;
                served.push(scope.spawn(move || serve(stream, closes)));
            }
            served.into_iter().map(join).sum::<io::Result<u64>>()
        })
    };
    let counts = thread::scope(|scope| {
        let each: Vec<_> = listeners.iter().map(|listener| scope.spawn(|| serve_all(listener))).collect();
        each.into_iter().map(join).collect::<io::Result<_>>()
    })?;
    Ok(StepAnswer::Counts { counts, milliseconds: 0 })
}

/// Makes short connections to the targets in turn, at this rate per second; each lives up to 4 ms. Answers the number
/// to each target, and the milliseconds in all.
pub fn call_in_turns(targets: &[SocketAddr], count: u32, rate: u32) -> io::Result<StepAnswer> {
    let mut counts = vec![0; targets.len()];
    let begun = Instant::now();
    for (time, turn) in (0..count).zip((0..targets.len()).cycle()) {
        let due = Duration::from_secs(1) * time / rate;
        thread::sleep(due.saturating_sub(begun.elapsed()));
        let stream = exchange(targets[turn], 10, 20)?;
        thread::sleep(Duration::from_millis(u64::from(time % 5)));
        if time % 2 == 0 {
            reset(stream)?;
        }
        counts[turn] += 1;
    }
    Ok(StepAnswer::Counts { counts, milliseconds: milliseconds(begun.elapsed()) })
}

/// Opens connections to each target at intervals, and holds each for this time. Answers the number to each target, and
/// the milliseconds that the shortest has lived.
pub fn hold_each(targets: &[SocketAddr], connections: ShortConnections, life: Duration) -> io::Result<StepAnswer> {
    let times = u32::try_from(connections.count).map_err(io::Error::other)?;
    let hold = |target: SocketAddr, time: u32| {
        thread::sleep(life * time / times);
        let stream = exchange(target, connections.request, connections.response)?;
        let begun = Instant::now();
        thread::sleep(life);
        let lived = begun.elapsed();
        drop(stream);
        io::Result::Ok(lived)
    };
    thread::scope(|scope| {
        let hold = &hold;
        let threads: Vec<_> = targets
            .iter()
            .map(|target| (0..times).map(|time| scope.spawn(move || hold(*target, time))).collect::<Vec<_>>())
            .collect();
        let (mut counts, mut shortest) = (Vec::new(), Duration::MAX);
        for of_target in threads {
            counts.push(of_target.len() as u64);
            for connection in of_target {
                shortest = shortest.min(join(connection)?);
            }
        }
        Ok(StepAnswer::Counts { counts, milliseconds: milliseconds(shortest) })
    })
}

/// Makes connections to a new listener in each thread, and as many again until `is_over`.
pub fn serve_and_call(
    address: SocketAddr,
    threads: u64,
    connections: ShortConnections,
    is_over: &(impl Fn() -> bool + Sync),
) -> io::Result<()> {
    let listeners = (0..threads).map(|_| TcpListener::bind(address)).collect::<io::Result<Vec<_>>>()?;
    thread::scope(|scope| {
        let mut running = Vec::new();
        for listener in &listeners {
            let (again, rounds) = mpsc::channel();
            running.push(scope.spawn(move || {
                loop {
                    again.send(()).map_err(io::Error::other)?;
                    call_or_shut_down(listener, connections)?;
                    if is_over() {
                        return Ok(());
                    }
                }
            }));
            running.push(scope.spawn(move || rounds.iter().try_for_each(|()| serve(listener, connections))));
        }
        running.into_iter().try_for_each(join)
    })
}

/// Makes connections to each listener from this process, as fast as possible.
pub fn serve_and_call_at(listeners: &[&TcpListener], connections: ShortConnections) -> io::Result<()> {
    thread::scope(|scope| {
        let mut running = Vec::new();
        for listener in listeners {
            running.push(scope.spawn(move || call_or_shut_down(listener, connections)));
            running.push(scope.spawn(move || serve(listener, connections)));
        }
        running.into_iter().try_for_each(join)
    })
}

/// Makes connections to the listener. An error ends the `accept()` of its server, too, so that the step ends.
fn call_or_shut_down(listener: &TcpListener, connections: ShortConnections) -> io::Result<()> {
    use nix::sys::socket::{Shutdown, shutdown};
    call(listener.local_addr()?, connections).inspect_err(|_| {
        let _ = shutdown(listener.as_raw_fd(), Shutdown::Both);
    })
}

/// Opens connections of this process with itself; each end has a descriptor of its own.
pub fn open_pairs(listener: &TcpListener, count: u64) -> io::Result<Vec<(TcpStream, TcpStream)>> {
    use nix::sys::resource::{Resource::RLIMIT_NOFILE, getrlimit, setrlimit};
    let (_, most) = getrlimit(RLIMIT_NOFILE)?;
    setrlimit(RLIMIT_NOFILE, most, most)?;
    let address = listener.local_addr()?;
    (0..count)
        .map(|_| {
            let client = TcpStream::connect(address)?;
            let (server, _) = listener.accept()?;
            Ok((client, server))
        })
        .collect()
}

/// Closes all pairs, the client ends first.
pub fn close_pairs(pairs: &mut Vec<(TcpStream, TcpStream)>) -> io::Result<()> {
    for (client, server) in pairs.drain(..) {
        reset(client)?;
        drop(server);
    }
    Ok(())
}

/// Returns a thread's result. A panic of the thread goes on in this one, with its text.
fn join<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn exchange(target: SocketAddr, request: usize, response: usize) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(target)?;
    stream.write_all(&vec![1; request])?;
    stream.read_exact(&mut vec![0; response])?;
    Ok(stream)
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap()
}
