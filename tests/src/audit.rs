//! Finds requests and their authors in the API server's audit log.

use std::{
    fs::File,
    io::{BufRead as _, BufReader, Seek as _, SeekFrom},
    path::PathBuf,
};

use serde::Deserialize;

use crate::{Error, Result};

/// The audit log of our own cluster: all writes, and the reads of ScopeProbe's accounts.
#[derive(Clone, Debug)]
pub struct Audit {
    path: PathBuf,
}

/// A place in the log: what is written later comes after it.
#[derive(Clone, Copy, Debug)]
pub struct Mark(u64);

/// One request, and the API server's answer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Request {
    /// `system:serviceaccount:NAMESPACE:NAME`, `admin`, …
    pub user: String,
    /// User agent of the client.
    pub user_agent: String,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`.
    pub verb: String,
    /// API group; empty for the core.
    pub group: String,
    /// Plural, such as `topologies`.
    pub resource: String,
    /// Such as `status`, or empty.
    pub subresource: String,
    /// Empty for what has none.
    pub namespace: String,
    /// Empty where the server chose it.
    pub name: String,
    /// HTTP status code of the answer.
    pub code: u16,
    /// Message of an answer that is an error, as far as the log has it.
    pub message: String,
}

impl Request {
    /// Returns whether the API server carried it out.
    #[must_use]
    pub fn is_carried_out(&self) -> bool {
        (200..300).contains(&self.code)
    }

    fn is_write(&self) -> bool {
        ["create", "update", "patch", "delete", "deletecollection"].contains(&self.verb.as_str())
    }
}

impl Audit {
    pub(crate) fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// The log's end now.
    ///
    /// # Errors
    /// Returns an error if the log is unreadable.
    pub fn mark(&self) -> Result<Mark> {
        let metadata = self.path.metadata().map_err(Error::io(format!("read {}", self.path.display())))?;
        Ok(Mark(metadata.len()))
    }

    /// The writes since then that the API server has carried out (those it refused are left out) and that `wanted`
    /// picks.
    ///
    /// # Errors
    /// Returns an error if the log is unreadable, or has a line of another shape.
    pub fn writes_since(&self, mark: Mark, wanted: impl Fn(&Request) -> bool) -> Result<Vec<Request>> {
        self.requests_since(mark, |request| request.is_write() && request.is_carried_out() && wanted(request))
    }

    /// The requests since then that `wanted` picks, with any answer: all writes, and reads of ScopeProbe's accounts.
    ///
    /// # Errors
    /// Returns an error if the log is unreadable, or has a line of another shape.
    pub fn requests_since(&self, mark: Mark, wanted: impl Fn(&Request) -> bool) -> Result<Vec<Request>> {
        let attempt = format!("read {}", self.path.display());
        let mut file = File::open(&self.path).map_err(Error::io(&attempt))?;
        file.seek(SeekFrom::Start(mark.0)).map_err(Error::io(&attempt))?;
        let mut reader = BufReader::new(file);
        let (mut requests, mut line) = (Vec::new(), String::new());
        loop {
            line.clear();
            reader.read_line(&mut line).map_err(Error::io(&attempt))?;
            // A line without an end is being written.
            if !line.ends_with('\n') {
                return Ok(requests);
            }
            requests.extend(parse(&line)?.filter(&wanted));
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Event {
    stage: String,
    verb: String,
    user: User,
    #[serde(default)]
    user_agent: String,
    #[serde(default)]
    object_ref: Option<ObjectRef>,
    #[serde(default)]
    response_status: Option<ResponseStatus>,
}

#[derive(Deserialize)]
struct User {
    #[serde(default)]
    username: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ObjectRef {
    api_group: String,
    resource: String,
    subresource: String,
    namespace: String,
    name: String,
}

#[derive(Deserialize)]
struct ResponseStatus {
    #[serde(default)]
    code: u16,
    #[serde(default)]
    message: String,
}

fn parse(line: &str) -> Result<Option<Request>> {
    let event: Event = serde_json::from_str(line)
        .map_err(|error| Error::Unexpected(format!("an audit event of another shape: {error}\n{line}")))?;
    // A watch is complete only when it ends.
    let is_answered = event.stage == "ResponseComplete" || event.verb == "watch" && event.stage == "ResponseStarted";
    let (true, Some(status)) = (is_answered, event.response_status) else { return Ok(None) };
    let object = event.object_ref.unwrap_or_default();
    Ok(Some(Request {
        user: event.user.username,
        user_agent: event.user_agent,
        verb: event.verb,
        group: object.api_group,
        resource: object.resource,
        subresource: object.subresource,
        namespace: object.namespace,
        name: object.name,
        code: status.code,
        message: status.message,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = r#"{"kind":"Event","apiVersion":"audit.k8s.io/v1","level":"Metadata","auditID":"x","stage":"ResponseComplete","requestURI":"/apis/scopeprobe.io/v1alpha1/namespaces/shop/topologies/a/status?force=true","verb":"patch","user":{"username":"system:serviceaccount:s:operator","groups":["g"]},"userAgent":"scopeprobe-operator/0.1.0","objectRef":{"resource":"topologies","namespace":"shop","name":"a","apiGroup":"scopeprobe.io","apiVersion":"v1alpha1","subresource":"status"},"responseStatus":{"metadata":{},"code":200},"annotations":{}}"#;

    fn read(line: &str) -> Request {
        parse(line).unwrap().unwrap()
    }

    #[test]
    fn a_write_is_read() {
        let write = read(LINE);
        assert_eq!((write.user.as_str(), write.verb.as_str()), ("system:serviceaccount:s:operator", "patch"));
        assert_eq!((write.resource.as_str(), write.subresource.as_str()), ("topologies", "status"));
        assert_eq!((write.namespace.as_str(), write.name.as_str()), ("shop", "a"));
        assert!(write.is_write() && write.is_carried_out());
    }

    #[test]
    fn what_was_refused_or_only_read_is_no_write() {
        assert!(!read(&LINE.replace("\"code\":200", "\"code\":409")).is_carried_out());
        assert!(!read(&LINE.replace("\"verb\":\"patch\"", "\"verb\":\"get\"")).is_write());
    }

    #[test]
    fn of_requests_without_an_answer_only_watches_count() {
        let started = LINE.replace("ResponseComplete", "ResponseStarted");
        assert_eq!(parse(&started).unwrap(), None);
        assert_eq!(read(&started.replace("\"verb\":\"patch\"", "\"verb\":\"watch\"")).verb, "watch");
    }
}
