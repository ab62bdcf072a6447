//! Sends and receives datagrams on command.

use std::{
    collections::BTreeMap,
    io,
    net::{SocketAddr, UdpSocket},
    time::Duration,
};

/// Nothing is lost on the way between namespaces of one machine.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Default)]
pub struct Datagrams {
    sockets: BTreeMap<String, UdpSocket>,
    /// From whom each socket has heard last.
    peers: BTreeMap<String, SocketAddr>,
}

impl Datagrams {
    pub fn act(&mut self, what: &str, words: &[&str]) -> io::Result<String> {
        let number = |index: usize| words[index].parse::<usize>().unwrap();
        match what {
            // `udp-bind NAME ADDRESS`: answers the port.
            "bind" => {
                let socket = bind(words[1])?;
                let port = socket.local_addr()?.port();
                self.sockets.insert(String::from(words[0]), socket);
                return Ok(port.to_string());
            }
            // `udp-connect NAME ADDRESS`
            "connect" => self.sockets[words[0]].connect(words[1])?,
            // `udp-send NAME BYTES`, to whom it is connected; `udp-send-to NAME BYTES ADDRESS`
            "send" => assert_eq!(self.sockets[words[0]].send(&vec![7; number(1)])?, number(1)),
            "send-to" => assert_eq!(self.sockets[words[0]].send_to(&vec![7; number(1)], words[2])?, number(1)),
            // `udp-receive NAME BYTES`: one datagram, of so many bytes.
            "receive" => {
                let (got, peer) = self.sockets[words[0]].recv_from(&mut vec![0; 65_536])?;
                assert_eq!(got, number(1));
                self.peers.insert(String::from(words[0]), peer);
            }
            // `udp-answer NAME BYTES`: to whom it has heard from last.
            "answer" => {
                let peer = self.peers[words[0]];
                assert_eq!(self.sockets[words[0]].send_to(&vec![8; number(1)], peer)?, number(1));
            }
            // `udp-answer-with NAME HEX`: with these very bytes.
            "answer-with" => {
                let peer = self.peers[words[0]];
                let bytes =
                    (0..words[1].len()).step_by(2).map(|at| u8::from_str_radix(&words[1][at..at + 2], 16).unwrap());
                self.sockets[words[0]].send_to(&bytes.collect::<Vec<_>>(), peer)?;
            }
            "close" => drop(self.sockets.remove(words[0])),
            // `udp-serve NAME N ANSWER`: answers so many datagrams with so many bytes each; answers what it has received.
            "serve" => {
                let socket = &self.sockets[words[0]];
                let (mut asked, answer, mut bytes) = (vec![0; 65_536], vec![1; number(2)], 0);
                for _ in 0..number(1) {
                    let (got, peer) = socket.recv_from(&mut asked)?;
                    bytes += got;
                    socket.send_to(&answer, peer)?;
                }
                return Ok(bytes.to_string());
            }
            // `udp-ask ADDRESS SOCKETS TIMES REQUEST PORT`: so many sockets, one after the other, with this port and those
            // that follow, ask so many times each, every other one connected. Answers what it has received.
            "ask" => {
                let (mut answer, mut bytes) = (vec![0; 65_536], 0);
                let any = if words[0].starts_with('[') { "[::]" } else { "0.0.0.0" };
                for turn in 0..number(1) {
                    let socket = bind(&format!("{any}:{}", number(4) + turn))?;
                    if turn % 2 == 0 {
                        socket.connect(words[0])?;
                    }
                    for _ in 0..number(2) {
                        let request = vec![2; number(3)];
                        if turn % 2 == 0 {
                            socket.send(&request)?
                        } else {
                            socket.send_to(&request, words[0])?
                        };
                        bytes += socket.recv(&mut answer)?;
                    }
                }
                return Ok(bytes.to_string());
            }
            other => panic!("unknown command udp-{other}"),
        }
        Ok(String::from("done"))
    }
}

fn bind(address: &str) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(address)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}
