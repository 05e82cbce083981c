//! Which accelerator this host really offers. A `/dev/kvm` that exists proves nothing: it may not open, KVM may not
//! work, or it may not pass virtualisation on to the CPU that Caisson would see. So QEMU is started on it and asked.

use std::{fs::OpenOptions, process::Command, time::Duration};

use serde_json::{Value, json};

use crate::{
    emulator::VTX,
    error::{Error, Result},
    paths::Workspace,
    process,
    qemu::{self, Accelerator, Qemu},
    tools,
};

/// What a person asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// The best that works.
    #[default]
    Auto,
    /// KVM or nothing.
    Kvm,
    /// TCG.
    Tcg,
}

/// The CPU's ways of virtualisation, by QEMU's names, that Caisson can run on.
const USABLE: &[&str] = if VTX { &["svm", "vmx"] } else { &["svm"] };

/// What KVM on this host gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kvm {
    /// It works, and its CPU has this feature, which Caisson can use.
    Offers(&'static str),
    /// It is of no use, for this reason.
    Useless(String),
}

/// Tries KVM for real.
#[must_use]
pub fn probe_kvm(workspace: &Workspace) -> Kvm {
    if let Err(error) = OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        let reason = match error.kind() {
            std::io::ErrorKind::NotFound => "there is no /dev/kvm".to_owned(),
            std::io::ErrorKind::PermissionDenied => {
                "/dev/kvm may not be opened (are you in the group kvm?)".to_owned()
            }
            _ => format!("/dev/kvm does not open: {error}"),
        };
        return Kvm::Useless(reason);
    }
    match ask_qemu(workspace) {
        Ok(properties) => judge(&properties),
        Err(reason) => Kvm::Useless(reason),
    }
}

/// The properties of the CPU model `host` on KVM.
fn ask_qemu(workspace: &Workspace) -> std::result::Result<Value, String> {
    let directory = workspace.dir("probe").map_err(|error| error.to_string())?;
    let _lock = workspace.lock("probe").map_err(|error| error.to_string())?;
    let words = "-machine q35 -accel kvm -cpu host -m 16 -nodefaults -no-user-config -display none -S";
    let arguments = words.split(' ').map(Into::into).collect();
    let mut qemu = Qemu::spawn(arguments, &directory).map_err(|error| error.to_string())?;
    let answer = qemu.monitor().and_then(|mut monitor| {
        monitor.execute("query-cpu-model-expansion", &json!({ "type": "full", "model": { "name": "host" } }))
    });
    match answer {
        Ok(mut answer) => Ok(answer["model"]["props"].take()),
        Err(error) => {
            // When QEMU ended by itself, its own words say more than that it ended.
            std::thread::sleep(Duration::from_millis(50));
            let messages = qemu.messages();
            let reason =
                messages.lines().find(|line| line.contains("error")).or_else(|| messages.lines().next());
            let reason = reason.map_or_else(|| error.to_string(), |line| line.trim().to_owned());
            let reason = reason.rsplit_once("error: ").map_or(reason.as_str(), |(_, rest)| rest);
            Err(format!("QEMU cannot run a machine on KVM: {reason}"))
        }
    }
}

/// Whether a CPU with these properties can carry Caisson.
fn judge(properties: &Value) -> Kvm {
    let has = |name: &str| properties[name] == true;
    if let Some(feature) = USABLE.iter().find(|feature| has(feature)) {
        return Kvm::Offers(feature);
    }
    Kvm::Useless(if has("vmx") {
        "KVM offers nested VMX, which Caisson does not run on yet".to_owned()
    } else {
        "KVM here does not offer nested virtualisation".to_owned()
    })
}

/// The first QEMU whose emulated AMD-V translates what a guest does without paging. Before it, such a guest reached the
/// machine's memory in place of its own, and fell over; Linux is one for a moment.
const EMULATES_SVM: (u32, u32) = (7, 2);

/// Checks that the QEMU of this host emulates AMD-V well enough to run guests.
///
/// # Errors
/// When it is too old, with what to do instead.
pub fn check_emulation() -> Result<()> {
    let version = process::capture(Command::new(qemu::PROGRAM).arg("--version"), None)?;
    refuse_old(&String::from_utf8_lossy(&version.stdout))
}

/// Judges what `qemu --version` prints; a version that cannot be read passes.
fn refuse_old(printed: &str) -> Result<()> {
    let version = printed.split_once("version ").and_then(|(_, rest)| {
        let mut numbers = rest.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
        Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
    });
    match version {
        Some((major, minor)) if (major, minor) < EMULATES_SVM => Err(Error::Usage(format!(
            "QEMU {major}.{minor}'s emulated AMD-V cannot run guests, which takes QEMU {}.{} (Ubuntu 24.04, Debian 12): \
             take a newer QEMU, or a host with nested KVM",
            EMULATES_SVM.0, EMULATES_SVM.1
        ))),
        _ => Ok(()),
    }
}

/// The accelerator to use, and one line that says why.
///
/// # Errors
/// When KVM was asked for and is of no use, there is only emulation and this QEMU is too old for it, or QEMU cannot be
/// had.
pub fn choose(workspace: &Workspace, choice: Choice) -> Result<(Accelerator, String)> {
    tools::ensure([&tools::QEMU])?;
    if choice == Choice::Tcg {
        check_emulation()?;
        return Ok((Accelerator::Tcg, "TCG, as asked for".to_owned()));
    }
    match (probe_kvm(workspace), choice) {
        (Kvm::Offers(feature), _) => {
            Ok((Accelerator::Kvm, format!("KVM: its CPU offers nested {}", feature.to_uppercase())))
        }
        (Kvm::Useless(reason), Choice::Kvm) => Err(Error::Usage(format!(
            "--accel kvm is of no use here: {reason}; leave it away or use --accel tcg"
        ))),
        (Kvm::Useless(reason), _) => {
            check_emulation()?;
            Ok((Accelerator::Tcg, format!("TCG (QEMU's emulated AMD-V): {reason}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_emulation_that_cannot_run_guests_is_refused() {
        for good in
            ["7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)", "8.2.2 (Debian 1:8.2.2+ds-0ubuntu1.18)", "10.0.0", "?"]
        {
            refuse_old(&format!("QEMU emulator version {good}\nCopyright")).unwrap();
        }
        for (old, said) in [
            ("6.2.0 (Debian 1:6.2+dfsg-2ubuntu6.31)", "QEMU 6.2's"),
            ("7.1.0", "QEMU 7.1's"),
            ("4.2.1", "QEMU 4.2's"),
        ] {
            let error = refuse_old(&format!("QEMU emulator version {old}\nCopyright")).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().starts_with(said), "{error}");
        }
        refuse_old("").unwrap();
    }

    #[test]
    fn only_nested_virtualisation_that_caisson_uses_counts() {
        assert_eq!(judge(&json!({ "svm": true })), Kvm::Offers("svm"));
        match judge(&json!({ "vmx": true, "svm": false })) {
            Kvm::Offers(feature) => assert!(VTX && feature == "vmx"),
            Kvm::Useless(why) => assert!(!VTX && why.contains("VMX")),
        }
        assert!(matches!(judge(&json!({ "svm": false })), Kvm::Useless(_)));
        assert!(matches!(judge(&Value::Null), Kvm::Useless(_)));
    }
}
