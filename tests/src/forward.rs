//! A port of a pod on this machine's loopback, as `kubectl port-forward` gives it.

use std::net::SocketAddr;

use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

use crate::{Error, Result};

/// A forwarded port; closed when dropped.
#[derive(Debug)]
pub struct Forward {
    /// Address on this machine.
    pub address: SocketAddr,
    accepting: JoinHandle<()>,
}

impl Forward {
    /// Forwards a port of a pod. What is wrong with the pod shows as connections that end at once.
    ///
    /// # Errors
    /// Returns an error if no loopback port is free.
    pub async fn to(client: &Client, namespace: &str, pod: &str, port: u16) -> Result<Self> {
        let attempt = || Error::io(format!("forward port {port} of {namespace}/{pod}"));
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.map_err(attempt())?;
        let address = listener.local_addr().map_err(attempt())?;
        let (pods, pod) = (Api::<Pod>::namespaced(client.clone(), namespace), pod.to_owned());
        let accepting = tokio::spawn(async move {
            while let Ok((local, _)) = listener.accept().await {
                tokio::spawn(carry(pods.clone(), pod.clone(), port, local));
            }
        });
        Ok(Self { address, accepting })
    }
}

async fn carry(pods: Api<Pod>, pod: String, port: u16, mut local: TcpStream) {
    let Ok(mut forwarded) = pods.portforward(&pod, &[port]).await else { return };
    let Some(mut remote) = forwarded.take_stream(port) else { return };
    // Either end may close when it likes.
    let _ = copy_bidirectional(&mut local, &mut remote).await;
}

impl Drop for Forward {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}
