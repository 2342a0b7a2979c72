use super::*;

const KUBEADM: &str = ".:53 {
    errors
    health {
       lameduck 5s
    }
    ready
    kubernetes cluster.local in-addr.arpa ip6.arpa {
       pods insecure
       fallthrough in-addr.arpa ip6.arpa
       ttl 30
    }
    prometheus :9153
    forward . /etc/resolv.conf {
       max_concurrent 1000
    }
    cache 30
    loop
    reload
    loadbalance
}
";

const NODE_LOCAL: &str = "cluster.local:53 {
    errors
    cache {
            success 9984 30
            denial 9984 5
    }
    reload
    loop
    bind 169.254.20.10 10.96.0.10
    forward . __PILLAR__CLUSTER__DNS__ {
            force_tcp
    }
    prometheus :9253
    health 169.254.20.10:8080
    }
.:53 {
    errors
    cache 30
    bind 169.254.20.10 10.96.0.10
    forward . __PILLAR__UPSTREAM__SERVERS__
    }
";

fn wanted() -> Wanted {
    Wanted { zones: vec!["clusterset.local".to_owned()], server: "10.96.0.53".parse().unwrap() }
}

fn block_of(text: &str) -> String {
    let new = install(text, &wanted()).unwrap().unwrap();
    let lines: Vec<&str> = new.lines().map(str::trim_end).collect();
    let end = lines.iter().position(|line| *line == END).unwrap();
    lines[1..end].join("\n") + "\n"
}

/// Texts that users have, and what must be the first line of our block in front of them.
const INSTALLABLE: [(&str, &str, &str); 12] = [
    ("kubeadm", KUBEADM, "clusterset.local:53 {"),
    ("the resolver on each node", NODE_LOCAL, "clusterset.local:53 {"),
    ("empty, as a key of its own is", "", "clusterset.local:53 {"),
    ("comments alone", "# nothing\n  # yet", "clusterset.local:53 {"),
    ("no line end at the end", ".:53 {\n  forward . 1.1.1.1\n}", "clusterset.local:53 {"),
    ("another port", ".:1053 {\n kubernetes cluster.local\n}\n", "clusterset.local:1053 {"),
    (
        "a snippet and an import",
        "(log) {\n errors\n}\nimport custom/*.server\n. {\n import log\n}\n",
        "clusterset.local:53 {",
    ),
    (
        "braces in quotes",
        ". {\n template IN A x {\n answer \"{{ .Name }} 60 IN A 1.2.3.4 }\"\n }\n}\n",
        "clusterset.local:53 {",
    ),
    ("several addresses", "a.example,\nb.example:53 {\n whoami\n}\n", "clusterset.local:53 {"),
    ("the zone over TLS is no plain one", "tls://clusterset.local {\n whoami\n}\n", "clusterset.local:53 {"),
    ("the zone on another port", "clusterset.local:5300 {\n whoami\n}\n.:53 {\n}\n", "clusterset.local:53 {"),
    ("the zone in a comment", "# clusterset.local:53 {\n.:53 {\n}\n", "clusterset.local:53 {"),
];

#[test]
fn what_is_put_in_is_taken_out_to_the_byte() {
    for (what, text, first) in INSTALLABLE {
        for text in [text.to_owned(), text.replace('\n', "\r\n")] {
            assert_eq!(state(&text, &wanted()), Ok(State::Absent), "{what}");
            assert_eq!(uninstall(&text), Ok(None), "{what}");
            let new = install(&text, &wanted()).unwrap().unwrap();
            assert_eq!(block_of(&text).lines().next(), Some(first), "{what}");
            assert_eq!(state(&new, &wanted()), Ok(State::Installed), "{what}");
            assert_eq!(install(&new, &wanted()), Ok(None), "{what}");
            assert_eq!(uninstall(&new), Ok(Some(text.clone())), "{what}");
            assert!(new.ends_with(&text), "{what}");
            assert_eq!(text.contains('\r'), new.contains('\r'), "{what}");
        }
    }
}

#[test]
fn the_block_forwards_and_forgets_denials_in_time() {
    let expected = "clusterset.local:53 {\n    errors\n    cache 30 {\n        denial 9984 30 1\n    }\n    forward . 10.96.0.53\n}\n";
    assert_eq!(block_of(KUBEADM), expected);
    let bound = block_of(NODE_LOCAL);
    assert!(bound.contains("\n    bind 169.254.20.10 10.96.0.10\n"), "{bound}");
}

#[test]
fn texts_that_are_taken_or_not_understood_are_left_alone() {
    let taken = |zone: &str, line| PlanError::Taken { zone: zone.to_owned(), line };
    let cases = [
        (".:53 {\n}\nclusterset.local:53 {\n forward . 1.2.3.4\n}\n", taken("clusterset.local", 3)),
        ("dns://ClusterSet.Local. {\n forward . 1.2.3.4\n}\n", taken("clusterset.local", 1)),
        ("a.example clusterset.local {\n}\n", taken("clusterset.local", 1)),
        ("a.example,clusterset.local {\n}\n", taken("clusterset.local", 1)),
        (".:53\nforward . 1.1.1.1\n", PlanError::Syntax { line: 1, what: "a server without braces, or a stray `}`" }),
        ("\n}\n", PlanError::Syntax { line: 2, what: "a server without braces, or a stray `}`" }),
        (".:53 {\n a {\n}\n", PlanError::Syntax { line: 1, what: "the block that begins here has no `}`" }),
        (".:53 {\n\"\n}\n", PlanError::Syntax { line: 2, what: "a quote that does not end" }),
    ];
    for (text, error) in cases {
        assert_eq!(install(text, &wanted()), Err(error.clone()), "{text}");
        assert_eq!(state(text, &wanted()), Err(error), "{text}");
    }
}

#[test]
fn hands_in_our_block_are_respected() {
    let new = install(KUBEADM, &wanted()).unwrap().unwrap();
    let edited = new.replace("10.96.0.53", "10.96.0.99");
    for result in [install(&edited, &wanted()).map(drop), uninstall(&edited).map(drop)] {
        assert_eq!(result, Err(PlanError::Edited { line: 1 }));
    }
    let around = new.replace(".:53 {\n    errors", "# mine\n.:53 {\n    log\n    errors");
    assert_eq!(
        uninstall(&around),
        Ok(Some(KUBEADM.replace(".:53 {\n    errors", "# mine\n.:53 {\n    log\n    errors")))
    );
    let half: String = new.lines().filter(|line| *line != END).map(|line| format!("{line}\n")).collect();
    assert_eq!(uninstall(&half), Err(PlanError::Markers { line: 1 }));
    let twice = format!("{new}{new}");
    assert!(matches!(uninstall(&twice), Err(PlanError::Markers { .. })));
    assert_eq!(uninstall(&format!("{KUBEADM}{END}\n")), Err(PlanError::Markers { line: KUBEADM.lines().count() + 1 }));
}

#[test]
fn another_address_or_more_zones_replace_what_was_written() {
    let new = install(KUBEADM, &wanted()).unwrap().unwrap();
    let more = Wanted {
        zones: vec!["clusterset.local".to_owned(), "shop.example".to_owned()],
        server: "fd00::53".parse().unwrap(),
    };
    assert_eq!(state(&new, &more), Ok(State::Outdated));
    let newer = install(&new, &more).unwrap().unwrap();
    assert!(newer.contains("clusterset.local:53 shop.example:53 {") && newer.contains("forward . fd00::53"), "{newer}");
    assert_eq!(uninstall(&newer), Ok(Some(KUBEADM.to_owned())));
}

#[test]
fn coredns_that_answers_imports_itself_needs_nothing() {
    let text = KUBEADM.replace("kubernetes cluster.local", "kubernetes cluster.local clusterset.local");
    assert!(matches!(state(&text, &wanted()), Ok(State::Absent)), "the zone alone is not enough");
    let text = text.replace("ttl 30", "ttl 30\n       multicluster clusterset.local");
    assert_eq!(state(&text, &wanted()), Ok(State::BuiltIn));
    assert_eq!(install(&text, &wanted()), Ok(None));
    let more = Wanted { zones: vec!["clusterset.local".to_owned(), "shop.example".to_owned()], ..wanted() };
    let new = install(&text, &more).unwrap().unwrap();
    assert!(new.contains("\nshop.example:53 {\n"), "{new}");
    // Turned on after we wrote: ours goes.
    let both = install(KUBEADM, &wanted()).unwrap().unwrap().replace(KUBEADM, &text);
    assert_eq!(state(&both, &wanted()), Ok(State::Outdated));
    assert_eq!(install(&both, &wanted()), Ok(Some(text)));
}

proptest::proptest! {
    /// Whatever a text is: it is refused, or what is put in is taken out to the byte.
    #[test]
    fn any_text_survives(text in "[a-z.:{} \"#\\\\\n\r]{0,80}") {
        if let Ok(Some(new)) = install(&text, &wanted()) {
            proptest::prop_assert_eq!(uninstall(&new), Ok(Some(text)));
        }
    }
}
