//! The whole-machine scenarios. `cargo xtask test` runs them; `cargo test -p caisson-tests -- PART-OF-A-NAME` runs some,
//! `-- --list` lists them. They are told in files by subject; each is a function that takes the laboratory and its own
//! name, and says what it expects on the serial line and by when.
//!
//! QEMU's TCG has no x2APIC, and no emulator here has VM_CR: those paths of the start are not seen here.

mod accounts;
mod capabilities;
mod clock;
mod contracts;
mod control;
mod crash;
mod dirty;
mod front_door;
mod functions;
mod lifecycle;
mod linux;
mod memtest;
mod probes;
mod refusals;
mod screen;
mod serial;
mod smp;
mod split;
mod tiny;
mod workload;

use std::process::ExitCode;

use caisson_tests::runner;

/// The scenarios that run on Bochs as well: what differs between AMD-V and VT-x, and not what only QEMU has.
const ON_BOCHS: &[&str] = &[
    "two-guests",
    "linux",
    "linux-smp-on-all-cpus",
    "linux-entropy",
    "smp-on-2-cpus",
    "smp-ends",
    "clock-drift",
    "spinning",
    "probes",
    "probe-nmis",
    "hostile",
    "hostile-wild",
    "dirty-exact",
    "control",
    "crash-panic",
    "refusal-overcommitted",
];

/// The scenarios that run on Bochs alone: what is measured on several CPUs, which it runs in step; the optional
/// capabilities, and CPUs of Intel's that do not do.
const ONLY_ON_BOCHS: &[&str] = &[
    "five-on-two-cpus",
    "contract-weights-on-2-cpus",
    "reboot-loop-on-2-cpus",
    "without-all",
    "without-vpid",
    "without-preemption-timer",
    "without-tpr-shadow",
    "without-ept-accessed-dirty",
    "without-ept-1g",
    "without-invept-single",
    "without-invvpid-single",
    "without-msr-bitmaps",
    "without-rdtscp",
    "without-invpcid",
    "without-pause-loop",
    "without-string-io",
    "without-xsaves",
    "without-tsc-scaling",
    "without-pml",
    "vt-x-newer",
    "dirty-bits",
    "dirty-protected",
    "tsc-scaling",
    "without-virtual-interrupts",
    "without-x2apic",
    "without-apic-accesses",
    "without-apic-registers",
    "virtual-apic",
    "svm-without-all",
    "svm-without-nrip-save",
    "svm-without-flush-by-asid",
    "svm-without-pause-filter",
    "refusal-no-ept",
    "refusal-no-unrestricted-guest",
    "refusal-vt-x-locked",
];

fn main() -> ExitCode {
    // What takes longest comes first.
    let scenarios: &[runner::Scenario] = &[
        ("linux-uefi", linux::uefi),
        ("two-guests", linux::two_guests),
        ("lifecycle-ends", lifecycle::ends),
        ("lifecycle-reboot", lifecycle::reboot),
        ("linux", linux::alone),
        ("split-io", split::io),
        ("split-networks", split::networks),
        ("split-hostile", split::hostile),
        ("split-files", split::files),
        ("split-kill", split::kill),
        ("split-crash", split::crash),
        ("functions", functions::messages),
        ("functions-lines", functions::lines),
        ("functions-on-2-cpus", functions::on_two_cpus),
        ("functions-restart", functions::restart),
        ("functions-vtd", functions::vtd),
        ("functions-vtd-wide", functions::vtd_wide),
        ("functions-amdvi", functions::amdvi),
        ("functions-two-owners", functions::two_owners),
        ("functions-two-owners-vtd", functions::two_owners_vtd),
        ("refusal-functions", functions::missing),
        ("dma-without-iommu", functions::dma_without),
        ("dma-vtd", functions::dma_vtd),
        ("dma-amdvi", functions::dma_amdvi),
        ("spinning", probes::spinning),
        ("linux-smp", linux::smp),
        ("linux-entropy", linux::entropy),
        ("linux-smp-on-2-cpus", linux::smp_on_half),
        ("linux-smp-on-all-cpus", linux::smp_on_all),
        ("linux-other-cpu", linux::other_cpu),
        ("table-and-trace", accounts::table_and_trace),
        ("clock-drift", clock::drift),
        ("contract-weights", contracts::weights),
        ("contract-weights-on-2-cpus", contracts::weights_on_two),
        ("contract-affinity", contracts::affinity),
        ("contract-cap", contracts::cap),
        ("contract-reservation", contracts::reservation),
        ("contract-reboots", contracts::reboots),
        ("contract-steal", contracts::steal),
        ("control", control::calls),
        ("control-on-2-cpus", control::calls_on_two),
        ("consoles", linux::consoles),
        ("policies", linux::policies),
        ("shell", linux::shell),
        ("front-door-headless-run", front_door::headless_run),
        ("front-door-broken-config", front_door::broken_config),
        ("front-door-damaged-blob", front_door::damaged_blob),
        ("front-door-good-configs", front_door::good_configs),
        ("front-door-refusals", front_door::refusals),
        ("refusal-uefi-screen", refusals::uefi_screen),
        ("smp-on-1-cpu", smp::on_one),
        ("smp-on-2-cpus", smp::on_two),
        ("smp-on-4-cpus", smp::on_four),
        ("smp-64-vcpus", smp::sixty_four),
        ("cpu-in-no-pool", smp::in_no_pool),
        ("smp-ends", smp::ends),
        ("five-on-two-cpus", smp::five_on_two),
        ("reboot-loop", smp::reboots),
        ("reboot-loop-on-2-cpus", smp::reboots_on_two),
        ("hundred-asleep", smp::hundred_asleep),
        ("hundred-idle", smp::hundred_idle),
        ("hundred-started", smp::hundred_started),
        ("probes", probes::all),
        ("probe-breakpoints", probes::breakpoints),
        ("probe-nmis", probes::nmis),
        ("without-all", capabilities::vt_x),
        ("without-vpid", capabilities::vt_x),
        ("without-preemption-timer", capabilities::vt_x),
        ("without-tpr-shadow", capabilities::vt_x),
        ("without-ept-accessed-dirty", capabilities::vt_x),
        ("without-ept-1g", capabilities::vt_x),
        ("without-invept-single", capabilities::vt_x),
        ("without-invvpid-single", capabilities::vt_x),
        ("without-msr-bitmaps", capabilities::vt_x),
        ("without-rdtscp", capabilities::vt_x),
        ("without-invpcid", capabilities::vt_x),
        ("without-pause-loop", capabilities::vt_x),
        ("without-string-io", capabilities::vt_x),
        ("without-xsaves", capabilities::vt_x),
        ("without-tsc-scaling", capabilities::vt_x),
        ("without-pml", capabilities::vt_x),
        ("vt-x-newer", capabilities::newer),
        ("tsc-scaling", capabilities::tsc_scaling),
        ("virtual-apic", capabilities::virtual_apic),
        ("without-virtual-interrupts", capabilities::vt_x),
        ("without-x2apic", capabilities::virtual_apic),
        ("without-apic-accesses", capabilities::virtual_apic),
        ("without-apic-registers", capabilities::virtual_apic),
        ("svm-without-all", capabilities::amd_v),
        ("svm-without-nrip-save", capabilities::amd_v),
        ("svm-without-flush-by-asid", capabilities::amd_v),
        ("svm-without-pause-filter", capabilities::amd_v),
        ("hostile", probes::hostile),
        ("hostile-wild", probes::wild),
        ("hostile-on-2-cpus", probes::hostile_on_two),
        ("hostile-wild-on-2-cpus", probes::wild_on_two),
        ("dirty-exact", dirty::exact),
        ("dirty-bits", dirty::exact),
        ("dirty-protected", dirty::exact),
        ("dirty-on-2-cpus", dirty::on_two),
        ("dirty-linux-on-2-cpus", dirty::linux_on_two),
        ("memtest", memtest::memtest),
        ("crash-panic", crash::panic),
        ("crash-fault", crash::fault),
        ("crash-stack", crash::stack),
        ("crash-locks", crash::locks),
        ("crash-screen", crash::on_screen),
        ("slow-reader", serial::slow_reader),
        ("refusal-memory", refusals::memory),
        ("refusal-no-svm", refusals::no_svm),
        ("refusal-no-nested-paging", refusals::no_nested_paging),
        ("refusal-no-ept", refusals::no_ept),
        ("refusal-no-unrestricted-guest", refusals::no_unrestricted_guest),
        ("refusal-no-local-apic", refusals::no_local_apic),
        ("refusal-no-long-mode", refusals::no_long_mode),
        ("refusal-no-module", refusals::no_module),
        ("refusal-no-named-module", refusals::no_named_module),
        ("named-module", refusals::named_module),
        ("refusal-vt-x-locked", refusals::vt_x_locked),
        ("refusal-iommu", refusals::no_iommu),
        ("refusal-iommu-word", refusals::iommu_word),
        ("refusal-no-clock", refusals::no_clock),
        ("refusal-other-loader", refusals::other_loader),
        ("refusal-not-a-blob", refusals::not_a_blob),
        ("refusal-damaged", refusals::damaged),
        ("refusal-truncated", refusals::truncated),
        ("refusal-overlong", refusals::overlong),
        ("refusal-unknown-version", refusals::unknown_version),
        ("refusal-duplicate-names", refusals::duplicate_names),
        ("refusal-overcommitted", refusals::overcommitted),
        ("refusal-not-a-kernel", refusals::not_a_kernel),
        ("refusal-screen", refusals::bios_screen),
    ];
    runner::main(scenarios, ON_BOCHS, ONLY_ON_BOCHS)
}
