//! Where the time goes: what the CPUs and the domains have used from one look to the next.

use std::io::Write;
use std::thread;
use std::time::Duration;

use caisson_protocol::{Domain, Machine};
use serde_json::json;

use crate::{Client, Error, show};

/// Goes to the upper left corner and clears the screen from there.
const CLEAR: &str = "\x1b[H\x1b[J";

/// One look.
struct Look {
    machine: Machine,
    domains: Vec<Domain>,
}

impl Look {
    fn new(client: &mut Client) -> Result<Self, Error> {
        Ok(Self { machine: client.machine()?, domains: client.domains()? })
    }
}

/// A domain's part, in thousandths of a CPU.
struct Part<'a> {
    domain: &'a Domain,
    guest: u64,
    hypervisor: u64,
    stolen: u64,
}

fn permille(part: u64, whole: u64) -> u64 {
    (u128::from(part) * 1000 / u128::from(whole.max(1))) as u64
}

fn percent(permille: u64) -> String {
    format!("{}.{}%", permille / 10, permille % 10)
}

fn parts<'a>(before: &Look, now: &'a Look) -> Vec<Part<'a>> {
    let elapsed = now.machine.now_ns.saturating_sub(before.machine.now_ns);
    let part = |domain: &'a Domain| {
        // A new life counts from its own beginning.
        let none = Domain::default();
        let old = before.domains.iter().find(|old| old.id == domain.id && old.life == domain.life);
        let old = old.unwrap_or(&none);
        let since = |now: u64, old: u64| permille(now.saturating_sub(old), elapsed);
        Part {
            domain,
            guest: since(domain.guest_ns, old.guest_ns),
            hypervisor: since(domain.hypervisor_ns, old.hypervisor_ns),
            stolen: since(domain.stolen_ns, old.stolen_ns),
        }
    };
    now.domains.iter().map(part).collect()
}

/// Shows it so many times, or without an end.
pub(crate) fn run(
    client: &mut Client,
    times: Option<u64>,
    every: Duration,
    as_json: bool,
    out: &mut impl Write,
) -> Result<(), Error> {
    let mut before = Look::new(client)?;
    let mut left = times.unwrap_or(u64::MAX);
    while left > 0 {
        left -= 1;
        thread::sleep(every);
        let now = Look::new(client)?;
        if as_json {
            json_line(&before, &now, out)?;
        } else {
            if times.is_none() {
                write!(out, "{CLEAR}")?;
            }
            table(&before, &now, out)?;
        }
        out.flush()?;
        before = now;
    }
    Ok(())
}

fn json_line(before: &Look, now: &Look, out: &mut impl Write) -> Result<(), Error> {
    let domain = |part: &Part<'_>| {
        json!({
            "id": part.domain.id,
            "name": part.domain.name,
            "state": part.domain.state,
            "guest_permille": part.guest,
            "hypervisor_permille": part.hypervisor,
            "stolen_permille": part.stolen,
        })
    };
    let domains: Vec<_> = parts(before, now).iter().map(domain).collect();
    Ok(writeln!(out, "{}", json!({ "machine": now.machine, "domains": domains }))?)
}

fn table(before: &Look, now: &Look, out: &mut impl Write) -> Result<(), Error> {
    let (old, new) = (&before.machine, &now.machine);
    let whole = new.now_ns.saturating_sub(old.now_ns) * u64::from(new.cpus.max(1));
    let part = |new: u64, old: u64| percent(permille(new.saturating_sub(old), whole));
    let s = if new.cpus == 1 { "" } else { "s" };
    writeln!(
        out,
        "{} CPU{s}: guests {}, Caisson {}, idle {}; {} free",
        new.cpus,
        part(new.guest_ns, old.guest_ns),
        part(new.hypervisor_ns, old.hypervisor_ns),
        part(new.idle_ns, old.idle_ns),
        show::bytes(new.free_memory)
    )?;
    writeln!(
        out,
        "{:>4}  {:<16}  {:<8}  {:>7}  {:>7}  {:>7}",
        "ID", "NAME", "STATE", "GUEST", "CAISSON", "STOLEN"
    )?;
    for part in parts(before, now) {
        let Part { domain, guest, hypervisor, stolen } = part;
        let [guest, hypervisor, stolen] = [guest, hypervisor, stolen].map(percent);
        let (id, name, state) = (domain.id, &domain.name, domain.state.name());
        writeln!(out, "{id:>4}  {name:<16}  {state:<8}  {guest:>7}  {hypervisor:>7}  {stolen:>7}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_of_the_time_between() {
        let look = |now_ns, guest_ns, life| Look {
            machine: Machine { now_ns, cpus: 2, ..Machine::default() },
            domains: vec![Domain { id: 1, guest_ns, life, ..Domain::default() }],
        };
        let guest = |before: &Look, now: &Look| parts(before, now)[0].guest;
        assert_eq!(guest(&look(1000, 100, 1), &look(2000, 600, 1)), 500);
        assert_eq!(guest(&look(1000, 900, 1), &look(2000, 250, 2)), 250, "a new life");
        assert_eq!(guest(&look(1000, 100, 1), &look(1000, 100, 1)), 0, "no time");
        assert_eq!(percent(1234), "123.4%");
    }
}
