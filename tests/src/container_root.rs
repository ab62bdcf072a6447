//! The file system of a container that runs on this machine, as its processes see it.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::{LazyLock, Mutex, PoisonError},
};

/// Directories of processes in /proc by the ID of their container. Programs live longer than a test asks for them.
static KNOWN: LazyLock<Mutex<HashMap<String, PathBuf>>> = LazyLock::new(Mutex::default);

/// Returns the root directory of a container by its runtime's ID (64 hexadecimal digits), or `None` if none of its
/// processes runs on this machine's kernel: its node is a guest, or it has ended.
#[must_use]
pub fn of(container_id: &str) -> Option<PathBuf> {
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(process) = known.get(container_id)
        && is_in(process, container_id)
    {
        return Some(process.join("root"));
    }
    let mut processes = fs::read_dir("/proc").ok()?.filter_map(Result::ok).map(|entry| entry.path());
    let process = processes.find(|process| is_in(process, container_id))?;
    known.insert(container_id.to_owned(), process.clone());
    Some(process.join("root"))
}

/// Returns whether the process's cgroups are the container's.
fn is_in(process: &Path, container_id: &str) -> bool {
    fs::read_to_string(process.join("cgroup")).is_ok_and(|cgroups| cgroups.contains(container_id))
}
