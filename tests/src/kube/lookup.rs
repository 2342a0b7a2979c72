//! What the DNS tells a pod: busybox's `nslookup`, as people use it, and its answer taken apart.

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::Result;

use super::Cluster;

/// An answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// What the server said: `NOERROR`, `NXDOMAIN`, `SERVFAIL`…
    pub code: String,
    /// Addresses; none of the server's own.
    pub addresses: BTreeSet<IpAddr>,
    /// Ports and names of SRV records.
    pub targets: BTreeSet<(u16, String)>,
    /// TXT records.
    pub texts: BTreeSet<String>,
}

/// Asks from a pod for records of the type `kind`: the cluster's resolver, or else `server`. The name is taken as it
/// is, without the search path.
///
/// # Errors
/// The pod cannot be entered.
pub async fn lookup(
    cluster: &Cluster,
    (namespace, pod): (&str, &str),
    kind: &str,
    name: &str,
    server: Option<IpAddr>,
) -> Result<Found> {
    let server = server.map(|server| server.to_string()).unwrap_or_default();
    // It fails where there is no such name.
    let script = format!("nslookup -type={kind} {name}. {server}; true");
    Ok(parse(&cluster.exec(namespace, pod, &["sh", "-c", &script]).await?))
}

/// Takes apart what `nslookup` printed.
fn parse(said: &str) -> Found {
    let mut found = Found { code: "NOERROR".to_owned(), ..Found::default() };
    // First the server and its address, then an empty line.
    for line in said.lines().map(str::trim).skip_while(|line| !line.is_empty()) {
        if let Some(address) = line.strip_prefix("Address:") {
            found.addresses.extend(address.trim().parse::<IpAddr>());
        } else if let Some((_, record)) = line.split_once("service = ") {
            let fields: Vec<&str> = record.split_ascii_whitespace().collect();
            if let [_priority, _weight, port, target] = fields.as_slice() {
                found.targets.extend(port.parse().map(|port| (port, (*target).to_owned())));
            }
        } else if let Some((_, text)) = line.split_once("text = ") {
            found.texts.insert(text.trim_matches('"').to_owned());
        } else if let Some((_, code)) =
            line.strip_prefix("** server can't find ").and_then(|rest| rest.split_once(": "))
        {
            code.clone_into(&mut found.code);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn answers_are_told_from_the_server_s_address() {
        let head = "Server:\t\t10.96.0.10\nAddress:\t10.96.0.10:53\n\n";
        let found = parse(&format!(
            "{head}Name:\tweb.demo.svc.clusterset.local\nAddress: 10.96.1.2\nName:\tweb.demo.svc.clusterset.local\nAddress: fd00::2\n\n"
        ));
        assert_eq!(found.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.96.1.2", "fd00::2"]);
        let found = parse(&format!(
            "{head}web.demo.svc.clusterset.local\tservice = 0 50 80 web-0.b.web.demo.svc.clusterset.local\n\n"
        ));
        assert_eq!(found.targets.first().unwrap(), &(80, "web-0.b.web.demo.svc.clusterset.local".to_owned()));
        assert_eq!(
            parse(&format!("{head}dns-version.clusterset.local\ttext = \"1.1.0\"\n")).texts.first().unwrap(),
            "1.1.0"
        );
        let found = parse(&format!("{head}** server can't find x.clusterset.local: NXDOMAIN\n"));
        assert_eq!((found.code.as_str(), found.addresses.len()), ("NXDOMAIN", 0));
        assert_eq!(parse(&format!("{head}*** Can't find x: No answer\n")).code, "NOERROR");
    }
}
