//! Configs by file or by name, and the subcommands that build, check and show them.

use std::{
    fs,
    path::{Path, PathBuf},
};

use caisson_config::{
    Blob, Field, MAGIC, Purpose, show,
    source::{ConfigText, ModuleText, parse_later, parse_toml},
};

use crate::{
    cli::{ConfigCommand, GuestArgs},
    error::{Context, Error, Result},
    images::{self, Images},
    paths::Workspace,
};

/// Where the configs that come with Caisson are.
const FOLDER: &str = "guest-images/configs";

/// The config that runs when none is named: a driver domain and guests with disks and networks, which need QEMU's.
pub const DEFAULT: &str = "split-io";
/// The config of one guest, for options that change it, and for machines that are not QEMU's.
pub const ONE_GUEST: &str = "linux";

/// A config and the folder its paths count from.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// What it says.
    pub text: ConfigText,
    /// The folder that relative paths in it count from.
    pub folder: PathBuf,
}

/// The file that `name` means: itself when there is such a file, else one of the configs that come with Caisson.
///
/// # Errors
/// When there is neither; the message lists the names there are.
pub fn find(workspace: &Workspace, name: &str) -> Result<PathBuf> {
    let path = PathBuf::from(name);
    if path.is_file() {
        return Ok(path);
    }
    let folder = workspace.source(FOLDER);
    let by_name = folder.join(format!("{name}.toml"));
    if by_name.is_file() {
        return Ok(by_name);
    }
    let mut names: Vec<String> = fs::read_dir(&folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().strip_suffix(".toml")?.to_owned()))
        .collect();
    names.sort();
    Err(Error::Usage(format!("no config {name}: it is neither a file nor one of {}", names.join(", "))))
}

/// Reads and checks the config that `name` means.
///
/// # Errors
/// When there is none, or with the field that is at fault.
pub fn load(workspace: &Workspace, name: &str) -> Result<Loaded> {
    load_for(workspace, name, Purpose::Machine)
}

fn load_for(workspace: &Workspace, name: &str, purpose: Purpose) -> Result<Loaded> {
    let path = find(workspace, name)?;
    let text = fs::read_to_string(&path).cannot(|| format!("read {}", path.display()))?;
    let folder = path.parent().map_or_else(PathBuf::new, PathBuf::from);
    Ok(Loaded { text: parse(&text, &path, purpose)?, folder })
}

fn parse(text: &str, path: &Path, purpose: Purpose) -> Result<ConfigText> {
    let parse = match purpose {
        Purpose::Machine => parse_toml,
        Purpose::Later => parse_later,
    };
    parse(text, &path.to_string_lossy()).map_err(|error| Error::Usage(error.to_string()))
}

/// What a config is for, where `--later` may have been given.
fn purpose(later: bool) -> Purpose {
    if later { Purpose::Later } else { Purpose::Machine }
}

impl Loaded {
    /// Puts what the command line says into the first domain.
    ///
    /// # Errors
    /// When a file cannot be named absolutely, or the result breaks a rule.
    pub fn apply(&mut self, guest: &GuestArgs) -> Result<()> {
        let absolute = |path: &Path| -> Result<String> {
            if !path.is_file() {
                return Err(Error::Usage(format!("{} is not a file", path.display())));
            }
            let path = std::path::absolute(path).cannot(|| format!("find {}", path.display()))?;
            Ok(path.to_string_lossy().into_owned())
        };
        if let Some(domain) = self.text.domains.first_mut() {
            if let Some(kernel) = &guest.kernel {
                domain.kernel = absolute(kernel)?;
            }
            if let Some(initrd) = &guest.initrd {
                domain.modules = vec![ModuleText { file: absolute(initrd)?, cmdline: String::new() }];
            }
            if let Some(cmdline) = &guest.cmdline {
                domain.cmdline.clone_from(cmdline);
            }
            if let Some(memory) = guest.memory {
                domain.memory = memory.0;
            }
        }
        // The text is not to blame for what was typed.
        let typed = [
            (Field::Domain(0, "kernel"), "--kernel", guest.kernel.is_some()),
            (Field::Module(0, 0, "file"), "--initrd", guest.initrd.is_some()),
            (Field::Domain(0, "cmdline"), "--cmdline", guest.cmdline.is_some()),
            (Field::Domain(0, "memory"), "--memory", guest.memory.is_some()),
        ];
        for (field, option, _) in typed.into_iter().filter(|(_, _, given)| *given) {
            self.text.set_origin(field, option);
        }
        self.text.check().map_err(|error| Error::Usage(error.to_string()))
    }

    /// vCPUs of all domains together.
    #[must_use]
    pub fn vcpus(&self) -> u32 {
        self.text.domains.iter().fold(0, |sum: u32, domain| sum.saturating_add(domain.vcpus))
    }

    /// Keeps the guests on `cpus` CPUs behind the first. `false`, and nothing is changed, where the config itself says who runs
    /// where.
    pub fn leave_first_cpu(&mut self, cpus: u32) -> bool {
        let mut domains = self.text.domains.iter();
        let is_silent = domains.all(|domain| domain.cpus.is_empty() && domain.prefer.is_empty());
        let [pool] = &mut self.text.pools[..] else { return false };
        if !is_silent || !pool.cpus.is_empty() {
            return false;
        }
        pool.cpus = format!("1-{cpus}");
        true
    }

    /// Bytes of memory of all domains together.
    #[must_use]
    pub fn memory(&self) -> u64 {
        self.text.domains.iter().fold(0, |sum, domain| sum.saturating_add(domain.memory))
    }

    /// Compiles it.
    ///
    /// # Errors
    /// See [`Images::blob`].
    pub fn blob(&self, images: &Images) -> Result<Vec<u8>> {
        images.blob(&self.text, &self.folder)
    }
}

impl GuestArgs {
    /// Nothing is changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let Self { kernel, initrd, cmdline, memory } = self;
        kernel.is_none() && initrd.is_none() && cmdline.is_none() && memory.is_none()
    }
}

/// Has each guest that our initial RAM disks start end by itself: nobody is there to type into a shell. Guests whose
/// command line says already what to do, or how to end, are left alone. A server ends when a client says good bye to it, and the
/// driver domain with the last of its guests. What several guests say is shown of all of them.
pub fn without_a_person(config: &mut ConfigText) {
    if config.domains.len() > 1 {
        config.machine.console = Some("all".to_owned());
    }
    for domain in &mut config.domains {
        let has = |start: &str| domain.cmdline.split_whitespace().any(|word| word.starts_with(start));
        let starts_from = |file: &str| domain.modules.iter().any(|module| module.file == file);
        let word = if has("caisson.end=") {
            None
        } else if starts_from("@driver-initrd") {
            Some("caisson.end=guests")
        } else if !starts_from("@initrd") {
            None
        } else if has("root=") {
            Some("caisson.end=bye")
        } else if has("caisson.do=") {
            Some("caisson.end=poweroff")
        } else if has("caisson.test=") {
            // The end of its work is its end.
            None
        } else {
            Some("caisson.test=smoke")
        };
        if let Some(word) = word {
            domain.cmdline = format!("{} {word}", domain.cmdline).trim_start().to_owned();
        }
    }
}

/// Runs `cargo xtask config …`.
///
/// # Errors
/// With the field that is at fault.
pub fn command(workspace: &Workspace, command: &ConfigCommand) -> Result<()> {
    let images = Images::new(workspace.clone());
    match command {
        ConfigCommand::Build { config, output, later } => {
            let blob = load_for(workspace, config, purpose(*later))?.blob(&images)?;
            let output = match output {
                Some(output) => output.clone(),
                None => {
                    let name = find(workspace, config)?.with_extension("blob");
                    workspace.dir("configs")?.join(name.file_name().unwrap_or_default())
                }
            };
            fs::write(&output, &blob).cannot(|| format!("write {}", output.display()))?;
            println!("{}: {} bytes", output.display(), blob.len());
            Ok(())
        }
        ConfigCommand::Check { config, machine_memory, machine_cpus, later } => {
            let path = find(workspace, config)?;
            let limits = machine_memory.map(|memory| caisson_config::MachineLimits {
                memory: memory.0,
                max_vcpus: u32::MAX,
                address_bits: 52,
            });
            check(&path, limits.as_ref(), *machine_cpus, purpose(*later))?;
            println!("{}: good", path.display());
            Ok(())
        }
        ConfigCommand::Show { config } => {
            let path = find(workspace, config)?;
            let mut bytes = images::read(&path)?;
            if !bytes.starts_with(&MAGIC) {
                bytes = load(workspace, config)?.blob(&images)?;
            }
            print!("{}", show(&parse_blob(&bytes, &path)?));
            Ok(())
        }
    }
}

fn parse_blob<'a>(bytes: &'a [u8], path: &Path) -> Result<Blob<'a>> {
    Blob::parse(bytes).map_err(|error| Error::Usage(format!("{}: {error}", path.display())))
}

/// Checks a text or a blob, and that the files a text names are there; nothing is fetched or built.
fn check(
    path: &Path,
    limits: Option<&caisson_config::MachineLimits>,
    cpus: Option<u32>,
    purpose: Purpose,
) -> Result<()> {
    let bytes = images::read(path)?;
    if bytes.starts_with(&MAGIC) {
        let blob = parse_blob(&bytes, path)?;
        images::check_blob_kernels(&blob)
            .map_err(|reason| Error::Usage(format!("{}: {reason}", path.display())))?;
        let suits = match purpose {
            Purpose::Machine => blob.check_complete(),
            Purpose::Later => (0..blob.domains().len())
                .try_for_each(|index| blob.check_later(index))
                .and_then(|()| Blob::parse_unhashed(&bytes).map(|_| ())),
        };
        return suits
            .and_then(|()| limits.map_or(Ok(()), |limits| blob.check_machine(limits)))
            .and_then(|()| cpus.map_or(Ok(()), |cpus| blob.check_cpus(cpus)))
            .map_err(|error| Error::Usage(format!("{}: {error}", path.display())));
    }
    let text = String::from_utf8(bytes)
        .map_err(|_| Error::Usage(format!("{}: neither UTF-8 text nor a config blob", path.display())))?;
    let config = parse(&text, path, purpose)?;
    if let Some(limits) = limits {
        config.check_machine(limits).map_err(|error| Error::Usage(error.to_string()))?;
    }
    if let Some(cpus) = cpus {
        config.check_cpus(cpus).map_err(|error| Error::Usage(error.to_string()))?;
    }
    let folder = path.parent().map_or_else(PathBuf::new, PathBuf::from);
    // What is fetched or built is a kernel when it comes.
    images::check_kernels(&config, |name| match name.starts_with('@') {
        true => Err(String::new()),
        false => fs::read(folder.join(name)).map_err(|error| error.to_string()),
    })?;
    // Compiled with every file standing in by its name, so that a missing one is told with its field.
    caisson_config::build(&config, |name| match name.starts_with('@') {
        true if images::is_known(name) => Ok(name.as_bytes().to_vec()),
        true => Err(images::unknown_name(name)),
        false => match fs::metadata(folder.join(name)) {
            Ok(file) if file.is_file() && file.len() > 0 => Ok(name.as_bytes().to_vec()),
            Ok(file) if file.is_file() => Err("the file is empty".to_owned()),
            Ok(_) => Err("not a file".to_owned()),
            Err(error) => Err(error.to_string()),
        },
    })
    .map(|_| ())
    .map_err(|error| Error::Usage(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
[[domain]]
name = "one"
memory = "64M"
kernel = "@linux"
initrd = "@initrd"
cmdline = "console=ttyS0"
[[domain]]
name = "two"
memory = "32M"
kernel = "@memtest"
"#;

    fn loaded() -> Loaded {
        let text = parse(TEXT, Path::new("t.toml"), Purpose::Machine).unwrap();
        Loaded { text, folder: PathBuf::new() }
    }

    /// As text and as blob; each is refused where the other belongs.
    #[test]
    fn configs_of_later_domains_are_checked_as_such() {
        let folder = std::env::temp_dir().join(format!("caisson-config-later-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("later.toml");
        let text = format!("{TEXT}pool = \"batch\"\ndisk = [{{ path = \"/a\", backend = \"driver\" }}]\n");
        fs::write(&path, &text).unwrap();
        check(&path, None, Some(1), Purpose::Later).unwrap();
        let error = check(&path, None, None, Purpose::Machine).unwrap_err().to_string();
        assert!(error.ends_with("domain[1].disk[0].backend: \"driver\" is no domain's name; write that of the domain which serves the device"), "{error}");
        // The smallest kernel that there is: a multiboot1 header.
        let config = parse(&text, &path, Purpose::Later).unwrap();
        let kernel = |_: &str| {
            let words = [0x1bad_b002, 1 << 16, 0xe451_4ffe, 0x10_0000, 0x10_0000, 0, 0, 0x10_0010];
            Ok(words.iter().flat_map(|word: &u32| word.to_le_bytes()).collect())
        };
        let blob = caisson_config::build(&config, kernel).unwrap();
        let path = folder.join("later.blob");
        fs::write(&path, blob).unwrap();
        check(&path, None, None, Purpose::Later).unwrap();
        let error = check(&path, None, None, Purpose::Machine).unwrap_err().to_string();
        assert!(error.contains("blob: made for `caisson create`, not for a machine's start;"), "{error}");
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn guests_keep_off_the_first_cpu_where_the_config_is_silent() {
        let mut config = loaded();
        assert!(config.leave_first_cpu(2));
        assert_eq!(config.text.pools[0].cpus, "1-2");
        config.text.check().unwrap();
        config.text.check_cpus(3).unwrap();
        assert!(!config.leave_first_cpu(3), "it says so now");
        assert_eq!(config.text.pools[0].cpus, "1-2");
        let mut config = loaded();
        config.text.domains[1].cpus = "0".into();
        assert!(!config.leave_first_cpu(2));
        assert_eq!(config.text.pools[0].cpus, "");
    }

    #[test]
    fn the_command_line_changes_the_first_domain_only() {
        let mut config = loaded();
        let memory = Some("128M".parse().unwrap());
        config
            .apply(&GuestArgs { kernel: None, initrd: None, cmdline: Some("quiet".into()), memory })
            .unwrap();
        assert_eq!(config.text.domains[0].cmdline, "quiet");
        assert_eq!(config.memory(), 160 << 20);
        assert_eq!(config.text.domains[1].cmdline, "");
    }

    #[test]
    fn what_breaks_a_rule_is_refused_as_in_the_text() {
        let memory = Some("1K".parse().unwrap());
        let guest = GuestArgs { kernel: None, initrd: None, cmdline: None, memory };
        let error = loaded().apply(&guest).unwrap_err();
        assert!(error.to_string().starts_with("--memory: 1K is too little"), "{error}");
        let cmdline = Some("two\nlines".to_owned());
        let guest = GuestArgs { kernel: None, initrd: None, cmdline, memory: None };
        let error = loaded().apply(&guest).unwrap_err();
        assert!(error.to_string().starts_with("--cmdline: "), "{error}");
        let guest =
            GuestArgs { kernel: Some("no/such/file".into()), initrd: None, cmdline: None, memory: None };
        assert!(loaded().apply(&guest).unwrap_err().to_string().contains("no/such/file"));
    }

    #[test]
    fn without_a_person_servers_end_with_their_clients() {
        let domain = |cmdline: &str, initrd: &str| {
            let toml = format!(
                "[[domain]]\nname = \"a\"\nmemory = \"64M\"\nkernel = \"k\"\ninitrd = \"{initrd}\"\ncmdline = \"{cmdline}\"\n"
            );
            let mut text = parse(&toml, Path::new("t.toml"), Purpose::Machine).unwrap();
            without_a_person(&mut text);
            text.domains[0].cmdline.clone()
        };
        assert_eq!(domain("quiet", "@driver-initrd"), "quiet caisson.end=guests");
        assert_eq!(
            domain("root=/dev/vda caisson.ip=10.0.2.20/24", "@initrd"),
            "root=/dev/vda caisson.ip=10.0.2.20/24 caisson.end=bye"
        );
        assert_eq!(
            domain("caisson.ip=10.0.2.21/24", "@initrd"),
            "caisson.ip=10.0.2.21/24 caisson.test=smoke"
        );
        assert_eq!(domain("caisson.do=fetch", "@initrd"), "caisson.do=fetch caisson.end=poweroff");
        for told in ["caisson.test=hash", "caisson.end=shell", "root=/dev/vda caisson.end=shell"] {
            assert_eq!(domain(told, "@initrd"), told);
        }
        assert_eq!(domain("caisson.end=shell", "@driver-initrd"), "caisson.end=shell");
        assert_eq!(domain("quiet", "mine.img"), "quiet");
    }

    #[test]
    fn without_a_person_only_our_own_guests_get_work() {
        let mut config = loaded().text;
        without_a_person(&mut config);
        assert_eq!(config.domains[0].cmdline, "console=ttyS0 caisson.test=smoke");
        assert_eq!(config.domains[1].cmdline, "");
        let before = config.clone();
        without_a_person(&mut config);
        assert_eq!(config, before);
    }
}
