//! `make image`: the archive is what the binary makes of it, and nothing else.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::Command;

use eastway_tests::oci;
use serde_json::Value;

fn unpacked(archive: &Path, into: &Path) {
    std::fs::create_dir_all(into).unwrap();
    let status = Command::new("tar").arg("-xf").arg(archive).arg("-C").arg(into).status().unwrap();
    assert!(status.success(), "tar reads {}", archive.display());
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn an_image_is_reproducible_and_runs_by_itself() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let binary = eastway_tests::binary();
    oci::write(&binary, &at("1.tar"), "eastway:test").unwrap();
    oci::write(&binary, &at("2.tar"), "eastway:test").unwrap();
    assert!(std::fs::read(at("1.tar")).unwrap() == std::fs::read(at("2.tar")).unwrap(), "not the same bytes");
    unpacked(&at("1.tar"), &at("image"));
    let blob = |digest: &Value| at("image/blobs").join(digest.as_str().unwrap().replace(':', "/"));
    let manifest = json(&blob(&json(&at("image/index.json"))["manifests"][0]["digest"]));
    let config = json(&blob(&manifest["config"]["digest"]));
    assert_eq!(config["config"]["User"], "65532:65532");
    assert_eq!(config["config"]["Entrypoint"], serde_json::json!(["/usr/bin/eastway"]));
    assert_eq!(config["rootfs"]["diff_ids"][0], manifest["layers"][0]["digest"]);
    assert_eq!(json(&at("image/manifest.json"))[0]["RepoTags"][0], "eastway:test");
    unpacked(&blob(&manifest["layers"][0]["digest"]), &at("root"));
    // In a root of its own, as an unprivileged user: nothing of this machine is within reach.
    let mut run = Command::new("unshare");
    run.args(["--user", "--map-root-user", "--root"]).arg(at("root")).args(["/usr/bin/eastway", "version"]);
    let output = run.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("eastway "));
}

/// That of sidecars runs all three, each with the libraries that it names.
#[test]
fn the_image_of_sidecars_has_envoy_and_nft() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let (binary, envoy) = (eastway_tests::binary(), eastway_tests::envoy::binary("1.40.0").unwrap());
    let nft = Path::new("/usr/sbin/nft");
    oci::write_sidecar(&binary, &envoy, nft, &at("1.tar"), "registry.example/eastway-sidecar:test").unwrap();
    unpacked(&at("1.tar"), &at("image"));
    let blob = |digest: &Value| at("image/blobs").join(digest.as_str().unwrap().replace(':', "/"));
    let manifest = json(&blob(&json(&at("image/index.json"))["manifests"][0]["digest"]));
    let config = json(&blob(&manifest["config"]["digest"]));
    assert_eq!(config["config"]["User"], "1337:1337");
    assert_eq!(config["config"]["Labels"]["org.opencontainers.image.title"], "eastway-sidecar");
    unpacked(&blob(&manifest["layers"][0]["digest"]), &at("root"));
    for (program, said) in
        [("/usr/bin/eastway", "eastway "), ("/usr/bin/envoy", "version:"), ("/usr/sbin/nft", "nftables")]
    {
        let mut run = Command::new("unshare");
        let output = run.args(["--user", "--map-root-user", "--root"]).arg(at("root")).args([program, "--version"]);
        let output = output.output().unwrap();
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success() && text.contains(said), "{program}: {text}");
    }
}
