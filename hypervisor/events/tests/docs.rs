//! The models and tests that `docs/events.md` names are there, and the shared page is as it says.

use caisson_abi::events::{ANY, MASK, MAX_PORTS, PENDING};

const PAGE: &str = include_str!("../../../docs/events.md");
const CODE: [&str; 2] = [include_str!("../src/models.rs"), include_str!("../src/tests.rs")];

#[test]
fn the_page_names_tests_that_there_are() {
    let names = PAGE.split('`').filter(|word| word.starts_with("loom_") || word.starts_with("many_"));
    let names: Vec<_> = names.collect();
    assert!(names.len() > 8);
    for name in names {
        assert!(CODE.iter().any(|code| code.contains(&format!("fn {name}()"))), "{name} is no test");
    }
}

#[test]
fn the_page_has_the_numbers_that_the_code_has() {
    for (word, what) in [(ANY, "any"), (PENDING, "pending"), (MASK, "mask")] {
        let line = format!("    {:#05x}  {what} ", word * 8);
        assert!(PAGE.contains(&line), "{line}");
    }
    assert!(PAGE.contains(&format!("up to {MAX_PORTS} numbered ports")));
}
