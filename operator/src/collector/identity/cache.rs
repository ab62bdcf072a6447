//! Verdicts on tokens, by the tokens' hashes. Bounded. Pure: times are arguments.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use super::agent::{Agent, Refusal};

/// Hash of a token; the token itself is not kept.
pub(super) type TokenHash = [u8; 32];

/// Maximum number of agents; more than any cluster has nodes.
const MAX_AGENTS: usize = 16_384;
/// Maximum number of refusals.
const MAX_REFUSALS: usize = 1024;
/// Time for which a token is not reviewed again.
const FRESH: Duration = Duration::from_mins(2);
/// Time for which a refusal stays: long enough to spare the API server, short enough for a mistake that was repaired.
const REFUSED: Duration = Duration::from_secs(10);

/// Stored verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// A verdict that needs no review.
    Fresh(Result<Agent, Refusal>),
    /// An agent that holds where the API server cannot be asked.
    Stale(Agent),
    /// Nothing.
    Nothing,
}

/// Verdicts on tokens.
#[derive(Debug, Default)]
pub(super) struct Cache {
    agents: HashMap<TokenHash, (Agent, Instant)>,
    refusals: HashMap<TokenHash, (Refusal, Instant)>,
}

impl Cache {
    pub fn get(&self, token: &TokenHash, now: Instant) -> Known {
        if let Some((refusal, since)) = self.refusals.get(token)
            && now.duration_since(*since) < REFUSED
        {
            return Known::Fresh(Err(refusal.clone()));
        }
        match self.agents.get(token) {
            Some((agent, _)) if agent.expires <= now => Known::Nothing,
            Some((agent, since)) if now.duration_since(*since) < FRESH => Known::Fresh(Ok(agent.clone())),
            Some((agent, _)) => Known::Stale(agent.clone()),
            None => Known::Nothing,
        }
    }

    pub fn insert(&mut self, token: TokenHash, verdict: &Result<Agent, Refusal>, now: Instant) {
        match verdict {
            Ok(agent) => {
                self.refusals.remove(&token);
                if self.agents.len() >= MAX_AGENTS {
                    self.agents.retain(|_, (agent, _)| agent.expires > now);
                }
                if self.agents.len() >= MAX_AGENTS {
                    self.agents.clear();
                }
                self.agents.insert(token, (agent.clone(), now));
            }
            Err(refusal) => {
                self.agents.remove(&token);
                if self.refusals.len() >= MAX_REFUSALS {
                    self.refusals.retain(|_, (_, since)| now.duration_since(*since) < REFUSED);
                }
                if self.refusals.len() >= MAX_REFUSALS {
                    self.refusals.clear();
                }
                self.refusals.insert(token, (refusal.clone(), now));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(expires: Instant) -> Agent {
        Agent { node: "node-1".to_owned(), pod: "a".to_owned(), expires }
    }

    #[test]
    fn agent_is_fresh_then_stale_then_forgotten() {
        let (mut cache, now) = (Cache::default(), Instant::now());
        let known = agent(now + FRESH * 2);
        assert_eq!(cache.get(&[1; 32], now), Known::Nothing);
        cache.insert([1; 32], &Ok(known.clone()), now);
        assert_eq!(cache.get(&[1; 32], now), Known::Fresh(Ok(known.clone())));
        assert_eq!(cache.get(&[1; 32], now + FRESH), Known::Stale(known));
        assert_eq!(cache.get(&[1; 32], now + FRESH * 2), Known::Nothing);
        assert_eq!(cache.get(&[2; 32], now), Known::Nothing);
    }

    #[test]
    fn refusal_replaces_an_agent_for_a_moment() {
        let (mut cache, now) = (Cache::default(), Instant::now());
        cache.insert([1; 32], &Ok(agent(now + FRESH)), now);
        cache.insert([1; 32], &Err(Refusal::NotBound), now);
        assert_eq!(cache.get(&[1; 32], now), Known::Fresh(Err(Refusal::NotBound)));
        assert_eq!(cache.get(&[1; 32], now + REFUSED), Known::Nothing);
        cache.insert([1; 32], &Ok(agent(now + FRESH)), now);
        assert!(matches!(cache.get(&[1; 32], now), Known::Fresh(Ok(_))));
    }

    #[test]
    fn refusals_are_bounded_and_leave_agents_alone() {
        let (mut cache, now) = (Cache::default(), Instant::now());
        cache.insert([255; 32], &Ok(agent(now + FRESH)), now);
        for number in 0..2 * MAX_REFUSALS {
            let mut token = [0; 32];
            token[..8].copy_from_slice(&number.to_le_bytes());
            cache.insert(token, &Err(Refusal::NotBound), now);
            assert!(cache.refusals.len() <= MAX_REFUSALS);
        }
        assert!(matches!(cache.get(&[255; 32], now), Known::Fresh(Ok(_))));
    }
}
