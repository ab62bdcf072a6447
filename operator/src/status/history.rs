//! The last changes of how a node is captured. Pure.

use crds::{MAX_HISTORY, ModeChange};

/// Returns the history with the current state added if it is new; removes the oldest entry if needed.
#[must_use]
pub fn extended(mut history: Vec<ModeChange>, now: ModeChange) -> Vec<ModeChange> {
    let state = |change: &ModeChange| (change.mode, change.reason.clone(), change.attach.clone());
    if history.last().map(state) != Some(state(&now)) {
        history.push(now);
    }
    let surplus = history.len().saturating_sub(MAX_HISTORY);
    history.drain(..surplus);
    history
}

#[cfg(test)]
mod tests {
    use crds::Mode;
    use jiff::Timestamp;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;

    fn change(second: i64, mode: Mode, reason: &str, attach: &str) -> ModeChange {
        let time = Time(Timestamp::from_second(second).unwrap());
        ModeChange { time, mode, reason: reason.to_owned(), attach: attach.to_owned() }
    }

    #[test]
    fn each_change_is_kept_with_its_own_time() {
        let first = change(1, Mode::Ebpf, "Supported", "SockOps");
        let mut history = extended(Vec::new(), first.clone());
        history = extended(history, change(2, Mode::Ebpf, "Supported", "SockOps"));
        assert_eq!(history.len(), 1);
        for (at, next) in [
            change(3, Mode::Ebpf, "Supported", "TpBtf"),
            change(4, Mode::Ebpf, "AttachFailed", "TpBtf"),
            change(5, Mode::Fallback, "AttachFailed", "TpBtf"),
            first,
        ]
        .into_iter()
        .enumerate()
        {
            history = extended(history, next.clone());
            assert_eq!((history.len(), history.last()), (at + 2, Some(&next)));
        }
    }

    #[test]
    fn only_the_last_ten_are_kept() {
        let all = (0..25).map(|at| change(at, Mode::Fallback, &format!("Reason{at}"), ""));
        let history = all.fold(Vec::new(), extended);
        let kept: Vec<_> = history.iter().map(|change| change.time.0.as_second()).collect();
        assert_eq!(kept, (15..25).collect::<Vec<_>>());
    }
}
