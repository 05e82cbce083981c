//! The emulator's log of where instructions are, and the walks in it.

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use serde_json::json;

use crate::{
    bench::{LIMIT, await_line},
    elf::Loaded,
    error::{Context, Error, Result},
    images::Images,
    qemu::{Accelerator, Boot, Machine, Qemu},
    qmp::Qmp,
};

/// The addresses of the instructions that Caisson executes from an exit to the next VMRUN, which is the last.
pub(super) type Walk = Vec<u64>;

/// How much is logged of each kind of exit: some ten walks of the longest.
const ENOUGH: u64 = 4 << 20;

/// What leaves a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Exit {
    Cpuid,
    Vmmcall,
    /// IN of a byte.
    Port,
    Rdmsr,
    Wrmsr,
    Hlt,
    /// An instruction that does not exit by itself.
    Other,
}

impl Exit {
    /// Of the instruction that begins with `bytes`.
    fn of(bytes: &[u8]) -> Self {
        match bytes {
            [0x0f, 0xa2, ..] => Self::Cpuid,
            [0x0f, 0x01, 0xd9, ..] => Self::Vmmcall,
            [0xe4 | 0xec, ..] => Self::Port,
            [0x0f, 0x32, ..] => Self::Rdmsr,
            [0x0f, 0x30, ..] => Self::Wrmsr,
            [0xf4, ..] => Self::Hlt,
            _ => Self::Other,
        }
    }
}

const VMRUN: &[u8] = &[0x0f, 0x01, 0xd8];

/// The machine with the probe, while it runs.
pub(super) struct Recorder {
    qemu: Qemu,
    monitor: Qmp,
    directory: PathBuf,
    printed: Vec<u8>,
    deadline: Instant,
}

impl Recorder {
    /// Starts it.
    ///
    /// # Errors
    /// When QEMU cannot be started.
    pub(super) fn start(
        images: &Images,
        iso: PathBuf,
        memory_mib: u64,
        image: &Loaded,
        probe: &Loaded,
    ) -> Result<Self> {
        let directory = images.workspace().dir("runs")?.join(format!("walk-{}", std::process::id()));
        let range = |part: std::ops::Range<u64>| format!("{:#x}..{:#x}", part.start, part.end - 1);
        let ranges: Vec<String> = image.parts().chain(probe.parts()).map(range).collect();
        let machine = Machine {
            exact: Some(0),
            extra: vec!["-dfilter".into(), ranges.join(",").into()],
            ..Machine::new(Accelerator::Tcg, memory_mib, Boot::Iso(iso), directory.clone())
        };
        let mut qemu = machine.start()?;
        let monitor = qemu.monitor()?;
        let deadline = Instant::now() + LIMIT;
        Ok(Self { qemu, monitor, directory, printed: Vec::new(), deadline })
    }

    /// Waits for the probe to begin with `name`, and tells it to go on; gives what was logged meanwhile, where that is wanted.
    ///
    /// # Errors
    /// When the machine ends, or nothing comes.
    pub(super) fn round(&mut self, name: &str, wanted: bool) -> Result<Option<String>> {
        let begins = format!("walk: {name}");
        await_line(self.qemu.serial(), &mut self.printed, &begins, self.deadline)?;
        let logged = if wanted { Some(self.record(name)?) } else { None };
        self.qemu.serial().write_all(b"x").cannot(|| "send a key".to_owned())?;
        Ok(logged)
    }

    fn record(&mut self, name: &str) -> Result<String> {
        let log = self.directory.join(name);
        self.human(&format!("logfile {}", log.display()))?;
        self.one_by_one(true)?;
        self.human("log exec,nochain")?;
        while fs::metadata(&log).map_or(0, |data| data.len()) < ENOUGH {
            if Instant::now() > self.deadline {
                return Err(Error::Failed(format!("QEMU is too slow in logging the instructions of {name}")));
            }
            thread::sleep(Duration::from_millis(10));
        }
        self.human("log none")?;
        self.one_by_one(false)?;
        let text = fs::read(&log).cannot(|| format!("read {}", log.display()))?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// Has the translator take one instruction at a time, by the name that QEMU has for it since 8.1, or had until then.
    fn one_by_one(&mut self, on: bool) -> Result<()> {
        let state = if on { "on" } else { "off" };
        if self.human(&format!("one-insn-per-tb {state}"))?.contains("unknown command") {
            self.human(&format!("singlestep {state}"))?;
        }
        Ok(())
    }

    fn human(&mut self, line: &str) -> Result<String> {
        let answer = self.monitor.execute("human-monitor-command", &json!({ "command-line": line }))?;
        Ok(answer.as_str().unwrap_or_default().to_owned())
    }

    /// Ends the machine.
    pub(super) fn end(mut self) {
        self.qemu.kill();
        // Nothing of it is wanted any more, and nothing depends on its going.
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// The addresses in the lines of a log: `Trace N: HOST [BASE/ADDRESS/FLAGS/FLAGS] NAME`.
fn addresses(log: &str) -> impl Iterator<Item = u64> {
    log.lines().filter_map(|line| {
        let address = line.strip_prefix("Trace ")?.split_once('[')?.1.split('/').nth(1)?;
        u64::from_str_radix(address, 16).ok()
    })
}

/// What left the guest, as an instruction at an address of the guest's; what does not leave by itself leaves at any address.
type Left = (Exit, u64);

/// All whole walks of a log in their order, with what left the guest.
fn walks(log: &str, image: &Loaded, probe: &Loaded) -> Vec<(Left, Walk)> {
    let mut found = Vec::new();
    // Where the guest was last; none since an entry.
    let mut guest = None;
    let mut walk: Option<(Left, Walk)> = None;
    for address in addresses(log) {
        let Some(code) = image.at(address) else {
            // What was cut at the log's beginning is none.
            walk = None;
            guest = Some(address);
            continue;
        };
        let left = |address| match Exit::of(probe.at(address).unwrap_or_default()) {
            Exit::Other => (Exit::Other, 0),
            exit => (exit, address),
        };
        if walk.is_none() {
            walk = guest.take().map(|address| (left(address), Walk::new()));
        }
        if let Some((_, addresses)) = &mut walk {
            addresses.push(address);
        }
        if code.starts_with(VMRUN) {
            found.extend(walk.take());
            // Where the guest executes nothing before it exits again, it was interrupted.
            guest = Some(0);
        }
    }
    found
}

/// For each exit of a round, which is of these `kinds` in turn, the walk that most of them took.
///
/// # Errors
/// In words, when the log has other exits.
pub(super) fn usual(
    log: &str,
    image: &Loaded,
    probe: &Loaded,
    kinds: &[Exit],
) -> std::result::Result<Vec<Walk>, String> {
    let all = walks(log, image, probe);
    let mut counts: BTreeMap<Left, usize> = BTreeMap::new();
    all.iter().for_each(|(left, _)| *counts.entry(*left).or_default() += 1);
    // Looks at the serial port are between the rounds.
    let most = counts.values().copied().max().unwrap_or(0);
    let mut order: Vec<Left> = Vec::new();
    for (left, _) in &all {
        if counts.get(left).is_some_and(|count| count * 2 > most) && !order.contains(left) {
            order.push(*left);
        }
    }
    // The log begins anywhere in a round.
    let turned = (0..order.len()).find(|by| {
        order.iter().cycle().skip(*by).map(|(exit, _)| *exit).take(order.len()).eq(kinds.iter().copied())
    });
    let Some(by) = turned else {
        return Err(format!("{kinds:?} were expected, and there are {order:x?} in {} exits", all.len()));
    };
    order.rotate_left(by);
    Ok(order
        .iter()
        .map(|left| most_common(all.iter().filter(|(of, _)| of == left).map(|(_, walk)| walk)))
        .collect())
}

/// The walk that is there most often.
fn most_common<'a>(walks: impl Iterator<Item = &'a Walk>) -> Walk {
    let mut counts: BTreeMap<&Walk, usize> = BTreeMap::new();
    walks.for_each(|walk| *counts.entry(walk).or_default() += 1);
    counts.into_iter().max_by_key(|(_, count)| *count).map(|(walk, _)| walk.clone()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes at an address, as the one part of an image.
    fn loaded(address: u64, code: &[u8]) -> Loaded {
        let mut image = vec![0u8; 0x78];
        let size = code.len() as u64;
        let header: [u64; 8] =
            [0x0001_0102_464c_457f, 0, 0, 0, 64, 0, 0x0038_0040_0000_0000, 0x0000_0000_0000_0001];
        let segment: [u64; 7] = [1 | 5 << 32, 0x78, address, address, size, size, 0x1000];
        for (place, word) in image.chunks_exact_mut(8).zip(header.into_iter().chain(segment)) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        image.extend(code);
        Loaded::new(image)
    }

    fn log(addresses: &[u64]) -> String {
        let line = |address: &u64| {
            format!("Trace 0: 0x7f00 [0000000000000000/{address:016x}/0040c0b0/ff000001] name\n")
        };
        addresses.iter().map(line).collect()
    }

    const HOST: u64 = 0x9000;
    const RUN: u64 = HOST + 4;
    const GUEST: u64 = 0x100;

    /// At 0x100 WRMSR, at 0x102 HLT, at 0x103 NOP; at 0x9004 VMRUN.
    fn images() -> (Loaded, Loaded) {
        let image = loaded(HOST, &[0x90, 0x90, 0x90, 0x90, 0x0f, 0x01, 0xd8, 0x90]);
        (image, loaded(GUEST, &[0x0f, 0x30, 0xf4, 0x90]))
    }

    #[test]
    fn the_usual_walk_of_each_exit_is_found_in_the_rounds_order() {
        let (image, probe) = images();
        // Cut, then two rounds of HLT and WRMSR, of which one is longer by an interrupt.
        let mut all = vec![HOST + 7, RUN];
        for extra in [0, 0, 1, 0] {
            all.extend([GUEST + 3, GUEST + 2, HOST + 7]);
            all.extend((0..extra).map(|_| HOST + 2));
            all.extend([HOST + 1, RUN, GUEST + 3, GUEST, HOST + 7, HOST + 3, RUN]);
        }
        let log = log(&all);
        let found = usual(&log, &image, &probe, &[Exit::Wrmsr, Exit::Hlt]).unwrap();
        assert_eq!(found, [vec![HOST + 7, HOST + 3, RUN], vec![HOST + 7, HOST + 1, RUN]]);
        let wrong = usual(&log, &image, &probe, &[Exit::Cpuid]).unwrap_err();
        assert!(wrong.contains("Cpuid") && wrong.contains("Hlt"), "{wrong}");
        assert!(usual("", &image, &probe, &[Exit::Cpuid]).is_err());
    }

    #[test]
    fn what_is_interrupted_is_one_kind_wherever_it_is() {
        let (image, probe) = images();
        let all = [GUEST + 3, HOST, RUN, HOST + 1, RUN, GUEST + 3, HOST, RUN];
        let found = usual(&log(&all), &image, &probe, &[Exit::Other]).unwrap();
        assert_eq!(found, [vec![HOST, RUN]]);
    }

    #[test]
    fn instructions_that_exit_are_known() {
        for (bytes, exit) in [
            (&[0x0f, 0xa2][..], Exit::Cpuid),
            (&[0x0f, 0x01, 0xd9, 0x90], Exit::Vmmcall),
            (&[0xec], Exit::Port),
            (&[0xe4, 0x21], Exit::Port),
            (&[0x0f, 0x32], Exit::Rdmsr),
            (&[0x8b, 0x41, 0x30], Exit::Other),
            (&[], Exit::Other),
        ] {
            assert_eq!(Exit::of(bytes), exit);
        }
    }
}
