//! Which anchors count, what is kept, and when sidecars cut.

use std::fs;

use eastway_identity::Ca;
use eastway_identity::ca::{InitOptions, revoke};

use super::*;
use crate::config;

/// Cluster onprem with the peer gke, each with a CA of its own.
struct Rig {
    folder: tempfile::TempDir,
    own: Ca,
    gke: Ca,
    loaded: Loaded,
}

fn ca(folder: &tempfile::TempDir, name: &str) -> Ca {
    let path = folder.path().join(name);
    if !path.exists() {
        Ca::init(&path, &InitOptions::new(&format!("{name}.example"))).unwrap();
    }
    Ca::load(&path).unwrap()
}

fn anchors(ca: &Ca, domain: &str) -> Vec<AnchorDer> {
    ca.anchors(domain, SystemTime::now()).unwrap()
}

impl Rig {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (own, gke) = (ca(&folder, "onprem"), ca(&folder, "gke"));
        let main = "apiVersion: eastway.dev/v1alpha1\nkind: GatewayConfig\ncluster: onprem\ntrust: {domain: onprem.example}\n\
            registries: [{name: hosts, file: ./services.yaml}]\n";
        fs::write(folder.path().join("gateway.yaml"), main).unwrap();
        fs::write(
            folder.path().join("services.yaml"),
            "apiVersion: eastway.dev/v1alpha1\nkind: ServiceList\nservices: []\n",
        )
        .unwrap();
        fs::create_dir(folder.path().join("peers")).unwrap();
        let mut rig = Self { loaded: config::load(&folder.path().join("gateway.yaml")).unwrap(), folder, own, gke };
        rig.peer(true);
        rig
    }

    fn peer(&mut self, there: bool) {
        let file = self.folder.path().join("peers/gke.yaml");
        let peer = format!(
            "apiVersion: eastway.dev/v1alpha1\nkind: Peer\nmetadata: {{name: gke}}\n\
             spec: {{trustDomain: gke.example, pins: ['{}'], import: [{{namespace: shop}}]}}\n",
            self.gke.pin()
        );
        if there {
            fs::write(file, peer).unwrap();
        } else {
            fs::remove_file(file).unwrap();
        }
        self.loaded = config::load(&self.folder.path().join("gateway.yaml")).unwrap();
    }

    fn kept(&self, peer: Vec<AnchorDer>) -> Kept {
        let mut kept = Kept::open(self.folder.path());
        kept.own = anchors(&self.own, "onprem.example");
        kept.peers = [(Arc::from("gke"), peer)].into();
        kept
    }

    fn judge(&self, kept: &Kept, before: &Counted) -> (Counted, BTreeMap<Arc<str>, AnchorError>) {
        judge(kept, before, &Arc::from("onprem.example"), &self.loaded, SystemTime::now())
    }
}

fn domains(counted: &Counted) -> Vec<String> {
    counted.keys().map(|(domain, _)| domain.to_string()).collect()
}

#[test]
fn c4_an_anchor_counts_for_its_own_domain_alone_and_with_its_list() {
    let rig = Rig::new();
    let (counted, refused) = rig.judge(&rig.kept(anchors(&rig.gke, "gke.example")), &Counted::new());
    assert_eq!((domains(&counted), refused.len()), (vec!["gke.example".to_owned(), "onprem.example".to_owned()], 0));
    let good = anchors(&rig.gke, "gke.example");
    let bad = [
        (anchors(&rig.gke, "onprem.example"), "its name constraint is onprem.example"),
        (anchors(&rig.own, "gke.example"), "is not pinned"),
        (vec![AnchorDer { crl: Vec::new(), ..good[0].clone() }], "without a revocation list"),
        (vec![AnchorDer { certificate: rig.gke.chain()[0].to_vec(), ..good[0].clone() }], ""),
        (vec![AnchorDer::default()], "cannot be read"),
    ];
    for (anchors, why) in bad {
        let (counted, refused) = rig.judge(&rig.kept(anchors), &Counted::new());
        assert_eq!(domains(&counted), ["onprem.example"], "{why}");
        assert!(refused["gke"].to_string().contains(why), "{}", refused["gke"]);
    }
}

#[test]
fn i9_who_is_revoked_or_removed_changes_what_sidecars_cut_by_and_who_is_added_does_not() {
    let mut rig = Rig::new();
    let mut kept = rig.kept(Vec::new());
    let now = SystemTime::now();
    let (alone, _) = rig.judge(&kept, &Counted::new());
    kept.note_cuts(&Counted::new(), &alone, now);
    kept.peers.insert("gke".into(), anchors(&rig.gke, "gke.example"));
    let (both, _) = rig.judge(&kept, &alone);
    kept.note_cuts(&alone, &both, now);
    assert!(kept.cuts.is_empty(), "{:?}", kept.cuts);

    revoke(&rig.folder.path().join("gke"), &["0a0b"], now).unwrap();
    let old = kept.peers["gke"].clone();
    let later = now + Duration::from_secs(5);
    kept.peers.insert("gke".into(), ca(&rig.folder, "gke").anchors("gke.example", later).unwrap());
    let (revoked, _) = rig.judge(&kept, &both);
    kept.note_cuts(&both, &revoked, now);
    assert_eq!(kept.cuts.keys().collect::<Vec<_>>(), ["serial gke.example 0a0b"]);
    // A replica of the peer that has not heard of it yet takes nothing back.
    kept.peers.insert("gke".into(), old);
    let (still, _) = rig.judge(&kept, &revoked);
    assert_eq!(still, revoked);

    rig.peer(false);
    let (gone, _) = rig.judge(&kept, &still);
    kept.note_cuts(&still, &gone, now);
    assert_eq!((domains(&gone), kept.cuts.len()), (vec!["onprem.example".to_owned()], 2));
    kept.save();
    let read = Kept::open(rig.folder.path());
    assert_eq!((&read.own, &read.peers, &read.cuts), (&kept.own, &kept.peers, &kept.cuts), "f16: over a restart");
}
