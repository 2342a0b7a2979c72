//! Says how the binary is linked.

use std::env;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let target = |key: &str| env::var(key).unwrap_or_default();
    // 36,000 addresses are put right when the binary is loaded, most of them in tables that follow each other: written as
    // DT_RELR (glibc 2.36, Debian 12) they are 20 kB instead of 870 kB.
    if target("CARGO_CFG_TARGET_OS") == "linux" && target("CARGO_CFG_TARGET_ENV") == "gnu" {
        println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
        // Functions that came out alike are kept once. The linker that Rust brings for this machine can.
        if target("CARGO_CFG_TARGET_ARCH") == "x86_64" {
            println!("cargo:rustc-link-arg-bins=-Wl,--icf=all");
        }
    }
}
