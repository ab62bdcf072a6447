//! Scripted process that makes connections: executes each command and reports its result.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::Path,
    process::{Child, Command},
    sync::mpsc,
    thread,
    time::Duration,
};

use super::{datagrams::Datagrams, handshakes, measures, workload};

/// The other side of [`Process`]: obeys until its input ends.
pub fn obey() {
    let mut lab = Sockets::default();
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        let words: Vec<&str> = line.split_whitespace().collect();
        let answer = lab.act(&words).unwrap_or_else(|error| format!("error {error}"));
        let mut out = std::io::stdout().lock();
        writeln!(out, "@ {answer}").unwrap();
        out.flush().unwrap();
    }
}

#[derive(Default)]
struct Sockets {
    listeners: BTreeMap<String, TcpListener>,
    streams: BTreeMap<String, TcpStream>,
    holders: Vec<Child>,
    crowd: Vec<(TcpStream, TcpStream)>,
    datagrams: Datagrams,
}

impl Drop for Sockets {
    fn drop(&mut self) {
        for holder in &mut self.holders {
            let _ = holder.kill();
            let _ = holder.wait();
        }
    }
}

impl Sockets {
    fn act(&mut self, words: &[&str]) -> std::io::Result<String> {
        let number = |index: usize| words[index].parse::<usize>().unwrap();
        if let Some(what) = words[0].strip_prefix("udp-") {
            return self.datagrams.act(what, &words[1..]);
        }
        match words[0] {
            "netns" => return Ok(fs::metadata("/proc/self/ns/net")?.ino().to_string()),
            "listen" => {
                let listener = TcpListener::bind(words[2])?;
                let port = listener.local_addr()?.port();
                self.listeners.insert(String::from(words[1]), listener);
                return Ok(port.to_string());
            }
            // As Go's servers do by default: for MPTCP, which is TCP with those who do not speak it.
            "listen-mptcp" => {
                let listener = listen_mptcp()?;
                let port = listener.local_addr()?.port();
                self.listeners.insert(String::from(words[1]), listener);
                return Ok(port.to_string());
            }
            "listen-with-room" | "turn-deaf" | "hear-again" | "dial" | "redial" | "outcome" | "disconnect" | "port" => {
                return self.act_by_step(words);
            }
            "unlisten" => drop(self.listeners.remove(words[1])),
            "connect" => {
                let stream = TcpStream::connect(words[2])?;
                self.streams.insert(String::from(words[1]), stream);
            }
            "accept" => {
                let (stream, _) = self.listeners[words[2]].accept()?;
                self.streams.insert(String::from(words[1]), stream);
            }
            "send" => self.stream(words[1]).write_all(&vec![7; number(2)])?,
            "receive" => self.stream(words[1]).read_exact(&mut vec![0; number(2)])?,
            "end" => assert_eq!(self.stream(words[1]).read(&mut [0])?, 0),
            "measured" | "acknowledged" | "resent" | "deafen" | "hear" | "delay" => {
                return measures::act(&self.streams[words[1]], words);
            }
            "shutdown" => self.stream(words[1]).shutdown(std::net::Shutdown::Write)?,
            "close" => drop(self.streams.remove(words[1])),
            "reset" => reset(self.streams.remove(words[1]).unwrap())?,
            // Another process that holds the socket too, and a second descriptor in this one.
            "share" => {
                let stream = &self.streams[words[1]];
                let (there, here) = (stream.try_clone()?, stream.try_clone()?);
                let holder = Command::new("sleep").arg("1000").stdin(OwnedFd::from(there)).spawn()?;
                self.holders.push(holder);
                self.streams.insert(format!("{}-again", words[1]), here);
            }
            "unshare" => {
                for mut holder in self.holders.drain(..) {
                    holder.kill()?;
                    holder.wait()?;
                }
                let again = format!("{}-again", words[1]);
                self.streams.remove(&again);
            }
            // `refused ADDRESS N`
            "refused" => {
                for _ in 0..number(2) {
                    assert!(TcpStream::connect(words[1]).is_err());
                }
            }
            // `serve LISTENER N REQUEST ANSWER`, `call ADDRESS N REQUEST ANSWER`: short connections in a row.
            "serve" => serve(&self.listeners[words[1]], number(2), number(3), number(4))?,
            "call" => call(words[1], number(2), number(3), number(4))?,
            // `call-slowly ADDRESS N`: one after the other, a hundred in a second.
            "call-slowly" => {
                for _ in 0..number(2) {
                    call(words[1], 1, 10, 20)?;
                    thread::sleep(Duration::from_millis(10));
                }
            }
            "serve-each" | "call-in-turns" | "hold-each" | "storm-at" => return self.act_at_once(words),
            // `crowd LISTENER N`: so many connections of this process with itself, held until `disperse`.
            "crowd" => self.crowd.extend(workload::crowd(&self.listeners[words[1]], number(2))?),
            "disperse" => workload::disperse(&mut self.crowd)?,
            // `both LISTENER PORT N`: short connections of this process with itself.
            "both" => {
                for _ in 0..number(3) {
                    let stream = TcpStream::connect(("127.0.0.1", u16::try_from(number(2)).unwrap()))?;
                    let (other, _) = self.listeners[words[1]].accept()?;
                    reset(stream)?;
                    drop(other);
                }
            }
            // `storm ADDRESS THREADS N REQUEST ANSWER`: both ends in this process, as fast as it can.
            "storm" => storm(words[1], number(2), number(3), number(4), number(5), &|| false),
            // `storm-until FILE ADDRESS THREADS N REQUEST ANSWER`: N at a time, until there is a file of this name.
            "storm-until" => {
                let more = || !Path::new(words[1]).exists();
                storm(words[2], number(3), number(4), number(5), number(6), &more);
            }
            other => panic!("unknown command {other}"),
        }
        Ok(String::from("done"))
    }

    /// Executes a `workload` command.
    fn act_at_once(&self, words: &[&str]) -> std::io::Result<String> {
        let size = |index: usize| words[index].parse::<usize>().unwrap();
        let count = |index: usize| words[index].parse::<u32>().unwrap();
        let listeners = |names: &[&str]| names.iter().map(|name| &self.listeners[*name]).collect::<Vec<_>>();
        match words[0] {
            // `serve-each N REQUEST ANSWER HANGUPS LISTENER...`
            "serve-each" => workload::serve_each(&listeners(&words[5..]), size(1), size(2), size(3), size(4)),
            // `call-in-turns N RATE ADDRESS...`
            "call-in-turns" => workload::call_in_turns(&words[3..], count(1), count(2)),
            // `hold-each N MILLISECONDS REQUEST ANSWER ADDRESS...`
            "hold-each" => workload::hold_each(&words[5..], count(1), count(2).into(), size(3), size(4)),
            // `storm-at N REQUEST ANSWER LISTENER...`
            _ => workload::storm_at(&listeners(&words[4..]), size(1), size(2), size(3)).map(|()| "done".into()),
        }
    }

    /// Executes `handshakes`.
    fn act_by_step(&mut self, words: &[&str]) -> std::io::Result<String> {
        match words[0] {
            // `listen-with-room LISTENER ADDRESS ROOM`: answers the port.
            "listen-with-room" => {
                let listener = handshakes::listen_with_room(words[2], words[3].parse().unwrap())?;
                let port = listener.local_addr()?.port();
                self.listeners.insert(String::from(words[1]), listener);
                return Ok(port.to_string());
            }
            // `turn-deaf LISTENER`, `hear-again LISTENER`: whether SYNs are dropped, which clients send again.
            "turn-deaf" => measures::deafen(&self.listeners[words[1]])?,
            "hear-again" => measures::hear(&self.listeners[words[1]])?,
            // `dial STREAM ADDRESS [FROM]`
            "dial" => {
                let stream = handshakes::dial(words[2], words.get(3).copied())?;
                self.streams.insert(String::from(words[1]), stream);
            }
            // `redial STREAM ADDRESS`
            "redial" => handshakes::redial(&self.streams[words[1]], words[2])?,
            "outcome" => return handshakes::outcome(&self.streams[words[1]]),
            "port" => return Ok(self.streams[words[1]].local_addr()?.port().to_string()),
            _ => handshakes::disconnect(&self.streams[words[1]])?,
        }
        Ok(String::from("done"))
    }

    fn stream(&mut self, name: &str) -> &mut TcpStream {
        self.streams.get_mut(name).unwrap()
    }
}

#[expect(unsafe_code, reason = "nix knows no MPTCP")]
fn listen_mptcp() -> std::io::Result<TcpListener> {
    use nix::{
        libc,
        sys::socket::{Backlog, SockaddrIn, bind, listen},
    };
    // SAFETY: no pointers; the descriptor is checked and owned right away.
    let socket = unsafe {
        let fd = libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, libc::IPPROTO_MPTCP);
        nix::errno::Errno::result(fd)?;
        OwnedFd::from_raw_fd(fd)
    };
    bind(socket.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0))?;
    listen(&socket, Backlog::new(16)?)?;
    Ok(socket.into())
}

pub(super) fn reset(stream: TcpStream) -> std::io::Result<()> {
    use nix::sys::socket::{setsockopt, sockopt};
    setsockopt(&stream, sockopt::Linger, &nix::libc::linger { l_onoff: 1, l_linger: 0 })?;
    drop(stream);
    Ok(())
}

pub(super) fn serve(listener: &TcpListener, times: usize, request: usize, answer: usize) -> std::io::Result<()> {
    let (mut asked, answer) = (vec![0; request], vec![1; answer]);
    for time in 0..times {
        let (mut stream, _) = listener.accept()?;
        stream.read_exact(&mut asked)?;
        stream.write_all(&answer)?;
        // In turns: the client closes first, the server does, or both at once.
        if time % 3 == 0 {
            let _ = stream.read(&mut [0]);
        }
    }
    Ok(())
}

pub(super) fn call(address: &str, times: usize, request: usize, answer: usize) -> std::io::Result<()> {
    let (request, mut answered) = (vec![1; request], vec![0; answer]);
    for time in 0..times {
        let mut stream = TcpStream::connect(address)?;
        stream.write_all(&request)?;
        stream.read_exact(&mut answered)?;
        if time % 3 == 1 {
            let _ = stream.read(&mut [0]);
        }
        // The ports of one pair of addresses would run out; a reset leaves none behind, on either end.
        reset(stream)?;
    }
    Ok(())
}

/// In each thread so many connections, and as many again as long as `more` says so.
fn storm(
    address: &str,
    threads: usize,
    times: usize,
    request: usize,
    answer: usize,
    more: &(impl Fn() -> bool + Sync),
) {
    thread::scope(|scope| {
        for _ in 0..threads {
            let listener = TcpListener::bind(address).unwrap();
            let at = listener.local_addr().unwrap().to_string();
            let (again, asked) = mpsc::channel();
            scope.spawn(move || {
                for () in asked {
                    serve(&listener, times, request, answer).unwrap();
                }
            });
            scope.spawn(move || {
                loop {
                    again.send(()).unwrap();
                    call(&at, times, request, answer).unwrap();
                    if !more() {
                        break;
                    }
                }
            });
        }
    });
}
