//! Networks of guests that a driver domain serves: who reaches whom, how fast, and what becomes of a connection while the daemon or
//! the whole driver domain dies.

use caisson_tests::{From, Lab, Run, Verdict, ensure};

use crate::{
    split::{driver, ended, guest},
    workload::{BOOT, STEP},
};

/// A card, with these further settings.
fn card(more: &str) -> String {
    format!("[[domain.network]]\n{more}\n")
}

/// Bytes of the long page.
const LONG: u32 = 32 << 20;
/// Bytes of the short one.
const SHORT: u32 = 4 << 20;

/// Two guests on a bridge, one on another bridge, one on another VLAN: who reaches whom, a long transfer, and an address that is
/// not the card's.
pub(crate) fn reach(lab: &Lab, name: &str) -> Verdict {
    let words = |number: u32, words: &str| {
        format!(
            "caisson.ip=10.1.0.{number}/24 caisson.peer=10.1.0.2 caisson.url=http://10.1.0.2/data caisson.test={words}"
        )
    };
    let config = [
        driver(""),
        guest("alice", &words(1, "ping,spoof,fetch"), &card("bridge = \"br0\"")),
        guest("bob", &words(2, "serve"), &card("bridge = \"br0\"")),
        guest("carol", &words(3, "clock,ping"), &card("bridge = \"br1\"")),
        guest("dave", &words(4, "clock,ping"), &card("bridge = \"br0\"\nvlan = 7")),
    ];
    let mut run = lab.boot(name, &config.concat())?.start()?;
    let (alice, bob) = (From::Guest("alice"), From::Guest("bob"));
    run.expect(alice, 2 * BOOT, "^caisson-test: ping peer=10.1.0.2 replies=3$")?;
    run.expect(alice, STEP, "^caisson-test: spoof own=[0-9a-f:]+ replies=0 honest=3$")?;
    let served = run.expect(bob, STEP, "^caisson-test: serve hash=([0-9a-f]{64})$")?;
    let fetched = format!("bytes={LONG} hash={}$", served.group(1));
    run.expect(alice, BOOT, &fetched)?;
    for other in ["carol", "dave"] {
        run.expect(From::Guest(other), BOOT, "^caisson-test: ping peer=10.1.0.2 replies=0$")?;
    }
    ended(&mut run, &["alice", "bob", "carol", "dave"])
}

/// A guest with two cards, of which one has a limit: how long the same bytes take through each, from another guest and to it.
pub(crate) fn rate(lab: &Lab, name: &str) -> Verdict {
    const MEGABITS: u32 = 4;
    const BITS: u32 = MEGABITS * 1_000_000;
    // What may come at once (guest-images/driver-domain/network).
    const BURST: u32 = 131_072;
    // The server has an address in each card's network.
    let client = "caisson.ip=10.1.0.1/24 caisson.run=ip+address+add+10.2.0.1/24+dev+eth1;ip+link+set+eth1+up \
                  caisson.url=http://10.1.0.2/part,http://10.2.0.2/part caisson.test=times";
    let server = "caisson.ip=10.1.0.2/24 caisson.run=ip+address+add+10.2.0.2/24+dev+eth0 caisson.test=serve";
    let cards = card(&format!("bridge = \"br0\"\nrate = \"{MEGABITS}M\"")) + &card("bridge = \"br0\"");
    let config =
        [driver(""), guest("client", client, &cards), guest("server", server, &card("bridge = \"br0\""))];
    let mut run = lab.boot(name, &config.concat())?.start()?;
    let mut times = |server: &str| {
        let line = format!(r"^caisson-test: times server={server} from={SHORT}/(\d+) to={SHORT}/(\d+)$");
        let line = run.expect(From::Guest("client"), 2 * BOOT, &line)?;
        Verdict::Ok([line.number(1) / 100.0, line.number(2) / 100.0])
    };
    let (limited, free) = (times("10.1.0.2")?, times("10.2.0.2")?);
    let least = f64::from(SHORT - BURST) * 8.0 / f64::from(BITS);
    for (limited, free) in limited.into_iter().zip(free) {
        // The guest reads its clock in steps of 10 ms.
        ensure!(limited > least - 0.05, "{limited} s with the limit, whose least is {least} s");
        // However slow the machine is, it is so with both.
        ensure!(free * 1.5 < limited, "{free} s without a limit, {limited} s with one");
    }
    ended(&mut run, &["client", "server"])
}

/// A long transfer between two guests, in one connection, during which `words` have the driver domain do something. It takes some
/// seconds however fast the machine is, so that what the driver domain does at so many bytes falls into it. The server's address and the
/// client's, with what follows them.
fn transfer(lab: &Lab, name: &str, words: &str, [server, client]: [&str; 2]) -> Verdict<Run> {
    let address = server.split('/').next().unwrap_or_default();
    let host = if address.contains(':') { format!("[{address}]") } else { address.to_owned() };
    let fetches = format!("caisson.ip={client} caisson.url=http://{host}/data caisson.test=transfer");
    let config = [
        driver(words),
        guest("server", &format!("caisson.ip={server} caisson.test=serve"), &card("bridge = \"br0\"")),
        guest("client", &fetches, &card("bridge = \"br0\"\nrate = \"40M\"")),
    ];
    let mut run = lab.boot(name, &config.concat())?.start()?;
    let served = run.expect(From::Guest("server"), 2 * BOOT, "^caisson-test: serve hash=([0-9a-f]{64})$")?;
    run.expect(From::Guest("client"), BOOT, "^caisson-test: transfer begins$")?;
    let fetched = format!("^caisson-test: transfer code=0 bytes={LONG} hash={} error=$", served.group(1));
    run.expect(From::Guest("client"), 4 * BOOT, &fetched)?;
    ended(&mut run, &["server", "client"])?;
    Ok(run)
}

/// How many lines of the driver domain's begin with `words` while the transfer is under way.
fn meanwhile(run: &Run, words: &str) -> usize {
    let lines = run.lines(From::Anyone).map(|line| line.text.as_str());
    let from = lines.skip_while(|line| !line.ends_with("transfer begins"));
    from.take_while(|line| !line.contains("transfer code=")).filter(|line| line.starts_with(words)).count()
}

/// The daemon is killed again and again, with a part of the page between. The guests speak IPv6, and find each other by what the filter of
/// addresses looks at.
pub(crate) fn kill(lab: &Lab, name: &str) -> Verdict {
    let addresses = ["fd00::2/64", "fd00::1/64"];
    let run = transfer(lab, name, "caisson.test=kill:10:524288", addresses)?;
    let kills = meanwhile(&run, "caisson-driver: the backend has ended with 137 and is started again");
    ensure!(kills == 10, "the daemon was killed {kills} times during the transfer");
    Ok(())
}

/// The whole driver domain crashes five times, with four mebibytes between.
pub(crate) fn crash(lab: &Lab, name: &str) -> Verdict {
    let addresses = ["10.1.0.2/24", "10.1.0.1/24"];
    let run = transfer(lab, name, "caisson.test=crash:5:/dev/nvme0n2:4194304", addresses)?;
    let crashes = meanwhile(&run, "caisson-driver: crash ");
    ensure!(crashes == 5, "the driver domain crashed {crashes} times during the transfer");
    Ok(())
}
