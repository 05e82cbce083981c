//! A trace as a file that ui.perfetto.dev and chrome://tracing open: Chrome's *Trace Event Format* in its JSON object
//! form. One process of physical CPUs with a thread for each, and a process for each domain with a thread for each vCPU.
//!
//! Used of the format: complete events (`ph` X, with `ts` and `dur`), which lie inside of one another within a thread or
//! beside, and do not overlap otherwise; instants of a thread (`i`); counters (`C`); metadata (`M`) that names and orders
//! processes and threads. Times are in microseconds, with three decimals. Numbers of threads are unique among all
//! processes, as Perfetto wants them.

use std::io::{self, Write};

use caisson_trace::Trace;
use caisson_types::{DomainId, VcpuId};
use serde_json::{Value, json};

use super::timeline::{Exit, Moment, Span, State, Timeline, Work};

/// Numbers of threads between those of two processes.
const STEP: u64 = 10_000;
/// Values of a counter over the whole trace.
const BINS: u64 = 200;

/// The process of the physical CPUs.
const CPUS: u64 = STEP;

/// A domain's process.
fn process(domain: DomainId) -> u64 {
    (u64::from(domain.0) + 2) * STEP
}

/// A vCPU's process and thread.
fn thread(vcpu: VcpuId) -> (u64, u64) {
    let process = process(vcpu.domain);
    (process, process + 1 + u64::from(vcpu.index))
}

/// Microseconds, exact to the nanosecond.
fn micros(ns: u64) -> String {
    format!("{}.{:03}", ns / 1000, ns % 1000)
}

/// Writes events with commas between them.
struct Events<W> {
    out: W,
    first: bool,
}

impl<W: Write> Events<W> {
    fn raw(&mut self, event: &str) -> io::Result<()> {
        let comma = if std::mem::take(&mut self.first) { "" } else { ",\n" };
        write!(self.out, "{comma}{event}")
    }

    fn metadata(&mut self, name: &str, (pid, tid): (u64, u64), args: &Value) -> io::Result<()> {
        let event = json!({"ph": "M", "name": name, "pid": pid, "tid": tid, "ts": 0, "args": args});
        self.raw(&event.to_string())
    }

    fn named(&mut self, what: &str, at: (u64, u64), name: &str, order: u64) -> io::Result<()> {
        self.metadata(&format!("{what}_name"), at, &json!({ "name": name }))?;
        self.metadata(&format!("{what}_sort_index"), at, &json!({ "sort_index": order }))
    }

    fn slice(&mut self, (pid, tid): (u64, u64), category: &str, name: &str, span: Span) -> io::Result<()> {
        let (name, ts, dur) = (json!(name), micros(span.from), micros(span.len()));
        self.raw(&format!(
            r#"{{"ph":"X","cat":"{category}","name":{name},"pid":{pid},"tid":{tid},"ts":{ts},"dur":{dur}}}"#
        ))
    }

    fn moment(&mut self, (pid, tid): (u64, u64), moment: &Moment) -> io::Result<()> {
        let (name, ts) = (json!(moment.name), micros(moment.at));
        self.raw(&format!(
            r#"{{"ph":"i","s":"t","cat":"event","name":{name},"pid":{pid},"tid":{tid},"ts":{ts}}}"#
        ))
    }

    fn counter(&mut self, (pid, tid): (u64, u64), at: u64, value: u64) -> io::Result<()> {
        let ts = micros(at);
        self.raw(&format!(
            r#"{{"ph":"C","name":"exits/s","pid":{pid},"tid":{tid},"ts":{ts},"args":{{"exits/s":{value}}}}}"#
        ))
    }
}

/// What people call a domain.
pub(super) fn domain_name(trace: &Trace, id: DomainId) -> String {
    trace.domain(id).map_or_else(|| format!("domain {}", id.0), |domain| domain.name.clone())
}

/// What people call a vCPU: its domain's name, with its number where the domain has several.
pub(super) fn vcpu_name(trace: &Trace, vcpu: VcpuId) -> String {
    let name = domain_name(trace, vcpu.domain);
    let several = trace.domain(vcpu.domain).is_none_or(|domain| domain.vcpus > 1);
    if several { format!("{name}/{}", vcpu.index) } else { name }
}

/// Writes a trace.
///
/// # Errors
/// What writing to `out` gives.
pub fn write(trace: &Trace, timeline: &Timeline, out: impl Write) -> io::Result<()> {
    let mut events = Events { out, first: true };
    let lost: u64 = trace.lost.iter().fold(0, |sum, lost| sum.saturating_add(*lost));
    let about = json!({
        "source": "Caisson",
        "tsc_hz": trace.tsc_hz,
        "events": trace.events.len(),
        "events overwritten": lost,
        "lines missing": trace.missing,
    });
    writeln!(events.out, r#"{{"displayTimeUnit":"ns","otherData":{about},"traceEvents":["#)?;
    events.named("process", (CPUS, CPUS), "physical CPUs", 0)?;
    for (index, track) in timeline.cpus.iter().enumerate() {
        let at = (CPUS, CPUS + 1 + index as u64);
        events.named("thread", at, &format!("CPU {index}"), index as u64)?;
        for (span, work) in &track.work {
            match work {
                Work::Vcpu(vcpu) => events.slice(at, "vcpu", &vcpu_name(trace, *vcpu), *span)?,
                Work::Idle => events.slice(at, "idle", "idle", *span)?,
            }
        }
        track.moments.iter().try_for_each(|moment| events.moment(at, moment))?;
    }
    let mut named = None;
    for (vcpu, track) in &timeline.vcpus {
        let (pid, tid) = thread(*vcpu);
        if named.replace(vcpu.domain) != Some(vcpu.domain) {
            events.named("process", (pid, pid), &domain_name(trace, vcpu.domain), pid)?;
        }
        events.named("thread", (pid, tid), &format!("vCPU {}", vcpu.index), tid)?;
        for (span, state) in &track.states {
            match state {
                State::Running(cpu) => {
                    events.slice((pid, tid), "run", &format!("running on CPU {cpu}"), *span)?;
                }
                State::Ready => events.slice((pid, tid), "wait", "ready", *span)?,
                State::Blocked => events.slice((pid, tid), "wait", "blocked", *span)?,
            }
        }
        for exit in &track.exits {
            events.slice((pid, tid), "exit", trace.class(exit.class), exit.span)?;
        }
        track.moments.iter().try_for_each(|moment| events.moment((pid, tid), moment))?;
    }
    rates(timeline, &mut events)?;
    writeln!(events.out, "\n]}}")
}

/// A counter of exits a second for each domain.
fn rates(timeline: &Timeline, events: &mut Events<impl Write>) -> io::Result<()> {
    let width = (timeline.end / BINS).max(1);
    let mut domains: Vec<DomainId> = timeline.vcpus.keys().map(|vcpu| vcpu.domain).collect();
    domains.dedup();
    for domain in domains {
        let mut bins = vec![0u64; usize::try_from(timeline.end / width).unwrap_or(0) + 1];
        let tracks = timeline.vcpus.iter().filter(|(vcpu, _)| vcpu.domain == domain);
        for Exit { span, .. } in tracks.flat_map(|(_, track)| &track.exits) {
            if let Some(bin) = usize::try_from(span.to / width).ok().and_then(|at| bins.get_mut(at)) {
                *bin += 1;
            }
        }
        let at = (process(domain), process(domain));
        let mut last = None;
        for (index, count) in bins.into_iter().enumerate() {
            let rate = u128::from(count) * 1_000_000_000 / u128::from(width);
            // A counter keeps its value until the next one.
            if last.replace(rate) != Some(rate) {
                events.counter(at, index as u64 * width, u64::try_from(rate).unwrap_or(u64::MAX))?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::timeline::tests::{RED, example, trace};
    use super::*;
    use caisson_trace::What;
    use std::collections::{BTreeMap, BTreeSet};

    fn written(trace: &Trace) -> Value {
        let mut out = Vec::new();
        write(trace, &Timeline::of(trace), &mut out).unwrap();
        serde_json::from_slice(&out).unwrap()
    }

    /// Checks a file against the format: which fields each kind of event must have, of which types, and that complete
    /// events of a thread nest.
    fn check(file: &Value) {
        assert!(["ns", "ms"].contains(&file["displayTimeUnit"].as_str().unwrap()));
        assert!(file["otherData"].is_object());
        let mut threads: BTreeMap<u64, u64> = BTreeMap::new();
        let mut slices: BTreeMap<u64, Vec<(u64, u64)>> = BTreeMap::new();
        let mut named = BTreeSet::new();
        for event in file["traceEvents"].as_array().unwrap() {
            let (pid, tid) = (event["pid"].as_u64().unwrap(), event["tid"].as_u64().unwrap());
            let name = event["name"].as_str().unwrap();
            assert!(!name.is_empty());
            assert_eq!(*threads.entry(tid).or_insert(pid), pid, "a thread of two processes");
            let time = |field: &str| (event[field].as_f64().unwrap() * 1000.0).round() as u64;
            let at = time("ts");
            match event["ph"].as_str().unwrap() {
                "X" => slices.entry(tid).or_default().push((at, at + time("dur"))),
                "i" => assert!(["g", "p", "t"].contains(&event["s"].as_str().unwrap())),
                "C" => assert!(event["args"].as_object().unwrap().values().all(Value::is_number)),
                "M" => match name {
                    "process_name" | "thread_name" => {
                        assert!(event["args"]["name"].is_string());
                        named.insert((name.to_owned(), tid));
                    }
                    "process_sort_index" | "thread_sort_index" => {
                        assert!(event["args"]["sort_index"].is_number());
                    }
                    other => panic!("metadata {other}"),
                },
                other => panic!("phase {other}"),
            }
        }
        for (tid, slices) in &mut slices {
            assert!(named.contains(&("thread_name".to_owned(), *tid)));
            assert!(named.contains(&("process_name".to_owned(), threads[tid])));
            // Parents before their children.
            slices.sort_by_key(|(from, to)| (*from, u64::MAX - to));
            let mut open: Vec<(u64, u64)> = Vec::new();
            for slice in slices {
                while open.last().is_some_and(|(_, to)| *to <= slice.0) {
                    open.pop();
                }
                assert!(open.last().is_none_or(|(_, to)| slice.1 <= *to), "{slice:?} overlaps {open:?}");
                open.push(*slice);
            }
        }
    }

    #[test]
    fn a_trace_becomes_a_file_of_the_format() {
        let file = written(&example());
        check(&file);
        let events = file["traceEvents"].as_array().unwrap();
        let find = |ph: &str, name: &str| events.iter().find(|e| e["ph"] == ph && e["name"] == name).unwrap();
        assert_eq!(find("X", "red")["ts"], 0.0);
        assert_eq!(find("X", "cpuid")["dur"], 0.2);
        assert_eq!(find("X", "cpuid")["tid"], 30001);
        assert_eq!(find("X", "running on CPU 1")["ts"], 2.1);
        assert_eq!(find("i", "interrupt 0x30")["s"], "t");
        assert_eq!(find("C", "exits/s")["pid"], 30000);
        assert_eq!(find("M", "thread_name")["args"]["name"], "CPU 0");
    }

    #[test]
    fn names_that_need_quotes_are_quoted() {
        let mut trace = trace(&[(0, 5, RED, What::Run), (0, 9, RED, What::Wake)]);
        trace.domains[0].name = "\"red\"\\\n".to_owned();
        let file = written(&trace);
        check(&file);
        assert!(file.to_string().contains(r#"\"red\""#));
    }

    /// Whatever a log says, the file is of the format.
    #[test]
    fn nonsense_makes_a_file_as_well() {
        let mut seed = 1u64;
        let mut random = |below: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % below
        };
        for _ in 0..300 {
            let events: Vec<_> = (0..random(60))
                .map(|_| {
                    let vcpu = VcpuId { domain: DomainId(random(3) as u16), index: random(2) as u16 };
                    let what = match random(8) {
                        0 => What::Run,
                        1 => What::Stop(caisson_trace::Why::Blocked),
                        2 => What::Stop(caisson_trace::Why::Preempted),
                        3 => What::Wake,
                        4 => What::Idle,
                        5 => What::Awake,
                        6 => What::Ipi { vector: 7, from: 1 },
                        _ => What::Exit { class: random(3) as u8, ticks: random(500) as u32 },
                    };
                    (random(2) as usize, random(1000), vcpu, what)
                })
                .collect();
            check(&written(&trace(&events)));
        }
    }
}
