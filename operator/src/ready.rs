//! Asks an operator whether it is ready, for `helm test`. Needs no Kubernetes permission.

use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

/// Request for the readiness.
const REQUEST: &[u8] = b"GET /readyz HTTP/1.0\r\nHost: operator\r\nConnection: close\r\n\r\n";
/// Time limit for the answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Returns the operator's answer.
///
/// # Errors
/// Returns an error if the operator does not answer, or answers that it is not ready.
pub async fn ask(host: &str, port: u16) -> anyhow::Result<String> {
    let answer = timeout(TIMEOUT, request(host, port)).await;
    let answer = answer.with_context(|| format!("{host}:{port} did not answer within {TIMEOUT:?}"))?;
    let answer = answer.with_context(|| format!("cannot ask {host}:{port}; does a NetworkPolicy forbid it?"))?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((answer.as_str(), ""));
    let is_ready = head.split(' ').nth(1) == Some("200");
    ensure!(is_ready, "the operator is not ready: {body}");
    Ok(body.to_owned())
}

async fn request(host: &str, port: u16) -> std::io::Result<String> {
    let mut stream = TcpStream::connect((host, port)).await?;
    stream.write_all(REQUEST).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    async fn answer(text: &'static str) -> anyhow::Result<String> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; REQUEST.len()];
            stream.read_exact(&mut request).await.unwrap();
            assert_eq!(request, REQUEST);
            stream.write_all(text.as_bytes()).await.unwrap();
        };
        tokio::join!(ask("127.0.0.1", port), server).0
    }

    #[tokio::test]
    async fn answer_other_than_200_is_an_error_with_its_reason() {
        assert_eq!(answer("HTTP/1.1 200 OK\r\na: b\r\n\r\nok").await.unwrap(), "ok");
        let error = answer("HTTP/1.1 503 Service Unavailable\r\n\r\nwaiting for 200").await.unwrap_err();
        assert!(error.to_string().ends_with("not ready: waiting for 200"), "{error}");
        assert!(answer("").await.is_err());
    }
}
