//! Revocation lists as an operator handles them: named at the start or later, missing, broken, mended.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use eastway_tests::lab::files;
use eastway_tests::mesh::{Mesh, MeshBuilder};
use eastway_tests::{lab_test, within};
use rcgen::{CertificateRevocationListParams, Issuer, KeyIdMethod, KeyPair, RevokedCertParams, SerialNumber};
use serde_json::json;

const HOUR: Duration = Duration::from_secs(3600);

/// A revocation list of the CA in `folder` that names one certificate or none.
pub(crate) fn list(folder: &Path, serial: Option<&str>) -> Result<String> {
    let key = KeyPair::from_pem(&fs::read_to_string(folder.join("ca-key.pem"))?)?;
    let issuer = Issuer::from_ca_cert_pem(&fs::read_to_string(folder.join("ca-cert.pem"))?, key)?;
    let params = CertificateRevocationListParams {
        this_update: (SystemTime::now() - HOUR).into(),
        next_update: (SystemTime::now() + HOUR).into(),
        crl_number: SerialNumber::from(1_u64),
        issuing_distribution_point: None,
        revoked_certs: serial.map(revoked).transpose()?.into_iter().collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    Ok(params.signed_by(&issuer)?.pem()?)
}

fn revoked(serial: &str) -> Result<RevokedCertParams> {
    let digits = serial.as_bytes().chunks(2).map(|two| Ok(u8::from_str_radix(std::str::from_utf8(two)?, 16)?));
    Ok(RevokedCertParams {
        serial_number: SerialNumber::from(digits.collect::<Result<Vec<u8>>>()?),
        revocation_time: (SystemTime::now() - HOUR / 2).into(),
        reason_code: None,
        invalidity_date: None,
    })
}

/// The serial number of a cloud's certificate, as its CA logged it.
pub(crate) fn issued(mesh: &Mesh, cloud: &str) -> Result<String> {
    let log = mesh.cloud(cloud).logs();
    let line = log.lines().find(|line| line.contains("certificate issued")).context("no certificate was issued")?;
    let serial = line.split("serial=").nth(1).context("the line has no serial number")?;
    Ok(serial.chars().filter(char::is_ascii_hexdigit).collect())
}

async fn is_linked(mesh: &Mesh) -> Result<bool> {
    Ok(mesh.cloud("a").is_up(0, "b").await? && mesh.cloud("b").is_up(0, "a").await?)
}

lab_test! {
    /// Who is revoked is not known before the list was read once: no peer is trusted until then.
    async fn an_unusable_list_trusts_nobody_until_it_is_mended() {
        let crl = json!({"trust": {"crl": "./crl.pem"}});
        let mut mesh = MeshBuilder::of(&["a", "b"]).settings("a", &crl).prepare().await?;
        let (file, ca) = (mesh.cloud("a").folder().join("crl.pem"), mesh.cloud("b").folder().join("cacerts"));
        files::replace(&file, b"-----BEGIN X509 CRL-----\nbroken")?;
        mesh.start_gateways().await?;
        within(Duration::from_secs(5), "the log says it", async || {
            Ok(mesh.cloud("a").gateway(0)?.log_tail(1 << 20).contains("no peer is trusted until it is"))
        }).await?;
        within(Duration::from_secs(5), "b was refused", async || {
            Ok(mesh.peer("b", "a").await?.last_error.is_some())
        }).await?;
        ensure!(!is_linked(&mesh).await?, "linked without knowing who is revoked");
        files::replace(&file, list(&ca, None)?.as_bytes())?;
        within(Duration::from_secs(15), "the mended list lets b in", async || is_linked(&mesh).await).await?;
        mesh.stop().await
    }

    /// A list that is named in a running gateway's file is in force at once, and so is its change.
    async fn a_list_named_later_cuts_at_once() {
        let mesh = MeshBuilder::of(&["a", "b"]).start().await?;
        within(Duration::from_secs(10), "a and b are linked", async || is_linked(&mesh).await).await?;
        let (file, ca) = (mesh.cloud("a").folder().join("crl.pem"), mesh.cloud("b").folder().join("cacerts"));
        files::write(&mesh.cloud("a").main_file(0), &{
            let mut main = mesh.cloud("a").main_value(0)?;
            files::merge(&mut main, &json!({"trust": {"crl": file.display().to_string()}}));
            files::replace(&file, list(&ca, Some(&issued(&mesh, "b")?))?.as_bytes())?;
            main
        })?;
        let cut = within(Duration::from_secs(5), "the link is cut", async || {
            Ok(!mesh.cloud("a").is_up(0, "b").await?)
        }).await?;
        println!("cut {cut:?} after the file was written");
        files::replace(&file, list(&ca, None)?.as_bytes())?;
        within(Duration::from_secs(15), "an empty list lets b in", async || is_linked(&mesh).await).await.context("after the cut")?;
        mesh.stop().await
    }
}
