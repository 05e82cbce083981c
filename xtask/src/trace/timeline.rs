//! From events to intervals: who ran where and when, and what its exits were. All times are nanoseconds since the first
//! event.

use std::collections::BTreeMap;

use caisson_trace::{NOBODY, Record, Trace, What, Why};
use caisson_types::VcpuId;

/// A time from one moment to a later one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Its beginning.
    pub from: u64,
    /// Its end, which is not part of it.
    pub to: u64,
}

impl Span {
    /// How long it is.
    #[must_use]
    pub fn len(self) -> u64 {
        self.to - self.from
    }

    /// Whether it is of no length.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.to == self.from
    }

    /// The part of it that lies in `other`, if there is one.
    #[must_use]
    pub fn cut(self, other: Self) -> Option<Self> {
        let cut = Self { from: self.from.max(other.from), to: self.to.min(other.to) };
        (cut.from < cut.to).then_some(cut)
    }
}

/// What a physical CPU does, where it is not in the hypervisor for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// It runs a vCPU.
    Vcpu(VcpuId),
    /// It sleeps.
    Idle,
}

/// What a vCPU does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It runs on this CPU.
    Running(usize),
    /// It waits for a CPU.
    Ready,
    /// It waits for an interrupt.
    Blocked,
}

/// An exit and its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// From the exit until its answer was complete.
    pub span: Span,
    /// Its class.
    pub class: u8,
}

/// Something that takes no time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moment {
    /// When.
    pub at: u64,
    /// What people call it.
    pub name: String,
}

/// A physical CPU's track: intervals that do not overlap, in order.
#[derive(Clone, Debug, Default)]
pub struct CpuTrack {
    /// What it does.
    pub work: Vec<(Span, Work)>,
    /// What it is told, and tells others.
    pub moments: Vec<Moment>,
}

/// A vCPU's track.
#[derive(Clone, Debug, Default)]
pub struct VcpuTrack {
    /// What it does: intervals that do not overlap, in order.
    pub states: Vec<(Span, State)>,
    /// Its exits: intervals that do not overlap, in order, each within one where it runs.
    pub exits: Vec<Exit>,
    /// Interrupts and the like.
    pub moments: Vec<Moment>,
}

impl VcpuTrack {
    /// Cuts exits to the intervals in which the vCPU runs, which skews of clocks may have shortened; an exit outside of all
    /// of them goes.
    fn fit(&mut self) {
        let mut running =
            self.states.iter().filter(|(_, state)| matches!(state, State::Running(_))).peekable();
        self.exits.retain_mut(|exit| {
            while running.next_if(|(span, _)| span.to < exit.span.to).is_some() {}
            let Some((span, _)) = running.peek() else { return false };
            exit.span.from = exit.span.from.max(span.from);
            exit.span.from <= exit.span.to
        });
    }
}

/// A trace as intervals.
#[derive(Clone, Debug, Default)]
pub struct Timeline {
    /// By index.
    pub cpus: Vec<CpuTrack>,
    /// By domain and index.
    pub vcpus: BTreeMap<VcpuId, VcpuTrack>,
    /// The last event.
    pub end: u64,
}

/// A CPU's interval that has not ended yet.
#[derive(Clone, Copy)]
struct Open {
    since: u64,
    work: Work,
}

struct Builder {
    timeline: Timeline,
    open: Vec<Option<Open>>,
    /// When each CPU's first event was: what goes on then began before the trace.
    first: Vec<u64>,
    /// Since when a vCPU waits, and for what.
    waiting: BTreeMap<VcpuId, (u64, State)>,
}

impl Timeline {
    /// The intervals of a trace. Whatever is in it, intervals of a track do not overlap, and exits lie within their vCPU's
    /// running.
    #[must_use]
    pub fn of(trace: &Trace) -> Self {
        let origin = trace.events.iter().map(|record| record.event.time).min().unwrap_or(0);
        let ns = |ticks: u64| {
            let ns = u128::from(ticks - origin) * 1_000_000_000 / u128::from(trace.tsc_hz.max(1));
            u64::try_from(ns).unwrap_or(u64::MAX)
        };
        let mut records: Vec<&Record> = trace.events.iter().collect();
        records.sort_by_key(|record| record.event.time);
        let end = records.last().map_or(0, |record| ns(record.event.time));
        let mut builder = Builder {
            timeline: Self { cpus: vec![CpuTrack::default(); trace.cpus], end, ..Self::default() },
            open: vec![None; trace.cpus],
            first: vec![end; trace.cpus],
            waiting: BTreeMap::new(),
        };
        for record in records {
            let ticks = match record.event.what {
                What::Exit { ticks, .. } => u64::from(ticks),
                _ => 0,
            };
            let at = ns(record.event.time);
            let length = at - ns(record.event.time.saturating_sub(ticks).max(origin));
            builder.event(record, at, length);
        }
        builder.finish(end)
    }
}

impl Builder {
    fn event(&mut self, record: &Record, at: u64, length: u64) {
        let (cpu, vcpu) = (record.cpu, record.event.vcpu);
        if let Some(first) = self.first.get_mut(cpu) {
            *first = (*first).min(at);
        }
        match record.event.what {
            What::Run => {
                self.close(cpu, at);
                self.wait(vcpu, at, None);
                self.begin(cpu, at, Work::Vcpu(vcpu));
            }
            What::Stop(why) => {
                self.running(cpu, vcpu);
                self.close(cpu, at);
                match why {
                    Why::Blocked => self.wait(vcpu, at, Some(State::Blocked)),
                    Why::Ended => self.wait(vcpu, at, None),
                    Why::Preempted | Why::Yielded | Why::HostWork => self.wait(vcpu, at, Some(State::Ready)),
                }
            }
            What::Wake => {
                if !self.runs(vcpu) {
                    self.wait(vcpu, at, Some(State::Ready));
                }
            }
            What::Exit { class, .. } => {
                self.running(cpu, vcpu);
                self.exit(cpu, vcpu, class, Span { from: at - length, to: at });
            }
            What::Idle => {
                self.close(cpu, at);
                self.begin(cpu, at, Work::Idle);
            }
            What::Awake => {
                if self.open_at(cpu).is_none() {
                    let since = self.first.get(cpu).copied().unwrap_or(at);
                    self.begin(cpu, since, Work::Idle);
                }
                self.close(cpu, at);
            }
            What::Inject { vector } => self.moment(cpu, vcpu, at, format!("interrupt {vector:#04x}")),
            What::Ipi { vector, from } => {
                self.moment(cpu, vcpu, at, format!("IPI {vector:#04x} from vCPU {from}"));
            }
            What::Timer { late } => self.moment(cpu, vcpu, at, format!("timer, {late} ticks late")),
            What::Hypercall { number } => self.moment(cpu, vcpu, at, format!("hypercall {number:#x}")),
            What::Kick { cpu: other } => self.moment(cpu, NOBODY, at, format!("interrupts CPU {other}")),
        }
    }

    fn open_at(&self, cpu: usize) -> Option<Open> {
        self.open.get(cpu).copied().flatten()
    }

    fn begin(&mut self, cpu: usize, since: u64, work: Work) {
        if let Some(open) = self.open.get_mut(cpu) {
            *open = Some(Open { since, work });
        }
    }

    /// Whether some CPU runs the vCPU.
    fn runs(&self, vcpu: VcpuId) -> bool {
        self.open.iter().flatten().any(|open| open.work == Work::Vcpu(vcpu))
    }

    /// The CPU runs the vCPU: where its taking it up was lost, since the CPU's first event or what it did before.
    fn running(&mut self, cpu: usize, vcpu: VcpuId) {
        if self.open_at(cpu).is_some_and(|open| open.work == Work::Vcpu(vcpu)) {
            return;
        }
        let before = self.timeline.cpus.get(cpu).and_then(|track| track.work.last()).map(|(span, _)| span.to);
        let since = match self.open_at(cpu) {
            Some(open) => open.since,
            None => before.or(self.first.get(cpu).copied()).unwrap_or(0),
        };
        self.wait(vcpu, since, None);
        self.begin(cpu, since, Work::Vcpu(vcpu));
    }

    /// What the CPU did ends.
    fn close(&mut self, cpu: usize, at: u64) {
        let Some(open) = self.open.get_mut(cpu).and_then(Option::take) else { return };
        let Some(track) = self.timeline.cpus.get_mut(cpu) else { return };
        push(&mut track.work, Span { from: open.since, to: at.max(open.since) }, open.work);
        if let Work::Vcpu(vcpu) = open.work {
            let states = &mut self.timeline.vcpus.entry(vcpu).or_default().states;
            push(states, Span { from: open.since, to: at.max(open.since) }, State::Running(cpu));
        }
    }

    /// The vCPU waits from now on, or no longer.
    fn wait(&mut self, vcpu: VcpuId, at: u64, state: Option<State>) {
        let before = match state {
            Some(state) => self.waiting.insert(vcpu, (at, state)),
            None => self.waiting.remove(&vcpu),
        };
        if let Some((since, state)) = before {
            let states = &mut self.timeline.vcpus.entry(vcpu).or_default().states;
            push(states, Span { from: since, to: at.max(since) }, state);
        }
    }

    fn exit(&mut self, cpu: usize, vcpu: VcpuId, class: u8, span: Span) {
        let since = self.open_at(cpu).map_or(span.to, |open| open.since);
        let track = self.timeline.vcpus.entry(vcpu).or_default();
        let last = track.exits.last().map_or(0, |exit| exit.span.to);
        let from = span.from.max(last).max(since);
        if from <= span.to {
            track.exits.push(Exit { span: Span { from, to: span.to }, class });
        }
    }

    fn moment(&mut self, cpu: usize, vcpu: VcpuId, at: u64, name: String) {
        let moment = Moment { at, name };
        if vcpu != NOBODY {
            self.timeline.vcpus.entry(vcpu).or_default().moments.push(moment);
        } else if let Some(track) = self.timeline.cpus.get_mut(cpu) {
            track.moments.push(moment);
        }
    }

    /// What still goes on ends with the trace.
    fn finish(mut self, end: u64) -> Timeline {
        (0..self.open.len()).for_each(|cpu| self.close(cpu, end));
        let waiting: Vec<VcpuId> = self.waiting.keys().copied().collect();
        waiting.into_iter().for_each(|vcpu| self.wait(vcpu, end, None));
        self.timeline.vcpus.values_mut().for_each(VcpuTrack::fit);
        self.timeline
    }
}

/// Adds an interval behind the others: what overlaps with them, by a skew of clocks, is cut off.
fn push<T>(track: &mut Vec<(Span, T)>, span: Span, what: T) {
    let last = track.last().map_or(0, |(span, _)| span.to);
    let span = Span { from: span.from.max(last), to: span.to };
    if span.from < span.to {
        track.push((span, what));
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use caisson_trace::{DomainName, Event};
    use caisson_types::DomainId;

    pub(crate) const RED: VcpuId = VcpuId { domain: DomainId(1), index: 0 };
    pub(crate) const BLUE: VcpuId = VcpuId { domain: DomainId(2), index: 0 };

    pub(crate) fn trace(events: &[(usize, u64, VcpuId, What)]) -> Trace {
        let record = |&(cpu, time, vcpu, what): &_| Record { cpu, event: Event { time, vcpu, what } };
        let name = |id, name: &str| DomainName { id: DomainId(id), vcpus: 1, name: name.to_owned() };
        Trace {
            tsc_hz: 1_000_000_000,
            cpus: 2,
            domains: vec![name(1, "red"), name(2, "blue")],
            classes: vec!["cpuid".to_owned(), "hlt".to_owned()],
            events: events.iter().map(record).collect(),
            lost: vec![0; 2],
            complete: true,
            ..Trace::default()
        }
    }

    /// A short life of two vCPUs on two CPUs.
    pub(crate) fn example() -> Trace {
        trace(&[
            (0, 1000, RED, What::Run),
            (0, 1500, RED, What::Exit { class: 0, ticks: 200 }),
            (0, 1600, RED, What::Inject { vector: 0x30 }),
            (0, 2000, RED, What::Exit { class: 1, ticks: 100 }),
            (0, 2000, RED, What::Stop(Why::Blocked)),
            (0, 2100, BLUE, What::Run),
            (1, 2200, NOBODY, What::Awake),
            (0, 2500, RED, What::Wake),
            (0, 2500, NOBODY, What::Kick { cpu: 1 }),
            (0, 3000, BLUE, What::Stop(Why::Preempted)),
            (1, 3100, RED, What::Run),
            (1, 4000, RED, What::Stop(Why::Ended)),
            (1, 4000, NOBODY, What::Idle),
            (1, 5000, NOBODY, What::Timer { late: 7 }),
        ])
    }

    fn span(from: u64, to: u64) -> Span {
        Span { from, to }
    }

    #[test]
    fn events_become_intervals() {
        let timeline = Timeline::of(&example());
        assert_eq!(timeline.end, 4000);
        assert_eq!(
            timeline.cpus[0].work,
            [(span(0, 1000), Work::Vcpu(RED)), (span(1100, 2000), Work::Vcpu(BLUE))]
        );
        // It slept when its trace began, at its first event: an interval of no length.
        assert_eq!(
            timeline.cpus[1].work,
            [(span(2100, 3000), Work::Vcpu(RED)), (span(3000, 4000), Work::Idle)]
        );
        let red = &timeline.vcpus[&RED];
        assert_eq!(
            red.states,
            [
                (span(0, 1000), State::Running(0)),
                (span(1000, 1500), State::Blocked),
                (span(1500, 2100), State::Ready),
                (span(2100, 3000), State::Running(1)),
            ]
        );
        assert_eq!(
            red.exits,
            [Exit { span: span(300, 500), class: 0 }, Exit { span: span(900, 1000), class: 1 }]
        );
        assert_eq!(red.moments, [Moment { at: 600, name: "interrupt 0x30".to_owned() }]);
        assert_eq!(timeline.vcpus[&BLUE].states.last(), Some(&(span(2000, 4000), State::Ready)));
        assert_eq!(timeline.cpus[0].moments[0].name, "interrupts CPU 1");
    }

    #[test]
    fn what_began_before_the_trace_is_seen_from_its_beginning() {
        let timeline = Timeline::of(&trace(&[
            (0, 100, NOBODY, What::Timer { late: 0 }),
            (0, 300, RED, What::Exit { class: 0, ticks: 1000 }),
            (0, 400, RED, What::Stop(Why::Preempted)),
            (1, 200, NOBODY, What::Timer { late: 0 }),
            (1, 350, NOBODY, What::Awake),
        ]));
        assert_eq!(timeline.cpus[0].work, [(span(0, 300), Work::Vcpu(RED))]);
        assert_eq!(timeline.vcpus[&RED].exits, [Exit { span: span(0, 200), class: 0 }]);
        assert_eq!(timeline.cpus[1].work, [(span(100, 250), Work::Idle)]);
    }

    #[test]
    fn no_events_make_an_empty_timeline() {
        let timeline = Timeline::of(&trace(&[]));
        assert!(timeline.end == 0 && timeline.vcpus.is_empty() && timeline.cpus.len() == 2);
    }
}
