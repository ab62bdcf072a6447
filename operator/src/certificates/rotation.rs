//! Decides which certificates exist, which one is served, and which CAs agents trust. Pure.

use std::{collections::BTreeMap, time::Duration};

use super::generation::{Generation, UnixSeconds};

/// Maximum number of certificates at a time: one that is served, one that is published for later, and one in reserve for
/// a clock that was set.
const MAX_GENERATIONS: usize = 3;

/// Time until every agent has the CAs of a changed `ConfigMap`: kubelets read it about once a minute.
const PROPAGATION: Duration = Duration::from_mins(5);

/// Share of a lifetime after which the next certificate is made: two thirds.
const RENEWED_AFTER: (u64, u64) = (2, 3);

/// Part of a short lifetime that bounds [`PROPAGATION`].
const PROPAGATION_PART: u64 = 12;

/// Times since which CAs are published, by their certificates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Publications(BTreeMap<String, UnixSeconds>);

impl Publications {
    /// Records that all CAs of these certificates are published now. `before` are the CAs that were published already.
    pub fn note(&mut self, generations: &Generations, before: &str, now: UnixSeconds) {
        let mut noted = BTreeMap::new();
        for generation in generations.all() {
            let ca = generation.ca.trim();
            // What another operator has published was published after it was made.
            let since = if before.contains(ca) { self.0.get(ca).copied().unwrap_or(generation.created) } else { now };
            noted.insert(ca.to_owned(), since);
        }
        self.0 = noted;
    }

    /// Returns the time at which every agent has the CA of a certificate.
    fn known_from(&self, generation: &Generation) -> UnixSeconds {
        let lifetime = generation.expires.map(|expires| expires.saturating_sub(generation.created));
        let bound = lifetime.map_or(u64::MAX, |lifetime| lifetime / PROPAGATION_PART);
        let propagation = PROPAGATION.as_secs().min(bound);
        let since = self.0.get(generation.ca.trim()).copied().unwrap_or(generation.created);
        since.max(generation.created).saturating_add(propagation)
    }
}

/// Certificates of the operator, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Generations(Vec<Generation>);

impl Generations {
    pub fn new(generations: Vec<Generation>) -> Self {
        Self(generations)
    }

    pub fn all(&self) -> &[Generation] {
        &self.0
    }

    /// Drops certificates that are expired. Returns whether there were any.
    pub fn drop_expired(&mut self, now: UnixSeconds) -> bool {
        let before = self.0.len();
        self.0.retain(|generation| generation.expires.is_none_or(|expires| expires > now));
        self.0.len() != before
    }

    /// Returns whether the next certificate is to be made now.
    pub fn needs_renewal(&self, now: UnixSeconds) -> bool {
        self.0.last().is_none_or(|newest| {
            newest.expires.is_some_and(|expires| {
                let lifetime = expires.saturating_sub(newest.created);
                let rest = lifetime - lifetime / RENEWED_AFTER.1 * RENEWED_AFTER.0;
                expires.saturating_sub(now) <= rest
            })
        })
    }

    /// Adds the newest certificate. One with the same content as the newest is not added.
    pub fn add(&mut self, generation: Generation) {
        let is_same = |newest: &Generation| {
            (&newest.ca, &newest.certificate, &newest.key) == (&generation.ca, &generation.certificate, &generation.key)
        };
        if self.0.last().is_some_and(is_same) {
            return;
        }
        self.0.push(generation);
        if self.0.len() > MAX_GENERATIONS {
            self.0.remove(0);
        }
    }

    /// Drops certificates of another program that it has replaced, once agents have known the newer one for a while. Their
    /// CAs are trusted no longer.
    pub fn drop_replaced(&mut self, published: &Publications, now: UnixSeconds) {
        let is_served =
            |generation: &Generation| published.known_from(generation).saturating_add(PROPAGATION.as_secs()) <= now;
        if let Some(served) = self.0.iter().rposition(is_served) {
            self.0.drain(..served);
        }
    }

    /// Returns the certificates in the order in which they are to be served: the newest one that agents can verify by now,
    /// then older ones, then those that were published a moment ago.
    pub fn by_preference(&self, published: &Publications, now: UnixSeconds) -> impl Iterator<Item = &Generation> {
        let is_known = move |generation: &&Generation| published.known_from(generation) <= now;
        let known = self.0.iter().rev().filter(is_known);
        known.chain(self.0.iter().filter(move |generation| !is_known(generation)))
    }

    /// Returns the certificates of all CAs, each once: agents trust the certificate that is served and the next one.
    pub fn bundle(&self) -> String {
        let mut bundle = String::new();
        for generation in &self.0 {
            if !bundle.contains(generation.ca.trim()) {
                bundle.push_str(generation.ca.trim());
                bundle.push('\n');
            }
        }
        bundle
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 24 * 3600;

    fn generation(created: UnixSeconds, days: Option<u64>) -> Generation {
        Generation {
            created,
            expires: days.map(|days| created + days * DAY),
            ca: format!("CA {created}\n"),
            certificate: format!("certificate {created}"),
            key: String::new(),
        }
    }

    fn served(generations: &Generations, now: UnixSeconds) -> Option<UnixSeconds> {
        generations.by_preference(&Publications::default(), now).next().map(|generation| generation.created)
    }

    #[test]
    fn certificate_is_renewed_after_two_thirds_of_its_lifetime() {
        assert!(Generations::default().needs_renewal(0));
        let generations = Generations::new(vec![generation(0, Some(90))]);
        assert!(!generations.needs_renewal(60 * DAY - 1));
        assert!(generations.needs_renewal(60 * DAY));
        assert!(generations.needs_renewal(1000 * DAY), "an outage lasted longer than the lifetime");
        assert!(!Generations::new(vec![generation(0, None)]).needs_renewal(1000 * DAY), "another program renews it");
    }

    #[test]
    fn next_certificate_is_served_once_agents_have_its_ca() {
        let mut generations = Generations::new(vec![generation(0, Some(90))]);
        assert_eq!(served(&generations, 0), Some(0), "there is no other");
        generations.add(generation(60 * DAY, Some(90)));
        let known = 60 * DAY + PROPAGATION.as_secs();
        assert_eq!((served(&generations, known - 1), served(&generations, known)), (Some(0), Some(60 * DAY)));
        assert_eq!(generations.bundle(), format!("CA 0\nCA {}\n", 60 * DAY), "agents trust both");
        assert!(!generations.drop_expired(90 * DAY - 1));
        assert!(generations.drop_expired(90 * DAY));
        assert_eq!(generations.bundle(), format!("CA {}\n", 60 * DAY));
    }

    #[test]
    fn nothing_is_left_after_all_have_expired() {
        let mut generations = Generations::new(vec![generation(0, Some(1)), generation(DAY / 2, Some(1))]);
        assert!(generations.drop_expired(2 * DAY));
        assert_eq!((served(&generations, 2 * DAY), generations.needs_renewal(2 * DAY)), (None, true));
    }

    #[test]
    fn clock_that_was_set_back_keeps_the_oldest_certificate() {
        let generations = Generations::new(vec![generation(1000, Some(90)), generation(61 * DAY, Some(90))]);
        assert_eq!(served(&generations, 0), Some(1000));
    }

    #[test]
    fn certificate_waits_from_the_publication_of_its_ca_on() {
        let mut generations = Generations::new(vec![generation(0, Some(90))]);
        let mut published = Publications::default();
        published.note(&generations, "", 0);
        let before = generations.bundle();
        generations.add(generation(60 * DAY, Some(90)));
        // The ConfigMap could not be written for a day.
        let late = 61 * DAY;
        published.note(&generations, &before, late);
        let served = |published: &Publications, now| {
            generations.by_preference(published, now).next().map(|generation| generation.created)
        };
        let known = late + PROPAGATION.as_secs();
        assert_eq!((served(&published, known - 1), served(&published, known)), (Some(0), Some(60 * DAY)));
        published.note(&generations, &generations.bundle(), known);
        assert_eq!(served(&published, known), Some(60 * DAY), "the next round does not publish it anew");
        let mut next_operator = Publications::default();
        next_operator.note(&generations, &generations.bundle(), known);
        assert_eq!(served(&next_operator, known), Some(60 * DAY));
    }

    #[test]
    fn replaced_certificate_of_another_program_is_trusted_no_longer() {
        let mut generations = Generations::new(vec![generation(0, None), generation(DAY, None)]);
        let published = Publications::default();
        let trusted_alone = DAY + 2 * PROPAGATION.as_secs();
        generations.drop_replaced(&published, trusted_alone - 1);
        assert_eq!(generations.bundle(), format!("CA 0\nCA {DAY}\n"));
        generations.drop_replaced(&published, trusted_alone);
        assert_eq!(generations.bundle(), format!("CA {DAY}\n"));
        generations.drop_replaced(&published, 100 * DAY);
        assert_eq!(generations.all().len(), 1);
    }

    #[test]
    fn foreign_certificate_is_added_when_it_changes() {
        let mut generations = Generations::default();
        for (created, content) in [(1, 1), (2, 1), (DAY, 2), (2 * DAY, 2)] {
            generations.add(Generation { created, ..generation(content, None) });
        }
        assert_eq!(generations.all().iter().map(|it| it.created).collect::<Vec<_>>(), [1, DAY]);
        for number in 10..20 {
            generations.add(generation(number * DAY, None));
        }
        assert_eq!(generations.all().len(), MAX_GENERATIONS);
    }
}
