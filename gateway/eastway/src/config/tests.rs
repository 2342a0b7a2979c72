use std::path::PathBuf;

use super::load;

const MINIMAL: &str = "\
apiVersion: eastway.dev/v1alpha1
kind: GatewayConfig
cluster: onprem
trust: {domain: onprem.example}
";

struct Folder(tempfile::TempDir);

impl Folder {
    fn new(files: &[(&str, &str)]) -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        files.iter().for_each(|(name, text)| folder.write(name, text));
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    /// What `load` says, with the folder's own name taken out.
    fn errors(&self) -> String {
        let said = load(&self.path("gateway.yaml")).unwrap_err().to_string();
        said.replace(&format!("{}/", self.0.path().display()), "")
    }
}

#[test]
fn two_settings_are_enough() {
    let folder = Folder::new(&[("gateway.yaml", MINIMAL)]);
    let loaded = load(&folder.path("gateway.yaml")).unwrap();
    assert_eq!(loaded.settings.cluster.as_str(), "onprem");
    assert_eq!(loaded.settings.state, folder.path("state"));
    assert_eq!(loaded.settings.listen.link.to_string(), "0.0.0.0:15443");
}

#[test]
fn all_mistakes_of_a_file_are_reported_at_once() {
    let folder = Folder::new(&[(
        "gateway.yaml",
        "apiVersion: eastway.dev/v1\nkind: GatewayConfig\ncluster: On_Prem\ntrust:\n  domian: onprem.example\n  leafTtl: 5\n\
         listen:\n  link: 0.0.0.0\n  admin: 0.0.0.0:15000\n  dns: [127.0.0.1:53, 127.0.0.1:53]\nlog: {format: xml}\n\
         vip: {ranges: [242.0.0.1/16], owner: yes}\nlink: {keepAlive: 2s}\n",
    )]);
    insta::assert_snapshot!(folder.errors());
}
