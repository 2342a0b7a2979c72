//! The command line as users meet it: the real binary, its exit codes and its words.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/fake_gateway.rs"]
mod fake_gateway;

use std::net::SocketAddr;
use std::process::{Command, Output, Stdio};

use fake_gateway::{FakeGateway, FakeSource};

fn eastway() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_eastway"));
    // Whatever runs the tests may have set these.
    for name in ["EASTWAY_CONFIG", "EASTWAY_ADMIN", "EASTWAY_LOG_LEVEL", "EASTWAY_LOG_FORMAT", "RUST_BACKTRACE"] {
        command.env_remove(name);
    }
    command.stdin(Stdio::null());
    command
}

fn run(arguments: &[&str]) -> Output {
    eastway().args(arguments).output().unwrap()
}

/// Runs a command against a gateway that another thread serves.
async fn ask(admin: SocketAddr, arguments: &[&str]) -> Output {
    let mut command = eastway();
    command.env("EASTWAY_ADMIN", admin.to_string()).args(arguments);
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// One line that begins with `error: `, no trace of a panic, and nothing on standard output.
fn assert_one_line(output: &Output, what: &str) {
    let text = stderr(output);
    assert!(text.starts_with("error: ") && text.ends_with('\n'), "{what}: {text}");
    assert_eq!(text.lines().count(), 1, "{what}: {text}");
    for trace in ["panicked", "backtrace", "RUST_BACKTRACE", "src/", ".rs:"] {
        assert!(!text.contains(trace), "{what}: {text}");
    }
    assert_eq!(stdout(output), "", "{what}");
}

#[test]
fn bad_usage_is_one_line_and_exit_code_2() {
    let table: &[(&[&str], &str)] = &[
        (&["frobnicate"], "unrecognized subcommand 'frobnicate'"),
        (&["statu"], "a similar subcommand exists: 'status'"),
        (&["status", "--frob"], "unexpected argument '--frob'"),
        (&["run", "--confg", "x"], "a similar argument exists: '--config'"),
        (&["run"], "--config <FILE>"),
        (&["run", "--config"], "a value is required for '--config <FILE>'"),
        (&["run", "--config", "a", "--config", "b"], "cannot be used multiple times"),
        (&["run", "--config", "a", "--roles", "king"], "invalid value 'king' for '--roles <ROLE>'"),
        (&["run", "--config", "a", "--log-level", "loud"], "log level \"loud\""),
        (&["status", "extra"], "unexpected argument 'extra'"),
        (&["status", "-o", "xml"], "invalid value 'xml'"),
        (&["status", "--admin", "localhost"], "invalid value 'localhost'"),
        (&["status", "--admin", "127.0.0.1:70000"], "invalid value '127.0.0.1:70000'"),
        (&["status", "--admin", "127.0.0.1:1", "--config", "x"], "cannot be used with"),
        (&["describe"], "<SERVICE>"),
        (&["describe", "a/b", "--port", "0x50"], "invalid value '0x50'"),
        (&["describe", "a/b", "--header", "foo"], "header \"foo\" is not a header: it is NAME=VALUE"),
        (&["describe", "a/b", "--header", "x=1", "--header", "=x"], "header \"=x\""),
        (&["describe", "a/b", "--path", "x"], "path \"x\" is not a path: it begins with /"),
        (&["describe", "a/b", "--method", "a b"], "method \"a b\" is not a method"),
        (&["check", "--explain", "EW999"], "not a code"),
        (&["completion", "klingon"], "invalid value 'klingon'"),
        (&["proxy-config", "clusters"], "<NODE>"),
        (&["proxy-config", "bootstraps", "a.b"], "invalid value 'bootstraps'"),
    ];
    for (arguments, expected) in table {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", stderr(&output));
        assert_one_line(&output, &format!("{arguments:?}"));
        assert!(stderr(&output).contains(expected), "{arguments:?}: {}", stderr(&output));
    }
}

#[test]
fn an_unknown_variable_is_bad_usage() {
    let output = eastway().env("EASTWAY_CONFG", "x").arg("version").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert_one_line(&output, "EASTWAY_CONFG");
    assert!(stderr(&output).contains("EASTWAY_CONFG; did you mean EASTWAY_CONFIG?"), "{}", stderr(&output));
    let output = eastway().env("EASTWAY_SERVICE_HOST", "10.0.0.1").arg("version").output().unwrap();
    assert_eq!(output.status.code(), Some(0), "a variable that Kubernetes sets");
}

#[test]
fn help_and_version_succeed_on_standard_output() {
    for arguments in [&["--help"][..], &["-h"], &["--version"], &["version"], &["help", "run"], &["run", "--help"]] {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        assert!(!output.stdout.is_empty() && output.stderr.is_empty(), "{arguments:?}");
    }
    assert_eq!(stdout(&run(&["--version"])), format!("eastway {}\n", env!("CARGO_PKG_VERSION")));
    assert_eq!(run(&[]).status.code(), Some(2), "no command at all");
}

#[test]
fn help_teaches() {
    for command in ["", "run", "ca", "check", "describe", "proxy-status", "proxy-config"] {
        let mut arguments: Vec<&str> = Vec::from_iter((!command.is_empty()).then_some(command));
        arguments.push("--help");
        let name = if command.is_empty() { "eastway" } else { command };
        insta::assert_snapshot!(format!("help_{name}"), stdout(&run(&arguments)));
    }
}

#[test]
fn completions_know_the_commands() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = run(&["completion", shell]);
        assert_eq!(output.status.code(), Some(0), "{shell}");
        assert!(stdout(&output).contains("describe"), "{shell}");
    }
}

#[test]
fn every_code_can_be_explained() {
    let all = stdout(&run(&["check", "--explain", "all"]));
    assert!(all.lines().filter(|line| line.starts_with("EW")).count() >= 55, "{all}");
    assert!(!all.contains('{'), "{all}");
    let one = stdout(&run(&["check", "--explain", "ew302"]));
    assert!(
        one.starts_with("EW302 (error): no answer to UDP from …\n") && one.contains("  do:  open UDP 15443"),
        "{one}"
    );
}

const CONFIG: &str = "\
apiVersion: eastway.dev/v1alpha1
kind: GatewayConfig
cluster: onprem
trust:
  domain: onprem.example
";

/// A folder with a good `gateway.yaml`.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("gateway.yaml"), CONFIG).unwrap();
    folder
}

fn run_in(folder: &tempfile::TempDir, arguments: &[&str]) -> Output {
    eastway().current_dir(folder.path()).args(arguments).output().unwrap()
}

#[test]
fn a_bad_file_is_exit_code_2_everywhere() {
    let folder = folder();
    std::fs::write(folder.path().join("bad.yaml"), format!("{CONFIG}lissten: {{}}\ncluster: b\n")).unwrap();
    std::fs::create_dir(folder.path().join("folder.yaml")).unwrap();
    for command in [&["config", "check"][..], &["run", "--check"], &["ca", "init"], &["status"], &["check"]] {
        for file in ["missing.yaml", "folder.yaml"] {
            let output = run_in(&folder, &[command, &["--config", file]].concat());
            assert_eq!(output.status.code(), Some(2), "{command:?} {file}: {}", stderr(&output));
            assert_one_line(&output, &format!("{command:?} {file}"));
            assert!(stderr(&output).contains(file), "{command:?}: {}", stderr(&output));
        }
        let output = run_in(&folder, &[command, &["--config", "bad.yaml"]].concat());
        assert_eq!(output.status.code(), Some(2), "{command:?}: {}", stderr(&output));
        let text = stderr(&output);
        assert!(text.contains("did you mean listen?") && text.contains("bad.yaml:6:1"), "{text}");
        let last = text.lines().last().unwrap();
        assert!(last.starts_with("error: bad.yaml cannot be used: "), "{text}");
    }
}

#[test]
fn config_check_says_good_and_speaks_json() {
    let folder = folder();
    let output = run_in(&folder, &["config", "check", "--config", "gateway.yaml"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stdout(&output).contains("gateway.yaml: cluster onprem, 0 peers"), "{}", stdout(&output));
    std::fs::write(folder.path().join("gateway.yaml"), "cluster: 5\n").unwrap();
    let output = run_in(&folder, &["config", "check", "--config", "gateway.yaml", "-o", "json"]);
    assert_eq!(output.status.code(), Some(2));
    let report: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(report.get("usable"), Some(&serde_json::Value::Bool(false)));
    assert!(!report.get("diagnostics").unwrap().as_array().unwrap().is_empty());
}

#[test]
fn c5_ca_init_makes_a_ca_once() {
    let folder = folder();
    let output = run_in(&folder, &["ca", "init", "--config", "gateway.yaml"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let text = stdout(&output);
    assert!(text.contains("for onprem.example") && text.contains("pin  sha256:"), "{text}");
    assert!(!text.contains("PRIVATE"), "{text}");
    let key = folder.path().join("cacerts/ca-key.pem");
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&key).unwrap().permissions());
    assert_eq!(mode & 0o077, 0, "the key is for its owner only");
    let before = std::fs::read(&key).unwrap();
    let output = run_in(&folder, &["ca", "init", "--config", "gateway.yaml"]);
    assert_eq!(output.status.code(), Some(1));
    assert_one_line(&output, "a second init");
    assert_eq!(std::fs::read(&key).unwrap(), before, "an existing CA was touched");
    // Without a configuration file, and in spite of the variable that names one.
    let arguments = ["ca", "init", "--dir", "other", "--trust-domain", "gke.example"];
    let output =
        eastway().current_dir(folder.path()).env("EASTWAY_CONFIG", "missing.yaml").args(arguments).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let output = run_in(&folder, &["ca", "init", "--dir", "third", "--trust-domain", "Not A Domain"]);
    assert_eq!(output.status.code(), Some(1));
    assert_one_line(&output, "a bad trust domain");
}

#[test]
fn schemas_are_printed() {
    let kinds = stdout(&run(&["schema"]));
    assert!(kinds.lines().count() >= 5 && kinds.lines().any(|kind| kind == "Peer"), "{kinds}");
    for kind in kinds.lines() {
        let schema: serde_json::Value = serde_json::from_str(&stdout(&run(&["schema", kind]))).expect(kind);
        assert!(schema.get("$schema").is_some(), "{kind}");
    }
    let output = run(&["schema", "Pear"]);
    assert_eq!(output.status.code(), Some(2));
    assert_one_line(&output, "unknown kind");
    assert!(stderr(&output).contains("did you mean Peer?"), "{}", stderr(&output));
}

#[test]
fn what_peer_export_prints_peer_lint_accepts() {
    let folder = folder();
    let export =
        |arguments: &[&str]| run_in(&folder, &[&["peer", "export", "--config", "gateway.yaml"], arguments].concat());
    let output = export(&[]);
    assert_eq!(output.status.code(), Some(1), "without a CA");
    assert_one_line(&output, "without a CA");
    assert!(stderr(&output).contains("eastway ca init"), "{}", stderr(&output));

    assert!(run_in(&folder, &["ca", "init", "--config", "gateway.yaml"]).status.success());
    for (arguments, word) in [
        (&[][..], "it dials us"),
        (&["--address", "gw.onprem.example:15443"], "gw.onprem.example:15443"),
        (
            &["--bundle", "--address", "198.51.100.7:1", "--address", "[2001:db8::1]:15443"],
            "198.51.100.7:1, [2001:db8::1]:15443",
        ),
    ] {
        let output = export(arguments);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let text = stdout(&output);
        assert!(text.contains("kind: Peer") && !text.contains("PRIVATE"), "{text}");
        assert_eq!(text.contains("BEGIN CERTIFICATE"), arguments.contains(&"--bundle"), "{text}");
        std::fs::write(folder.path().join("onprem.yaml"), text).unwrap();
        let lint = run_in(&folder, &["peer", "lint", "onprem.yaml"]);
        // Nothing crosses yet, which is worth a warning.
        assert_eq!(lint.status.code(), Some(3), "{}{}", stdout(&lint), stderr(&lint));
        let said = stdout(&lint);
        assert!(said.contains(&format!("good, peer onprem of onprem.example, {word}\n  pin sha256:")), "{said}");
    }
    // Both keys while a CA is rotated.
    assert!(run_in(&folder, &["ca", "rotate", "--config", "gateway.yaml", "begin"]).status.success());
    assert_eq!(stdout(&export(&[])).matches("sha256:").count(), 2);
    let output = export(&["--address", "no port"]);
    assert_eq!(output.status.code(), Some(2));
    assert_one_line(&output, "a bad address");
}

#[test]
fn peer_lint_refuses_bad_files() {
    let folder = folder();
    std::fs::write(folder.path().join("bad.yaml"), "kind: Peer\nspec: {adresses: []}\n").unwrap();
    for (file, code, words) in [("missing.yaml", 2, "cannot read"), ("bad.yaml", 2, "did you mean addresses?")] {
        let output = run_in(&folder, &["peer", "lint", file]);
        assert_eq!(output.status.code(), Some(code), "{file}");
        assert!(stderr(&output).contains(words), "{file}: {}", stderr(&output));
        assert!(stderr(&output).lines().last().unwrap().starts_with("error: "), "{file}: {}", stderr(&output));
        let json = run_in(&folder, &["peer", "lint", file, "-o", "json"]);
        assert_eq!(json.status.code(), Some(code), "{file}");
        let report: serde_json::Value = serde_json::from_str(&stdout(&json)).unwrap();
        assert_eq!(report.get("usable"), Some(&serde_json::Value::Bool(false)), "{file}");
    }
}

#[test]
fn run_says_in_one_line_why_it_cannot_start() {
    let folder = folder();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let health = taken.local_addr().unwrap();
    let write = |health: &str| {
        let listen = format!(
            "listen: {{health: \"{health}\", link: \"127.0.0.1:0\", dns: [\"127.0.0.1:0\"], admin: \"127.0.0.1:0\", metrics: \"127.0.0.1:0\"}}\n"
        );
        std::fs::write(folder.path().join("gateway.yaml"), format!("{CONFIG}{listen}")).unwrap();
    };
    write("127.0.0.1:0");
    let start =
        |roles: &str| run_in(&folder, &["run", "--config", "gateway.yaml", "--roles", roles, "--log-level", "error"]);
    let output = start("gateway,ca");
    assert_eq!(output.status.code(), Some(1), "no CA: {}", stderr(&output));
    // The ca role is a process of its own and says why; the gateway says that it ended.
    assert_eq!(stderr(&output).lines().count(), 2, "{}", stderr(&output));
    assert!(stderr(&output).contains("it said why above"), "{}", stderr(&output));
    assert!(run_in(&folder, &["ca", "init", "--config", "gateway.yaml"]).status.success());
    write(&health.to_string());
    let output = start("gateway,ca");
    assert_eq!(output.status.code(), Some(1), "port in use: {}", stderr(&output));
    assert_one_line(&output, "port in use");
    assert!(stderr(&output).contains(&format!("cannot listen on {health} for health")), "{}", stderr(&output));
    let output = start("controller");
    assert_eq!(output.status.code(), Some(1), "no Kubernetes here: {}", stderr(&output));
    assert_one_line(&output, "controller");
    assert!(stderr(&output).contains("name a kubeconfig"), "{}", stderr(&output));
}

/// Adds a Peer file `gke.yaml` to the folder's peers.
fn add_peer(folder: &tempfile::TempDir) -> std::path::PathBuf {
    let peers = folder.path().join("peers");
    std::fs::create_dir_all(&peers).unwrap();
    let pin = "0123456789abcdef".repeat(4);
    let text = format!(
        "apiVersion: eastway.dev/v1alpha1\nkind: Peer\nmetadata: {{name: gke}}\nspec:\n  trustDomain: gke.example\n  \
         pins: [\"sha256:{pin}\"]\n  export: [{{namespace: bookinfo}}]\n  import: [{{namespace: bookinfo}}]\n"
    );
    let file = peers.join("gke.yaml");
    std::fs::write(&file, text).unwrap();
    file
}

#[tokio::test]
async fn peer_remove_waits_until_nothing_is_left() {
    let source = FakeSource { leftovers_for: 5.into(), ..FakeSource::default() };
    let gateway = FakeGateway::start(source).await;
    let folder = folder();
    let file = add_peer(&folder);
    std::fs::write(folder.path().join("gateway.yaml"), format!("{CONFIG}listen: {{admin: \"{}\"}}\n", gateway.admin))
        .unwrap();
    let remove = async |arguments: &[&str]| {
        let mut command = eastway();
        command.current_dir(folder.path()).args(["peer", "remove", "--config", "gateway.yaml"]).args(arguments);
        tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
    };
    let output = remove(&["gk"]).await;
    assert_eq!(output.status.code(), Some(1));
    assert_one_line(&output, "unknown peer");
    assert!(stderr(&output).contains("did you mean gke?"), "{}", stderr(&output));
    let output = remove(&["gke", "--dry-run"]).await;
    assert!(output.status.success() && file.exists(), "{}", stderr(&output));
    // Not enough time: it says what is left.
    let output = remove(&["gke", "--timeout", "0s"]).await;
    assert_eq!(output.status.code(), Some(1), "{}", stdout(&output));
    assert!(stderr(&output).contains("still has the peer in its configuration"), "{}", stderr(&output));
    assert!(!file.exists());
    add_peer(&folder);
    let output = remove(&["gke"]).await;
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stdout(&output).contains("nothing is left of gke"), "{}", stdout(&output));
    assert!(!file.exists());
    // A gateway that does not run has nothing to wait for.
    add_peer(&folder);
    std::fs::write(folder.path().join("gateway.yaml"), format!("{CONFIG}listen: {{admin: \"127.0.0.1:1\"}}\n"))
        .unwrap();
    let output = remove(&["gke"]).await;
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stdout(&output).contains("no gateway runs here") && !file.exists(), "{}", stdout(&output));
}

#[test]
fn ca_rotate_leads_through_its_steps() {
    let folder = folder();
    assert!(run_in(&folder, &["ca", "init", "--config", "gateway.yaml"]).status.success());
    let rotate = |step: &[&str]| run_in(&folder, &[&["ca", "rotate", "--config", "gateway.yaml"], step].concat());
    let says = |output: &Output, words: &str| {
        assert_eq!(output.status.code(), Some(0), "{}", stderr(output));
        assert!(stdout(output).contains(words), "{words:?} is missing in {}", stdout(output));
    };
    says(&rotate(&[]), "next: `begin`");
    for step in ["activate", "finish"] {
        let output = rotate(&[step]);
        assert_eq!(output.status.code(), Some(1), "{step}");
        assert_one_line(&output, step);
    }
    // Where the CA is may be said before the step and after it.
    says(&run_in(&folder, &["ca", "rotate", "begin", "--config", "gateway.yaml"]), "then `activate`");
    says(&rotate(&[]), "is announced");
    says(&rotate(&["activate"]), "counts still");
    let early = rotate(&["finish"]);
    assert_eq!(early.status.code(), Some(1));
    assert_one_line(&early, "finish too early");
    says(&rotate(&["finish", "--force"]), "no rotation is under way");
}

#[test]
fn ca_rotate_takes_a_context_before_and_after_its_step() {
    let folder = folder();
    let none = ["--kubernetes", "--kubeconfig", "none.yaml", "--context", "gke", "--namespace", "eastway-system"];
    for split in 0..=none.len() {
        let (before, after) = none.split_at(split);
        // No option is torn from its value.
        if !after.first().is_none_or(|first| first.starts_with("--")) {
            continue;
        }
        let output = run_in(&folder, &[&["ca", "rotate"], before, &["begin"], after].concat());
        assert_eq!(output.status.code(), Some(1), "{before:?} {after:?}: {}", stderr(&output));
        assert!(stderr(&output).contains("none.yaml"), "{}", stderr(&output));
    }
    let wrong: [&[&str]; 3] = [
        &["begin", "--namespace", "eastway-system"],
        &["begin", "--kubernetes", "--dir", "cacerts"],
        &["--dir", "cacerts", "begin"],
    ];
    for wrong in wrong {
        let output = run_in(&folder, &[&["ca", "rotate"], wrong].concat());
        assert_eq!(output.status.code(), Some(2), "{wrong:?}: {}", stderr(&output));
        assert_one_line(&output, "what does not go together");
    }
}

#[test]
fn cleanup_without_a_cluster_says_so() {
    let output = run(&["cleanup", "--dry-run", "--kubeconfig", "none.yaml"]);
    assert_eq!(output.status.code(), Some(1));
    assert_one_line(&output, "no kubeconfig");
    assert!(stderr(&output).contains("none.yaml"), "{}", stderr(&output));
}

#[tokio::test]
async fn dns_query_asks_a_real_server() {
    use eastway_dns::{
        DnsConfig, Fqdn, Limits, PortEntry, Protocol, Readiness, Server, ServiceEntry, ServiceKind, ZoneStore,
    };
    let store = ZoneStore::new([Fqdn::parse("shop.example").unwrap()]).unwrap();
    store.set_readiness(Readiness::complete());
    store
        .upsert_service(&ServiceEntry {
            namespace: "bookinfo".to_owned(),
            name: "reviews".to_owned(),
            kind: ServiceKind::ClusterSet { addresses: vec!["242.0.1.2".parse().unwrap()] },
            ports: vec![PortEntry { name: Some("http".to_owned()), protocol: Protocol::Tcp, port: 9_080 }],
        })
        .unwrap();
    let config = DnsConfig { listen: vec!["127.0.0.1:0".parse().unwrap()], limits: Limits::default() };
    let server = Server::bind(&config, store).unwrap();
    let address = server.local_addrs().first().unwrap().to_string();
    let stop = tokio_util::sync::CancellationToken::new();
    let task = tokio::spawn(server.run(stop.clone()));
    let gateway = FakeGateway::start(FakeSource::default()).await;

    for (command, code, words) in [
        (&["bookinfo/reviews"][..], 0, "reviews.bookinfo.svc.clusterset.local.  5    A     242.0.1.2\nNOERROR from "),
        (&["bookinfo/reviews", "--tcp"], 0, " over tcp in "),
        (
            &["_http._tcp.reviews.bookinfo.svc.clusterset.local", "SRV"],
            0,
            "9080 reviews.bookinfo.svc.clusterset.local.",
        ),
        (&["bookinfo/reviews", "AAAA"], 1, "the name exists, but has no record of this type"),
        (&["bookinfo/nothing"], 1, "NXDOMAIN"),
        (&["example.com"], 1, "REFUSED"),
    ] {
        let output = ask(gateway.admin, &[&["dns", "query", "--server", &address], command].concat()).await;
        assert_eq!(output.status.code(), Some(code), "{command:?}: {}", stderr(&output));
        assert!(stdout(&output).contains(words), "{command:?}: {}", stdout(&output));
        assert_eq!(stderr(&output), "", "{command:?}");
    }
    let output = ask(gateway.admin, &["dns", "query", "a b", "--server", &address]).await;
    assert_eq!(output.status.code(), Some(1));
    assert_one_line(&output, "a bad name");
    let output = ask(gateway.admin, &["dns", "query", "bookinfo/reviews", "-o", "json", "--server", &address]).await;
    let answers: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(answers.pointer("/answers/0/records/0/data").unwrap(), "242.0.1.2");
    let status = stdout(&ask(gateway.admin, &["dns", "status"]).await);
    assert!(status.contains("zones      clusterset.local, shop.example\n"), "{status}");
    stop.cancel();
    task.await.unwrap();
}

#[test]
fn a_gateway_that_does_not_run_is_named() {
    // A port that was free a moment ago.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for command in [&["status"][..], &["peers"], &["services"], &["endpoints"], &["describe", "a/b"], &["check"]] {
        let output = eastway().args(command).args(["--admin", &free.to_string()]).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{command:?}");
        assert_one_line(&output, &format!("{command:?}"));
        let text = stderr(&output);
        assert!(text.contains(&format!("no gateway at {free}")) && text.contains("eastway run"), "{text}");
    }
}

#[test]
fn something_else_at_the_port_is_told_apart() {
    use std::io::{Read as _, Write as _};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let server = std::thread::spawn(move || {
        for answer in ["SSH-2.0-OpenSSH\r\n", "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"] {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 1024];
            assert!(stream.read(&mut request).unwrap() > 0);
            stream.write_all(answer.as_bytes()).unwrap();
        }
    });
    for _ in 0..2 {
        let output = run(&["status", "--admin", &address]);
        assert_eq!(output.status.code(), Some(1));
        assert_one_line(&output, "another server");
        assert!(stderr(&output).contains("is this its admin port"), "{}", stderr(&output));
    }
    server.join().unwrap();
}

/// Ages depend on the wall clock.
fn without_ages(text: &str) -> String {
    let mut shown = String::new();
    for line in text.lines() {
        let line: String =
            line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect::<Vec<_>>().join(" | ");
        shown.push_str(&line);
        shown.push('\n');
    }
    shown
}

#[tokio::test]
async fn tables_show_what_the_gateway_knows() {
    let gateway = FakeGateway::start(FakeSource::default()).await;
    let (health, metrics) = (gateway.health, gateway.metrics);
    assert!(health != metrics && gateway.readiness.is_ready());
    for (name, command) in [
        ("services", &["services"][..]),
        ("endpoints", &["endpoints", "bookinfo/reviews"]),
        ("describe", &["describe", "bookinfo/reviews", "--from", "bookinfo/productpage"]),
        ("describe_request", &["describe", "bookinfo/reviews", "--header", "end-user=jason", "--path", "/x?y=z"]),
        ("check", &["check"]),
    ] {
        let output = ask(gateway.admin, command).await;
        assert_eq!(output.status.code(), Some(0), "{command:?}: {}", stderr(&output));
        insta::assert_snapshot!(format!("table_{name}"), stdout(&output));
    }
    let peers = without_ages(&stdout(&ask(gateway.admin, &["peers"]).await));
    assert!(peers.contains("gke | up | ") && peers.contains(" | 1 | quic | 20.4 ms | 1 | 2 | "), "{peers}");
    assert!(
        peers.contains("edge | down | ") && peers.contains("no link; it has to dial us; services as of 1h ago"),
        "{peers}"
    );
    let status = stdout(&ask(gateway.admin, &["status"]).await);
    for line in [
        "cluster      onprem (trust domain onprem.example)",
        "listener     dns 127.0.0.1:15053",
        "             link 0.0.0.0:15443",
        "snapshot     version 42, local truth complete",
        "peers        1 up, 1 down, 0 unknown",
        "services     2 local (2 exported), 2 imported, 3 virtual addresses",
    ] {
        assert!(status.lines().any(|shown| shown == line), "{line:?} is missing in\n{status}");
    }
}

/// As above, and every `5d 17h`, `in 3s` or `4h ago` as `…`: the clock goes on.
fn without_times(text: &str) -> String {
    let is_time = |word: &str| {
        let number = word.trim_end_matches(|c: char| c.is_ascii_lowercase());
        let unit = word.get(number.len()..).unwrap_or_default();
        !number.is_empty() && number.bytes().all(|c| c.is_ascii_digit()) && ["ms", "s", "m", "h", "d"].contains(&unit)
    };
    let mut shown = String::new();
    for line in without_ages(text).lines() {
        let mut words: Vec<&str> = Vec::new();
        for word in line.split(' ') {
            let time = word.trim_end_matches([':', ',']);
            let end = word.get(time.len()..).unwrap_or_default();
            if is_time(time) {
                words.extend((words.last() != Some(&"…")).then_some("…"));
                words.extend((!end.is_empty()).then_some(end));
            } else if !(word == "ago" && words.last() == Some(&"…")) {
                words.push(word);
            }
        }
        shown.push_str(&words.join(" ").replace("in …", "…"));
        shown.push('\n');
    }
    shown
}

#[tokio::test]
async fn sidecars_are_shown_with_what_they_were_told_and_refuse() {
    let gateway = FakeGateway::start(FakeSource::default()).await;
    let output = ask(gateway.admin, &["proxy-status"]).await;
    assert_eq!(output.status.code(), Some(3), "something is refused: {}", stderr(&output));
    insta::assert_snapshot!("table_proxy-status", without_times(&stdout(&output)));
    let output = ask(gateway.admin, &["proxy-status", "productpage-1.bookinfo"]).await;
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    insta::assert_snapshot!("table_proxy-status_one", without_times(&stdout(&output)));
    for kind in ["listeners", "routes", "clusters", "endpoints", "secrets"] {
        let output = ask(gateway.admin, &["proxy-config", kind, "productpage-1.bookinfo"]).await;
        assert_eq!(output.status.code(), Some(0), "{kind}: {}", stderr(&output));
        insta::assert_snapshot!(format!("table_proxy-config_{kind}"), without_times(&stdout(&output)));
    }
    let narrowed = ["proxy-config", "clusters", "productpage-1.bookinfo", "--match", "ratings"];
    assert_eq!(stdout(&ask(gateway.admin, &narrowed).await), "no clusters\n");
    let output = ask(gateway.admin, &["proxy-config", "clusters", "productpage-1.bookinfo", "-o", "json"]).await;
    let view: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(view.pointer("/kind").and_then(|kind| kind.as_str()), Some("SidecarConfiguration"));
    assert_eq!(view.pointer("/items/0/resource/type").and_then(|kind| kind.as_str()), Some("EDS"));
    for arguments in [&["proxy-status", "web-1.shop"][..], &["proxy-config", "routes", "web-1.shop"]] {
        let output = ask(gateway.admin, arguments).await;
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert_one_line(&output, &format!("{arguments:?}"));
        assert!(
            stderr(&output).contains("no sidecar \"web-1.shop\" is connected to this gateway; "),
            "{}",
            stderr(&output)
        );
    }
}

#[tokio::test]
async fn json_and_yaml_carry_version_and_kind() {
    let gateway = FakeGateway::start(FakeSource::default()).await;
    for (command, kind) in [
        (&["status"][..], "Status"),
        (&["peers"], "Peers"),
        (&["services"], "Services"),
        (&["endpoints"], "Endpoints"),
        (&["describe", "bookinfo/reviews"], "Description"),
        (&["check"], "Check"),
    ] {
        let json = ask(gateway.admin, &[command, &["-o", "json"]].concat()).await;
        let value: serde_json::Value = serde_json::from_str(&stdout(&json)).expect("one JSON object");
        assert_eq!(value.get("apiVersion").unwrap(), "eastway.dev/v1alpha1", "{command:?}");
        assert_eq!(value.get("kind").unwrap(), kind, "{command:?}");
        let yaml = ask(gateway.admin, &[command, &["-o", "yaml"]].concat()).await;
        let same: serde_json::Value = serde_saphyr::from_str(&stdout(&yaml)).expect("one YAML document");
        assert_eq!(same.get("kind"), value.get("kind"), "{command:?}");
    }
}

#[tokio::test]
async fn lists_can_be_narrowed() {
    let gateway = FakeGateway::start(FakeSource::default()).await;
    let names = |output: &Output| -> Vec<String> {
        let value: serde_json::Value = serde_json::from_str(&stdout(output)).unwrap();
        let items = value.get("items").unwrap().as_array().unwrap().clone();
        items.iter().map(|item| item.get("name").unwrap().as_str().unwrap().to_owned()).collect()
    };
    for (command, expected) in [
        (&["peers", "gke"][..], &["gke"][..]),
        (&["services"], &["ratings", "reviews"]),
        (&["services", "reviews"], &["reviews"]),
        (&["services", "bookinfo/ratings"], &["ratings"]),
        (&["services", "-n", "other"], &[]),
    ] {
        let output = ask(gateway.admin, &[command, &["-o", "json"]].concat()).await;
        assert_eq!(names(&output), expected, "{command:?}");
    }
    for command in [&["peers", "nobody"][..], &["services", "other/reviews"], &["endpoints", "nothing"]] {
        let output = ask(gateway.admin, command).await;
        assert_eq!(output.status.code(), Some(1), "{command:?}");
        assert_one_line(&output, &format!("{command:?}"));
    }
}

#[tokio::test]
async fn what_the_gateway_refuses_is_said_in_its_words() {
    let gateway = FakeGateway::start(FakeSource::default()).await;
    for (command, words) in [
        (&["describe", "bookinfo/revews"][..], "nothing is called \"bookinfo/revews\"; did you mean bookinfo/reviews?"),
        (&["describe", "bookinfo/reviews", "--port", "80"], "bookinfo/reviews has no port 80; it has 9080"),
        (&["check", "gk"], "nothing is called \"gk\"; did you mean edge or gke?"),
    ] {
        let output = ask(gateway.admin, command).await;
        assert_eq!(output.status.code(), Some(1), "{command:?}");
        assert_one_line(&output, &format!("{command:?}"));
        assert_eq!(stderr(&output).trim_end(), format!("error: {words}"), "{command:?}");
    }
}

#[tokio::test]
async fn check_tells_errors_from_warnings_by_its_exit_code() {
    let healthy = FakeGateway::start(FakeSource::default()).await;
    let output = ask(healthy.admin, &["check", "--quiet"]).await;
    assert_eq!((output.status.code(), stdout(&output).as_str()), (Some(0), "all is well\n"));

    let broken = FakeGateway::start(FakeSource { broken: true, ..FakeSource::default() }).await;
    let output = ask(broken.admin, &["check", "--quiet"]).await;
    assert_eq!(output.status.code(), Some(1));
    insta::assert_snapshot!("table_check_broken", stdout(&output));
    assert_eq!(stderr(&output), "", "the findings say it all");
    // One peer alone.
    assert_eq!(ask(broken.admin, &["check", "gke"]).await.status.code(), Some(0));
    // With -o json the exit code is the same.
    assert_eq!(ask(broken.admin, &["check", "-o", "json"]).await.status.code(), Some(1));
}

#[tokio::test]
async fn no_colour_and_no_control_characters_in_a_pipe() {
    let gateway = FakeGateway::start(FakeSource { broken: true, ..FakeSource::default() }).await;
    for command in [&["check"][..], &["peers"], &["status"]] {
        let text = stdout(&ask(gateway.admin, command).await);
        assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{command:?}: {text:?}");
    }
}

/// A gateway with its ca role, as `eastway run` starts them.
struct Running {
    _folder: tempfile::TempDir,
    gateway: std::process::Child,
}

impl Running {
    fn start() -> Self {
        let folder = folder();
        let listen = "listen: {health: \"127.0.0.1:0\", link: \"127.0.0.1:0\", dns: [\"127.0.0.1:0\"], admin: \"127.0.0.1:0\", metrics: \"127.0.0.1:0\"}\n";
        std::fs::write(folder.path().join("gateway.yaml"), format!("{CONFIG}{listen}")).unwrap();
        assert!(run_in(&folder, &["ca", "init", "--config", "gateway.yaml"]).status.success());
        let mut run = Command::new(env!("CARGO_BIN_EXE_eastway"));
        run.args(["run", "--config", "gateway.yaml"]).current_dir(folder.path());
        let gateway = run.stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        Self { _folder: folder, gateway }
    }

    /// The process id of its ca role, once that is one.
    fn ca(&self) -> String {
        let children = format!("/proc/{0}/task/{0}/children", self.gateway.id());
        let child = || std::fs::read_to_string(&children).unwrap_or_default().trim().to_owned();
        until("the ca role runs", || command(&child()).split('\0').nth(1) == Some("ca"));
        child()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may be gone already.
        let _gone = (self.gateway.kill(), self.gateway.wait());
    }
}

/// The command line of a process; empty if there is none.
fn command(process: &str) -> String {
    std::fs::read_to_string(format!("/proc/{process}/cmdline")).unwrap_or_default()
}

fn until(what: &str, done: impl Fn() -> bool) {
    let begun = std::time::Instant::now();
    while !done() {
        assert!(begun.elapsed() < std::time::Duration::from_secs(20), "{what}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

#[test]
fn i10_the_ca_role_is_a_process_of_its_own_and_outlives_nobody() {
    let mut running = Running::start();
    let ca = running.ca();
    // Without a chance to say goodbye.
    running.gateway.kill().unwrap();
    running.gateway.wait().unwrap();
    until("it ended with its parent", || command(&ca).is_empty());
}

/// Whatever killed it, the gateway does not need it while its certificate lasts.
#[test]
fn i12_a_ca_role_that_is_killed_is_started_again_and_the_gateway_stays() {
    let mut running = Running::start();
    let (first, begun) = (running.ca(), std::time::Instant::now());
    until("it has served", || begun.elapsed() > std::time::Duration::from_secs(3));
    for killed in [first.clone(), String::new()] {
        let killed = if killed.is_empty() { running.ca() } else { killed };
        assert!(Command::new("kill").args(["-9", &killed]).status().unwrap().success());
        until("another one runs", || command(&killed).is_empty() && running.ca() != killed);
    }
    assert!(running.gateway.try_wait().unwrap().is_none(), "the gateway ended");
}
