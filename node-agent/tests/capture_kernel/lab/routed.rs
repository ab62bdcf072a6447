//! Pods with network namespaces of their own, and a host between them. The host forwards, tracks connections and
//! translates the address of a service; for another service it translates the clients' addresses as well.

use super::{Node, Process, all_processors};

/// Each pod is in the cgroup of its name.
pub struct Routed<const PODS: usize> {
    pub host: Process,
    pub pods: [Process; PODS],
}

/// The addresses of the pod at this index, of IPv4 and IPv6.
pub fn addresses(index: usize) -> [String; 2] {
    let number = index + 1;
    [format!("10.201.{number}.2"), format!("fd{number:02}::2")]
}

impl<const PODS: usize> Routed<PODS> {
    pub fn new(node: &Node, names: [&str; PODS]) -> Self {
        let host = node.process_in_own_netns("host", false);
        let pods = names.map(|name| node.process_in_own_netns(name, false));
        for (index, pod) in pods.iter().enumerate() {
            let (number, [v4, v6]) = (index + 1, addresses(index));
            let (inside, outside) = (pod.pid(), host.pid());
            host.in_netns(&format!(
                "ip link add pod{number} netns {outside} type veth peer name eth0 netns {inside}\n\
                 ip address add 10.201.{number}.1/24 dev pod{number}\n\
                 ip address add fd{number:02}::1/64 dev pod{number} nodad\n\
                 ip link set pod{number} up"
            ));
            pod.in_netns(&format!(
                "ip address add {v4}/24 dev eth0\n\
                 ip address add {v6}/64 dev eth0 nodad\n\
                 ip link set eth0 up\n\
                 ip route add default via 10.201.{number}.1\n\
                 ip route add default via fd{number:02}::1"
            ));
        }
        host.in_netns(
            "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1\n\
             nft add table inet lab\n\
             nft add chain inet lab forward '{ type filter hook forward priority 0; }'\n\
             nft add rule inet lab forward ct state invalid drop\n\
             nft add chain inet lab pre '{ type nat hook prerouting priority -100; }'\n\
             nft add rule inet lab pre ip daddr 10.96.0.1 tcp dport 80 dnat ip to 10.201.2.2:8080\n\
             nft add rule inet lab pre ip daddr 10.96.0.2 tcp dport 80 dnat ip to 10.201.2.2:8081\n\
             nft add chain inet lab post '{ type nat hook postrouting priority 100; }'\n\
             nft add rule inet lab post ip daddr 10.201.2.2 tcp dport 8081 snat ip to 10.201.2.1",
        );
        Self { host, pods }
    }

    /// Packets go to any processor, whichever the sender runs on.
    pub fn steer(&self) {
        let mask = all_processors();
        // The sysfs of a namespace shows its own interfaces.
        let command = format!(
            "unshare --mount sh -ec 'mount -t sysfs none /sys; \
             for queue in /sys/class/net/*/queues/rx-*/rps_cpus; do echo {mask} > $queue; done'"
        );
        for process in self.pods.iter().chain([&self.host]) {
            process.in_netns(&command);
        }
    }
}
