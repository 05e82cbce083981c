//! QEMU's device for teaching, `edu` (docs/specs/edu.txt), which moves memory by DMA; driven through what sysfs has of it.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::PathBuf,
    ptr::{self, NonNull},
    thread,
    time::Duration,
};

use rustix::mm::{MapFlags, ProtFlags, mlock, mmap, mmap_anonymous};

/// Where the kernel lists functions (`ABI/testing/sysfs-bus-pci`).
const FUNCTIONS: &str = "/sys/bus/pci/devices";
/// Vendor and device, as the first word of configuration space has them.
const ID: u32 = 0x11e8_1234;
/// The command register, and its bits: it decodes memory, and uses it.
const COMMAND: u64 = 4;
const MEMORY_AND_MASTER: u16 = 6;
/// Registers by their place among words of eight bytes: source, destination, count, command; and where its own memory is.
const SOURCE: usize = 0x80 / 8;
const DESTINATION: usize = 0x88 / 8;
const COUNT: usize = 0x90 / 8;
const START: usize = 0x98 / 8;
const BUFFER: u64 = 0x4_0000;
const FROM_DEVICE: u64 = 2;
const PAGE: usize = 4096;
const REGISTERS: usize = 1 << 20;

/// The device, and a page of this program's that it reaches.
pub(crate) struct Edu {
    registers: NonNull<u64>,
    page: NonNull<u64>,
    /// Where that is in memory.
    address: u64,
}

impl Edu {
    /// Turns it on.
    pub(crate) fn open() -> io::Result<Self> {
        let folder = find()?;
        let config = OpenOptions::new().read(true).write(true).open(folder.join("config"))?;
        let mut command = [0; 2];
        config.read_exact_at(&mut command, COMMAND)?;
        let command = u16::from_le_bytes(command) | MEMORY_AND_MASTER;
        config.write_all_at(&command.to_le_bytes(), COMMAND)?;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        let file = OpenOptions::new().read(true).write(true).open(folder.join("resource0"))?;
        // SAFETY: the kernel chooses a free place, so that nothing that is mapped goes away.
        let registers = unsafe { mmap(ptr::null_mut(), REGISTERS, access, MapFlags::SHARED, &file, 0) }?;
        // SAFETY: as above.
        let page = unsafe { mmap_anonymous(ptr::null_mut(), PAGE, access, MapFlags::PRIVATE) }?;
        // SAFETY: all of it has just been mapped.
        unsafe { mlock(page, PAGE) }?;
        // A page frame's number is in the low 55 bits (Documentation/admin-guide/mm/pagemap.rst).
        let mut entry = [0; 8];
        File::open("/proc/self/pagemap")?.read_exact_at(&mut entry, (page as usize / PAGE * 8) as u64)?;
        let address = (u64::from_le_bytes(entry) & ((1 << 55) - 1)) * PAGE as u64;
        let none = || io::Error::from(io::ErrorKind::OutOfMemory);
        let (registers, page) =
            (NonNull::new(registers.cast()).ok_or_else(none)?, NonNull::new(page.cast()).ok_or_else(none)?);
        Ok(Self { registers, page, address })
    }

    /// The word that the device finds at an address; 0 where it finds none.
    pub(crate) fn read(&mut self, address: u64) -> u64 {
        // What the device had before is not what it finds now.
        self.set_word(0);
        self.transfer(self.address, BUFFER, 0);
        self.transfer(address, BUFFER, 0);
        self.set_word(u64::MAX);
        self.transfer(BUFFER, self.address, FROM_DEVICE);
        // SAFETY: an aligned word of the page, to which nothing refers.
        unsafe { self.page.as_ptr().read_volatile() }
    }

    fn set_word(&mut self, word: u64) {
        // SAFETY: as above.
        unsafe { self.page.as_ptr().write_volatile(word) }
    }

    /// Has the device move a word, and waits.
    fn transfer(&mut self, from: u64, to: u64, direction: u64) {
        for (register, value) in [(SOURCE, from), (DESTINATION, to), (COUNT, 8), (START, 1 | direction)] {
            // SAFETY: a register of eight bytes, in what is mapped.
            unsafe { self.registers.as_ptr().add(register).write_volatile(value) };
        }
        // SAFETY: as above.
        while unsafe { self.registers.as_ptr().add(START).read_volatile() } & 1 != 0 {
            thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Its folder.
fn find() -> io::Result<PathBuf> {
    for entry in fs::read_dir(FUNCTIONS)? {
        let folder = entry?.path();
        let mut id = [0; 4];
        File::open(folder.join("config"))?.read_exact_at(&mut id, 0)?;
        if u32::from_le_bytes(id) == ID {
            return Ok(folder);
        }
    }
    Err(io::Error::new(io::ErrorKind::NotFound, "there is no `edu`"))
}
