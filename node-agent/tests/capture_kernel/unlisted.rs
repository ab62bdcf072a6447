//! Connections whose socket no process has: their bytes are unknown until they end, or a process gets them.

use scopeprobe_agent::capture::Attach;
use topology::flow::Role;

use crate::lab::{key, list_or_skip, node_or_skip};

#[test]
fn bytes_are_unknown_until_the_server_accepts() {
    const HERE: &str = "127.0.0.1";
    let node = node_or_skip!();
    list_or_skip!();
    let mut watched = node.capture(Attach::SockOps);
    let (mut client, mut server) = (node.process("client"), node.process("server"));
    let port = server.listen("l", "127.0.0.1:0");
    client.connect("a", format_args!("{HERE}:{port}"));
    client.send_bytes("a", 100);
    let [ours, theirs] = [(&mut client, Role::Client), (&mut server, Role::Server)]
        .map(|(process, role)| key(process, role, HERE, HERE, port));
    watched.until("the client's bytes, and a server that lacks them", |watched| {
        let counters =
            |key| watched.flows.get(&key).map(|it| [it.bytes_sent, it.bytes_received, it.open_without_bytes]);
        counters(ours) == Some([100, 0, 0]) && counters(theirs) == Some([0, 0, 1])
    });
    server.accept("a", "l");
    watched.until("the server's bytes", |watched| {
        let theirs = watched.flows[&theirs];
        [theirs.bytes_received, theirs.open_without_bytes] == [100, 0]
    });
    watched.assert_nothing_lost();
}
