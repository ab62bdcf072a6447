//! Reads the events of the node's conntrack.

use std::{io, path::Path};

use nix::{errno::Errno, sys::socket::SockProtocol};

use super::{
    conntrack_message::{ConntrackMessage, list_request, parse, parse_listed},
    socket::{Buffer, Netlink},
};

/// `NFNLGRP_CONNTRACK_NEW`, `_UPDATE` and `_DESTROY`.
const EVENTS: u32 = 0b111;

/// Messages that are taken in at a time, so that a flood does not keep the thread.
const BATCH: usize = 4096;

/// Listens to one network namespace.
#[derive(Debug)]
pub(in crate::capture::fallback) struct Conntrack {
    events: Netlink,
    lists: Netlink,
    overflows: u64,
}

/// Events of one reading.
#[derive(Debug, Default)]
pub(in crate::capture::fallback) struct News {
    pub(in crate::capture::fallback) entries: Vec<ConntrackMessage>,
    /// Events are missing: everything has to be listed.
    pub(in crate::capture::fallback) overflowed: bool,
    /// There is more.
    pub(in crate::capture::fallback) more: bool,
}

impl Conntrack {
    /// In the network namespace at this path, with a queue of so many bytes for its events.
    ///
    /// # Errors
    /// `EPERM` without `NET_ADMIN`; what it takes to get into the namespace.
    pub(in crate::capture::fallback) fn open_in(namespace: &Path, queue: usize) -> io::Result<Self> {
        let events = Netlink::open_in(namespace, SockProtocol::NetlinkNetFilter, EVENTS)?;
        events.grow(queue);
        let lists = Netlink::open_in(namespace, SockProtocol::NetlinkNetFilter, 0)?;
        Ok(Self { events, lists, overflows: 0 })
    }

    /// Returns the events since the last call.
    pub(in crate::capture::fallback) fn drain(&mut self, buffer: &mut Buffer) -> io::Result<News> {
        let mut news = News::default();
        while news.entries.len() < BATCH {
            match self.events.receive(buffer, |message| news.entries.extend(parse(&message))) {
                Ok(true) => {}
                Ok(false) => return Ok(news),
                Err(Errno::ENOBUFS) => {
                    self.overflows += 1;
                    news.overflowed = true;
                }
                Err(error) => return Err(error.into()),
            }
        }
        news.more = true;
        Ok(news)
    }

    /// Hands out everything that is tracked now; returns whether that was complete.
    pub(in crate::capture::fallback) fn list(
        &mut self,
        buffer: &mut Buffer,
        mut each: impl FnMut(&ConntrackMessage),
    ) -> io::Result<bool> {
        let interrupted = self.lists.dump(&list_request(), buffer, |body| {
            if let Some(entry) = parse_listed(body) {
                each(&entry);
            }
        })?;
        Ok(!interrupted)
    }

    /// Returns the number of queue overflows.
    pub(in crate::capture::fallback) fn overflows(&self) -> u64 {
        self.overflows
    }
}
