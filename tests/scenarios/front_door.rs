//! The commands that the README promises, as a person types them.

use std::{
    fs,
    process::{Command, Output, Stdio},
};

use caisson_tests::{Failure, Lab, Verdict, ensure};
use xtask::cargo;

/// Runs `cargo xtask` with these words, without a keyboard.
fn xtask(lab: &Lab, words: &[&str]) -> Verdict<Output> {
    let mut command: Command = cargo::command(lab.workspace());
    command.arg("xtask").args(words).stdin(Stdio::null());
    command.output().map_err(|error| Failure::new(format!("cargo xtask {}: {error}", words.join(" "))))
}

/// A config that is wrong is refused in one line that names the field.
pub(crate) fn broken_config(lab: &Lab, _: &str) -> Verdict {
    let ran = xtask(lab, &["config", "check", "guest-images/configs/broken.toml"])?;
    let said = String::from_utf8_lossy(&ran.stderr);
    ensure!(ran.status.code() == Some(2), "exit code {:?}, not 2: {said}", ran.status.code());
    ensure!(said.lines().count() == 1, "not one line: {said}");
    for part in ["guest-images/configs/broken.toml:", "domain[1].memory", "\"12Q\""] {
        ensure!(said.contains(part), "{part} is not in {said}");
    }
    Ok(())
}

/// A blob that has suffered is refused in one line that names the file and the field.
pub(crate) fn damaged_blob(lab: &Lab, name: &str) -> Verdict {
    let blob = lab.directory(name)?.join("damaged.blob");
    let path = blob.to_string_lossy();
    let built = xtask(lab, &["config", "build", "linux", "--output", &path])?;
    ensure!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let failure = |error: std::io::Error| Failure::new(format!("{path}: {error}"));
    let mut bytes = fs::read(&blob).map_err(failure)?;
    if let Some(last) = bytes.last_mut() {
        *last ^= 1;
    }
    fs::write(&blob, bytes).map_err(failure)?;
    let ran = xtask(lab, &["config", "check", &path])?;
    let said = String::from_utf8_lossy(&ran.stderr);
    ensure!(ran.status.code() == Some(2), "exit code {:?}, not 2: {said}", ran.status.code());
    ensure!(said.lines().count() == 1, "not one line: {said}");
    for part in [&*path, "(payload[", "of domain \"linux\""] {
        ensure!(said.contains(part), "{part} is not in {said}");
    }
    Ok(())
}

/// What is typed wrong is refused before anything is started, in one line that names what to change.
pub(crate) fn refusals(lab: &Lab, name: &str) -> Verdict {
    let directory = lab.directory(name)?;
    let write = |file: &str, content: &[u8]| {
        let path = directory.join(file);
        fs::write(&path, content).map_err(|error| Failure::new(format!("{}: {error}", path.display())))?;
        Ok::<_, Failure>(path.to_string_lossy().into_owned())
    };
    let empty = write("empty", b"")?;
    let text = write("text", b"this is no kernel\n")?;
    // An ELF header for the 64-bit ARM architecture.
    let mut arm = [b"\x7FELF\x02\x01\x01".as_slice(), &[0; 57]].concat();
    arm.splice(16..20, [2, 0, 0xB7, 0]);
    write("arm", &arm)?;
    let config = "[[domain]]\nname = \"one\"\nmemory = \"64M\"\nkernel = \"arm\"\n";
    let config = write("config.toml", config.as_bytes())?;
    let of_arm =
        "config.toml:4:10: domain[0].kernel: \"arm\": the image's e_machine is 0xb7, where 0x3 (80386) or";
    for (words, part) in [
        (vec!["run", "--headless", "--kernel", &empty], "error: --kernel: "),
        (
            vec!["run", "--headless", "--kernel", &text],
            "text\": no Linux bzImage, PVH ELF or multiboot1 kernel; give ",
        ),
        (vec!["config", "check", &config], of_arm),
        (vec!["config", "build", &config], of_arm),
        (
            vec!["run", "--headless", "--machine-memory", "200M"],
            "error: --machine-memory: 200 MiB leaves at most ",
        ),
        (vec!["test", "--machine-only", "refusal-no-svn"], "\"refusal-no-svn\"; near are refusal-no-svm"),
    ] {
        let ran = xtask(lab, &words)?;
        let said = String::from_utf8_lossy(&ran.stderr);
        ensure!(ran.status.code() == Some(2), "{words:?}: exit code {:?}, not 2: {said}", ran.status.code());
        let errors: Vec<&str> = said.lines().filter(|line| line.starts_with("error")).collect();
        ensure!(
            errors.len() == 1 && said.ends_with(&format!("{}\n", errors[0])),
            "{words:?}: not one line: {said}"
        );
        ensure!(errors[0].contains(part), "{words:?}: {part} is not in {said}");
    }
    Ok(())
}

/// The configs that come with Caisson are good.
pub(crate) fn good_configs(lab: &Lab, _: &str) -> Verdict {
    let folder = lab.workspace().source("guest-images/configs");
    let entries =
        folder.read_dir().map_err(|error| Failure::new(format!("{}: {error}", folder.display())))?;
    for path in entries.filter_map(Result::ok).map(|entry| entry.path()) {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if name == "broken" {
            continue;
        }
        let ran = xtask(lab, &["config", "check", &name])?;
        ensure!(ran.status.success(), "{name}: {}", String::from_utf8_lossy(&ran.stderr));
    }
    Ok(())
}

/// A headless run prints what the guest says, and ends with its result.
pub(crate) fn headless_run(lab: &Lab, _: &str) -> Verdict {
    let cmdline = "console=ttyS0 panic=-1 caisson.test=cpu,hash";
    let ran = xtask(lab, &["run", "--headless", "--accel", "tcg", "--memory", "256M", "--cmdline", cmdline])?;
    let (said, told) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    ensure!(ran.status.code() == Some(0), "exit code {:?}, not 0: {told}", ran.status.code());
    for part in ["caisson-guest: user space is up", "caisson-test: done", "reboot: Power down"] {
        ensure!(said.contains(part), "{part} is not in what the guest said: {said}");
    }
    Ok(())
}
