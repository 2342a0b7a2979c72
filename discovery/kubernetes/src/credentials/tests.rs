use serde_json::{Value, json};

use super::*;

/// A kubeconfig of one context with these more fields of its cluster and its user.
#[expect(clippy::needless_pass_by_value, reason = "they are written where they are given")]
fn kubeconfig(cluster: Value, user: Value) -> String {
    let mut all = json!({"server": "https://eu.example:6443"});
    all.as_object_mut().unwrap().extend(cluster.as_object().unwrap().clone());
    let file = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "eu",
        "clusters": [{"name": "c", "cluster": all}], "users": [{"name": "u", "user": user}],
        "contexts": [
            {"name": "eu", "context": {"cluster": "c", "user": "u"}},
            {"name": "us", "context": {"cluster": "nowhere", "user": "u"}},
        ],
    });
    file.to_string()
}

fn of_object(cluster: Value, user: Value) -> Result<Credentials, CredentialsError> {
    Credentials::parse(&kubeconfig(cluster, user), None, Origin::Object)
}

#[test]
fn a_token_is_enough_and_never_shown() {
    let credentials = of_object(json!({}), json!({"token": "s3cret"})).unwrap();
    assert_eq!(credentials.server(), "https://eu.example:6443");
    assert!(!format!("{credentials:?}").contains("s3cret"));
    assert_eq!(credentials, of_object(json!({}), json!({"token": "s3cret"})).unwrap());
    assert_ne!(credentials, of_object(json!({}), json!({"token": "other"})).unwrap());
    let given = Credentials::with_token("https://eu.example:6443", None, "s3cret\n").unwrap();
    assert_eq!(credentials, given, "the same by whatever way");
}

#[test]
fn objects_start_no_programs_and_name_no_files() {
    let exec = json!({"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": "/bin/sh", "args": ["-c"]}});
    let refused = of_object(json!({}), exec.clone()).unwrap_err();
    assert_eq!(refused, CredentialsError::Program("/bin/sh".to_owned()));
    assert!(refused.to_string().contains("eastway.dev/allow-exec"), "{refused}");
    for (cluster, user, field) in [
        (json!({}), json!({"tokenFile": "/var/run/secrets/kubernetes.io/serviceaccount/token"}), "tokenFile"),
        (json!({}), json!({"client-certificate": "/etc/eastway/x"}), "client-certificate"),
        (json!({}), json!({"client-key": "/etc/eastway/x"}), "client-key"),
        (json!({"certificate-authority": "/etc/eastway/x"}), json!({}), "certificate-authority"),
    ] {
        assert_eq!(of_object(cluster, user).unwrap_err(), CredentialsError::NamesFile(field));
    }
    let old = json!({"auth-provider": {"name": "gcp", "config": {"cmd-path": "/bin/sh"}}});
    assert_eq!(of_object(json!({}), old).unwrap_err(), CredentialsError::AuthProvider);
    // A file of the administrator may, where its Cluster says so.
    let text = kubeconfig(json!({}), exec);
    let folder = Path::new("/etc");
    let file = |allow_exec| Credentials::parse(&text, None, Origin::File { folder, allow_exec });
    assert_eq!(file(false).unwrap_err(), CredentialsError::Program("/bin/sh".to_owned()));
    assert!(file(true).is_ok());
}

#[test]
fn i10_no_server_is_believed_or_told_a_token_in_clear() {
    let unverified = of_object(json!({"insecure-skip-tls-verify": true}), json!({}));
    assert_eq!(unverified.unwrap_err(), CredentialsError::Unverified);
    let clear = of_object(json!({"server": "http://eu.example"}), json!({}));
    assert_eq!(clear.unwrap_err(), CredentialsError::NotTls("http://eu.example".to_owned()));
}

#[test]
fn what_is_missing_is_named() {
    let parse = |text: &str, context| Credentials::parse(text, context, Origin::Object).unwrap_err().to_string();
    let good = kubeconfig(json!({}), json!({}));
    assert_eq!(parse(&good, Some("asia")), "has no context \"asia\"");
    assert_eq!(parse(&good, Some("us")), "has no cluster \"nowhere\"");
    assert_eq!(parse("{}", None), "has no context \"\"");
    let broken = parse("users:\n- name: u\n  user: {token: [s3cret]}\n", None);
    assert!(broken.starts_with("is no kubeconfig: line 3"), "{broken}");
    assert!(!broken.contains("s3cret"));
}

#[test]
fn files_are_read_from_the_folder_of_the_file_and_named_for_the_watch() {
    let folder = std::env::temp_dir().join(format!("eastway-credentials-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let text = kubeconfig(json!({"certificate-authority": "ca.crt"}), json!({"token": "t"}));
    let read = || Credentials::parse(&text, None, Origin::File { folder: &folder, allow_exec: false });
    let missing = read().unwrap_err().to_string();
    assert!(missing.starts_with("certificate-authority: ") && missing.contains("ca.crt: "), "{missing}");
    std::fs::write(folder.join("ca.crt"), "one").unwrap();
    let first = read().unwrap();
    assert_eq!(first.files(), [folder.join("ca.crt")]);
    std::fs::write(folder.join("ca.crt"), "two").unwrap();
    assert_ne!(first, read().unwrap(), "other contents are other credentials");
    std::fs::remove_dir_all(&folder).unwrap();
}
