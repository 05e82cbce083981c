//! Links each probe by `linker.ld`.

fn main() {
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("none") {
        return;
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/linker.ld");
    println!("cargo:rerun-if-changed={script}");
    println!("cargo:rustc-link-arg-bins=-T{script}");
    println!("cargo:rustc-link-arg-bins=--gc-sections");
    println!("cargo:rustc-link-arg-bins=-zmax-page-size=4096");
    // Below the extended BIOS data area, for guests of one MiB.
    println!("cargo:rustc-link-arg-bin=idle=--defsym=probe_base=0x20000");
    // Where every guest has memory, one that owns devices too.
    println!("cargo:rustc-link-arg-bin=dma=--defsym=probe_base=0x20000");
}
