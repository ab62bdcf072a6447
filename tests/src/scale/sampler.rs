//! Samples of the operator, once per second: its memory, and its requests by the API server's audit log.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufRead as _, BufReader},
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use serde::Deserialize;
use tokio::{
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};

use super::processes;

/// Samples since the start.
#[derive(Clone, Debug, Default)]
pub struct Samples {
    /// Number of requests in each second.
    pub requests: Vec<u64>,
    /// Resident memory in each second, in KiB.
    pub resident_kibibytes: Vec<u64>,
    /// Number of requests by verb and resource.
    pub by_kind: BTreeMap<String, u64>,
}

impl Samples {
    /// Returns the samples that are not in earlier ones.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let by_kind = self.by_kind.iter().map(|(kind, count)| {
            let before = earlier.by_kind.get(kind).copied().unwrap_or_default();
            (kind.clone(), count - before)
        });
        Self {
            requests: self.requests[earlier.requests.len()..].to_vec(),
            resident_kibibytes: self.resident_kibibytes[earlier.resident_kibibytes.len()..].to_vec(),
            by_kind: by_kind.filter(|(_, count)| *count > 0).collect(),
        }
    }
}

/// Takes samples until it is dropped.
pub struct Sampler {
    samples: Arc<Mutex<Samples>>,
    _task: JoinSet<()>,
}

impl Sampler {
    /// Begins to sample a process and a log.
    #[must_use]
    pub fn begin(process_id: Arc<AtomicU32>, audit_log: PathBuf) -> Self {
        let (samples, mut task) = (Arc::<Mutex<Samples>>::default(), JoinSet::new());
        let mut log = LogReader { path: audit_log, reader: None, line: String::new() };
        let shared = Arc::clone(&samples);
        task.spawn(async move {
            let mut seconds = interval(Duration::from_secs(1));
            seconds.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                seconds.tick().await;
                let resident = processes::resident_kibibytes(&process_id.load(Relaxed).to_string());
                let kinds = log.read_new();
                let mut samples = lock(&shared);
                samples.resident_kibibytes.push(resident);
                samples.requests.push(kinds.len() as u64);
                for kind in kinds {
                    *samples.by_kind.entry(kind).or_default() += 1;
                }
            }
        });
        Self { samples, _task: task }
    }

    /// Returns all samples so far.
    #[must_use]
    pub fn samples(&self) -> Samples {
        lock(&self.samples).clone()
    }
}

fn lock(samples: &Mutex<Samples>) -> MutexGuard<'_, Samples> {
    samples.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads a growing log.
struct LogReader {
    path: PathBuf,
    reader: Option<BufReader<File>>,
    /// Last line, as far as it was written.
    line: String,
}

impl LogReader {
    /// Returns verb and resource of each new line. The log appears with its first line.
    fn read_new(&mut self) -> Vec<String> {
        let mut kinds = Vec::new();
        if self.reader.is_none() {
            self.reader = File::open(&self.path).ok().map(BufReader::new);
        }
        let Some(reader) = &mut self.reader else { return kinds };
        while reader.read_line(&mut self.line).is_ok_and(|read| read > 0) && self.line.ends_with('\n') {
            kinds.push(kind(&self.line));
            self.line.clear();
        }
        kinds
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Event {
    verb: String,
    #[serde(default)]
    object_ref: ObjectRef,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ObjectRef {
    resource: String,
    subresource: String,
}

fn kind(line: &str) -> String {
    let Ok(event) = serde_json::from_str::<Event>(line) else { return "unreadable".to_owned() };
    let kind = format!("{} {}/{}", event.verb, event.object_ref.resource, event.object_ref.subresource);
    kind.trim_end_matches(['/', ' ']).to_owned()
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    const LINE: &str = r#"{"kind":"Event","stage":"ResponseComplete","verb":"patch","objectRef":{"resource":"topologies","subresource":"status"}}"#;

    #[test]
    fn lines_are_read_once_they_are_complete() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let mut log = LogReader { path: file.path().to_owned(), reader: None, line: String::new() };
        write!(file, "{LINE}\n{}", &LINE[..20]).unwrap();
        assert_eq!(log.read_new(), ["patch topologies/status"]);
        assert!(log.read_new().is_empty());
        write!(file, "{}\n{{}}\n", &LINE[20..]).unwrap();
        assert_eq!(log.read_new(), ["patch topologies/status", "unreadable"]);
        assert_eq!(kind(r#"{"verb":"list","objectRef":{"resource":"pods"}}"#), "list pods");
    }

    #[test]
    fn samples_of_a_phase_leave_out_those_before() {
        let before = Samples {
            requests: vec![1],
            resident_kibibytes: vec![9],
            by_kind: [("a".to_owned(), 1), ("b".to_owned(), 2)].into(),
        };
        let mut now = before.clone();
        now.requests.push(4);
        now.resident_kibibytes.push(10);
        now.by_kind.insert("a".to_owned(), 5);
        let phase = now.since(&before);
        assert_eq!((phase.requests, phase.resident_kibibytes), (vec![4], vec![10]));
        assert_eq!(phase.by_kind, [("a".to_owned(), 4)].into());
    }
}
