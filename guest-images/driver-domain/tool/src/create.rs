//! Domains are made of a text or a blob. All that can be checked is checked here, before anything goes to the daemon: the text by the
//! rules of the configuration, kernels by their headers, a blob by its checksums. Caisson checks the rest again.

use std::fs;
use std::io::Write;
use std::path::Path;

use caisson_config::source::{ConfigText, parse_later};
use caisson_config::{Blob, LoaderKind, MAGIC, build};
use caisson_protocol::{Answer, Bytes, Ended, MAX_PIECE, Question, State};
use serde_json::json;

use crate::{Cli, Client, Error, is_up, print, wait};

/// Keys of a domain by which Caisson says what it does not like.
const KEYS: [&str; 8] = ["name", "memory", "vcpus", "privileges", "pool", "cpus", "prefer", "slice"];

/// A blob, and which domains of it are to be made.
struct Plan {
    blob: Vec<u8>,
    /// Their numbers in the blob, and their names.
    domains: Vec<(usize, String)>,
    /// The text that it was built of.
    text: Option<ConfigText>,
}

/// Makes the domains of `file`, or the `only` one.
pub(crate) fn run(
    cli: &Cli,
    file: &Path,
    only: Option<&str>,
    waits: bool,
    out: &mut impl Write,
) -> Result<(), Error> {
    let plan = plan(file, only).map_err(Error::Refused)?;
    let mut client = Client::connect(&cli.socket)?;
    client.keep();
    upload(&mut client, &plan.blob)?;
    for (index, name) in &plan.domains {
        let number = match client.ask(&Question::Create { index: *index as u32 }) {
            Ok(Answer::Created(number)) => number,
            Ok(_) => return Err(Error::Nonsense),
            Err(Error::Refused(why)) => {
                return Err(Error::Refused(told(file, plan.text.as_ref(), *index, &why)));
            }
            Err(error) => return Err(error),
        };
        let mut domain = client.numbered(number)?;
        if waits {
            // It may have ended already when it is looked at.
            domain = wait(&mut client, cli, number, &|domain| is_up(domain) || domain.ended != Ended::Never)?;
        }
        if domain.state == State::Gone && domain.ended == Ended::Failed {
            return Err(Error::Refused(format!("{name} could not be made: Caisson's log says why")));
        }
        if cli.json {
            print(out, &json!({ "domain": domain }))?;
        } else {
            writeln!(out, "{}: created", domain.name)?;
        }
    }
    // The connection's end would do, too.
    client.ask(&Question::End).map(drop)
}

fn upload(client: &mut Client, blob: &[u8]) -> Result<(), Error> {
    client.ask(&Question::Begin { bytes: blob.len() as u64 })?;
    for (index, piece) in blob.chunks(MAX_PIECE).enumerate() {
        let offset = index as u64 * MAX_PIECE as u64;
        client.ask(&Question::Piece { offset, bytes: Bytes(piece.to_vec()) })?;
    }
    Ok(())
}

/// What Caisson says of the domain with that number, where the person wrote it.
fn told(file: &Path, text: Option<&ConfigText>, index: usize, why: &str) -> String {
    let shown = file.display();
    let of_key =
        why.split_once(": ").and_then(|(word, why)| Some((KEYS.into_iter().find(|key| *key == word)?, why)));
    match (of_key, text) {
        (Some((key, why)), Some(text)) => text.key_error(index, key, why).to_string(),
        (Some(_), None) => format!("{shown}: domain[{index}].{why}"),
        (None, _) if why.starts_with("domain[") => format!("{shown}: {why}"),
        (None, _) => format!("{shown}: domain[{index}]: {why}"),
    }
}

/// Reads and checks all that is needed.
fn plan(file: &Path, only: Option<&str>) -> Result<Plan, String> {
    let shown = file.display();
    let bytes = fs::read(file).map_err(|error| format!("cannot read {shown}: {error}"))?;
    if bytes.starts_with(&MAGIC) {
        return of_blob(bytes, only).map_err(|why| format!("{shown}: {why}"));
    }
    match String::from_utf8(bytes) {
        Ok(text) => of_text(&text, file, only),
        Err(_) => Err(format!("{shown}: neither UTF-8 text nor a config blob")),
    }
}

fn of_blob(blob: Vec<u8>, only: Option<&str>) -> Result<Plan, String> {
    let parsed = Blob::parse(&blob).and_then(|_| Blob::parse_unhashed(&blob));
    let parsed = parsed.map_err(|error| error.to_string())?;
    let mut domains = Vec::new();
    for (index, domain) in parsed.domains().enumerate() {
        if only.is_none_or(|only| only == domain.name()) {
            parsed.check_later(index).map_err(|error| error.to_string())?;
            domains.push((index, domain.name().to_owned()));
        }
    }
    if let (Some(only), true) = (only, domains.is_empty()) {
        return Err(nobody(only, parsed.domains().map(|domain| domain.name().to_owned())));
    }
    let chosen = |number: usize| domains.iter().any(|(index, _)| *index == number);
    kernels(&parsed, |index, why| {
        let name = parsed.domain(index).map_or("", |domain| domain.kernel().name());
        chosen(index).then(|| format!("domain[{index}].kernel: {name:?}: {why}"))
    })?;
    Ok(Plan { blob, domains, text: None })
}

fn of_text(text: &str, file: &Path, only: Option<&str>) -> Result<Plan, String> {
    let mut config = parse_later(text, &file.to_string_lossy()).map_err(|error| error.to_string())?;
    if let Some(only) = only
        && !config.keep_only(only)
    {
        return Err(format!("{}: {}", file.display(), nobody(only, names(&config))));
    }
    let folder = file.parent().unwrap_or(Path::new(""));
    let blob = build(&config, |name| match name.starts_with('@') {
        true => Err("images of cargo xtask are not here; give the path of a file".to_owned()),
        false => fs::read(folder.join(name)).map_err(|error| error.to_string()),
    });
    let blob = blob.map_err(|error| error.to_string())?;
    let parsed = Blob::parse_unhashed(&blob).map_err(|error| error.to_string())?;
    kernels(&parsed, |index, why| Some(config.kernel_error(index, why).to_string()))?;
    let domains = names(&config).enumerate().collect();
    Ok(Plan { blob, domains, text: Some(config) })
}

fn names(config: &ConfigText) -> impl Iterator<Item = String> {
    config.domains.iter().map(|domain| domain.name.clone())
}

fn nobody(only: &str, there: impl IntoIterator<Item = String>) -> String {
    let there: Vec<_> = there.into_iter().collect();
    format!("it describes no domain {only:?}; there are {}", there.join(", "))
}

/// Checks that kernels are such as Caisson can load. `refusal` says what to say of one that is not, if anything.
fn kernels(blob: &Blob<'_>, refusal: impl Fn(usize, &str) -> Option<String>) -> Result<(), String> {
    for (index, domain) in blob.domains().enumerate() {
        let kind = match domain.loader() {
            LoaderKind::Auto => None,
            LoaderKind::Linux => Some(caisson_loader::Kind::Linux),
            LoaderKind::Pvh => Some(caisson_loader::Kind::Pvh),
            LoaderKind::Multiboot1 => Some(caisson_loader::Kind::Multiboot1),
        };
        if let Err(error) = caisson_loader::check(kind, domain.kernel().data())
            && let Some(line) = refusal(index, &error.to_string())
        {
            return Err(line);
        }
    }
    Ok(())
}
