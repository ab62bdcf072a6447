//! Many connections at once, counted by those who make them.

use std::{
    io::{self, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use super::obedience::{call, reset, serve};

/// Serves so many connections at each listener. Of every `hangups`, this end closes one first; 0: none. Answers how
/// many each has served.
pub fn serve_each(
    listeners: &[&TcpListener],
    times: usize,
    request: usize,
    answer: usize,
    hangups: usize,
) -> io::Result<String> {
    let serve = |mut stream: TcpStream, hangs_up: bool| {
        stream.read_exact(&mut vec![0; request])?;
        stream.write_all(&vec![1; answer])?;
        if !hangs_up {
            // An end or a reset.
            let _ = stream.read(&mut [0]);
        }
        Ok(1)
    };
    let serve_all = |listener: &TcpListener| {
        thread::scope(|scope| {
            let mut served = Vec::new();
            for time in 1..=times {
                let (stream, _) = listener.accept()?;
                let hangs_up = hangups > 0 && time % hangups == 0;
                served.push(scope.spawn(move || serve(stream, hangs_up)));
            }
            served.into_iter().map(|one| one.join().unwrap()).sum::<io::Result<usize>>()
        })
    };
    thread::scope(|scope| {
        let each: Vec<_> = listeners.iter().map(|listener| scope.spawn(|| serve_all(listener))).collect();
        let served: io::Result<Vec<_>> = each.into_iter().map(|one| one.join().unwrap()).collect();
        Ok(list(&served?))
    })
}

/// So many short connections in all, at this rate a second, to the addresses in turn; each lives up to 4 ms. Answers
/// how many it has made to each, and in how many milliseconds.
pub fn call_in_turns(addresses: &[&str], times: u32, rate: u32) -> io::Result<String> {
    let mut made = vec![0; addresses.len()];
    let begun = Instant::now();
    for (time, turn) in (0..times).zip((0..addresses.len()).cycle()) {
        let due = Duration::from_secs(1) * time / rate;
        thread::sleep(due.saturating_sub(begun.elapsed()));
        let stream = exchange(addresses[turn], 10, 20)?;
        thread::sleep(Duration::from_millis(u64::from(time % 5)));
        if time % 2 == 0 {
            reset(stream)?;
        }
        made[turn] += 1;
    }
    Ok(format!("{} {}", list(&made), begun.elapsed().as_millis()))
}

/// So many connections to each address, one a while after the other, each held for so long. Answers how many it has made
/// to each, and how many milliseconds the shortest has lived.
pub fn hold_each(
    addresses: &[&str],
    times: u32,
    milliseconds: u64,
    request: usize,
    answer: usize,
) -> io::Result<String> {
    let life = Duration::from_millis(milliseconds);
    let hold = |address: &str, time: u32| {
        thread::sleep(life * time / times);
        let stream = exchange(address, request, answer)?;
        let begun = Instant::now();
        thread::sleep(life);
        let lived = begun.elapsed();
        drop(stream);
        io::Result::Ok(lived)
    };
    thread::scope(|scope| {
        let hold = &hold;
        let threads: Vec<_> = addresses
            .iter()
            .map(|address| (0..times).map(|time| scope.spawn(move || hold(address, time))).collect::<Vec<_>>())
            .collect();
        let (mut made, mut shortest) = (Vec::new(), Duration::MAX);
        for of_one in threads {
            made.push(of_one.len());
            for connection in of_one {
                shortest = shortest.min(connection.join().unwrap()?);
            }
        }
        Ok(format!("{} {}", list(&made), shortest.as_millis()))
    })
}

/// So many connections to each listener from this very process, as fast as it can.
pub fn storm_at(listeners: &[&TcpListener], times: usize, request: usize, answer: usize) -> io::Result<()> {
    thread::scope(|scope| {
        for listener in listeners {
            let address = listener.local_addr()?.to_string();
            scope.spawn(move || serve(listener, times, request, answer).unwrap());
            scope.spawn(move || call(&address, times, request, answer).unwrap());
        }
        Ok(())
    })
}

/// So many connections of this process with itself, each end with a descriptor of its own.
pub fn crowd(listener: &TcpListener, times: usize) -> io::Result<Vec<(TcpStream, TcpStream)>> {
    use nix::sys::resource::{Resource::RLIMIT_NOFILE, getrlimit, setrlimit};
    let (_, most) = getrlimit(RLIMIT_NOFILE)?;
    setrlimit(RLIMIT_NOFILE, most, most)?;
    let address = listener.local_addr()?;
    (0..times)
        .map(|_| {
            let client = TcpStream::connect(address)?;
            let (server, _) = listener.accept()?;
            Ok((client, server))
        })
        .collect()
}

/// Ends them all, the clients first.
pub fn disperse(crowd: &mut Vec<(TcpStream, TcpStream)>) -> io::Result<()> {
    for (client, server) in crowd.drain(..) {
        reset(client)?;
        drop(server);
    }
    Ok(())
}

fn exchange(address: &str, request: usize, answer: usize) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(address)?;
    stream.write_all(&vec![1; request])?;
    stream.read_exact(&mut vec![0; answer])?;
    Ok(stream)
}

fn list(counts: &[usize]) -> String {
    counts.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}
