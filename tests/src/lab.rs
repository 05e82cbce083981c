//! What machines are started from.

use std::{
    fs::{self, File},
    path::PathBuf,
};

use caisson_config::source::{ConfigText, parse_later, parse_toml};
use xtask::{
    bochs,
    cargo::Profile,
    config, disk,
    emulator::{Kind, Running},
    error::Context as _,
    images::Images,
    iso::{Iso, Script},
    paths::Workspace,
    qemu::{Accelerator, Boot as Medium, Disk, Firmware, Machine, Network},
    run::machine_memory_mib,
    tools,
};

use crate::{Failure, Run, Verdict};

/// The serial log, in a scenario's directory.
pub(crate) const SERIAL_LOG: &str = "serial.log";

/// What is common to all scenarios on an emulator.
#[derive(Clone, Debug)]
pub struct Lab {
    workspace: Workspace,
    images: Images,
    caisson: PathBuf,
    machine: Kind,
}

impl Lab {
    /// Builds Caisson, to be run on QEMU, with all that debug builds check.
    ///
    /// # Errors
    /// What the compiler says.
    pub fn open() -> Verdict<Self> {
        let workspace = Workspace::find();
        let images = Images::new(workspace.clone()).with_profile(Profile::Checked);
        let caisson = images.caisson()?;
        Ok(Self { workspace, images, caisson, machine: Kind::Qemu })
    }

    /// The same on another emulator.
    #[must_use]
    pub fn on(&self, machine: Kind) -> Self {
        Self { machine, ..self.clone() }
    }

    /// The emulator that its machines run on.
    #[must_use]
    pub fn machine(&self) -> Kind {
        self.machine
    }

    /// The source tree and its target directory.
    #[must_use]
    pub fn workspace(&self) -> &Workspace {
        &self.workspace
    }

    /// Where the scenario's files are kept: its ISO, its logs. Made when it is not there.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn directory(&self, scenario: &str) -> Verdict<PathBuf> {
        Ok(self.workspace.dir(&format!("scenarios/{scenario}"))?)
    }

    /// The names of the guests in one of the configs that come with Caisson.
    ///
    /// # Errors
    /// When there is no such config.
    pub fn guests_of(&self, config: &str) -> Verdict<Vec<String>> {
        let loaded = config::load(&self.workspace, config)?;
        Ok(loaded.text.domains.into_iter().map(|domain| domain.name).collect())
    }

    /// A machine for the scenario of this name, with one of the configs that come with Caisson. Guests with our initial
    /// RAM disk that are not told what to do run the checked workload, as with `cargo xtask run --headless`.
    ///
    /// # Errors
    /// When there is no such config.
    pub fn boot_config(&self, scenario: &str, config: &str) -> Verdict<Boot<'_>> {
        let mut loaded = config::load(&self.workspace, config)?;
        config::without_a_person(&mut loaded.text);
        self.boot_text(scenario, &loaded.text)
    }

    /// A machine for the scenario of this name, with a config of its own.
    ///
    /// # Errors
    /// With the field that is at fault.
    pub fn boot(&self, scenario: &str, toml: &str) -> Verdict<Boot<'_>> {
        let text =
            parse_toml(toml, &format!("{scenario}.toml")).map_err(|error| Failure::new(error.to_string()))?;
        self.boot_text(scenario, &text)
    }

    /// Puts a blob of domains that are made at run time into the scenario's directory, as a file of this name.
    ///
    /// # Errors
    /// With the field that is at fault, or when the file cannot be written.
    pub fn later(&self, scenario: &str, file: &str, toml: &str) -> Verdict {
        let text = parse_later(toml, &format!("{scenario}.toml"))
            .map_err(|error| Failure::new(error.to_string()))?;
        let path = self.directory(scenario)?.join(file);
        let blob = self.images.blob(&text, &self.directory(scenario)?)?;
        fs::write(&path, blob).cannot(|| format!("write {}", path.display()))?;
        Ok(())
    }

    fn boot_text(&self, scenario: &str, text: &ConfigText) -> Verdict<Boot<'_>> {
        let memory = text.domains.iter().fold(0, |sum: u64, domain| sum.saturating_add(domain.memory));
        // Files that a scenario makes lie in its own directory.
        let directory = self.directory(scenario)?;
        let mut text = text.clone();
        if self.machine == Kind::Bochs {
            bochs::hurry(&mut text);
        }
        let blob = self.images.blob(&text, &directory)?;
        Ok(Boot {
            lab: self,
            directory,
            memory_mib: machine_memory_mib(memory, blob.len() as u64),
            blob: Some(blob),
            words: self.machine.boot_words(""),
            cpu: None,
            cpus: 1,
            firmware: Firmware::Bios,
            exact: None,
            disks: disk::of(&self.workspace, &text.emulator, &self.directory(scenario)?, &[])?,
            // Ports of this computer are the front door's business.
            network: text.emulator.network.then(Network::default),
            extra: Vec::new(),
            script: Script::default(),
            caisson: self.caisson.clone(),
            bios: None,
        })
    }
}

/// A machine to start: QEMU's TCG with one CPU that has SVM, or Bochs with one that has VMX; large enough for its guests,
/// unless told otherwise.
#[derive(Debug)]
pub struct Boot<'a> {
    lab: &'a Lab,
    directory: PathBuf,
    blob: Option<Vec<u8>>,
    words: String,
    cpu: Option<String>,
    cpus: u32,
    memory_mib: u64,
    firmware: Firmware,
    exact: Option<u32>,
    disks: Vec<Disk>,
    network: Option<Network>,
    extra: Vec<String>,
    script: Script,
    caisson: PathBuf,
    bios: Option<Vec<u8>>,
}

impl Boot<'_> {
    /// Adds boot words of Caisson's.
    #[must_use]
    pub fn words(mut self, words: &str) -> Self {
        self.words = format!("{} {words}", self.words).trim_start().to_owned();
        self
    }

    /// Leaves the exit device out: what ends stays on the screen, and the machine halted.
    #[must_use]
    pub fn without_exit_device(mut self) -> Self {
        self.words.clear();
        self
    }

    /// Another CPU model than the usual one.
    #[must_use]
    pub fn cpu(mut self, cpu: &str) -> Self {
        self.cpu = Some(cpu.to_owned());
        self
    }

    /// This many CPUs.
    #[must_use]
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.cpus = cpus;
        self
    }

    /// This much memory, in MiB.
    #[must_use]
    pub fn memory_mib(mut self, memory: u64) -> Self {
        self.memory_mib = memory;
        self
    }

    /// Started by UEFI, which only QEMU has.
    #[must_use]
    pub fn uefi(mut self) -> Self {
        self.firmware = Firmware::Uefi;
        self
    }

    /// Time is counted in instructions, as Bochs counts it anyway: what guests measure is theirs, however busy the host is.
    #[must_use]
    pub fn exact(mut self) -> Self {
        self.exact = Some(0);
        self
    }

    /// [Exact](Boot::exact), and each instruction takes 2^`shift` ns: so much less is executed in the same time. Bochs's take
    /// 20 ns in any case.
    #[must_use]
    pub fn slow(mut self, shift: u32) -> Self {
        self.exact = Some(shift);
        self
    }

    /// One more option of QEMU's, with its value.
    #[must_use]
    pub fn qemu(mut self, option: &str, value: &str) -> Self {
        self.extra.extend([option.to_owned(), value.to_owned()]);
        self
    }

    /// Changes the compiled config.
    #[must_use]
    pub fn spoil(mut self, change: impl FnOnce(&mut Vec<u8>)) -> Self {
        if let Some(blob) = &mut self.blob {
            change(blob);
        }
        self
    }

    /// Has the loader hand over no config at all.
    #[must_use]
    pub fn without_config(mut self) -> Self {
        self.blob = None;
        self
    }

    /// Has GRUB do this before it loads Caisson.
    #[must_use]
    pub fn before(mut self, commands: &str) -> Self {
        commands.clone_into(&mut self.script.before);
        self
    }

    /// Has GRUB load these modules; the config is `/boot/config.blob`.
    #[must_use]
    pub fn modules(mut self, commands: &str) -> Self {
        commands.clone_into(&mut self.script.modules);
        self
    }

    /// Puts another image on the boot medium, made of Caisson's.
    ///
    /// # Errors
    /// When Caisson's cannot be read, or the other not be written.
    pub fn disguise(mut self, change: impl FnOnce(&[u8]) -> Verdict<Vec<u8>>) -> Verdict<Self> {
        let image = fs::read(&self.caisson).cannot(|| format!("read {}", self.caisson.display()))?;
        self.caisson = self.directory.join("image");
        fs::write(&self.caisson, change(&image)?).cannot(|| format!("write {}", self.caisson.display()))?;
        Ok(self)
    }

    /// Boots Caisson as it is built for use, without what debug builds check: where it is measured what Caisson costs.
    ///
    /// # Errors
    /// What the compiler says.
    pub fn as_used(mut self) -> Verdict<Self> {
        self.caisson = Images::new(self.lab.workspace.clone()).caisson()?;
        Ok(self)
    }

    /// Has Bochs start with a BIOS made of its own.
    ///
    /// # Errors
    /// When it cannot be read, or `change` finds nothing to change.
    pub fn bios(mut self, change: impl FnOnce(&mut Vec<u8>) -> Verdict) -> Verdict<Self> {
        let path = tools::BOCHS_BIOS;
        let mut bios = fs::read(path).cannot(|| format!("read {path}"))?;
        change(&mut bios)?;
        self.bios = Some(bios);
        Ok(self)
    }

    /// Makes the boot medium and starts the machine.
    ///
    /// # Errors
    /// What keeps it from being started.
    pub fn start(self) -> Verdict<Run> {
        let output = self.directory.join("boot.iso");
        let iso = Iso {
            caisson: &self.caisson,
            blob: self.blob.as_deref(),
            cmdline: &self.words,
            script: self.script.clone(),
            output: output.clone(),
        };
        iso.make(&self.lab.workspace)?;
        let machine = match self.lab.machine {
            Kind::Qemu => Running::Qemu(self.qemu_machine(output).start()?),
            Kind::Bochs => Running::Bochs(self.bochs_machine(output)?.start()?),
        };
        let path = self.directory.join(SERIAL_LOG);
        let log = File::create(&path).cannot(|| format!("write {}", path.display()))?;
        Ok(Run::new(machine, log))
    }

    fn qemu_machine(&self, iso: PathBuf) -> Machine {
        let mut machine =
            Machine::new(Accelerator::Tcg, self.memory_mib, Medium::Iso(iso), self.directory.clone());
        if let Some(cpu) = &self.cpu {
            machine.cpu.clone_from(cpu);
        }
        machine.cpus = self.cpus;
        machine.firmware = self.firmware;
        machine.exact = self.exact;
        machine.disks.clone_from(&self.disks);
        machine.network.clone_from(&self.network);
        machine.extra = self.extra.iter().map(Into::into).collect();
        machine
    }

    fn bochs_machine(&self, iso: PathBuf) -> Verdict<bochs::Machine> {
        if self.firmware != Firmware::Bios
            || !self.extra.is_empty()
            || !self.disks.is_empty()
            || self.network.is_some()
        {
            return Err(Failure::new("this scenario asks for what only QEMU has: leave it out on Bochs"));
        }
        let mut machine = bochs::Machine::new(self.memory_mib, iso, self.directory.clone());
        if let Some(bios) = &self.bios {
            const NAME: &str = "bios.bin";
            let path = self.directory.join(NAME);
            fs::write(&path, bios).cannot(|| format!("write {}", path.display()))?;
            NAME.clone_into(&mut machine.bios);
        }
        if let Some(cpu) = &self.cpu {
            machine.cpu.clone_from(cpu);
        }
        machine.cpus = self.cpus;
        Ok(machine)
    }
}
