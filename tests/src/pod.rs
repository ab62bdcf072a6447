//! Running programs in containers and reading their logs.

use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client,
    api::{AttachParams, LogParams},
};
use tokio::io::{AsyncRead, AsyncReadExt as _};

use crate::{Error, Result};

/// Runs a command in a container and returns what it prints to standard output.
///
/// # Errors
/// Returns an error with the output if it cannot run or fails.
pub async fn exec(client: &Client, namespace: &str, pod: &str, container: &str, command: &[&str]) -> Result<String> {
    let what = format!("{namespace}/{pod}/{container}: {}", command.join(" "));
    let parameters = AttachParams::default().container(container).stdin(false).stdout(true).stderr(true);
    let mut process = Api::<Pod>::namespaced(client.clone(), namespace)
        .exec(pod, command.iter().copied(), &parameters)
        .await
        .map_err(Error::api(format!("exec in {what}")))?;
    let status = process.take_status();
    let (stdout, stderr) = tokio::join!(read_all(process.stdout()), read_all(process.stderr()));
    let status = match status {
        Some(status) => status.await,
        None => None,
    };
    // The status is what says that all of the output has come.
    let succeeded = status.as_ref().and_then(|status| status.status.as_deref()) == Some("Success");
    if succeeded {
        return Ok(stdout);
    }
    let status = status.and_then(|status| status.message).unwrap_or_else(|| "the connection broke".to_owned());
    Err(Error::Program { command: what, status, output: stdout + &stderr })
}

async fn read_all(stream: Option<impl AsyncRead + Unpin>) -> String {
    let mut bytes = Vec::new();
    if let Some(mut stream) = stream {
        // What broke the stream shows in the process's status.
        let _ = stream.read_to_end(&mut bytes).await;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A container's log so far.
///
/// # Errors
/// Returns an error if there is none.
pub async fn logs(client: &Client, namespace: &str, pod: &str, container: &str) -> Result<String> {
    let parameters = LogParams { container: Some(container.to_owned()), ..LogParams::default() };
    Api::<Pod>::namespaced(client.clone(), namespace)
        .logs(pod, &parameters)
        .await
        .map_err(Error::api(format!("read the log of {namespace}/{pod}/{container}")))
}
