//! The control tool `caisson` of the driver domain: makes, lists, watches, starts and ends the machine's domains. It asks the backend
//! daemon at its socket, which makes the calls ([`caisson_protocol`]).
//!
//! | file | what |
//! |---|---|
//! | `cli.rs` | the command line |
//! | `client.rs` | questions and answers at the socket; what can go wrong |
//! | `create.rs` | domains are made of a text or a blob |
//! | `show.rs` | tables and lines for people |
//! | `top.rs` | where the time goes, from one look to the next |
//! | `console.rs` | a domain's console at one's own terminal |
//! | `port.rs` | the same of a console port that this domain serves |
//!
//! Every command prints JSON with `--json`. It ends with 0 when it has done what was asked, 1 when that could not be done, 2 for
//! a command line that cannot be understood, 3 when the daemon cannot be reached.

#![forbid(unsafe_code)]

mod cli;
mod client;
mod console;
mod create;
mod port;
mod show;
mod top;

use std::io::Write;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use caisson_protocol::{Action, Answer, Domain, Question, State};
use serde::Serialize;
use serde_json::{Value, json};

pub use cli::{Cli, Command};
pub use client::{Client, Error};

/// How often it is looked whether something has come about.
const LOOK: Duration = Duration::from_millis(100);

/// Does what the command line says.
///
/// # Errors
/// Why it could not be done.
pub fn run(cli: &Cli, out: &mut impl Write) -> Result<(), Error> {
    if let Command::Create { file, only, wait } = &cli.command {
        return create::run(cli, file, only.as_deref(), *wait, out);
    }
    let mut client = Client::connect(&cli.socket)?;
    match &cli.command {
        // Done above: the daemon does not wait for files to be read.
        Command::Create { .. } => Ok(()),
        Command::Forget { domain } => forget(&mut client, cli, domain, out),
        Command::List => {
            let domains = client.domains()?;
            if cli.json { print(out, &domains) } else { Ok(show::list(out, &domains)?) }
        }
        Command::Info { domain } => info(&mut client, cli, domain, out),
        Command::Start { domain, wait } => {
            act(&mut client, cli, (Action::Start, "started"), domain, wait.then_some(&is_up), out)
        }
        Command::Shutdown { domain, wait } => act(
            &mut client,
            cli,
            (Action::Shutdown, "told to shut down"),
            domain,
            wait.then_some(&is_gone),
            out,
        ),
        Command::Reset { domain } => {
            act(&mut client, cli, (Action::Reset, "reset"), domain, None::<&Wanted>, out)
        }
        Command::Destroy { domain } => {
            act(&mut client, cli, (Action::Destroy, "destroyed"), domain, Some(&is_gone), out)
        }
        Command::Pause { domain } => {
            act(&mut client, cli, (Action::Pause, "paused"), domain, None::<&Wanted>, out)
        }
        Command::Resume { domain } => {
            act(&mut client, cli, (Action::Resume, "resumed"), domain, None::<&Wanted>, out)
        }
        Command::Console { domain, port: Some(port), .. } => {
            port::attach(Path::new(caisson_protocol::PORTS), domain, port, out)
        }
        Command::Console { domain, dump, port: None } => {
            let domain = client.find(domain)?;
            console::attach(&mut client, &domain, *dump, cli.json, out)
        }
        Command::Top { times, seconds } => {
            let every = Duration::from_secs_f64(seconds.clamp(0.1, 3600.0));
            top::run(&mut client, *times, every, cli.json, out)
        }
        Command::Events { times } => events(&mut client, cli, *times, out),
        Command::Devices => {
            let answer = client.ask_value(&Question::Devices)?;
            let devices = answer.get("devices").cloned().unwrap_or(Value::Null);
            if cli.json { print(out, &devices) } else { Ok(show::devices(out, &devices)?) }
        }
    }
}

/// Prints a line of JSON.
fn print(out: &mut impl Write, value: &impl Serialize) -> Result<(), Error> {
    let line = serde_json::to_string(value).map_err(|_| Error::Nonsense)?;
    writeln!(out, "{line}")?;
    // Who reads a stream of lines wants each at once.
    Ok(out.flush()?)
}

fn info(client: &mut Client, cli: &Cli, domain: &str, out: &mut impl Write) -> Result<(), Error> {
    let domain = client.find(domain)?;
    let vcpus = match client.ask(&Question::Vcpus { domain: domain.id })? {
        Answer::Vcpus(vcpus) => vcpus,
        _ => return Err(Error::Nonsense),
    };
    if cli.json {
        return print(out, &json!({ "domain": domain, "vcpus": vcpus }));
    }
    Ok(show::info(out, &domain, &vcpus)?)
}

/// What a domain is to have become.
type Wanted = dyn Fn(&Domain) -> bool;

fn is_gone(domain: &Domain) -> bool {
    domain.state == State::Gone
}

fn is_up(domain: &Domain) -> bool {
    matches!(domain.state, State::Running | State::Blocked)
}

/// Waits until a domain is as `wanted`.
fn wait<W: Fn(&Domain) -> bool + ?Sized>(
    client: &mut Client,
    cli: &Cli,
    domain: u16,
    wanted: &W,
) -> Result<Domain, Error> {
    let limit = Duration::from_secs(cli.patience);
    let start = Instant::now();
    loop {
        let now = client.numbered(domain)?;
        if wanted(&now) {
            return Ok(now);
        }
        if start.elapsed() > limit {
            return Err(Error::Patience(now.name, cli.patience));
        }
        thread::sleep(LOOK);
    }
}

/// Forgets a domain, which is then told as it was.
fn forget(client: &mut Client, cli: &Cli, name: &str, out: &mut impl Write) -> Result<(), Error> {
    let domain = client.find(name)?;
    match client.ask(&Question::Act { action: Action::Forget, domain: domain.id }) {
        Ok(Answer::Done(_)) => {}
        Ok(_) => return Err(Error::Nonsense),
        Err(error) => return Err(show::explain(error, Action::Forget, &domain)),
    }
    if cli.json {
        print(out, &json!({ "domain": domain }))
    } else {
        Ok(writeln!(out, "{}: forgotten", domain.name)?)
    }
}

/// Has something done to a domain, and waits until it is as `wanted`.
fn act<W: Fn(&Domain) -> bool + ?Sized>(
    client: &mut Client,
    cli: &Cli,
    (action, done): (Action, &str),
    name: &str,
    wanted: Option<&W>,
    out: &mut impl Write,
) -> Result<(), Error> {
    let domain = client.find(name)?;
    match client.ask(&Question::Act { action, domain: domain.id }) {
        Ok(Answer::Done(_)) => {}
        Ok(_) => return Err(Error::Nonsense),
        Err(error) => return Err(show::explain(error, action, &domain)),
    }
    if let Some(wanted) = wanted {
        wait(client, cli, domain.id, wanted)?;
    }
    if cli.json {
        let now = client.numbered(domain.id)?;
        return print(out, &json!({ "domain": now }));
    }
    Ok(writeln!(out, "{}: {done}", domain.name)?)
}

/// Follows what becomes of the domains: a line for each change that a look finds.
fn events(client: &mut Client, cli: &Cli, times: Option<u64>, out: &mut impl Write) -> Result<(), Error> {
    let mut before = client.domains()?;
    let mut left = times.unwrap_or(u64::MAX);
    while left > 0 {
        thread::sleep(LOOK);
        let machine = client.machine()?;
        let now = client.domains()?;
        let forgotten = before.iter().filter(|old| now.iter().all(|domain| domain.id != old.id));
        let forgotten = forgotten.map(|domain| (domain, "forgotten".to_owned()));
        let news = now.iter().filter_map(|domain| {
            let old = before.iter().find(|old| old.id == domain.id);
            show::event(old, domain).map(|event| (domain, event))
        });
        for (domain, event) in forgotten.chain(news) {
            if cli.json {
                let (id, name, ended) = (domain.id, &domain.name, domain.ended);
                print(
                    out,
                    &json!({ "time_ns": machine.now_ns, "domain": id, "name": name, "event": event,
                    "life": domain.life, "ended": ended }),
                )?;
            } else {
                writeln!(out, "{}  {}: {event}", show::seconds(machine.now_ns), domain.name)?;
                out.flush()?;
            }
            left -= 1;
            if left == 0 {
                break;
            }
        }
        before = now;
    }
    Ok(())
}
