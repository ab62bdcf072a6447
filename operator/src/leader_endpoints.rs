//! Enters the working operator's address into the collector's Service, by EndpointSlices. All operators are ready, and
//! agents reach the one that works. The slices are owned by its pod: they are deleted with it.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use futures::{StreamExt, stream};
use k8s_openapi::{
    api::{
        core::v1::{ObjectReference, Pod},
        discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice},
    },
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};
use kube::{
    Api, Client, Resource,
    api::{Patch, PatchParams},
    runtime::{WatchStreamExt, utils::Backoff, watcher},
};

use crate::{
    guarded_watch::{backoff, with_cause},
    settings::Settings,
};

/// Field manager of the slices, and value of their label for it.
const MANAGER: &str = "scopeprobe-operator";
/// Maximum pause after failures.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// The address of the working operator, and the Service into which it is entered.
#[derive(Clone)]
pub struct LeaderEndpoints {
    client: Client,
    watching: Client,
    namespace: String,
    slices: Vec<EndpointSlice>,
}

impl LeaderEndpoints {
    /// Prepares the slices: one for each address family of the pod. `watching` has no time limit for answers. Without the
    /// pod's addresses, as outside of a cluster, there are none.
    #[must_use]
    pub fn new(client: &Client, watching: &Client, settings: &Settings) -> Self {
        Self {
            client: client.clone(),
            watching: watching.clone(),
            namespace: settings.namespace.clone(),
            slices: slices(settings),
        }
    }

    /// Keeps the slices as they should be, without end.
    pub async fn keep(self) {
        if self.slices.is_empty() {
            std::future::pending::<()>().await;
        }
        let (mut pauses, mut is_failing) = (backoff(), false);
        loop {
            match self.apply().await {
                Ok(()) => {
                    pauses.reset();
                    is_failing = false;
                    self.changed().await;
                }
                Err(error) => {
                    let error = with_cause(&error);
                    if std::mem::replace(&mut is_failing, true) {
                        tracing::debug!(error, "still cannot write the EndpointSlices of the collector");
                    } else {
                        tracing::warn!(
                            error,
                            "cannot write the EndpointSlices of the collector; agents do not find it"
                        );
                    }
                    tokio::time::sleep(pauses.next().unwrap_or(LONGEST_PAUSE)).await;
                }
            }
        }
    }

    async fn apply(&self) -> kube::Result<()> {
        let api: Api<EndpointSlice> = Api::namespaced(self.client.clone(), &self.namespace);
        for slice in &self.slices {
            let name = slice.metadata.name.as_deref().unwrap_or_default();
            api.patch(name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(slice)).await?;
        }
        Ok(())
    }

    /// Waits until a slice is not as it should be.
    async fn changed(&self) {
        let api: Api<EndpointSlice> = Api::namespaced(self.watching.clone(), &self.namespace);
        let watches = self.slices.iter().map(|slice| {
            let name = slice.metadata.name.as_deref().unwrap_or_default();
            watcher::watch_object(api.clone(), name).default_backoff().map(move |there| (slice, there)).boxed()
        });
        let mut events = stream::select_all(watches);
        while let Some((wanted, there)) = events.next().await {
            // A failed watch is resumed.
            if let Ok(there) = there
                && !there.is_some_and(|there| is_as_wanted(&there, wanted))
            {
                return;
            }
        }
    }
}

/// Returns whether a slice leads to the wanted address. The API server adds defaults to the rest.
fn is_as_wanted(there: &EndpointSlice, wanted: &EndpointSlice) -> bool {
    let addresses =
        |slice: &EndpointSlice| slice.endpoints.iter().map(|endpoint| endpoint.addresses.clone()).collect::<Vec<_>>();
    let ports = |slice: &EndpointSlice| {
        let ports = slice.ports.iter().flatten();
        ports.map(|port| (port.name.clone(), port.port)).collect::<Vec<_>>()
    };
    addresses(there) == addresses(wanted) && ports(there) == ports(wanted)
}

fn slices(settings: &Settings) -> Vec<EndpointSlice> {
    let mut first_of_family = BTreeMap::new();
    for ip in &settings.pod_ips {
        first_of_family.entry(ip.is_ipv6()).or_insert(*ip);
    }
    first_of_family.into_values().map(|ip| slice(settings, ip)).collect()
}

fn slice(settings: &Settings, ip: IpAddr) -> EndpointSlice {
    let Settings { namespace, identity, pod_uid, collector_listen, agents, .. } = settings;
    let (suffix, family) = if ip.is_ipv6() { ("ipv6", "IPv6") } else { ("ipv4", "IPv4") };
    let labels = [
        ("kubernetes.io/service-name", agents.collector_service.as_str()),
        ("endpointslice.kubernetes.io/managed-by", MANAGER),
        ("app.kubernetes.io/part-of", "scopeprobe"),
    ];
    EndpointSlice {
        metadata: ObjectMeta {
            name: Some(format!("{}-{suffix}", agents.collector_service)),
            namespace: Some(namespace.clone()),
            labels: Some(labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into()),
            owner_references: pod_uid.as_ref().map(|uid| {
                vec![OwnerReference {
                    api_version: Pod::api_version(&()).into_owned(),
                    kind: Pod::kind(&()).into_owned(),
                    name: identity.clone(),
                    uid: uid.clone(),
                    ..OwnerReference::default()
                }]
            }),
            ..ObjectMeta::default()
        },
        address_type: family.to_owned(),
        endpoints: vec![Endpoint {
            addresses: vec![ip.to_string()],
            conditions: Some(EndpointConditions { ready: Some(true), ..EndpointConditions::default() }),
            target_ref: Some(ObjectReference {
                kind: Some(Pod::kind(&()).into_owned()),
                namespace: Some(namespace.clone()),
                name: Some(identity.clone()),
                uid: pod_uid.clone(),
                ..ObjectReference::default()
            }),
            ..Endpoint::default()
        }],
        ports: Some(vec![EndpointPort {
            name: Some("collector".to_owned()),
            port: Some(i32::from(collector_listen.port())),
            protocol: Some("TCP".to_owned()),
            ..EndpointPort::default()
        }]),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::settings::{Cli, Command};

    fn settings(arguments: &[&str]) -> Settings {
        let fixed = ["scopeprobe-operator", "run", "--namespace=n", "--identity=p"];
        match Cli::parse_from(fixed.iter().chain(arguments)).command {
            Command::Run(settings) => *settings,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn there_is_one_slice_for_each_family_and_none_without_addresses() {
        assert_eq!(slices(&settings(&[])), []);
        let both = slices(&settings(&["--pod-ips=10.0.0.7,fd00::7", "--pod-uid=u", "--collector-service=c"]));
        let names: Vec<_> = both.iter().map(|slice| slice.metadata.name.as_deref().unwrap()).collect();
        assert_eq!(names, ["c-ipv4", "c-ipv6"]);
        assert_eq!(both[1].address_type, "IPv6");
        assert_eq!(both[1].endpoints[0].addresses, ["fd00::7"]);
        let owner = &both[0].metadata.owner_references.as_ref().unwrap()[0];
        assert_eq!((owner.kind.as_str(), owner.name.as_str(), owner.uid.as_str()), ("Pod", "p", "u"));
        assert_eq!(both[0].ports.as_ref().unwrap()[0].port, Some(9463));
    }

    #[test]
    fn slice_with_another_address_is_not_as_wanted() {
        let of = |ips: &str| slices(&settings(&[&format!("--pod-ips={ips}")])).remove(0);
        let wanted = of("10.0.0.7");
        let mut there = wanted.clone();
        there.endpoints[0].conditions = None;
        assert!(is_as_wanted(&there, &wanted), "defaults do not matter");
        assert!(!is_as_wanted(&of("10.0.0.8"), &wanted));
        there.endpoints.clear();
        assert!(!is_as_wanted(&there, &wanted));
    }
}
