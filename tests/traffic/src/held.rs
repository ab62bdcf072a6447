//! Connections that are kept open under a name, to be used and closed by later commands.

use std::{
    collections::BTreeMap,
    io, mem,
    sync::{Arc, Mutex, PoisonError},
};

use crate::{
    conversation::Conversation,
    counts::Tally,
    protocol::{Close, Exchange, Outcome},
    runs::FirstError,
    stopwatch::Stopwatch,
};

/// The connections that are kept open.
#[derive(Debug, Default)]
pub struct Held {
    by_name: Mutex<BTreeMap<String, Vec<Conversation>>>,
}

impl Held {
    /// Keeps one more.
    pub fn put(&self, name: &str, conversation: Conversation) {
        let mut by_name = self.by_name.lock().unwrap_or_else(PoisonError::into_inner);
        by_name.entry(name.to_owned()).or_default().push(conversation);
    }

    /// Sends and receives on each, one after the other. One that breaks is closed.
    ///
    /// Of the outcome `broken`, `sent` and `received` have a meaning.
    pub fn exchange(&self, exchange: &Exchange) -> Outcome {
        let (kept, outcome) = each(self.take(&exchange.held, None), |conversation| {
            conversation.exchange(exchange.send, exchange.receive)?;
            Ok(Some(conversation))
        });
        for conversation in kept {
            self.put(&exchange.held, conversation);
        }
        outcome
    }

    /// Closes some or all, one after the other.
    ///
    /// Of the outcome `broken` and `received` have a meaning.
    pub fn close(&self, close: &Close) -> Outcome {
        each(self.take(&close.held, close.count), |conversation| conversation.end(close.end).map(|()| None)).1
    }

    fn take(&self, name: &str, count: Option<u64>) -> Vec<Conversation> {
        let mut by_name = self.by_name.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(held) = by_name.get_mut(name) else { return Vec::new() };
        match count.map(usize::try_from) {
            Some(Ok(count)) if count < held.len() => held.drain(..count).collect(),
            _ => mem::take(held),
        }
    }
}

fn each(
    conversations: Vec<Conversation>,
    act: impl Fn(Conversation) -> io::Result<Option<Conversation>>,
) -> (Vec<Conversation>, Outcome) {
    let tally = Arc::new(Tally::default());
    let first_error = FirstError::default();
    let stopwatch = Stopwatch::start();
    let mut kept = Vec::new();
    for mut conversation in conversations {
        let tallies = conversation.tallies().in_run(&tally);
        conversation.count_in(tallies.clone());
        match act(conversation) {
            Ok(conversation) => kept.extend(conversation),
            Err(error) => {
                tallies.add(|tally| &tally.broken, 1);
                first_error.set(|| format!("a held connection broke: {error}"));
            }
        }
    }
    (kept, stopwatch.time(Outcome { first_error: first_error.take(), ..tally.outcome() }))
}
