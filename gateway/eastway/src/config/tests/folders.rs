//! What only shows with several files, and files that cannot be read.

use std::os::unix::fs::{PermissionsExt, symlink};

use super::{Folder, MINIMAL, PEER};

/// The good Peer under another name, with everything else of its own too.
fn other(name: &str) -> String {
    let digit = if name == "aws" { "b" } else { "c" };
    PEER.replace("name: gke", &format!("name: {name}"))
        .replace("198.51.100.12", &format!("gw.{name}.example"))
        .replace("gke.example", &format!("{name}.example"))
        .replace("aaaa", &digit.repeat(4))
}

fn with_two(a: &str, b: &str) -> Folder {
    Folder::new(&[("gateway.yaml", MINIMAL), ("peers/a.yaml", a), ("peers/b.yaml", b)])
}

#[test]
fn two_good_peers() {
    assert_eq!(with_two(PEER, &other("aws")).warnings(), "");
}

#[test]
fn a_name_twice() {
    insta::assert_snapshot!(with_two(PEER, &other("aws").replace("name: aws", "name: gke")).errors());
}

#[test]
fn f36_a_pin_twice() {
    insta::assert_snapshot!(with_two(PEER, &other("aws").replace("bbbb", "aaaa")).errors());
}

#[test]
fn an_address_twice() {
    insta::assert_snapshot!(with_two(PEER, &other("aws").replace("gw.aws.example", "198.51.100.12")).errors());
}

#[test]
fn a_trust_domain_twice() {
    let second = other("aws").replace("trustDomain: aws.example", "trustDomain: gke.example");
    insta::assert_snapshot!(with_two(PEER, &second).errors());
}

#[test]
fn a_trust_domain_twice_accepted_on_one_side_only() {
    let second = other("aws").replace("trustDomain: aws.example", "trustDomain: gke.example");
    insta::assert_snapshot!(with_two(PEER, &format!("{second}  sharedTrustDomain: true\n")).errors());
}

#[test]
fn mistakes_of_all_files_at_once() {
    let files = [
        ("gateway.yaml", &*MINIMAL.replace("onprem.example", "onprem example")),
        ("peers/a.yaml", &*PEER.replace("pins", "pin")),
        ("peers/b.yaml", "kind: ["),
        ("peers/c.yml", "a: b"),
        ("policies/d.yaml", "kind: Policy\n---\nkind: AccessPolicy\n"),
    ];
    // The folders that a file with mistakes names are not known for sure: they come second.
    insta::assert_snapshot!(Folder::new(&files).errors());
    let mut files = files;
    files[0].1 = MINIMAL;
    insta::assert_snapshot!(Folder::new(&files).errors());
}

/// Somebody meant them to be read.
#[test]
fn what_is_not_read_of_the_policies_is_told() {
    let folder = Folder::new(&[
        ("gateway.yaml", MINIMAL),
        ("policies/a.json", "{}"),
        ("policies/sub/b.yaml", "kind: TrafficPolicy"),
        ("policies/.draft", "x"),
    ]);
    insta::assert_snapshot!(folder.warnings());
    let many = ["gateway.yaml", "policies/1", "policies/2", "policies/3", "policies/4"].map(|name| (name, MINIMAL));
    assert!(Folder::new(&many).warnings().contains("4 are not read: 1, 2, 3, …"), "{}", Folder::new(&many).warnings());
}

#[test]
fn a_file_that_is_not_there() {
    insta::assert_snapshot!(Folder::new(&[]).errors());
}

#[test]
fn a_folder_that_is_not_there() {
    insta::assert_snapshot!(Folder::new(&[("gateway.yaml", &format!("{MINIMAL}peers: ./pears\n"))]).errors());
}

#[test]
fn a_folder_that_is_a_file() {
    insta::assert_snapshot!(Folder::new(&[("gateway.yaml", MINIMAL), ("peers", "x")]).errors());
}

#[test]
fn files_that_are_folders_sockets_or_nowhere() {
    let folder = Folder::new(&[("gateway.yaml", MINIMAL), ("peers/a.yaml/b", ""), ("peers/latin.yaml", "")]);
    symlink("..data/gone.yaml", folder.path("peers/gone.yaml")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(folder.path("peers/socket.yaml")).unwrap();
    std::fs::write(folder.path("peers/latin.yaml"), b"a: b\nc: \xe9t\xe9\n").unwrap();
    insta::assert_snapshot!(folder.errors());
}

#[test]
fn a_file_without_permission() {
    let folder = Folder::new(&[("gateway.yaml", MINIMAL), ("peers/gke.yaml", PEER)]);
    let path = folder.path("peers/gke.yaml");
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o000)).unwrap();
    if std::fs::read(&path).is_ok() {
        // The superuser reads everything: the words are then tested without the file.
        let reason = eastway_registry::yaml::reason(&std::io::ErrorKind::PermissionDenied.into());
        assert_eq!(reason, "permission denied");
    } else {
        assert_eq!(folder.errors(), "peers/gke.yaml: cannot read: permission denied");
    }
}

#[test]
fn hidden_files_and_other_files_are_left_alone() {
    let files = [
        ("gateway.yaml", MINIMAL),
        ("peers/gke.yaml", PEER),
        ("peers/.gke.yaml.swp", "x"),
        ("peers/.draft.yaml", "x"),
        ("peers/gke.yaml~", "x"),
        ("peers/README.md", "x"),
        ("peers/..2026_11_23/aws.yaml", "x"),
    ];
    assert_eq!(Folder::new(&files).warnings(), "");
}
