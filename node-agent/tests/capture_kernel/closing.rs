//! Orders in which the two ends of a connection close it.

use std::collections::BTreeMap;

use scopeprobe_agent::capture::Attach;
use topology::flow::Role;
use traffic::script::step::StreamAction;

use crate::{
    counted,
    lab::{key, node_or_skip},
    mirrored,
};

/// True for the client's end, and its action.
type EndAction = (bool, StreamAction);

pub fn bytes_are_payload_in_every_order_of_closing(attach: Attach) {
    use StreamAction::{AwaitEnd, Close, Receive, Reset, Send, ShutDown};
    let node = node_or_skip!();
    let mut watched = node.capture(attach);
    let (mut client, mut server) = (node.process("client"), node.process("server"));
    let mut expected = BTreeMap::new();
    // Each: what both do after 300 bytes went there and 500 came back; what was sent in all, there and back.
    let orders: [(&str, &[EndAction], u64, u64); 8] = [
        ("client first", &[(true, Close), (false, AwaitEnd), (false, Close)], 300, 500),
        ("server first", &[(false, Close), (true, AwaitEnd), (true, Close)], 300, 500),
        ("client only", &[(true, Close)], 300, 500),
        ("client resets", &[(true, Reset)], 300, 500),
        ("server resets", &[(false, Reset)], 300, 500),
        (
            "half closed by the client, the server goes on",
            &[
                (true, ShutDown),
                (false, AwaitEnd),
                (false, Send(4000)),
                (true, Receive(4000)),
                (false, Close),
                (true, AwaitEnd),
                (true, Close),
            ],
            300,
            4500,
        ),
        ("unread data, then the reader closes", &[(true, Send(700)), (false, Close), (true, Close)], 1000, 500),
        ("both at once", &[(true, ShutDown), (false, ShutDown), (true, Close), (false, Close)], 300, 500),
    ];
    let exchange = [(true, Send(300)), (false, Receive(300)), (false, Send(500)), (true, Receive(500))];
    for (order, actions, there, back) in orders {
        println!("{order}");
        // All listeners stay open, so that the kernel gives each a port of its own.
        let port = server.listen(order, "127.0.0.1:0");
        client.connect("c", format_args!("127.0.0.1:{port}"));
        server.accept("s", order);
        for (at_client, action) in exchange.iter().chain(actions) {
            let (process, stream) = if *at_client { (&mut client, "c") } else { (&mut server, "s") };
            process.act(stream, *action);
        }
        client.close("c");
        server.close("s");
        let ours = counted(1, 1, there, back);
        expected.insert(key(&mut client, Role::Client, "127.0.0.1", "127.0.0.1", port), ours);
        expected.insert(key(&mut server, Role::Server, "127.0.0.1", "127.0.0.1", port), mirrored(ours));
    }
    watched.expect(&expected);
}
