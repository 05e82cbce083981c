//! The ranks.

/// Declares the ranks: each with what its locks protect, who takes them, and what that CPU may hold then.
macro_rules! ranks {
    ($($(#[doc = $line:literal])+ $name:ident,)+) => {
        /// Where a lock stands in the order: a CPU that holds one takes only locks that come after it here.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
        #[repr(u8)]
        pub enum Rank {
            $($(#[doc = $line])+ $name,)+
        }

        impl Rank {
            /// All of them, in order.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// What its locks protect, who takes them, and what that CPU holds then; as docs/locking.md has it.
            #[must_use]
            pub fn why(self) -> &'static [&'static str] {
                match self {
                    $(Self::$name => &[$($line),+],)+
                }
            }
        }
    };
}

ranks! {
    /// How far the tracking of a domain's writes has come.
    /// The one CPU at the guest's chores, with no lock held; it calls others, changes stage-2 tables, and asks the record for the name.
    Tracking,
    /// What one CPU has others do (`smp::Calls`).
    /// The caller, who waits for CPUs that may wait for any lock, and the called: inside none but the caller's `Tracking`.
    Call,
    /// What the table of where the time goes showed last.
    /// The serial line's CPU when a table is due, with no lock held; it asks all guest records.
    Table,
    /// A vCPU's registers and control block.
    /// The CPU that runs it, for a whole turn, with no lock held: all that an exit does is done inside.
    Vcpu,
    /// The blob that a domain makes others of.
    /// A vCPU of its own that puts something there or makes one, inside `Vcpu`; the domain's chores at its end.
    Upload,
    /// What making another domain needs, and what is left of blobs.
    /// Who makes or forgets a domain, inside `Vcpu`; who scrubs a blob, with no lock held.
    Creation,
    /// A guest's record: what exists of it, how it ended, what is to be done for it.
    /// Who makes, ends, restarts or looks the guest up; at the guest's end inside `Vcpu`, for its name inside `Tracking`.
    Guest,
    /// Who serves a guest's devices, and what of its memory is granted for that.
    /// A backend's calls, inside `Vcpu`; who makes a guest, at first inside `Guest`, or ends one; it changes the backend's stage-2 tables.
    Served,
    /// A domain's stage-2 tables.
    /// A CPU whose guest wrote to a page that is tracked, inside `Vcpu`; chores, inside `Tracking`.
    Stage2,
    /// A domain's chipset.
    /// Who answers an exit, inside `Vcpu`; who loads the guest's image, inside `Guest` at the start; who brings input.
    Chipset,
    /// A virtio device's backend that is Caisson's own.
    /// Who answers the guest's access, inside `Vcpu` and with no `Chipset`; it asks the transport.
    Backend,
    /// The real functions that a domain owns, as it sees them.
    /// Who answers an exit, inside `Vcpu`; who ends the guest, with no lock held.
    Functions,
    /// Which lines of the I/O APICs are open.
    /// Whose guest's own I/O APIC says so, inside `Chipset`; who ends the guest, inside `Functions`.
    Lines,
    /// Whose interrupt a vector is.
    /// Who opens a message inside `Functions` or a line inside `Lines`; with no lock held where one arrives.
    Route,
    /// The machine's I/O APICs, for one register.
    /// Who opens or masks a line, inside `Lines` or `Route`; at the start without them.
    IoApic,
    /// The ports of PCI configuration space, for one register.
    /// Who reaches for a function's, inside `Functions`; at the start without it.
    PciPorts,
    /// The state of a virtio device's transport.
    /// Who answers the guest's access, inside `Vcpu`, or a call of its backend's, inside `Backend`; nothing is taken inside.
    Channel,
    /// The machine's IOMMU: its units, and what each guest's devices reach.
    /// Who makes a guest, at first inside `Guest`, or ends one; who changes what its devices reach; tables come out of `Frames`.
    Dma,
    /// That a domain's event ports come or go.
    /// Who makes or ends a guest, inside `Guest`; it waits for events that are under way, which wake their receiver.
    Ports,
    /// One place among the domains: whether there is one, and which.
    /// Who looks a domain up, comes or goes, inside anything above; nothing is taken inside.
    Domains,
    /// A CPU's run queue, for one decision.
    /// Who wakes, blocks, moves or picks; for a wake-up inside `Vcpu` and `Chipset`, for chores inside `Guest`.
    Queue,
    /// The trace's way to the serial line.
    /// The serial line's CPU, with no lock held; it gives lines to the console.
    Dump,
    /// The part of the window for device registers that is in use.
    /// The boot CPU at the start, with no lock held; it maps pages.
    Window,
    /// The host's page tables.
    /// Who maps device registers, inside `Window`, or another CPU's stack; tables come out of `Frames`.
    Paging,
    /// The frame allocator.
    /// Who makes a guest, at first inside `Guest`, or ends one; who needs a table, inside `Stage2` or `Paging`.
    Frames,
    /// What the boot CPU gives to a CPU that it starts, and what that one answers.
    /// Both, with no lock held.
    Start,
    /// The consoles: who is shown, and what waits for the serial line.
    /// Whoever logs, inside anything above; who moves bytes of the serial line.
    Console,
    /// The end of a guest's ring of output where bytes are put in.
    /// A vCPU that writes to its serial port, inside `Vcpu`. The console takes bytes out without it.
    Ring,
    /// The serial line's UART.
    /// Who has something for the line, inside `Console`; at the start without it.
    Serial,
    /// The screen.
    /// Whoever logs, inside anything above but `Console` and `Serial`.
    Screen,
    /// The heap.
    /// Whoever allocates or frees, inside anything.
    Heap,
}
