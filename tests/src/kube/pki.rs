//! Keys, certificates, tokens and kubeconfigs of one cluster.
//!
//! Real identities throughout, so that Node and RBAC authorizers decide as they do elsewhere. The static tokens
//! are those of the cluster's own programs and of the tests' administrator; pods use their service accounts.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};

use super::node::{API_PORT, API_SERVICE};

/// Token of the tests' administrator.
const ADMIN: &str = "admin";

/// Who has a static token: kubeconfig, user, groups. The token is the kubeconfig's name.
const USERS: [(&str, &str, &str); 4] = [
    (ADMIN, "admin", "system:masters"),
    ("controller-manager", "system:kube-controller-manager", ""),
    ("scheduler", "system:kube-scheduler", ""),
    ("proxy", "system:kube-proxy", ""),
];

/// The files of one cluster.
#[derive(Clone, Debug)]
pub struct Pki {
    folder: PathBuf,
    authority: String,
}

impl Pki {
    /// Makes everything in `folder` for a cluster and its node.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub(super) fn make(folder: &Path, cluster: &str, node: &str, address: Ipv4Addr) -> Result<Self> {
        std::fs::create_dir_all(folder)?;
        let write = |name: &str, text: &str| {
            std::fs::write(folder.join(name), text).with_context(|| folder.join(name).display().to_string())
        };
        let key = KeyPair::generate()?;
        let mut authority = CertificateParams::default();
        authority.distinguished_name.push(DnType::CommonName, "kubernetes");
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = authority.self_signed(&key)?.pem();
        write("ca.crt", &certificate)?;
        let issuer = Issuer::new(authority, key);

        let names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost", node];
        let mut names: Vec<String> = names.map(str::to_owned).into();
        names.push("kubernetes.default.svc.cluster.local".to_owned());
        names.extend([Ipv4Addr::LOCALHOST, API_SERVICE, address].map(|address| address.to_string()));
        let mut server = CertificateParams::new(names)?;
        server.distinguished_name.push(DnType::CommonName, node);
        server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        // What the API server shows to the kubelet.
        let mut client = CertificateParams::default();
        client.distinguished_name.push(DnType::CommonName, "kube-apiserver");
        client.distinguished_name.push(DnType::OrganizationName, "system:masters");
        client.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        for (name, leaf) in [("server", server), ("client", client)] {
            let key = KeyPair::generate()?;
            write(&format!("{name}.crt"), &leaf.signed_by(&key, &issuer)?.pem())?;
            write(&format!("{name}.key"), &key.serialize_pem())?;
        }
        let tokens = KeyPair::generate()?;
        write("sa.key", &tokens.serialize_pem())?;
        write("sa.pub", &tokens.public_key_pem())?;

        let pki = Self { folder: folder.to_owned(), authority: certificate };
        let node_user = format!("system:node:{node}");
        let users = USERS.into_iter().chain([("node", node_user.as_str(), "system:nodes")]);
        let mut tokens = String::new();
        for (number, (name, user, group)) in users.enumerate() {
            tokens.push_str(&format!("{name},{user},{number},\"{group}\"\n"));
            let server = if name == ADMIN { address } else { Ipv4Addr::LOCALHOST };
            write(
                &format!("{name}.kubeconfig"),
                &pki.kubeconfig(cluster, name, &format!("https://{server}:{API_PORT}")),
            )?;
        }
        write("tokens.csv", &tokens)?;
        Ok(pki)
    }

    /// A file of this folder.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The administrator's kubeconfig, for use on the WAN.
    #[must_use]
    pub fn admin(&self) -> PathBuf {
        self.file("admin.kubeconfig")
    }

    /// The administrator's kubeconfig with another way to the API server.
    #[must_use]
    pub fn admin_at(&self, cluster: &str, server: &str) -> String {
        self.kubeconfig(cluster, ADMIN, server)
    }

    /// Certificates are written into it, so that it can be copied anywhere.
    fn kubeconfig(&self, cluster: &str, token: &str, server: &str) -> String {
        let value = serde_json::json!({
            "apiVersion": "v1", "kind": "Config", "current-context": cluster,
            "clusters": [{"name": cluster, "cluster": {
                "server": server, "certificate-authority-data": base64(self.authority.as_bytes()),
            }}],
            "users": [{"name": format!("{token}@{cluster}"), "user": {"token": token}}],
            "contexts": [{"name": cluster, "context": {"cluster": cluster, "user": format!("{token}@{cluster}")}}],
        });
        format!("{value:#}\n")
    }
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}
