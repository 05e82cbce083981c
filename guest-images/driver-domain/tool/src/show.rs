//! Tables and lines for people.

use std::io::{self, Write};

use caisson_protocol::{Action, Domain, Ended, State, Vcpu};
use serde_json::Value;

use crate::Error;

/// Rows in columns: the first is the heading. Columns are as wide as their widest cell, and all but those named `left` are set to
/// the right.
fn table(out: &mut impl Write, left: &[usize], rows: &[Vec<String>]) -> io::Result<()> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell: &String| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for row in rows {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let gap = if column == 0 { "" } else { "  " };
            line += &if left.contains(&column) {
                format!("{gap}{cell:<width$}")
            } else {
                format!("{gap}{cell:>width$}")
            };
        }
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

fn row(cells: &[&str]) -> Vec<String> {
    cells.iter().map(ToString::to_string).collect()
}

/// Nanoseconds as seconds.
pub(crate) fn seconds(ns: u64) -> String {
    format!("{}.{:03} s", ns / 1_000_000_000, ns / 1_000_000 % 1000)
}

/// Bytes as people say them.
pub(crate) fn bytes(bytes: u64) -> String {
    if bytes >= 10 << 30 { format!("{} GiB", bytes >> 30) } else { format!("{} MiB", bytes >> 20) }
}

/// All domains.
pub(crate) fn list(out: &mut impl Write, domains: &[Domain]) -> io::Result<()> {
    let mut rows = vec![row(&["ID", "NAME", "STATE", "VCPUS", "MEMORY", "RESTARTS", "TIME"])];
    for domain in domains {
        let time = seconds(domain.guest_ns + domain.hypervisor_ns);
        rows.push(vec![
            domain.id.to_string(),
            domain.name.clone(),
            domain.state.name().to_owned(),
            domain.vcpus.to_string(),
            bytes(domain.memory),
            domain.restarts.to_string(),
            if domain.state == State::Gone { "-".to_owned() } else { time },
        ]);
    }
    table(out, &[1, 2], &rows)
}

/// All of one.
pub(crate) fn info(out: &mut impl Write, domain: &Domain, vcpus: &[Vcpu]) -> io::Result<()> {
    let yes = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
    let private = if domain.private == 0 { "none".into() } else { bytes(domain.private) };
    let privileges = if domain.privileges.is_empty() { "none".into() } else { domain.privileges.join(", ") };
    let rows = [
        ("name", domain.name.clone()),
        ("number", domain.id.to_string()),
        ("state", domain.state.name().to_owned()),
        ("life", domain.life.to_string()),
        ("restarts", domain.restarts.to_string()),
        ("ended last", domain.ended.words().to_owned()),
        ("memory", bytes(domain.memory)),
        ("private memory", private),
        ("vCPUs", domain.vcpus.to_string()),
        ("age", seconds(domain.elapsed_ns)),
        ("time in the guest", seconds(domain.guest_ns)),
        ("time in Caisson", seconds(domain.hypervisor_ns)),
        ("time stolen", seconds(domain.stolen_ns)),
        ("console", yes(domain.console)),
        ("real devices", yes(domain.devices)),
        ("privileges", privileges),
    ];
    let rows: Vec<_> = rows.into_iter().map(|(name, value)| vec![name.to_owned(), value]).collect();
    table(out, &[0, 1], &rows)?;
    if vcpus.is_empty() {
        return Ok(());
    }
    let mut rows = vec![row(&["VCPU", "STATE", "CPU", "EXITS", "GUEST", "CAISSON", "STOLEN"])];
    rows.extend(vcpus.iter().map(|vcpu| {
        vec![
            vcpu.index.to_string(),
            vcpu.activity.clone(),
            vcpu.cpu.to_string(),
            vcpu.exits.to_string(),
            seconds(vcpu.guest_ns),
            seconds(vcpu.hypervisor_ns),
            seconds(vcpu.stolen_ns),
        ]
    }));
    writeln!(out)?;
    table(out, &[1], &rows)
}

/// The devices that the daemon serves, as it tells them.
pub(crate) fn devices(out: &mut impl Write, devices: &Value) -> io::Result<()> {
    let mut rows = vec![row(&["CHANNEL", "DEVICE", "STAGE", "REQUESTS", "COMPLAINT"])];
    for device in devices.as_array().into_iter().flatten() {
        let text = |name: &str| device[name].as_str().unwrap_or("").to_owned();
        let requests =
            device["counters"]["requests"].as_u64().map_or("-".to_owned(), |count| count.to_string());
        rows.push(vec![
            device["channel"].to_string(),
            text("name"),
            text("stage"),
            requests,
            text("complaint"),
        ]);
    }
    table(out, &[1, 2, 4], &rows)
}

/// What has become of a domain from one look to the next, where that is worth a word.
pub(crate) fn event(before: Option<&Domain>, now: &Domain) -> Option<String> {
    let Some(before) = before.filter(|before| before.name == now.name) else {
        return Some("created".to_owned());
    };
    let ended = || match now.ended {
        Ended::Never => String::new(),
        ended => format!(", {}", ended.words()),
    };
    if now.life != before.life {
        return Some(match now.state {
            State::Gone => format!("started and ended{}", ended()),
            _ if before.life == 0 || before.state == State::Gone => "started".to_owned(),
            _ => format!("started again{}", ended()),
        });
    }
    let is_up = |state| matches!(state, State::Running | State::Blocked);
    if now.state == before.state || (is_up(now.state) && is_up(before.state)) {
        return None;
    }
    Some(match now.state {
        State::Running | State::Blocked if before.state == State::Paused => "resumed".to_owned(),
        State::Running | State::Blocked => "runs".to_owned(),
        State::Paused => "paused".to_owned(),
        State::Ending => format!("ends{}", ended()),
        State::Gone => format!("gone{}", ended()),
        State::Waiting => "waits for its start".to_owned(),
        State::Unknown => "unknown".to_owned(),
    })
}

/// A refusal in the words of who asked.
pub(crate) fn explain(error: Error, action: Action, domain: &Domain) -> Error {
    let Error::Refused(why) = &error else { return error };
    let name = &domain.name;
    let better = match action {
        _ if domain.own => format!(
            "{name} is this domain itself, to which that cannot be done: it has its own ways, like poweroff"
        ),
        Action::Start if domain.state != State::Gone => {
            format!("{name} is not gone, but {}: it cannot be started", domain.state.name())
        }
        Action::Forget if domain.state != State::Gone => {
            format!("{name} is not gone, but {}: end it first", domain.state.name())
        }
        Action::Forget => format!("{name}: {why}"),
        _ if domain.state == State::Gone => format!("{name} is gone: start it first"),
        _ => format!("{name}: {why}"),
    };
    Error::Refused(better)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domain(state: State, life: u32) -> Domain {
        Domain { id: 2, name: "web".into(), state, life, ended: Ended::Reset, ..Domain::default() }
    }

    #[test]
    fn changes_become_words() {
        let event = |before: (State, u32), now: (State, u32)| {
            event(Some(&domain(before.0, before.1)), &domain(now.0, now.1))
        };
        assert_eq!(super::event(None, &domain(State::Waiting, 0)).as_deref(), Some("created"));
        let other = Domain { name: "old".into(), ..domain(State::Gone, 1) };
        assert_eq!(super::event(Some(&other), &domain(State::Waiting, 0)).as_deref(), Some("created"));
        assert_eq!(event((State::Running, 1), (State::Blocked, 1)), None);
        assert_eq!(event((State::Running, 1), (State::Paused, 1)).as_deref(), Some("paused"));
        assert_eq!(event((State::Paused, 1), (State::Blocked, 1)).as_deref(), Some("resumed"));
        assert_eq!(event((State::Paused, 1), (State::Gone, 1)).as_deref(), Some("gone, reset"));
        assert_eq!(event((State::Gone, 1), (State::Running, 2)).as_deref(), Some("started"));
        assert_eq!(event((State::Running, 1), (State::Running, 2)).as_deref(), Some("started again, reset"));
        assert_eq!(event((State::Gone, 1), (State::Gone, 2)).as_deref(), Some("started and ended, reset"));
    }

    #[test]
    fn tables_line_up() {
        let mut out = Vec::new();
        let domains = [
            Domain { id: 1, name: "driver".into(), memory: 512 << 20, vcpus: 1, ..domain(State::Running, 1) },
            Domain { id: 12, memory: 16 << 30, guest_ns: 1_234_567_890, ..domain(State::Gone, 1) },
        ];
        list(&mut out, &domains).unwrap();
        let text = String::from_utf8(out).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "ID  NAME    STATE    VCPUS   MEMORY  RESTARTS     TIME");
        assert_eq!(lines[1], " 1  driver  running      1  512 MiB         0  0.000 s");
        assert_eq!(lines[2], "12  web     gone         0   16 GiB         0        -");
    }
}
