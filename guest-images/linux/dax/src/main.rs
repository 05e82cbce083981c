//! Soft-reserved memory by the kernel's DAX devices, `/dev/daxX.Y`, for tests of what a guest keeps private.
//!
//! `dax fill WORD` puts a word of eight characters everywhere into it. `dax count WORD…` tells at how many places each word stands
//! there, of all places that it looks at: the first word of every fourth page. In a driver domain most of that memory is nobody's
//! to see, and reads as all ones.
//!
//! `dax dma HIDDEN SHOWN` does the same by DMA of QEMU's `edu` device ([`edu`]): at some of the places that read as all ones it looks
//! for the one word, and at one that has the other word it looks for that.
//!
//! In memory words stand backwards: what a command line says, which is somewhere in memory as well, is not what is looked for.

// It maps devices, and looks into what others may write.
#![allow(unsafe_code)]

mod edu;

use std::{
    env,
    fs::{self, OpenOptions},
    io,
    path::Path,
    process::ExitCode,
    ptr::{self, NonNull},
};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// Where the kernel lists the devices (`ABI/testing/sysfs-bus-dax`).
const DEVICES: &str = "/sys/bus/dax/devices";
/// How far apart the places are that are looked at.
const STEP: usize = 16 << 10;
/// How many are looked at by DMA, which takes a fifth of a second for each.
const LOOKS: usize = 12;

/// A whole device, mapped.
struct Dax {
    name: String,
    /// The address of its first byte in this machine, or virtual machine.
    address: u64,
    start: NonNull<u64>,
    bytes: usize,
}

impl Dax {
    fn open(name: String) -> io::Result<Self> {
        let read = |attribute| fs::read_to_string(Path::new(DEVICES).join(&name).join(attribute));
        let bytes: usize = read("size")?.trim().parse().map_err(io::Error::other)?;
        let address = read("resource")?;
        let address =
            u64::from_str_radix(address.trim().trim_start_matches("0x"), 16).map_err(io::Error::other)?;
        let file = OpenOptions::new().read(true).write(true).open(Path::new("/dev").join(&name))?;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the kernel chooses a free place, so that nothing that is mapped goes away.
        let start = unsafe { mmap(ptr::null_mut(), bytes, access, MapFlags::SHARED, &file, 0) }?;
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { name, address, start, bytes })
    }

    fn fill(&self, word: u64) {
        for index in 0..self.bytes / 8 {
            // SAFETY: an aligned word of the mapping, which nothing of this program's refers to.
            unsafe { self.start.as_ptr().add(index).write_volatile(word) };
        }
    }

    /// The places that are looked at, by their address, with the words there.
    fn places(&self) -> impl Iterator<Item = (u64, u64)> {
        (0..self.bytes).step_by(STEP).map(|at| {
            // SAFETY: as above; whatever stands there is a number.
            (self.address + at as u64, unsafe { self.start.as_ptr().byte_add(at).read_volatile() })
        })
    }
}

impl Drop for Dax {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's, and nothing refers to it any more.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

/// All devices, by name.
fn all() -> io::Result<Vec<Dax>> {
    let mut names: Vec<_> = fs::read_dir(DEVICES)?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<io::Result<_>>()?;
    names.sort();
    names.into_iter().map(Dax::open).collect()
}

/// What the command line asks for; `None` where it makes no sense.
fn run(arguments: &[String]) -> Option<io::Result<()>> {
    let word = |text: &String| Some(u64::from_be_bytes(text.as_bytes().try_into().ok()?));
    let (verb, words) = arguments.split_first()?;
    let values: Vec<u64> = words.iter().map(word).collect::<Option<_>>()?;
    match (verb.as_str(), &values[..]) {
        ("fill", &[value]) => Some(all().map(|devices| {
            for dax in devices {
                dax.fill(value);
                println!("{}: {} bytes", dax.name, dax.bytes);
            }
        })),
        ("count", values @ [_, ..]) => Some(all().map(|devices| {
            let mut counts = vec![0_u64; values.len()];
            for (_, found) in devices.iter().flat_map(Dax::places) {
                counts.iter_mut().zip(values).for_each(|(count, value)| *count += u64::from(found == *value));
            }
            let places: usize = devices.iter().map(|dax| dax.bytes.div_ceil(STEP)).sum();
            let counts: Vec<_> =
                words.iter().zip(counts).map(|(word, count)| format!("{word}={count}")).collect();
            println!("of {places} places: {}", counts.join(" "));
        })),
        ("dma", &[hidden, shown]) => Some(all().and_then(|devices| dma(&devices, hidden, shown))),
        _ => None,
    }
}

/// What a device finds by DMA: of places that read as all ones, as many as [`LOOKS`], how many have the one word; and whether the
/// other is where a place has it.
fn dma(devices: &[Dax], hidden: u64, shown: u64) -> io::Result<()> {
    let places: Vec<_> = devices.iter().flat_map(Dax::places).collect();
    let nobodys: Vec<_> = places.iter().filter(|(_, word)| *word == u64::MAX).map(|(at, _)| *at).collect();
    let granted = places.iter().find(|(_, word)| *word == shown).map(|(at, _)| *at);
    let mut edu = edu::Edu::open()?;
    let step = nobodys.len().div_ceil(LOOKS).max(1);
    let looked: Vec<_> = nobodys.into_iter().step_by(step).map(|at| (at, edu.read(at))).collect();
    let found = looked.iter().filter(|(_, word)| *word == hidden).count();
    let looked: Vec<_> = looked.iter().map(|(at, _)| format!("{at:#x}")).collect();
    let granted = match granted.map(|at| edu.read(at)) {
        None => "not there",
        Some(word) if word == shown => "found",
        Some(_) => "not found",
    };
    println!("dma: granted {granted}, hidden {found} of {}: {}", looked.len(), looked.join(" "));
    Ok(())
}

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match run(&arguments) {
        Some(Ok(())) => ExitCode::SUCCESS,
        Some(Err(error)) => {
            eprintln!("dax: {error}");
            ExitCode::FAILURE
        }
        None => {
            eprintln!("dax: fill WORD, count WORD… or dma HIDDEN SHOWN, with words of eight characters");
            ExitCode::from(2)
        }
    }
}
