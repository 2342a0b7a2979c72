use std::fs;
use std::time::Duration;

use super::*;

const DEADLINE: Duration = Duration::from_secs(10);

fn cluster(name: &str, kubeconfig: &str) -> String {
    format!(
        "apiVersion: clusterregistry.k8s.io/v1alpha1\nkind: Cluster\nmetadata:\n  name: {name}\nspec:\n  \
         kubernetesApiEndpoints:\n    serverEndpoints: [{{clientCIDR: 0.0.0.0/0, serverAddress: 10.0.0.1}}]\n  authInfo:\n    \
         controller: {{kind: Kubeconfig, name: {kubeconfig}}}\n"
    )
}

/// What the tests make of a kubeconfig: its text.
fn open(reference: &Reference) -> Result<Opened<String>, Refusal> {
    let refused = |message| Refusal { message, help: Some("mend it".to_owned()) };
    let bytes = yaml::read_bytes(&reference.kubeconfig, 1000).map_err(refused)?;
    let value = String::from_utf8(bytes).unwrap();
    if value.contains("bad") {
        return Err(refused(format!("kubeconfig {}: is bad", reference.kubeconfig.display())));
    }
    let value = format!("{value} {:?} {}", reference.context, reference.allow_exec);
    Ok(Opened { value, files: vec![reference.kubeconfig.clone()] })
}

fn read(files: Files<String>) -> (Files<String>, Listed<String>) {
    files.read(&open)
}

fn names(listed: &Listed<String>) -> Vec<&str> {
    listed.clusters.keys().map(|name| &**name).collect()
}

#[test]
fn i11_a_file_with_a_mistake_is_told_and_stays_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    write("eu.yaml", &cluster("eu", "eu.kubeconfig"));
    write("eu.kubeconfig", "one");
    write("us.yaml", &cluster("us", "nowhere"));
    write(".us.yaml.swp", "draft");
    let (files, listed) = read(Files::new(folder.path().to_owned()));
    assert_eq!(names(&listed), ["eu"]);
    assert_eq!(listed.clusters["eu"], "one None false");
    let [error] = listed.errors.as_slice() else { panic!("{:?}", listed.errors) };
    let place =
        format!("{}/us.yaml:9:42: spec.authInfo.controller.name: no such file or folder", folder.path().display());
    assert_eq!(error.headline(), place);
    assert_eq!(error.help.as_deref(), Some("mend it"));

    // Both ways of becoming wrong: the file and what it names.
    write("eu.yaml", "kind: [");
    write("us.yaml", &cluster("us", "us.kubeconfig"));
    write("us.kubeconfig", "two");
    let (files, listed) = read(files);
    assert_eq!(names(&listed), ["eu", "us"]);
    assert_eq!(listed.errors.len(), 1);
    write("us.kubeconfig", "bad");
    let (files, listed) = read(files);
    assert_eq!((listed.clusters["us"].as_str(), listed.errors.len()), ("two None false", 2));

    // A file that is gone takes its cluster with it; a folder that is gone takes nothing (invariant I4).
    fs::remove_file(folder.path().join("eu.yaml")).unwrap();
    let (files, listed) = read(files);
    assert_eq!(names(&listed), ["us"]);
    let away = folder.path().with_extension("away");
    fs::rename(folder.path(), &away).unwrap();
    let (_, listed) = read(files);
    assert_eq!(names(&listed), ["us"]);
    assert!(listed.errors[0].headline().ends_with("cannot read: no such file or folder"), "{:?}", listed.errors);
    fs::remove_dir_all(away).unwrap();
}

#[test]
fn annotations_choose_a_context_and_allow_programs() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("k"), "k").unwrap();
    let annotated = |annotations: &str| {
        let text =
            cluster("eu", "k").replace("  name: eu\n", &format!("  name: eu\n  annotations: {{{annotations}}}\n"));
        fs::write(folder.path().join("eu.yaml"), text).unwrap();
        read(Files::new(folder.path().to_owned())).1
    };
    let listed = annotated("eastway.dev/context: prod, eastway.dev/allow-exec: 'true', other: thing");
    assert_eq!(listed.clusters["eu"], "k Some(\"prod\") true");
    let listed = annotated("eastway.dev/allow-exec: 'yes'");
    assert!(listed.errors[0].headline().contains("must be \"true\" or \"false\""), "{:?}", listed.errors);
    assert_eq!(names(&listed), [""; 0], "it may have been meant");
}

#[test]
fn every_mistake_is_named_where_it_is() {
    let good = cluster("eu", "k");
    let cases = [
        (
            "clusterregistry.k8s.io/v1alpha1",
            "eastway.dev/v1alpha1",
            "1:13: apiVersion: must be clusterregistry.k8s.io/v1alpha1",
        ),
        ("kind: Cluster", "kind: Peer", "2:7: kind: must be Cluster, not \"Peer\""),
        ("name: eu", "name: Eu", "4:9: metadata.name: must be lower-case letters"),
        ("name: eu", "nmae: eu", "metadata.nmae: unknown field (did you mean name?)"),
        ("authInfo", "authinfo", "spec.authinfo: unknown field (did you mean authInfo?)"),
        ("kind: Kubeconfig", "kind: Secret", "controller.kind: must be Kubeconfig in a file, not \"Secret\""),
        ("name: k}", "nam: k}", "controller.nam: unknown field (did you mean name?)"),
        ("name: k}", "name: ''}", "controller.name: must be the path of a kubeconfig"),
    ];
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("k"), "k").unwrap();
    for (from, to, expected) in cases {
        assert!(good.contains(from), "{from}");
        fs::write(folder.path().join("eu.yaml"), good.replacen(from, to, 1)).unwrap();
        let (_, listed) = read(Files::new(folder.path().to_owned()));
        let found: Vec<_> = listed.errors.iter().map(Diagnostic::headline).collect();
        assert!(found.iter().any(|error| error.contains(expected)), "{to}: {found:?}");
    }
}

#[test]
fn of_two_files_for_one_cluster_the_first_counts() {
    let folder = tempfile::tempdir().unwrap();
    for (file, kubeconfig) in [("a.yaml", "one"), ("b.yaml", "two")] {
        fs::write(folder.path().join(kubeconfig), kubeconfig).unwrap();
        fs::write(folder.path().join(file), cluster("eu", kubeconfig)).unwrap();
    }
    let (_, listed) = read(Files::new(folder.path().to_owned()));
    assert_eq!(listed.clusters["eu"], "one None false");
    assert!(listed.errors[0].headline().contains("cluster eu is in"), "{:?}", listed.errors);
}

#[tokio::test]
async fn files_and_kubeconfigs_are_followed() {
    let folder = tempfile::tempdir().unwrap();
    let (latest, mut listed) = watch::channel(None);
    let end = CancellationToken::new();
    let task = tokio::spawn(follow(folder.path().to_owned(), open, latest, end.clone()));
    let mut wait = async |what: &str, is: &dyn Fn(&Listed<String>) -> bool| {
        let wanted = listed.wait_for(|listed| listed.as_deref().is_some_and(is));
        assert!(tokio::time::timeout(DEADLINE, wanted).await.is_ok(), "{what}");
    };
    wait("an empty folder is known to be empty", &|listed| listed.clusters.is_empty() && listed.errors.is_empty())
        .await;
    fs::write(folder.path().join("eu.yaml"), cluster("eu", "eu.kubeconfig")).unwrap();
    wait("the kubeconfig is missing", &|listed| listed.errors.len() == 1).await;
    fs::write(folder.path().join("eu.kubeconfig"), "one").unwrap();
    wait("it is there", &|listed| listed.errors.is_empty() && listed.clusters.contains_key("eu")).await;
    fs::write(folder.path().join("eu.kubeconfig"), "two").unwrap();
    wait("it is another", &|listed| listed.clusters.get("eu").is_some_and(|text| text.starts_with("two"))).await;
    fs::remove_file(folder.path().join("eu.yaml")).unwrap();
    wait("it is gone", &|listed| listed.clusters.is_empty()).await;
    end.cancel();
    task.await.unwrap();
}
