//! The simple way to be an application of a demonstration: serve, and call other Services again and again.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    thread,
    time::Duration,
};

use crate::{
    program::{Program, spawn},
    protocol::{Answer, Close, Command, Connect, Exchange, Listen, Outcome},
};

const REQUEST: u64 = 200;

/// Finds a target's address: `10.0.0.1:80`, `[fd00::1]:80`, or `catalog:80` by the variable `CATALOG_SERVICE_HOST` that
/// Kubernetes gives to each container for each Service of its namespace.
///
/// # Errors
/// Names the variable that is missing, or says what form was expected.
pub fn resolve(target: &str, variable: impl Fn(&str) -> Option<String>) -> Result<SocketAddr, String> {
    if let Ok(address) = target.parse() {
        return Ok(address);
    }
    let expected = || format!("the target {target:?} is neither ADDRESS:PORT nor SERVICE:PORT");
    let (name, port) = target.rsplit_once(':').ok_or_else(expected)?;
    let port = port.parse().map_err(|_| expected())?;
    let variable_name = format!("{}_SERVICE_HOST", name.to_uppercase().replace('-', "_"));
    let host = variable(&variable_name)
        .ok_or_else(|| format!("{variable_name} is not set: is there a Service {name} older than this container?"))?;
    let ip: IpAddr = host.parse().map_err(|_| format!("{variable_name} is {host:?}, which is no address"))?;
    Ok(SocketAddr::new(ip, port))
}

/// Echoes at an address; goes on in the background.
///
/// # Errors
/// The program's, as text.
pub fn listen(program: &Arc<Program>, address: SocketAddr) -> Result<(), String> {
    let listen = Listen { address, v6_only: false, behaviour: crate::protocol::Behaviour::Echo };
    match program.answer(Command::Listen(listen)) {
        Answer::Error(error) => Err(error),
        _ => Ok(()),
    }
}

/// Calls a target every so often; goes on in the background. `keep`: on one connection that stays open.
///
/// # Errors
/// Returns an error if no thread can be created.
pub fn call_again_and_again(program: &Arc<Program>, target: SocketAddr, every: Duration, keep: bool) -> io::Result<()> {
    let program = Arc::clone(program);
    spawn(move || {
        let mut worked = None;
        loop {
            let outcome = if keep { call_on_one(&program, target) } else { call_once(&program, target, 1) };
            say_if_changed(target, &outcome, &mut worked);
            thread::sleep(every);
        }
    })
}

/// Calls a target on connections of their own.
pub fn call_once(program: &Arc<Program>, target: SocketAddr, count: u64) -> Outcome {
    connect(program, Connect { count, send: REQUEST, receive: REQUEST, timeout_ms: 5_000, ..Connect::to(target) })
}

fn call_on_one(program: &Arc<Program>, target: SocketAddr) -> Outcome {
    let held = target.to_string();
    let exchange = Exchange { held: held.clone(), send: REQUEST, receive: REQUEST };
    let Answer::Outcome(outcome) = program.answer(Command::Exchange(exchange)) else { return Outcome::default() };
    if outcome.sent > 0 && outcome.broken == 0 {
        return outcome;
    }
    // Nothing is held any more: a new one.
    program.answer(Command::Close(Close { held: held.clone(), count: None, end: crate::protocol::End::Reset }));
    let plan = Connect { send: REQUEST, receive: REQUEST, timeout_ms: 5_000, hold: Some(held), ..Connect::to(target) };
    connect(program, plan)
}

fn connect(program: &Arc<Program>, plan: Connect) -> Outcome {
    match program.answer(Command::Connect(plan)) {
        Answer::Outcome(outcome) => outcome,
        other => Outcome { first_error: Some(format!("{other:?}")), ..Outcome::default() },
    }
}

fn say_if_changed(target: SocketAddr, outcome: &Outcome, worked: &mut Option<bool>) {
    let works = outcome.first_error.is_none();
    if *worked != Some(works) {
        match &outcome.first_error {
            None => println!("calls to {target} are answered"),
            Some(error) => println!("{error}"),
        }
        *worked = Some(works);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variable(name: &str) -> Option<String> {
        (name == "SHOP_CART_SERVICE_HOST").then(|| "10.96.1.2".to_owned())
    }

    #[test]
    fn a_service_is_found_by_its_variable() {
        assert_eq!(resolve("shop-cart:80", variable), Ok("10.96.1.2:80".parse().unwrap()));
        assert_eq!(resolve("[fd00::1]:80", variable), Ok("[fd00::1]:80".parse().unwrap()));
    }

    #[test]
    fn what_cannot_be_found_is_named() {
        assert!(resolve("catalog:80", variable).unwrap_err().contains("CATALOG_SERVICE_HOST"));
        assert!(resolve("catalog", variable).unwrap_err().contains("SERVICE:PORT"));
    }
}
