//! Soft-reserved memory by the kernel's DAX devices, `/dev/daxX.Y`, for tests of what a guest keeps private.
//!
//! `dax fill WORD` puts a word of eight characters everywhere into it. `dax count WORD…` tells at how many places each word stands
//! there, of all places that it looks at: the first word of every fourth page. In a driver domain most of that memory is nobody's
//! to see, and reads as all ones.
//!
//! In memory words stand backwards: what a command line says, which is somewhere in memory as well, is not what is looked for.

// It maps devices, and looks into what others may write.
#![allow(unsafe_code)]

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

/// A whole device, mapped.
struct Dax {
    name: String,
    start: NonNull<u64>,
    bytes: usize,
}

impl Dax {
    fn open(name: String) -> io::Result<Self> {
        let size = fs::read_to_string(Path::new(DEVICES).join(&name).join("size"))?;
        let bytes: usize = size.trim().parse().map_err(io::Error::other)?;
        let file = OpenOptions::new().read(true).write(true).open(Path::new("/dev").join(&name))?;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the kernel chooses a free place, so that nothing that is mapped goes away.
        let start = unsafe { mmap(ptr::null_mut(), bytes, access, MapFlags::SHARED, &file, 0) }?;
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { name, start, bytes })
    }

    fn fill(&self, word: u64) {
        for index in 0..self.bytes / 8 {
            // SAFETY: an aligned word of the mapping, which nothing of this program's refers to.
            unsafe { self.start.as_ptr().add(index).write_volatile(word) };
        }
    }

    /// The words at the places that are looked at.
    fn words(&self) -> impl Iterator<Item = u64> {
        (0..self.bytes).step_by(STEP).map(|at| {
            // SAFETY: as above; whatever stands there is a number.
            unsafe { self.start.as_ptr().byte_add(at).read_volatile() }
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
            for found in devices.iter().flat_map(Dax::words) {
                counts.iter_mut().zip(values).for_each(|(count, value)| *count += u64::from(found == *value));
            }
            let places: usize = devices.iter().map(|dax| dax.bytes.div_ceil(STEP)).sum();
            let counts: Vec<_> =
                words.iter().zip(counts).map(|(word, count)| format!("{word}={count}")).collect();
            println!("of {places} places: {}", counts.join(" "));
        })),
        _ => None,
    }
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
            eprintln!("dax: fill WORD or count WORD…, with words of eight characters");
            ExitCode::from(2)
        }
    }
}
