//! Settings of the programs that make a one-node cluster.

use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde_json::json;
use tokio::process::Command;

use super::cluster::Options;
use super::pki::Pki;
use super::{bare, image, tools, wan};

/// Port of the API server.
pub const API_PORT: u16 = 6443;
/// Pods of every cluster.
pub const POD_RANGE: &str = "10.244.0.0/16";
/// Services of every cluster.
pub const SERVICE_RANGE: &str = "10.96.0.0/16";
/// The API server as a Service.
pub const API_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
/// The cluster's DNS.
pub const CLUSTER_DNS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);

/// Rules of a node: pods go out under its address, and a packet to a Service that kube-proxy does not know yet is
/// refused at once. Sent to the WAN it would be lost, and cost a resolver 5 s. A rule and no route: for the
/// node's own calls to Services routing comes before their destination is rewritten.
pub(super) const RULES: &str = "
    ip rule add iif cni0 to 10.96.0.0/16 unreachable
    nft 'table ip masq { chain post { type nat hook postrouting priority srcnat; ip saddr 10.244.0.0/16 ip daddr != 10.244.0.0/16 oifname eth0 masquerade; }; }'
    echo 1 >/proc/sys/net/ipv4/ip_forward
";

/// Folders of the system that programs of a cluster write to, each covered in the cluster's mount namespace: the
/// paths are compiled in, and clusters must not share them.
pub(super) const COVERED: &str =
    "/run/netns /run/containerd /var/lib/cni /var/lib/kubelet /var/lib/containerd /var/log/containers /var/log/pods";

/// What the programs of one node are told.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) options: Options,
    pub(super) pki: Pki,
    pub(super) folder: PathBuf,
}

impl Node {
    /// Writes every file the programs read.
    pub(super) fn write_files(&self) -> Result<()> {
        let write = |name: &str, text: String| std::fs::write(self.folder.join(name), text);
        std::fs::create_dir_all(self.folder.join("cni"))?;
        write("containerd.toml", self.containerd_config())?;
        self.write_network(self.options.first_pod)?;
        write("kubelet.json", format!("{:#}", self.kubelet_config()?))?;
        write("proxy.json", format!("{:#}", self.proxy_config()))?;
        Ok(())
    }

    /// Writes the configuration of the pods' network, which containerd reads anew when it changes.
    pub(super) fn write_network(&self, first_pod: Option<Ipv4Addr>) -> Result<()> {
        let folder = self.folder.join("cni");
        // Renamed into place: a file that is half there would be read.
        let new = folder.join("new");
        std::fs::write(&new, format!("{:#}", self.network(first_pod)))?;
        Ok(std::fs::rename(new, folder.join("10-pods.conflist"))?)
    }

    /// The socket of this cluster's containerd.
    pub(super) fn containerd_socket(&self) -> PathBuf {
        self.folder.join("containerd.sock")
    }

    fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    pub(super) fn etcd(&self) -> Result<Command> {
        let mut command = Command::new(tools::built("etcd")?);
        command.args(["--name", "etcd", "--data-dir", &self.path("etcd"), "--log-level", "warn"]);
        let (clients, peers) = ("http://127.0.0.1:2379", "http://127.0.0.1:2380");
        command.args([
            "--listen-client-urls",
            clients,
            "--advertise-client-urls",
            clients,
            "--listen-peer-urls",
            peers,
        ]);
        command.args(["--initial-advertise-peer-urls", peers, "--initial-cluster", &format!("etcd={peers}")]);
        // The folder is a tmpfs: there is nothing to wait for.
        command.args(["--unsafe-no-fsync"]);
        command.arg(format!("--max-txn-ops={}", bare::AT_ONCE));
        command.arg(format!("--max-request-bytes={}", bare::REQUEST_BYTES));
        Ok(command)
    }

    pub(super) fn api_server(&self) -> Result<Command> {
        let file = |name: &str| self.pki.file(name).display().to_string();
        let mut command = Command::new(tools::built("kube-apiserver")?);
        let settings = [
            ("etcd-servers", "http://127.0.0.1:2379".to_owned()),
            ("tls-cert-file", file("server.crt")),
            ("tls-private-key-file", file("server.key")),
            ("client-ca-file", file("ca.crt")),
            ("service-account-key-file", file("sa.pub")),
            ("service-account-signing-key-file", file("sa.key")),
            ("service-account-issuer", "https://kubernetes.default.svc.cluster.local".to_owned()),
            ("token-auth-file", file("tokens.csv")),
            ("authorization-mode", "Node,RBAC".to_owned()),
            ("service-cluster-ip-range", SERVICE_RANGE.to_owned()),
            ("advertise-address", self.options.address.to_string()),
            ("bind-address", "0.0.0.0".to_owned()),
            ("secure-port", API_PORT.to_string()),
            ("allow-privileged", "true".to_owned()),
            ("kubelet-preferred-address-types", "InternalIP".to_owned()),
            ("kubelet-certificate-authority", file("ca.crt")),
            ("kubelet-client-certificate", file("client.crt")),
            ("kubelet-client-key", file("client.key")),
            ("profiling", "false".to_owned()),
        ];
        command.args(settings.map(|(name, value)| format!("--{name}={value}")));
        Ok(command)
    }

    pub(super) fn controller_manager(&self) -> Result<Command> {
        let mut command = self.controller("kube-controller-manager", "controller-manager")?;
        let file = |name: &str| self.pki.file(name).display().to_string();
        command.arg(format!("--root-ca-file={}", file("ca.crt")));
        command.arg(format!("--service-account-private-key-file={}", file("sa.key")));
        // Without its API server a node is away for no longer than a test.
        command.args([
            "--use-service-account-credentials",
            "--node-monitor-period=1s",
            "--node-monitor-grace-period=1h",
        ]);
        Ok(command)
    }

    pub(super) fn scheduler(&self) -> Result<Command> {
        self.controller("kube-scheduler", "scheduler")
    }

    fn controller(&self, program: &str, user: &str) -> Result<Command> {
        let mut command = Command::new(tools::built(program)?);
        let kubeconfig = self.pki.file(&format!("{user}.kubeconfig"));
        command.arg(format!("--kubeconfig={}", kubeconfig.display()));
        command.args([
            "--leader-elect=false",
            "--kube-api-qps=200",
            "--kube-api-burst=400",
            "--bind-address=127.0.0.1",
        ]);
        Ok(command)
    }

    pub(super) fn containerd(&self) -> Result<Command> {
        let mut command = Command::new(tools::system("containerd")?);
        command.args(["--config", &self.path("containerd.toml"), "--log-level", "warn"]);
        Ok(command)
    }

    pub(super) fn kubelet(&self) -> Result<Command> {
        let mut command = Command::new(tools::built("kubelet")?);
        command.args(["--config", &self.path("kubelet.json"), "--root-dir", &self.path("kubelet")]);
        command.args(["--cert-dir", &self.path("kubelet-certs"), "--hostname-override", &self.options.node()]);
        command.arg(format!("--node-ip={}", self.options.address));
        command.arg(format!("--kubeconfig={}", self.pki.file("node.kubeconfig").display()));
        Ok(command)
    }

    pub(super) fn proxy(&self) -> Result<Command> {
        let mut command = Command::new(tools::built("kube-proxy")?);
        command.args(["--config", &self.path("proxy.json")]);
        Ok(command)
    }

    /// `ctr` on this cluster's containerd.
    pub(super) fn ctr(&self) -> Result<Command> {
        let mut command = Command::new(tools::system("ctr")?);
        command.arg("--address").arg(self.containerd_socket()).args(["--namespace", "k8s.io"]);
        Ok(command)
    }

    fn containerd_config(&self) -> String {
        let (pause, plugins) = (image::PAUSE, tools::CNI_PLUGINS);
        let socket = self.containerd_socket().display().to_string();
        let path = |name: &str| self.path(name);
        let disabled: Vec<String> = ["btrfs", "zfs", "devmapper", "aufs"]
            .map(|name| format!("io.containerd.snapshotter.v1.{name}"))
            .into_iter()
            .chain(["io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing"].map(str::to_owned))
            .collect();
        // `restrict_oom_score_adj`: without CAP_SYS_RESOURCE no container starts otherwise.
        format!(
            "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = {disabled:?}\n\
             [grpc]\naddress = {socket:?}\n[ttrpc]\naddress = \"{socket}.ttrpc\"\n\
             [plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = {pause:?}\nstream_server_port = \"0\"\n\
             restrict_oom_score_adj = true\n\
             [plugins.\"io.containerd.grpc.v1.cri\".cni]\nbin_dir = {plugins:?}\nconf_dir = {:?}\n",
            path("containerd"),
            path("containerd-state"),
            path("cni"),
        )
    }

    fn network(&self, first_pod: Option<Ipv4Addr>) -> serde_json::Value {
        let mut range = json!({"subnet": POD_RANGE});
        if let Some(first) = first_pod {
            range["rangeStart"] = json!(first);
        }
        json!({
            "cniVersion": "0.4.0", "name": "pods",
            "plugins": [
                {
                    "type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
                    "ipam": {
                        "type": "host-local", "dataDir": self.path("addresses"),
                        "ranges": [[range]], "routes": [{"dst": "0.0.0.0/0"}],
                    },
                },
                {"type": "portmap", "capabilities": {"portMappings": true}},
            ],
        })
    }

    fn kubelet_config(&self) -> Result<serde_json::Value> {
        let file = |name: &str| self.pki.file(name);
        let socket = format!("unix://{}", self.containerd_socket().display());
        Ok(json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
            "containerRuntimeEndpoint": socket,
            "authentication": {
                "anonymous": {"enabled": false}, "webhook": {"enabled": true}, "x509": {"clientCAFile": file("ca.crt")},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": file("server.crt"), "tlsPrivateKeyFile": file("server.key"),
            "clusterDNS": [CLUSTER_DNS], "clusterDomain": "cluster.local",
            "resolvConf": wan::resolver_file(&self.folder)?,
            "podLogsDir": self.path("pods"), "volumePluginDir": self.path("volume-plugins"),
            "serializeImagePulls": false, "kubeAPIQPS": 200, "kubeAPIBurst": 400,
            // A changed ConfigMap reaches its pods with the next synchronisation: by default within a minute.
            "syncFrequency": "5s",
            // A machine like any developer's: swap, either cgroup version, nothing reserved, nothing evicted.
            "failSwapOn": false, "failCgroupV1": false, "cgroupDriver": "cgroupfs", "cgroupsPerQOS": false,
            "enforceNodeAllocatable": [], "localStorageCapacityIsolation": false, "evictionHard": {},
        }))
    }

    fn proxy_config(&self) -> serde_json::Value {
        json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
            "mode": "nftables", "nftables": {"minSyncPeriod": "50ms"},
            "clientConnection": {"kubeconfig": self.pki.file("proxy.kubeconfig")},
            "clusterCIDR": POD_RANGE, "hostnameOverride": self.options.node(),
            // The machine's limits are not the bed's to change.
            "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        })
    }

    /// A program in the cluster's mount and network namespaces.
    ///
    /// `nsenter`, not `ip netns exec`: that one covers /sys, and the cgroups with it.
    pub(super) fn inside(holder: u32, command: &Command) -> Command {
        let command = command.as_std();
        let mut inside = Command::new("nsenter");
        inside.args(["--target", &holder.to_string(), "--mount", "--net", "--"]).arg(command.get_program());
        inside.args(command.get_args().map(OsString::from));
        inside
    }

    /// The script of the process that holds a cluster's namespaces: what it covers stays for as long as it lives.
    pub(super) fn holder_script(folder: &Path) -> String {
        let folder = folder.display();
        format!(
            "set -eu
            mount --bind {folder} {folder}
            # The kubelet's and the shims' mounts must reach containers.
            mount --make-rshared {folder}
            for covered in {COVERED}; do
                mkdir -p $covered
                mount -t tmpfs bed $covered
                mount --make-rshared $covered
            done
            {RULES}
            echo holds
            exec sleep infinity"
        )
    }
}
