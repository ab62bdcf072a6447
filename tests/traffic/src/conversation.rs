//! Connection with its counts: every byte that `read()` or `write()` reports is counted, regardless of later errors.

use std::{
    io::{self, ErrorKind, Read as _, Write as _},
    net::{Shutdown, TcpStream},
    thread,
    time::Duration,
};

use socket2::SockRef;

use crate::{counts::Tallies, protocol::End};

/// More than this is sent and received at the same time, for a server that answers while it is asked would otherwise
/// wait for us and we for it. Less fits into the smallest socket buffers.
const AT_ONCE: u64 = 2048;
const CHUNK: usize = 16 * 1024;
static PAYLOAD: [u8; CHUNK] = [b'.'; CHUNK];

/// An open connection. Counts as closed when dropped.
#[derive(Debug)]
pub struct Conversation {
    // An Option so that `drop` closes before it counts: who reads "none open" may rely on it.
    stream: Option<TcpStream>,
    tallies: Tallies,
}

impl Conversation {
    /// Takes over a connection that has been opened, and counts it.
    #[must_use]
    pub fn begin(stream: TcpStream, tallies: Tallies) -> Self {
        tallies.add(|tally| &tally.opened, 1);
        Self { stream: Some(stream), tallies }
    }

    /// From now on counts in these tallies.
    pub fn count_in(&mut self, tallies: Tallies) {
        self.tallies = tallies;
    }

    /// Returns the current tallies.
    #[must_use]
    pub fn tallies(&self) -> &Tallies {
        &self.tallies
    }

    fn stream(&self) -> io::Result<&TcpStream> {
        self.stream.as_ref().ok_or_else(|| io::Error::from(ErrorKind::NotConnected))
    }

    /// Sends so many bytes.
    ///
    /// # Errors
    /// Those of `write()`; what it took before is counted.
    pub fn send(&self, bytes: u64) -> io::Result<()> {
        let mut left = bytes;
        while left > 0 {
            let chunk = usize::try_from(left).map_or(CHUNK, |left| left.min(CHUNK));
            self.write_all(&PAYLOAD[..chunk])?;
            left -= chunk as u64;
        }
        Ok(())
    }

    fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        let mut stream = self.stream()?;
        while !bytes.is_empty() {
            let taken = stream.write(bytes)?;
            if taken == 0 {
                return Err(ErrorKind::WriteZero.into());
            }
            self.tallies.add(|tally| &tally.sent, taken as u64);
            bytes = &bytes[taken..];
        }
        Ok(())
    }

    fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.stream()?.read(buffer)?;
        self.tallies.add(|tally| &tally.received, got as u64);
        Ok(got)
    }

    /// Receives so many bytes, or fewer where the other end ends before; returns how many.
    ///
    /// # Errors
    /// Those of `read()`; what it gave before is counted.
    pub fn receive(&self, bytes: u64) -> io::Result<u64> {
        let mut buffer = [0; CHUNK];
        let mut left = bytes;
        while left > 0 {
            let chunk = usize::try_from(left).map_or(CHUNK, |left| left.min(CHUNK));
            let got = self.read(&mut buffer[..chunk])?;
            if got == 0 {
                break;
            }
            left -= got as u64;
        }
        Ok(bytes - left)
    }

    /// Receives until the other end ends; returns how many bytes.
    ///
    /// # Errors
    /// Those of `read()`.
    pub fn receive_all(&self) -> io::Result<u64> {
        let mut buffer = [0; CHUNK];
        let mut total = 0;
        loop {
            match self.read(&mut buffer)? {
                0 => return Ok(total),
                got => total += got as u64,
            }
        }
    }

    /// Sends back what comes, until the other end ends.
    ///
    /// # Errors
    /// Those of `read()` and `write()`.
    pub fn echo(&self) -> io::Result<()> {
        let mut buffer = [0; CHUNK];
        loop {
            match self.read(&mut buffer)? {
                0 => return Ok(()),
                got => self.write_all(&buffer[..got])?,
            }
        }
    }

    /// Sends and receives so many bytes.
    ///
    /// # Errors
    /// Those of `read()` and `write()`, and where the other end ends before.
    pub fn exchange(&self, send: u64, receive: u64) -> io::Result<()> {
        let got = if send > AT_ONCE && receive > 0 {
            thread::scope(|scope| {
                let sender = scope.spawn(|| self.send(send));
                let got = self.receive(receive);
                let sending = sender.join().unwrap_or_else(|_| Err(io::Error::other("the sending thread panicked")));
                sending.and(got)
            })?
        } else {
            self.send(send)?;
            self.receive(receive)?
        };
        expect_bytes(got, receive)
    }

    /// Ends the connection after its exchange.
    ///
    /// # Errors
    /// Those of the system calls, and where more bytes come than were expected.
    pub fn end(self, end: End) -> io::Result<()> {
        match end {
            End::Close => {}
            End::HalfClose => {
                self.stream()?.shutdown(Shutdown::Write)?;
                expect_bytes(self.receive_all()?, 0)?;
            }
            End::AwaitServer => expect_bytes(self.receive_all()?, 0)?,
            End::Reset => self.reset_on_close()?,
        }
        Ok(())
    }

    /// Makes `close()` send RST.
    ///
    /// # Errors
    /// Those of `setsockopt()`.
    pub fn reset_on_close(&self) -> io::Result<()> {
        SockRef::from(self.stream()?).set_linger(Some(Duration::ZERO))
    }
}

impl Drop for Conversation {
    fn drop(&mut self) {
        drop(self.stream.take());
        self.tallies.add(|tally| &tally.closed, 1);
    }
}

fn expect_bytes(got: u64, expected: u64) -> io::Result<()> {
    if got == expected {
        return Ok(());
    }
    let kind = if got < expected { ErrorKind::UnexpectedEof } else { ErrorKind::InvalidData };
    Err(io::Error::new(kind, format!("received {got} bytes instead of {expected}")))
}
