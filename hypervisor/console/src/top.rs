//! Where the time goes: a table from two snapshots of the accounts.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::cmp::Reverse;

use caisson_accounts::{Activity, Count, CpuTimes, ExitClass, VcpuAccount, VcpuTimes};
use caisson_types::DomainId;

use crate::table::{COLUMNS, LOG_LINES};

/// Lines for CPUs and guests: what a screen of 24 has room for beside the three lines of headings, the log's lines below,
/// and the one in which the cursor stands.
const LINES: usize = 24 - 3 - 1 - LOG_LINES - 1;
/// The most CPUs that are shown one by one.
const CPUS: usize = 16;
/// Between two CPUs in a line.
const GAP: &str = "     ";
/// The widest name of a guest.
const NAME: usize = 16;
/// Columns for the most frequent exits.
const EXITS: usize = 23;

/// A vCPU's accounts at one moment.
#[derive(Clone, Debug)]
pub struct VcpuSnapshot {
    /// Its times, up to that moment.
    pub times: VcpuTimes,
    /// Its exits, by [`ExitClass::index`].
    pub exits: [Count; ExitClass::COUNT],
}

impl VcpuSnapshot {
    /// The accounts as they are at `now`; `None` where they cannot be read ([`VcpuAccount::times`]).
    #[must_use]
    pub fn of(account: &VcpuAccount, now: u64) -> Option<Self> {
        Some(Self {
            times: account.times()?.at(now),
            exits: core::array::from_fn(|i| account.exits(ExitClass::ALL[i])),
        })
    }
}

/// A domain's accounts at one moment.
#[derive(Clone, Debug)]
pub struct DomainSnapshot {
    /// Its number.
    pub id: DomainId,
    /// Its name.
    pub name: String,
    /// Its memory in bytes.
    pub memory: u64,
    /// Its vCPUs, by index; none while it does not live.
    pub vcpus: Vec<VcpuSnapshot>,
}

/// All accounts at one moment, counted from their beginnings.
#[derive(Clone, Default, Debug)]
pub struct Snapshot {
    /// The moment, in ticks.
    pub now: u64,
    /// Ticks a second.
    pub tsc_hz: u64,
    /// Bytes of memory that nobody owns.
    pub free_memory: u64,
    /// The physical CPUs, by index.
    pub cpus: Vec<CpuTimes>,
    /// The domains.
    pub domains: Vec<DomainSnapshot>,
}

/// The table, which remembers the last snapshot: it shows what happened since.
#[derive(Default, Debug)]
pub struct Top {
    last: Snapshot,
}

/// A row of a vCPU, or of a domain with all its vCPUs: ticks and exits since the last snapshot.
#[derive(Default)]
struct Row {
    name: String,
    activity: Option<Activity>,
    running: u64,
    ready: u64,
    exits: Vec<u64>,
    memory: Option<u64>,
}

impl Row {
    fn of(name: String, now: &VcpuSnapshot, before: Option<&VcpuSnapshot>) -> Self {
        // A vCPU of a guest that was restarted begins anew.
        let before = before.filter(|before| before.times.begun == now.times.begun);
        let times =
            |of: fn(&VcpuTimes) -> u64| of(&now.times).saturating_sub(before.map_or(0, |b| of(&b.times)));
        let none = Count::default();
        Self {
            name,
            activity: Some(now.times.activity),
            running: times(|t| t.running),
            ready: times(|t| t.ready),
            exits: (0..ExitClass::COUNT)
                .map(|i| now.exits[i].since(before.map_or(&none, |b| &b.exits[i])).count)
                .collect(),
            memory: None,
        }
    }

    /// All of `rows` in one.
    fn sum(name: String, rows: &[Self]) -> Self {
        let mut sum = Self { name, exits: alloc::vec![0; ExitClass::COUNT], ..Self::default() };
        for row in rows {
            sum.running = sum.running.saturating_add(row.running);
            sum.ready = sum.ready.saturating_add(row.ready);
            sum.exits.iter_mut().zip(&row.exits).for_each(|(sum, exits)| *sum = sum.saturating_add(*exits));
            let busiest = |a: Option<Activity>| a.map_or(0, |a| a as u32 + 1);
            if busiest(row.activity) > busiest(sum.activity) {
                sum.activity = row.activity;
            }
        }
        sum
    }

    /// One line of at most [`COLUMNS`] characters; `elapsed` is the time between the snapshots.
    fn line(&self, elapsed: u64, tsc_hz: u64) -> String {
        let state = match self.activity {
            Some(Activity::Running) => "running",
            Some(Activity::Ready) => "ready",
            Some(Activity::Blocked) => "blocked",
            None => "ended",
        };
        let exits: u64 = self.exits.iter().fold(0, |sum, exits| sum.saturating_add(*exits));
        let rate = u128::from(exits) * u128::from(tsc_hz) / u128::from(elapsed.max(1));
        let memory = self.memory.map_or_else(String::new, size);
        format!(
            "{:<NAME$} {state:<7} {:>6} {:>6} {:>8} {:<EXITS$} {memory:>6}",
            self.name,
            percent(self.running, elapsed),
            percent(self.ready, elapsed),
            rate.min(99_999_999),
            self.most_frequent(exits),
        )
    }

    /// The most frequent classes of exits with their parts of all, as many as fit.
    fn most_frequent(&self, all: u64) -> String {
        let mut order: Vec<(u64, ExitClass)> = self.exits.iter().copied().zip(ExitClass::ALL).collect();
        order.retain(|(count, _)| *count > 0);
        order.sort_by_key(|(count, class)| (Reverse(*count), class.index()));
        let mut text = String::new();
        for (count, class) in order {
            let part = u128::from(count) * 100 / u128::from(all.max(1));
            let more = format!("{}{class} {part}%", if text.is_empty() { "" } else { "  " });
            if part == 0 || text.len() + more.len() > EXITS {
                break;
            }
            text += &more;
        }
        text
    }
}

impl Top {
    /// Nothing seen yet: the first table is of the time since the accounts began.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The table of what happened between the last snapshot and this one: lines of at most 79 characters, as many as a
    /// screen of 24 lines has room for beside the log.
    pub fn table(&mut self, snapshot: Snapshot) -> Vec<String> {
        let cpus = self.cpus(&snapshot);
        let room = LINES.saturating_sub(cpus.len()).max(1);
        let heading = format!("{:>3} {:>7} {:>11} {:>7}", "CPU", "guests", "hypervisor", "idle");
        let mut lines = alloc::vec![head(&snapshot)];
        lines.push(if snapshot.cpus.len() > 1 { [&*heading, &heading].join(GAP) } else { heading });
        lines.extend(cpus);
        lines.push(format!(
            "{:<NAME$} {:<7} {:>6} {:>6} {:>8} {:<EXITS$} {:>6}",
            "guest/vCPU", "state", "CPU", "stolen", "exits/s", "most frequent exits", "memory"
        ));
        let elapsed = snapshot.now.saturating_sub(self.last.now);
        let rows = self.rows(&snapshot, room);
        let shown = if rows.len() > room { room - 1 } else { rows.len() };
        lines.extend(rows.iter().take(shown).map(|row| row.line(elapsed, snapshot.tsc_hz)));
        if rows.len() > shown {
            lines.push(format!("and {} more", rows.len() - shown));
        }
        self.last = snapshot;
        lines
    }

    /// The physical CPUs, two in a line; where there are too many for the screen, all in one.
    fn cpus(&self, snapshot: &Snapshot) -> Vec<String> {
        let since = |(index, now): (usize, &CpuTimes)| {
            self.last.cpus.get(index).map_or(*now, |before| now.since(before))
        };
        let times: Vec<CpuTimes> = snapshot.cpus.iter().enumerate().map(since).collect();
        let cell = |name: &str, times: &CpuTimes| {
            let part = |ticks| percent(ticks, times.elapsed());
            let (guests, hypervisor, idle) = (part(times.guests), part(times.hypervisor), part(times.idle));
            format!("{name:>3} {guests:>7} {hypervisor:>11} {idle:>7}")
        };
        if times.len() > CPUS {
            let add = |a: CpuTimes, b: &CpuTimes| CpuTimes {
                guests: a.guests.saturating_add(b.guests),
                hypervisor: a.hypervisor.saturating_add(b.hypervisor),
                idle: a.idle.saturating_add(b.idle),
            };
            return alloc::vec![cell("all", &times.iter().fold(CpuTimes::default(), add))];
        }
        let cells: Vec<String> =
            times.iter().enumerate().map(|(i, times)| cell(&format!("{i}"), times)).collect();
        cells.chunks(2).map(|pair| pair.join(GAP)).collect()
    }

    /// A row for each vCPU; where these are more than `room`, a row for each guest, the busiest first.
    fn rows(&self, snapshot: &Snapshot, room: usize) -> Vec<Row> {
        let mut all = Vec::new();
        for domain in &snapshot.domains {
            let last = self.last.domains.iter().find(|last| last.id == domain.id);
            let several = domain.vcpus.len() > 1;
            let rows = domain.vcpus.iter().enumerate().map(|(index, now)| {
                let name = if several { name(&domain.name, Some(index)) } else { name(&domain.name, None) };
                Row::of(name, now, last.and_then(|last| last.vcpus.get(index)))
            });
            all.push((domain, rows.collect::<Vec<_>>()));
        }
        if all.iter().map(|(_, rows)| rows.len().max(1)).sum::<usize>() <= room {
            let with_memory = |(domain, mut rows): (&DomainSnapshot, Vec<Row>)| {
                if rows.is_empty() {
                    rows.push(Row::sum(name(&domain.name, None), &[]));
                }
                if let Some(first) = rows.first_mut() {
                    first.memory = Some(domain.memory);
                }
                rows
            };
            return all.into_iter().flat_map(with_memory).collect();
        }
        let mut rows: Vec<Row> = all
            .into_iter()
            .map(|(domain, rows)| Row {
                memory: Some(domain.memory),
                ..Row::sum(name(&domain.name, None), &rows)
            })
            .collect();
        rows.sort_by_key(|row| Reverse(row.running));
        rows
    }
}

/// The first line.
fn head(snapshot: &Snapshot) -> String {
    let Snapshot { now, tsc_hz, free_memory, cpus, domains } = snapshot;
    let up = now / tsc_hz.max(&1);
    let vcpus: usize = domains.iter().map(|domain| domain.vcpus.len()).sum();
    let mut line = format!(
        "up {}:{:02}:{:02}  CPUs {}  guests {}  vCPUs {vcpus}  free {}",
        up / 3600,
        up / 60 % 60,
        up % 60,
        cpus.len(),
        domains.len(),
        size(*free_memory),
    );
    let keys = "Ctrl-A t: back";
    let gap = COLUMNS.saturating_sub(line.len() + keys.len());
    line.extend(core::iter::repeat_n(' ', gap));
    line + keys
}

/// A guest's name, with a vCPU's index where there are several, cut to its column; no control characters.
fn name(name: &str, index: Option<usize>) -> String {
    let index = index.map_or_else(String::new, |index| format!("/{index}"));
    let room = NAME.saturating_sub(index.len());
    let shown = name.chars().take(room).map(|c| if c.is_control() { '?' } else { c });
    shown.chain(index.chars()).collect()
}

/// `12.3%`, at most `9999%`.
fn percent(part: u64, whole: u64) -> String {
    let permille = u128::from(part) * 1000 / u128::from(whole.max(1));
    if permille < 10_000 {
        format!("{}.{}%", permille / 10, permille % 10)
    } else {
        format!("{}%", (permille / 10).min(9999))
    }
}

/// Bytes as `512K`, `64M` or `12.5G`.
fn size(bytes: u64) -> String {
    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;
    match bytes {
        0..MIB => format!("{}K", bytes >> 10),
        MIB..GIB => format!("{}M", bytes / MIB),
        _ if bytes.is_multiple_of(GIB) || bytes >= 1000 * GIB => format!("{}G", bytes / GIB),
        _ => format!("{}.{}G", bytes / GIB, bytes % GIB * 10 / GIB),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HZ: u64 = 1_000_000_000;

    fn vcpu(activity: Activity, begun: u64, [running, ready, blocked]: [u64; 3]) -> VcpuSnapshot {
        let since = begun + running + ready + blocked;
        let times = VcpuTimes { begun, activity, since, blocked, ready, running };
        VcpuSnapshot { times, exits: [Count::default(); ExitClass::COUNT] }
    }

    fn exits(mut vcpu: VcpuSnapshot, exits: &[(ExitClass, u64)]) -> VcpuSnapshot {
        exits.iter().for_each(|(class, count)| vcpu.exits[class.index()] = Count { count: *count, ticks: 1 });
        vcpu
    }

    fn domain(id: u16, name: &str, vcpus: Vec<VcpuSnapshot>) -> DomainSnapshot {
        DomainSnapshot { id: DomainId(id), name: name.into(), memory: 256 << 20, vcpus }
    }

    fn snapshot(now: u64, cpus: Vec<CpuTimes>, domains: Vec<DomainSnapshot>) -> Snapshot {
        Snapshot { now, tsc_hz: HZ, free_memory: 1536 << 20, cpus, domains }
    }

    #[test]
    fn the_table_shows_what_happened_since_the_last_one() {
        let mut top = Top::new();
        let cpu = |guests, hypervisor, idle| CpuTimes { guests, hypervisor, idle };
        let _ = top.table(snapshot(
            HZ,
            alloc::vec![cpu(0, HZ, 0), cpu(0, 0, HZ)],
            alloc::vec![
                domain(
                    1,
                    "red",
                    alloc::vec![
                        exits(vcpu(Activity::Running, 0, [HZ, 0, 0]), &[(ExitClass::Port, 50)]),
                        vcpu(Activity::Blocked, 0, [0, 0, HZ]),
                    ]
                ),
                domain(2, "blue", alloc::vec![vcpu(Activity::Running, 0, [HZ, 0, 0])]),
            ],
        ));
        let lines = top.table(snapshot(
            3 * HZ,
            alloc::vec![cpu(1_900_000_000, HZ + 100_000_000, 0), cpu(HZ, 0, 2 * HZ)],
            alloc::vec![
                domain(
                    1,
                    "red",
                    alloc::vec![
                        exits(
                            vcpu(Activity::Ready, 0, [2 * HZ, HZ, 0]),
                            &[(ExitClass::Port, 1250), (ExitClass::Cpuid, 700), (ExitClass::Halt, 100)]
                        ),
                        vcpu(Activity::Blocked, 0, [0, 0, 3 * HZ]),
                    ]
                ),
                // Restarted in between: its old account does not count.
                domain(2, "blue", alloc::vec![vcpu(Activity::Running, 2 * HZ, [HZ, 0, 0])]),
                domain(3, "green", alloc::vec![]),
            ],
        ));
        let expected = [
            "up 0:00:03  CPUs 2  guests 3  vCPUs 3  free 1.5G                 Ctrl-A t: back",
            "CPU  guests  hypervisor    idle     CPU  guests  hypervisor    idle",
            "  0   95.0%        5.0%    0.0%       1   50.0%        0.0%   50.0%",
            "guest/vCPU       state      CPU stolen  exits/s most frequent exits     memory",
            "red/0            ready    50.0%  50.0%     1000 port 60%  cpuid 35%       256M",
            "red/1            blocked   0.0%   0.0%        0                               ",
            "blue             running  50.0%   0.0%        0                           256M",
            "green            ended     0.0%   0.0%        0                           256M",
        ];
        let columns = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(lines.len(), expected.len(), "{lines:#?}");
        for (line, expected) in lines.iter().zip(expected) {
            assert_eq!(columns(line), columns(expected));
        }
    }

    #[test]
    fn many_vcpus_become_a_row_for_each_guest_and_the_busiest_stay() {
        let busy = |n: u64| alloc::vec![vcpu(Activity::Running, 0, [n, 0, 0]); 4];
        let domains = (1..=40).map(|n| domain(n, "g", busy(u64::from(n) * 1000))).collect();
        let lines = Top::new().table(snapshot(100_000, alloc::vec![CpuTimes::default()], domains));
        assert!(lines.len() <= 20, "{lines:#?}");
        assert!(lines[4].contains("160.0%") && lines[5].contains("156.0%"), "{lines:#?}");
        assert!(lines.last().unwrap().starts_with("and "));
    }

    #[test]
    fn figures_keep_to_their_columns() {
        assert_eq!(percent(1, 3), "33.3%");
        assert_eq!(percent(64, 1), "6400%");
        assert_eq!(percent(u64::MAX, 0), "9999%");
        assert_eq!(
            [0, 512 << 10, 64 << 20, 1536 << 20, 2 << 30].map(size),
            ["0K", "512K", "64M", "1.5G", "2G"]
        );
        assert_eq!(name("\x1b[2Jevil-and-very-long", Some(12)), "?[2Jevil-and-/12");
    }

    proptest! {
        #[test]
        fn no_snapshot_makes_a_line_too_long(
            ticks in proptest::collection::vec(any::<[u64; 3]>(), 1..70),
            counts in any::<[u64; 8]>(),
            moments in any::<[u64; 3]>(),
            cpus in proptest::collection::vec(any::<[u32; 3]>(), 0..20),
            text in ".{0,40}",
        ) {
            let counted: Vec<_> = counts.iter().enumerate().map(|(i, n)| (ExitClass::ALL[i * 2], *n)).collect();
            let make = |n: usize| {
                let t = ticks[n % ticks.len()];
                let times = VcpuTimes { begun: 0, activity: Activity::Ready, since: t[0], blocked: t[0], ready: t[1], running: t[2] };
                exits(VcpuSnapshot { times, ..vcpu(Activity::Ready, 0, [0; 3]) }, &counted)
            };
            let mut top = Top::new();
            for now in moments {
                let all = (0..ticks.len()).map(make).collect();
                let cpus = cpus.iter().map(|[guests, hypervisor, idle]| CpuTimes {
                    guests: (*guests).into(), hypervisor: (*hypervisor).into(), idle: (*idle).into()
                }).collect();
                let domains = alloc::vec![domain(1, &text, all), domain(2, &text, alloc::vec![make(0)])];
                let lines = top.table(Snapshot { now, tsc_hz: now / 3, free_memory: now, cpus, domains });
                prop_assert!(lines.len() <= 24);
                for line in lines {
                    prop_assert!(line.chars().count() <= COLUMNS, "{}", line);
                }
            }
        }
    }
}
