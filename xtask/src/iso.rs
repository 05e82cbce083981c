//! The bootable ISO: GRUB for BIOS and UEFI, Caisson as a multiboot2 kernel, the config blob as its one module.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    error::{Context, Error, Result},
    paths::Workspace,
    process,
    progress::Step,
    stamp, tools,
};

/// GRUB's configuration, in the source tree. `@BEFORE@` stands for what comes before Caisson is loaded,
/// `@COMMAND_LINE@` for its boot words, `@MODULES@` for the commands that load the modules.
const GRUB_TEMPLATE: &str = "boot/grub.cfg.in";

/// What GRUB does beside loading Caisson, in its language.
#[derive(Clone, Debug)]
pub struct Script {
    /// Commands before Caisson is loaded.
    pub before: String,
    /// Commands that load the modules; the config blob, where there is one, is `/boot/config.blob`.
    pub modules: String,
}

impl Default for Script {
    /// Nothing before, and the blob as the one module.
    fn default() -> Self {
        Self { before: String::new(), modules: "module2 /boot/config.blob config".to_owned() }
    }
}

/// What an ISO is made of.
#[derive(Clone, Debug)]
pub struct Iso<'a> {
    /// Caisson's ELF image.
    pub caisson: &'a Path,
    /// The config blob; Caisson refuses to start without one.
    pub blob: Option<&'a [u8]>,
    /// Caisson's boot words.
    pub cmdline: &'a str,
    /// What else GRUB does. Without a blob it loads no modules.
    pub script: Script,
    /// Where the ISO goes.
    pub output: PathBuf,
}

impl Iso<'_> {
    /// Makes the ISO, unless it is there and made of the same things.
    ///
    /// # Errors
    /// When a boot word cannot be written in GRUB's language, a tool is missing, or GRUB's maker fails.
    pub fn make(&self, workspace: &Workspace) -> Result<()> {
        tools::ensure(tools::IMAGE)?;
        let caisson = fs::read(self.caisson).cannot(|| format!("read {}", self.caisson.display()))?;
        let template = workspace.source(GRUB_TEMPLATE);
        let template = fs::read_to_string(&template).cannot(|| format!("read {}", template.display()))?;
        let modules = if self.blob.is_some() { &self.script.modules } else { "" };
        let config = grub_config(&template, self.cmdline, &self.script.before, modules)?;
        let blob = self.blob.unwrap_or_default();
        let key = stamp::key([b"iso 3".as_slice(), &caisson, blob, config.as_bytes()]);
        if stamp::is_fresh(&self.output, &key) {
            return Ok(());
        }
        let step = Step::start("make the bootable ISO");
        let mut staging = self.output.clone().into_os_string();
        staging.push(".d");
        let staging = PathBuf::from(staging);
        self.stage(&staging, &caisson, &config).cannot(|| format!("fill {}", staging.display()))?;
        // GRUB reads the whole file into memory; only symbols are of use there, for backtraces.
        // A test's image may be of another kind.
        if caisson.starts_with(b"\x7fELF") {
            let mut strip = Command::new("strip");
            strip.arg("--strip-debug").arg(staging.join("tree/boot/caisson"));
            process::run(&mut strip, "taking line tables out of the image", Some(&step))?;
        }
        let finished = staging.join("iso");
        let mut maker = Command::new("grub-mkrescue");
        // No translations, fonts and themes: nobody sees a menu.
        maker.args(["--locales=", "--fonts=", "--themes=", "-o"]).arg(&finished).arg(staging.join("tree"));
        process::run(&mut maker, "making the ISO", Some(&step))?;
        // In one move, so that a machine that runs from the old one keeps it.
        fs::rename(&finished, &self.output).cannot(|| format!("make {}", self.output.display()))?;
        fs::remove_dir_all(&staging).cannot(|| format!("remove {}", staging.display()))?;
        stamp::set(&self.output, &key)?;
        step.done("");
        Ok(())
    }

    fn stage(&self, staging: &Path, caisson: &[u8], config: &str) -> std::io::Result<()> {
        if staging.exists() {
            fs::remove_dir_all(staging)?;
        }
        let boot = staging.join("tree/boot");
        fs::create_dir_all(boot.join("grub"))?;
        fs::write(boot.join("caisson"), caisson)?;
        if let Some(blob) = self.blob {
            fs::write(boot.join("config.blob"), blob)?;
        }
        fs::write(boot.join("grub/grub.cfg"), config)
    }
}

/// Fills in the template. Each boot word is quoted, as GRUB's language would take `;`, `$` or `{` as its own.
fn grub_config(template: &str, cmdline: &str, before: &str, modules: &str) -> Result<String> {
    if let Some(bad) = cmdline.chars().find(|&c| c == '\'' || c.is_control()) {
        return Err(Error::Usage(format!("boot words cannot hold {bad:?}: change --hv-cmdline")));
    }
    let words: Vec<String> = cmdline.split_whitespace().map(|word| format!("'{word}'")).collect();
    let config = template.replace("@BEFORE@", before).replace("@MODULES@", modules);
    Ok(config.replace("@COMMAND_LINE@", &words.join(" ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEMPLATE: &str = "@BEFORE@\nmultiboot2 /boot/caisson @COMMAND_LINE@\n@MODULES@\nboot\n";

    #[test]
    fn boot_words_are_quoted_for_grub() {
        let modules = Script::default().modules;
        let config =
            grub_config(TEMPLATE, "exit=isa-debug:0xf4 log=debug;x ${y}", "set a=b", &modules).unwrap();
        assert_eq!(
            config,
            "set a=b\nmultiboot2 /boot/caisson 'exit=isa-debug:0xf4' 'log=debug;x' '${y}'\n\
             module2 /boot/config.blob config\nboot\n"
        );
    }

    #[test]
    fn words_that_would_leave_their_quotes_are_refused() {
        for cmdline in ["a'b", "a\nb"] {
            assert_eq!(grub_config(TEMPLATE, cmdline, "", "").unwrap_err().exit_code(), 2);
        }
    }

    #[test]
    fn the_template_has_a_place_for_everything() {
        let template = fs::read_to_string(Workspace::find().source(GRUB_TEMPLATE)).unwrap();
        for place in ["@BEFORE@", "/boot/caisson @COMMAND_LINE@", "@MODULES@"] {
            assert!(template.contains(place), "{place}");
        }
        let config = grub_config(&template, "x", "", "").unwrap();
        let words =
            config.split(char::is_whitespace).filter(|word| word.starts_with('@') && *word != "@...@.");
        assert_eq!(words.collect::<Vec<_>>(), [""; 0]);
    }
}
