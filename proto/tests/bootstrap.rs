//! The checked-in code is what the `.proto` files say. `EASTWAY_REGENERATE=1 cargo test -p
//! eastway-proto --test bootstrap` writes it anew.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

const FILES: [&str; 8] = [
    "eastway/ca/v1/ca.proto",
    "eastway/control/v1/control.proto",
    "eastway/federation/v1/federation.proto",
    "eastway/federation/v1/image.proto",
    "eastway/local/v1/local.proto",
    "eastway/tunnel/v1/header.proto",
    "eastway/xds/v1/endpoints.proto",
    "envoy/service/discovery/v3/ads.proto",
];

#[test]
fn generated_code_is_current() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let fresh = tempfile::tempdir().unwrap();
    generate(&root.join("proto"), fresh.path());
    let checked_in = root.join("src/gen");
    if std::env::var_os("EASTWAY_REGENERATE").is_some() {
        for file in rust_files(fresh.path()) {
            std::fs::copy(&file, checked_in.join(file.file_name().unwrap())).unwrap();
        }
    }
    let names = |dir: &Path| rust_files(dir).iter().map(|f| f.file_name().unwrap().to_owned()).collect::<Vec<_>>();
    assert_eq!(names(fresh.path()), names(&checked_in), "files under src/gen");
    for file in rust_files(fresh.path()) {
        let name = file.file_name().unwrap();
        let (new, old) =
            (std::fs::read_to_string(&file).unwrap(), std::fs::read_to_string(checked_in.join(name)).unwrap());
        assert!(new == old, "src/gen/{} is stale: run with EASTWAY_REGENERATE=1", name.display());
    }
}

fn generate(protos: &Path, out: &Path) {
    let descriptors = protox::compile(FILES, [protos]).unwrap();
    let mut config = prost_build::Config::new();
    config.out_dir(out).bytes(["."]).btree_map(["."]);
    tonic_prost_build::configure()
        .out_dir(out)
        .build_transport(false)
        .compile_fds_with_config(descriptors, config)
        .unwrap();
}

fn rust_files(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|ext| ext == "rs"));
    files.sort();
    files
}
