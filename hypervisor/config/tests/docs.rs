//! `docs/config.md` is what the code does: its examples are accepted, its mistakes are refused in its words, and its
//! tables of the format are those of the crate's documentation.

#![allow(clippy::expect_used)]

use caisson_config::source::parse_toml;

const PAGE: &str = include_str!("../../../docs/config.md");
const CRATE: &str = include_str!("../src/lib.rs");
/// A domain that is right, one line a key.
const GOOD: [&str; 3] = [r#"name = "good""#, r#"memory = "64M""#, r#"kernel = "@linux""#];

fn key(line: &str) -> &str {
    line.split(' ').next().unwrap_or_default()
}

/// The good domain with `line` in place of its line of the same key.
fn with(line: &str) -> String {
    let rest = GOOD.iter().filter(|good| key(good) != key(line));
    rest.fold(format!("[[domain]]\n{line}\n"), |text, good| text + good + "\n")
}

/// The rows between `from` and the next heading or comment, as their cells without back-ticks.
fn rows(from: &str) -> impl Iterator<Item = Vec<&'static str>> {
    let section = PAGE.split_once(from).expect("the heading").1;
    let section = section.split_once("\n#").map_or(section, |(section, _)| section);
    section
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| line.split('|').map(|cell| cell.trim().trim_matches('`')).collect())
}

#[test]
fn examples_are_accepted() {
    let mut count = 0;
    for block in PAGE.split("```toml\n").skip(1) {
        let text = block.split("```").next().unwrap_or_default();
        if let Err(error) = parse_toml(text, "docs/config.md") {
            panic!("{error}\n{text}");
        }
        count += 1;
    }
    assert_ne!(count, 0);
}

#[test]
fn mistakes_are_refused_in_these_words() {
    assert!(parse_toml(&with(GOOD[0]), "t").is_ok());
    let mistakes = rows("## Messages").filter(|row| row[2].starts_with("domain[0]."));
    let mut count = 0;
    for row in mistakes {
        let error = parse_toml(&with(row[1]), "t").expect_err(row[1]).to_string();
        assert!(error.ends_with(&format!(": {}", row[2])), "{}\n{error}", row[1]);
        count += 1;
    }
    assert!(count > 10, "only {count} rows");
}

#[test]
fn every_key_is_described() {
    for (heading, table) in [
        ("## `[machine]`", "[machine]\nx = 1\n"),
        ("## `[emulator]`", "[emulator]\nx = 1\n"),
        ("## `[[pool]]`", "[[pool]]\nx = 1\n"),
        ("## `[[domain]]`", "[[domain]]\nx = 1\n"),
        ("### `[[domain.disk]]`", &with("disk = [{ x = 1 }]")),
        ("### `[[domain.network]]`", &with("network = [{ x = 1 }]")),
        ("### `[[domain.share]]`", &with("share = [{ x = 1 }]")),
        ("### `[[domain.port]]`", &with("port = [{ x = 1 }]")),
        ("### `[[domain.entropy]]`", &with("entropy = [{ x = 1 }]")),
    ] {
        let error = parse_toml(table, "t").expect_err("an unknown key").reason;
        let known: Vec<_> =
            error.rsplit_once("use one of ").expect("the list of keys").1.split(", ").collect();
        let described: Vec<_> = rows(heading).map(|row| row[1]).filter(|key| !key.starts_with('@')).collect();
        assert_eq!(described, known, "{heading}");
    }
}

#[test]
fn the_format_is_the_crates() {
    let page = PAGE.split_once("<!-- blob format begin -->").expect("the mark").1;
    let page = page.split_once("<!-- blob format end -->").expect("the mark").0;
    let page: Vec<_> = page.lines().filter(|line| !line.is_empty()).collect();
    let documented: Vec<_> = CRATE
        .lines()
        .filter_map(|line| line.strip_prefix("//! ").filter(|line| line.starts_with('|')))
        .map(|line| line.replace("[magic](MAGIC)", "magic"))
        .collect();
    assert_eq!(page, documented);
}
