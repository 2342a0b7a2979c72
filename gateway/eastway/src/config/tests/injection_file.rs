//! `sidecars.injection`, good and with mistakes.

use super::{Folder, MINIMAL};
use crate::config::file::PullPolicyWord;
use crate::config::load;

fn with(injection: &str) -> Folder {
    let text = format!(
        "{MINIMAL}listen: {{local: '0.0.0.0:15012', hbone: '0.0.0.0:15008', injection: '0.0.0.0:15017'}}\n\
         sidecars:\n  gateway: gateway.example:15008\n  injection:\n{injection}"
    );
    Folder::new(&[("gateway.yaml", &text)])
}

#[test]
fn sidecars_in_pods() {
    let folder = with(
        "    image: registry.example/sidecar:1\n    pullPolicy: Always\n    ranges: [10.96.0.0/16, 'fd00:1::/64']\n    \
         requests: {cpu: 0.5, memory: 64Mi}\n    limits: {memory: 512Mi}\n",
    );
    let settings = load(&folder.path("gateway.yaml")).unwrap().settings.clone();
    assert_eq!(settings.listen.injection.port(), 15017);
    let injection = settings.sidecars.as_ref().unwrap().injection.as_ref().unwrap();
    assert_eq!(
        (injection.image.as_str(), injection.pull_policy),
        ("registry.example/sidecar:1", PullPolicyWord::Always)
    );
    let ranges: Vec<_> = injection.ranges.iter().map(ToString::to_string).collect();
    assert_eq!(ranges, ["10.96.0.0/16", "fd00:1::/64"]);
    assert_eq!((&*injection.requests["cpu"], &*injection.requests["memory"]), ("0.5", "64Mi"));
    assert_eq!(injection.limits.keys().collect::<Vec<_>>(), [&"memory"]);
    let least = with("    image: sidecar\n");
    let settings = load(&least.path("gateway.yaml")).unwrap().settings.clone();
    let injection = settings.sidecars.as_ref().unwrap().injection.as_ref().unwrap();
    assert!(injection.ranges.is_empty() && injection.requests.is_empty());
    assert_eq!(injection.pull_policy, PullPolicyWord::IfNotPresent);
}

#[test]
fn sidecars_in_pods_with_mistakes() {
    let said = with("    ranges: []\n").errors();
    assert!(said.contains("image") && said.contains("gateway.yaml:"), "{said}");
    let said = with(
        "    image: 'a b'\n    pullPolicy: Sometimes\n    ranges: [10.0.0.0/8, 10.96.0.0/16, 10.0.0.1/8]\n    \
         requests: {cpu: lots, memory: -1Mi}\n    limits: {cpu: 1e3}\n",
    )
    .errors();
    for words in [
        "image: must be the name of an image",
        "pullPolicy: ",
        "ranges[1]: overlaps with 10.0.0.0/8",
        "ranges[2]: ",
        "requests.cpu: must be a quantity",
        "requests.memory: must be a quantity",
        "limits.cpu: must be a quantity",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
}
