//! What a person sees and whom one speaks to.

use alloc::string::String;
use alloc::vec::Vec;

use caisson_types::DomainId;
use proptest::prelude::*;

use crate::keys::PREFIX;
use crate::mux::LONGEST_STEP;
use crate::{LINE_BYTES, Mux, OUTPUT_BYTES, RESERVED_BYTES, Shown, TAKEN_AT_ONCE};

const RED: DomainId = DomainId(1);
const BLUE: DomainId = DomainId(2);

fn two() -> Mux {
    let mut mux = Mux::new();
    mux.add_guest(RED, "red");
    mux.add_guest(BLUE, "blue");
    mux
}

fn output(mux: &mut Mux) -> String {
    let mut text = Vec::new();
    while !mux.waiting().is_empty() {
        let piece = mux.waiting().to_vec();
        mux.sent(piece.len());
        text.extend(piece);
    }
    String::from_utf8(text).unwrap()
}

fn write(mux: &mut Mux, id: DomainId, text: &str) {
    for byte in text.bytes() {
        let index = mux.guests.iter().position(|guest| guest.id == id).unwrap();
        mux.guest_byte(index, byte);
    }
}

fn input(mux: &mut Mux, id: DomainId) -> Vec<u8> {
    let mut got = Vec::new();
    let mut from = 0;
    while let Some((place, to, byte)) = mux.peek_input(from) {
        if to == id {
            got.push(byte);
            mux.input_taken(place, to);
        } else {
            from = place + 1;
        }
    }
    got
}

#[test]
fn lines_of_several_stay_whole_and_carry_names() {
    let mut mux = two();
    write(&mut mux, RED, "one ");
    write(&mut mux, BLUE, "two\r\n");
    write(&mut mux, RED, "three\r\nfour");
    mux.end_guest(RED);
    mux.end_guest(RED);
    assert_eq!(
        output(&mut mux),
        "\x1b[32m[blue]\x1b[0m two\r\n\x1b[36m[red]\x1b[0m one three\r\n\x1b[36m[red]\x1b[0m four\r\n"
    );
}

#[test]
fn a_selected_console_is_raw_and_gets_what_is_typed() {
    let mut mux = two();
    mux.show(Shown::Guest(BLUE));
    write(&mut mux, BLUE, "\x1b[2Jraw");
    write(&mut mux, RED, "unseen\n");
    mux.log_line("quiet", false);
    mux.log_line("loud", true);
    assert_eq!(output(&mut mux), "\x1b[2Jraw\r\n\x1b[01m[caisson]\x1b[0m loud\r\n");
    b"ls\x01a\x01\x01\x01q\r".iter().for_each(|&byte| mux.typed(byte));
    assert!(mux.has_input());
    assert_eq!(input(&mut mux, BLUE), b"ls\x01\x01\r");
    assert!(!mux.has_input());
}

#[test]
fn control_a_c_goes_around_and_the_log_comes_back() {
    let mut mux = two();
    mux.log_line("first", false);
    let _ = output(&mut mux);
    let mut seen = Vec::new();
    for _ in 0..4 {
        mux.typed(PREFIX);
        mux.typed(b'c');
        seen.push(output(&mut mux));
    }
    for (text, name) in seen.iter().zip(["red", "blue", "Caisson's log", "all consoles"]) {
        assert!(text.contains(name), "{text:?}");
    }
    assert!(seen[2].ends_with("\r\nfirst\r\n"));
    mux.typed(b'x');
    assert!(!mux.has_input(), "nobody is spoken to while several are shown");
}

#[test]
fn a_prompt_is_there_when_its_guest_is_shown() {
    let mut mux = two();
    write(&mut mux, RED, "up\r\nred # ");
    write(&mut mux, BLUE, "blue # ");
    let _ = output(&mut mux);
    let mut next = |text: &str| {
        mux.typed(PREFIX);
        mux.typed(b'c');
        write(&mut mux, RED, text);
        output(&mut mux)
    };
    assert!(next("ls").ends_with("showing red; Ctrl-A c shows the next\r\nred # ls"));
    assert!(next("\r\nfile\r\nred # ").ends_with("showing blue; Ctrl-A c shows the next\r\nblue # "));
    assert!(next("").ends_with("showing Caisson's log; Ctrl-A c shows the next\r\n"));
    assert!(
        next("\r\n").ends_with("all consoles; Ctrl-A c shows the next\r\n\x1b[36m[red]\x1b[0m red # \r\n")
    );
    assert!(next("").ends_with("showing red; Ctrl-A c shows the next\r\n"));
}

#[test]
fn guests_cannot_forge_lines_or_fill_what_is_reserved() {
    let mut mux = two();
    write(&mut mux, RED, "a\x1b[1A\x1b[G\r\x1b[01m[caisson]\x1b[0m lies\n");
    assert_eq!(output(&mut mux), "\x1b[36m[red]\x1b[0m a\x1b[01m[caisson]\x1b[0m lies\x1b[0m\r\n");
    let ring = mux.ring(RED).unwrap();
    while b"flood\n".iter().all(|&byte| ring.put(byte)) || mux.take_output() > 0 {}
    assert!(mux.has_output() && mux.output.len() <= OUTPUT_BYTES - RESERVED_BYTES);
    mux.end_guest(RED);
    assert!(mux.output.len() <= OUTPUT_BYTES - RESERVED_BYTES / 2);
    mux.log_line("still heard", false);
    assert!(output(&mut mux).ends_with("still heard\r\n"));
}

#[test]
fn what_a_guest_says_last_comes_before_its_end() {
    let mut mux = two();
    let ring = mux.ring(RED).unwrap();
    assert!(b"one\nlast words".iter().all(|&byte| ring.put(byte)));
    mux.end_guest(RED);
    mux.log_line("guest red: powered off", false);
    assert_eq!(
        output(&mut mux),
        "\x1b[36m[red]\x1b[0m one\r\n\x1b[36m[red]\x1b[0m last words\r\n\x1b[01m[caisson]\x1b[0m guest red: powered off\r\n"
    );
    assert!(mux.ring(DomainId(9)).is_none());
}

/// A line that is far behind, and a guest that ends: its last bytes follow when there is room, and end its line then.
#[test]
fn an_end_without_room_loses_nothing() {
    let mut mux = two();
    let ring = mux.ring(RED).unwrap();
    let mut said = 0;
    let mut say = |mux: &mut Mux| {
        while ring.put(b'\n') {
            said += 1;
        }
        mux.take_output()
    };
    while say(&mut mux) > 0 {}
    mux.end_guest(RED);
    while say(&mut mux) > 0 {}
    mux.end_guest(RED);
    assert!(mux.has_output(), "half of what is reserved has no room either");
    let mut seen = 0;
    loop {
        seen += output(&mut mux).matches('\n').count();
        if mux.take_output() == 0 {
            break;
        }
    }
    assert_eq!(seen, said);
}

#[test]
fn a_guest_that_is_forgotten_leaves_what_it_said_and_no_more() {
    let mut mux = two();
    mux.show(Shown::Guest(RED));
    write(&mut mux, BLUE, "hidden");
    write(&mut mux, RED, "the end");
    output(&mut mux);
    assert!(mux.ring(RED).unwrap().put(b'!'));
    mux.remove_guest(RED);
    let text = output(&mut mux);
    assert!(text.starts_with("!\r\n") && text.contains("showing all consoles"), "{text:?}");
    assert!(mux.ring(RED).is_none() && mux.read(RED, 0, &mut [0; 8]).is_none());
    assert_eq!(mux.write(RED, b"x"), None);
    // Input that was offered to it meanwhile is nobody else's.
    assert_eq!(mux.write(BLUE, b"y"), Some(1));
    mux.input_taken(0, RED);
    assert_eq!(mux.peek_input(0), Some((0, BLUE, b'y')));
    write(&mut mux, BLUE, " line\n");
    let text = output(&mut mux);
    assert!(text.contains("[blue]") && text.contains("hidden line"), "{text:?}");
    mux.remove_guest(RED);
    mux.remove_guest(BLUE);
    assert_eq!((mux.take_output(), mux.has_output()), (0, false));
}

#[test]
fn one_guest_cannot_keep_the_line_from_another() {
    let mut mux = two();
    let (red, blue) = (mux.ring(RED).unwrap(), mux.ring(BLUE).unwrap());
    for id in 3..=40 {
        mux.add_guest(DomainId(id), "more");
    }
    assert!(b"blue".iter().all(|&byte| blue.put(byte)));
    while red.put(b'r') {}
    let first = mux.take_output();
    assert!((4 + TAKEN_AT_ONCE / 40..TAKEN_AT_ONCE).contains(&first), "{first}");
    assert_eq!(mux.guests[1].line, b"blue");
    while mux.take_output() > 0 {}
    assert!(!mux.has_output() && red.put(b'r'));
}

#[test]
fn the_table_takes_the_screen_and_gives_it_back() {
    let mut mux = two();
    mux.show(Shown::Guest(RED));
    write(&mut mux, RED, "red # ");
    let _ = output(&mut mux);
    assert!(!mux.table_wanted());
    mux.show_table(&["unseen".into()]);
    b"\x01t".iter().for_each(|&byte| mux.typed(byte));
    assert!(mux.table_wanted() && mux.table_shown());
    write(&mut mux, RED, "unseen\r\nred # ls");
    mux.log_line("loud", true);
    mux.typed(b'y');
    assert!(!mux.has_input(), "nobody is spoken to at the table");
    mux.show_table(&["first".into(), "x".repeat(100)]);
    let cut = "x".repeat(79);
    assert_eq!(
        output(&mut mux),
        alloc::format!("\x1b[2J\x1b[H\x1b[Hfirst\x1b[K\r\n{cut}\x1b[K\r\n\x1b[K\r\nloud\x1b[K\r\n\x1b[J")
    );
    mux.typed(b'q');
    assert!(!mux.table_shown());
    let back = output(&mut mux);
    assert!(
        back.starts_with("\x1b[2J") && back.ends_with("showing red; Ctrl-A c shows the next\r\nred # ls")
    );
    b"\x01t\x01c".iter().for_each(|&byte| mux.typed(byte));
    assert!(!mux.table_shown() && output(&mut mux).contains("showing blue"));
}

#[test]
fn a_slow_line_gets_fewer_tables() {
    let mut mux = two();
    b"\x01T".iter().for_each(|&byte| mux.typed(byte));
    while mux.table_wanted() {
        mux.show_table(&["line".into()]);
    }
    assert!(mux.output.len() < 2048);
    let _ = output(&mut mux);
    assert!(mux.table_wanted());
}

#[test]
fn help_lists_every_key_and_d_asks_for_the_trace() {
    let mut mux = two();
    b"\x01?".iter().for_each(|&byte| mux.typed(byte));
    let help = output(&mut mux);
    for key in ["c", "t", "d", "a", "?", "x"] {
        assert!(help.contains(&alloc::format!("Ctrl-A {key}  ")), "{help}");
    }
    assert!(!mux.take_trace_wanted());
    b"\x01d".iter().for_each(|&byte| mux.typed(byte));
    assert!(mux.take_trace_wanted() && !mux.take_trace_wanted());
    b"\x01p".iter().for_each(|&byte| mux.typed(byte));
    assert!(mux.take_policy_wanted() && !mux.take_policy_wanted());
}

#[test]
fn trace_lines_stand_alone_and_leave_room_for_guests() {
    let mut mux = two();
    mux.show(Shown::Guest(RED));
    write(&mut mux, RED, "prompt");
    assert!(mux.trace_line("%trace AAAA"));
    assert_eq!(output(&mut mux), "prompt\r\n%trace AAAA\r\n");
    while mux.trace_line(&"A".repeat(LINE_BYTES)) {}
    let ring = mux.ring(RED).unwrap();
    assert!(mux.output.len() < 8192 && ring.put(b'x') && mux.take_output() == 1);
}

proptest! {
    #[test]
    fn nothing_grows_beyond_its_bounds(bytes in proptest::collection::vec((any::<bool>(), any::<u8>()), 0..2000)) {
        let mut mux = two();
        for (red, byte) in bytes {
            let before = mux.output.len();
            mux.guest_byte(usize::from(!red), byte);
            prop_assert!(mux.output.len() - before <= LONGEST_STEP);
            prop_assert!(mux.guests.iter().all(|g| g.line.len() <= LINE_BYTES && g.line.capacity() == LINE_BYTES));
            mux.typed(byte);
        }
    }
}

#[test]
fn a_console_is_read_beside_the_line() {
    let mut mux = two();
    assert_eq!(mux.take_news(), None);
    mux.show(Shown::Guest(RED));
    write(&mut mux, BLUE, "hello\r\nworld");
    assert!(mux.has_news());
    assert_eq!((mux.take_news(), mux.take_news()), (Some(BLUE), None));
    let mut bytes = [0; 8];
    // Twice the same: reading takes nothing away.
    for _ in 0..2 {
        let piece = mux.read(BLUE, 7, &mut bytes).unwrap();
        assert_eq!((piece.first, piece.count, piece.end), (7, 5, 12));
        assert_eq!(&bytes[..5], b"world");
    }
    assert_eq!(mux.read(RED, 0, &mut bytes).unwrap().end, 0);
    assert_eq!(mux.read(DomainId(9), 0, &mut bytes), None);
}

#[test]
fn what_is_typed_from_elsewhere_is_the_guests_and_has_an_end() {
    let mut mux = two();
    mux.show(Shown::Guest(BLUE));
    assert_eq!(mux.write(RED, &[PREFIX, b'c', b'x']), Some(3));
    assert_eq!(input(&mut mux, RED), [PREFIX, b'c', b'x']);
    assert_eq!(mux.write(DomainId(9), b"x"), None);
    assert!(!mux.has_news(), "nobody found it full");
    let many = [b'y'; crate::INPUT_BYTES + 1];
    assert_eq!(mux.write(RED, &many), Some(crate::INPUT_BYTES));
    assert_eq!(mux.write(RED, b"z"), Some(0));
    assert_eq!(input(&mut mux, RED).len(), crate::INPUT_BYTES);
    assert_eq!((mux.take_news(), mux.take_news()), (Some(RED), None));
}
