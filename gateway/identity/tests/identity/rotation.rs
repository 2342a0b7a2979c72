//! Rotation of the issuing key: at no moment is there a leaf that a peer with the exported pins would refuse (F27).

use std::path::Path;

use eastway_identity::ca::rotate::{self, RotateError, Stage};
use eastway_identity::ca::{Ca, InitOptions, Root};
use eastway_identity::{Identity, PeerTrust, SpkiPin, TrustStore, VerifyReason};

use crate::support::{Cloud, DAY, noon};

fn options() -> InitOptions {
    InitOptions { now: noon(), ..InitOptions::new("onprem.example") }
}

fn identity(cloud: &Cloud, ca: &Ca) -> Identity {
    ca.issue_identity(&cloud.gateway, DAY, noon()).unwrap()
}

/// What a peer thinks of a leaf if it holds what `exported` exports.
fn judge(cloud: &Cloud, exported: &Ca, identity: &Identity) -> Result<(), VerifyReason> {
    let peer = PeerTrust { pins: exported.pins(), ..cloud.peer() };
    let trust = TrustStore::new(vec![peer]).unwrap();
    trust.verify(identity.chain(), noon(), Some("onprem")).map(drop).map_err(|error| error.reason())
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn f27_old_and_new_overlap_from_end_to_end() {
    for shared in [false, true] {
        let corp = Cloud::new("corp");
        let cloud = if shared { Cloud::under("onprem", corp.dir.path()) } else { Cloud::new("onprem") };
        let root = if shared { Root::Shared(corp.dir.path().to_owned()) } else { Root::Own };
        let dir = cloud.dir.path();
        let before = names(dir);
        let old_leaf = identity(&cloud, &cloud.ca);
        assert_eq!(rotate::stage(dir).unwrap(), Stage::Idle);

        // Announced: both pins are exported, the old key issues. Peers that have not read the new export lose nothing.
        let begun = rotate::begin(dir, &InitOptions { root, ..options() }).unwrap();
        assert_eq!(begun.pin(), cloud.ca.pin());
        let next = begun.pins()[1];
        assert_eq!(SpkiPin::of_certificate(&begun.next()[0]).unwrap(), next);
        assert_eq!(begun.next().len(), 2, "with its root");
        assert_eq!(rotate::stage(dir).unwrap(), Stage::Begun { next });
        assert_eq!(begun.bundle_pem().matches("BEGIN CERTIFICATE").count(), 2);
        judge(&cloud, &cloud.ca, &identity(&cloud, &begun)).unwrap();

        // Active: peers with the announced pins accept leaves of both.
        let active = rotate::activate(dir, noon()).unwrap();
        assert_eq!(active.pins(), [next, cloud.ca.pin()]);
        assert_eq!(active.link_keys(), cloud.ca.link_keys(), "replicas of before and after know each other");
        assert!(active.next().is_empty(), "it is no longer to come");
        let new_leaf = identity(&cloud, &active);
        for exported in [&begun, &active] {
            judge(&cloud, exported, &old_leaf).unwrap();
            judge(&cloud, exported, &new_leaf).unwrap();
        }
        assert_eq!(judge(&cloud, &cloud.ca, &new_leaf), Err(VerifyReason::PeerIdentityConflict));
        let roots = if shared { 1 } else { 2 };
        assert_eq!(active.roots().len(), roots, "workloads trust both roots meanwhile");
        assert_eq!(rotate::stage(dir).unwrap(), Stage::Activated { previous: cloud.ca.pin(), since: noon().into() });

        // Finished, once the last old leaf is gone.
        let early = rotate::finish(dir, noon() + DAY / 2, false).unwrap_err();
        assert_eq!(
            early.to_string(),
            "leaves of the previous CA may live until 2030-03-18T17:46:40Z (clock says 2030-03-18T05:46:40Z); finish then, \
             or force it to cut them"
        );
        let done = rotate::finish(dir, noon() + DAY, false).unwrap();
        assert_eq!(done.pins(), [next]);
        assert_eq!(done.link_keys(), cloud.ca.link_keys());
        assert_eq!(judge(&cloud, &done, &old_leaf), Err(VerifyReason::PeerIdentityConflict));
        judge(&cloud, &done, &new_leaf).unwrap();
        assert_eq!(rotate::stage(dir).unwrap(), Stage::Idle);
        let rest: Vec<_> = names(dir).into_iter().filter(|name| !before.contains(name)).collect();
        assert_eq!(rest, ["link-keys.pem"], "nothing else is left behind");
    }
}

#[test]
fn steps_out_of_order_change_nothing() {
    let cloud = Cloud::new("onprem");
    let dir = cloud.dir.path();
    let wrong = |result: Result<Ca, RotateError>| match result {
        Err(RotateError::Stage { found, .. }) => found,
        other => panic!("{other:?}"),
    };
    assert_eq!(wrong(rotate::activate(dir, noon())), "no rotation is announced; begin one");
    assert_eq!(wrong(rotate::finish(dir, noon(), true)), "no rotation is under way");
    rotate::begin(dir, &options()).unwrap();
    assert_eq!(wrong(rotate::begin(dir, &options())), "a rotation is announced; activate it");
    assert_eq!(wrong(rotate::finish(dir, noon(), true)), "the announced rotation is not active yet; activate it");
    rotate::activate(dir, noon()).unwrap();
    assert_eq!(wrong(rotate::begin(dir, &options())), "a rotation is not finished; finish it");
    assert_eq!(wrong(rotate::activate(dir, noon())), "it is active already; finish it");
    assert_eq!(rotate::finish(dir, noon(), true).unwrap().pins().len(), 1);
}

#[test]
fn an_activation_cut_off_anywhere_leaves_a_whole_ca_and_can_be_run_again() {
    // The states between the renames of `activate`, as a crash would leave them.
    for files_copied in 0..=4 {
        let cloud = Cloud::new("onprem");
        let dir = cloud.dir.path();
        let begun = rotate::begin(dir, &options()).unwrap();
        let next = begun.pins()[1];
        let all = ["ca-key.pem", "cert-chain.pem", "root-cert.pem", "ca-cert.pem"];
        std::fs::create_dir(dir.join("previous")).unwrap();
        for name in all {
            std::fs::copy(dir.join(name), dir.join("previous").join(name)).unwrap();
        }
        std::fs::write(dir.join("ca-cert.pem.new"), "half").unwrap();
        for name in &all[..files_copied] {
            std::fs::copy(dir.join("next").join(name), dir.join(name)).unwrap();
        }
        let cut = Ca::load_at(dir, noon()).unwrap();
        assert_eq!(cut.pins(), [next, cloud.ca.pin()], "after {files_copied} files");
        judge(&cloud, &begun, &identity(&cloud, &cut)).unwrap();

        let resumed = rotate::activate(dir, noon()).unwrap();
        assert_eq!(resumed.pins(), [next, cloud.ca.pin()]);
        rotate::finish(dir, noon(), true).unwrap();
        let rest: Vec<_> = names(dir).into_iter().filter(|name| !all.contains(&name.as_str())).collect();
        assert!(rest.is_empty(), "{rest:?}");
    }
}

#[test]
fn f20_a_step_that_cannot_be_written_leaves_nothing_behind() {
    let cloud = Cloud::new("onprem");
    let dir = cloud.dir.path();
    // A file where a folder is to appear, and a folder where a file is.
    std::fs::write(dir.join("next"), "").unwrap();
    let before = names(dir);
    assert!(matches!(rotate::begin(dir, &options()), Err(RotateError::Init(_))));
    assert_eq!(names(dir), before);
    std::fs::remove_file(dir.join("next")).unwrap();
    rotate::begin(dir, &options()).unwrap();
    std::fs::rename(dir.join("root-cert.pem"), dir.join("kept")).unwrap();
    std::fs::create_dir_all(dir.join("root-cert.pem/in-the-way")).unwrap();
    assert!(rotate::activate(dir, noon()).is_err());
    assert!(names(dir).iter().all(|name| !name.ends_with(".new")), "{:?}", names(dir));
    std::fs::remove_dir_all(dir.join("root-cert.pem")).unwrap();
    std::fs::rename(dir.join("kept"), dir.join("root-cert.pem")).unwrap();
    assert_eq!(rotate::activate(dir, noon()).unwrap().pins().len(), 2, "the step can be run again");
}

#[test]
fn a_next_ca_that_is_broken_does_not_take_over() {
    let cloud = Cloud::new("onprem");
    let dir = cloud.dir.path();
    rotate::begin(dir, &options()).unwrap();
    std::fs::write(dir.join("next/cert-chain.pem"), "").unwrap();
    std::fs::copy(dir.join("ca-key.pem"), dir.join("next/ca-key.pem")).unwrap();
    let error = rotate::activate(dir, noon()).unwrap_err().to_string();
    assert!(error.contains("/next/ca-key.pem does not belong to ") && error.contains("/next/ca-cert.pem:"), "{error}");
    assert_eq!(Ca::load_at(dir, noon()).unwrap().pin(), cloud.ca.pin());
}

#[test]
fn the_keys_of_links_stay_unless_the_old_key_may_be_in_other_hands() {
    use std::os::unix::fs::PermissionsExt as _;
    let cloud = Cloud::new("onprem");
    let (dir, file) = (cloud.dir.path(), cloud.dir.path().join("link-keys.pem"));
    let first = cloud.ca.link_keys();
    for _ in 0..2 {
        rotate::begin(dir, &options()).unwrap();
        assert_eq!(rotate::activate(dir, noon()).unwrap().link_keys(), first);
        assert_eq!(rotate::finish(dir, noon() + DAY, false).unwrap().link_keys(), first, "over every rotation");
    }
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let text = std::fs::read_to_string(&file).unwrap();
    for spoilt in
        [&text[..text.len() - 40], "", &text.replace("LINK", "LNK"), &text.replacen("-----\n", "-----\nAAAA", 1)]
    {
        std::fs::write(&file, spoilt).unwrap();
        let error = Ca::load_at(dir, noon()).unwrap_err().to_string();
        assert!(error.starts_with(&file.display().to_string()), "{error}");
    }
    std::fs::write(&file, text).unwrap();
    rotate::begin(dir, &options()).unwrap();
    rotate::activate(dir, noon()).unwrap();
    let forced = rotate::finish(dir, noon(), true).unwrap();
    assert_ne!(forced.link_keys(), first);
    assert!(!file.exists());
}

#[test]
fn a_kubernetes_secret_is_left_to_its_writer() {
    let cloud = Cloud::new("onprem");
    let dir = tempfile::tempdir().unwrap();
    for (from, to) in [("ca-cert.pem", "tls.crt"), ("ca-key.pem", "tls.key"), ("root-cert.pem", "ca.crt")] {
        std::fs::copy(cloud.dir.path().join(from), dir.path().join(to)).unwrap();
    }
    assert!(matches!(rotate::begin(dir.path(), &options()), Err(RotateError::Layout { .. })));
    assert_eq!(names(dir.path()), ["ca.crt", "tls.crt", "tls.key"]);
}
