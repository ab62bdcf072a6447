//! Load during a crash: an endless series of connections, long ones, and some that are never repeated.

use futures::future::try_join_all;
use scopeprobe_tests::{
    Result, eventually,
    oracle::fleet::{CLOSED, Fleet, Member, Port, ports},
    oracle::observed,
    traffic_pod::Traffic,
};
use traffic::protocol::{Answer, Close, Command, Connect, End, Exchange, Run};

/// Number of concurrent connections per client.
const SOME: u64 = 20;
/// Longer than a test lasts, and yet bounded: nothing stops the programs of a killed test.
const ENDLESS: u64 = 60_000;
/// Connections that each client holds, to one pod directly and through one Service.
const HELD: u64 = 3;
const LONG: &str = "long";

/// Returns a client's path to the server, and its plan.
fn plan(fleet: &Fleet, client: usize, own: &Member, turn: usize, port: &Port) -> Connect {
    let target = fleet.target(fleet.partner(client, turn, own), turn % 2 == 1, client.is_multiple_of(2), port);
    Connect::to(target)
}

/// Ends with the server's close, so that no local port is kept.
fn short(fleet: &Fleet, client: usize, own: &Member, turn: usize) -> Connect {
    Connect { send: 300, receive: 5000, end: End::AwaitServer, ..plan(fleet, client, own, turn, &ports()[1]) }
}

/// Every fourth client: ten of them, on both nodes.
fn clients(fleet: &Fleet) -> Vec<(usize, &Member, Traffic)> {
    let all = fleet.clients().into_iter().enumerate();
    all.filter(|(index, _)| index % 4 == index / 4 % 2).map(|(index, (own, program))| (index, own, program)).collect()
}

/// Runs that go on until they are stopped.
pub struct Load<'a> {
    fleet: &'a Fleet,
    runs: Vec<(Traffic, Run)>,
}

impl<'a> Load<'a> {
    /// Begins, and waits until some of it is shown.
    ///
    /// # Errors
    /// Returns an error if a program is unreachable.
    pub async fn begin(fleet: &'a Fleet) -> Result<Self> {
        let mut runs = Vec::new();
        for (client, own, program) in clients(fleet) {
            for turn in 0..2 {
                let endless = Connect {
                    count: ENDLESS,
                    concurrency: 2,
                    every_ms: 20,
                    background: true,
                    ..short(fleet, client, own, turn)
                };
                match program.ask(&Command::Connect(endless)).await? {
                    Answer::Running(run) => runs.push((program.clone(), run)),
                    other => panic!("{program}: {other:?}"),
                }
            }
        }
        let load = Self { fleet, runs };
        load.shown_beyond(load.shown().await?).await?;
        Ok(load)
    }

    /// Connections that are shown at the servers' port of the load.
    async fn shown(&self) -> Result<u64> {
        let (edges, _) = observed::edges(&self.fleet.namespace).await?;
        Ok(edges.iter().filter(|(name, _)| name.port == Some(ports()[1].server)).map(|(_, edge)| edge.opened).sum())
    }

    async fn shown_beyond(&self, number: u64) -> Result<()> {
        eventually(&format!("more than {number} connections of the load to be shown"), async || {
            let shown = self.shown().await.map_err(|error| error.to_string())?;
            if shown > number { Ok(()) } else { Err(format!("{shown}")) }
        })
        .await
    }

    /// Waits until more of it is shown than was when this was called.
    ///
    /// # Errors
    /// Returns an error if no further connections are shown.
    pub async fn shown_to_go_on(&self) -> Result<()> {
        self.shown_beyond(self.shown().await?).await
    }

    /// Ends. How many connections there were.
    ///
    /// # Errors
    /// Returns an error if a program is unreachable.
    pub async fn end(self) -> Result<u64> {
        let stopped = self.runs.iter().map(|(program, run)| async move {
            let outcome = program.outcome(&Command::Stop(*run)).await?;
            assert_eq!((outcome.failed.total(), outcome.broken), (0, 0), "{program}: {outcome:?}");
            Ok(outcome.opened)
        });
        Ok(try_join_all(stopped).await?.iter().sum())
    }
}

/// A fixed number of connections by every client of the load, in the same ways.
///
/// # Errors
/// Returns an error if a program is unreachable.
pub async fn make_some(fleet: &Fleet) -> Result<()> {
    for (client, own, program) in clients(fleet) {
        for turn in 0..2 {
            let outcome = program.connect(Connect { count: SOME, ..short(fleet, client, own, turn) }).await?;
            assert_eq!((outcome.opened, outcome.broken), (SOME, 0), "{program}: {outcome:?}");
        }
    }
    Ok(())
}

/// Connections to servers that are never called again.
///
/// # Errors
/// Returns an error if a program is unreachable.
pub async fn make_some_once_and_for_all(fleet: &Fleet) -> Result<()> {
    for (client, own, program) in clients(fleet) {
        for turn in 0..2 {
            let sink = Connect { count: SOME, send: 500, ..plan(fleet, client, own, turn, &ports()[2]) };
            let outcome = program.connect(sink).await?;
            assert_eq!((outcome.opened, outcome.broken), (SOME, 0), "{program}: {outcome:?}");
        }
    }
    Ok(())
}

/// One refused attempt by every client. Nothing else here is refused: once these are shown, what came before is.
///
/// # Errors
/// Returns an error if a program is unreachable.
pub async fn make_marks(fleet: &Fleet) -> Result<()> {
    for (client, own, program) in clients(fleet) {
        let closed = Port { service: CLOSED.0, server: CLOSED.1, ..ports()[0].clone() };
        let outcome = program.connect(plan(fleet, client, own, 0, &closed)).await?;
        assert_eq!(outcome.failed.refused, 1, "{program}: {outcome:?}");
    }
    Ok(())
}

/// Connections that stay open, with some bytes on them.
///
/// # Errors
/// Returns an error if a program is unreachable.
pub async fn open_long_ones(fleet: &Fleet) -> Result<()> {
    for (client, own, program) in clients(fleet) {
        for turn in 0..2 {
            let long = Connect {
                count: HELD,
                send: 40,
                receive: 40,
                hold: Some(LONG.to_owned()),
                ..plan(fleet, client, own, turn, &ports()[0])
            };
            let outcome = program.connect(long).await?;
            assert_eq!((outcome.opened, outcome.broken), (HELD, 0), "{program}: {outcome:?}");
        }
    }
    use_long_ones(fleet).await
}

/// More bytes on the connections that stay open.
///
/// # Errors
/// Returns an error if a program is unreachable.
pub async fn use_long_ones(fleet: &Fleet) -> Result<()> {
    each(fleet, &Command::Exchange(Exchange { held: LONG.to_owned(), send: 3000, receive: 3000 })).await
}

/// Ends two of the connections that stayed open at each client, or all.
///
/// # Errors
/// Returns an error if a program is unreachable.
pub async fn close_long_ones(fleet: &Fleet, all: bool) -> Result<()> {
    each(fleet, &Command::Close(Close { held: LONG.to_owned(), count: (!all).then_some(2), end: End::Close })).await
}

async fn each(fleet: &Fleet, command: &Command) -> Result<()> {
    for (_, _, program) in clients(fleet) {
        let outcome = program.outcome(command).await?;
        assert_eq!(outcome.broken, 0, "{program}: {outcome:?}");
    }
    Ok(())
}
