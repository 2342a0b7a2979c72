//! From a query name to what is to be said about it: the grammar of `clusterset.local`.

use crate::entry::Protocol;
use crate::name::is_label;
use crate::wire::QName;
use crate::zone::answer::Answer;
use crate::zone::store::Soa;

/// What is to be said about a name and type.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Resolution<'a> {
    /// Records.
    Answer(&'a Answer),
    /// The zone's own SOA record was asked for.
    Soa(Soa<'a>),
    /// The zone's own NS records were asked for.
    Ns(Soa<'a>),
    /// The name exists; all its types were asked for (RFC 8482).
    Any,
    /// The name exists and has no such records.
    NoData(Soa<'a>),
    /// The name does not exist.
    NxDomain(Soa<'a>),
    /// It cannot be said yet (invariant I5).
    NotReady,
    /// Not a name of ours.
    OutOfZone,
}

/// What a name in `clusterset.local` can be, by its shape alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape<'a> {
    /// Above the services: the zone, `svc`, a namespace, `dns-version` and so on.
    Upper,
    /// A service or a name below one that could exist; `cluster` is in the names of endpoints.
    Service { namespace: &'a [u8], name: &'a [u8], cluster: Option<&'a [u8]> },
    /// No service ever has such a name.
    Malformed,
}

/// Labels of `clusterset.local`.
const ZONE: usize = 2;
/// Labels of `<service>.<namespace>.svc.clusterset.local`.
const SERVICE: usize = ZONE + 3;

/// The shape of a name in `clusterset.local`.
pub(crate) fn shape(name: &QName) -> Shape<'_> {
    let Some(above) = name.labels().checked_sub(ZONE + 1) else { return Shape::Upper };
    if name.label(above) != b"svc" {
        // `dns-version` and `ns.dns` are entries; nothing else is here.
        return Shape::Malformed;
    }
    let Some(service) = above.checked_sub(2) else { return Shape::Upper };
    let (name_label, namespace) = (name.label(service), name.label(service + 1));
    if !is_label(name_label) || !is_label(namespace) {
        return Shape::Malformed;
    }
    let cluster = match service {
        0 => None,
        1 if is_protocol(name.label(0)) => None,
        2 => {
            let (left, right) = (name.label(0), name.label(1));
            let is_srv = left.strip_prefix(b"_").is_some_and(is_label) && is_protocol(right);
            if !(is_srv || is_label(left) && is_label(right)) {
                return Shape::Malformed;
            }
            (!is_srv).then_some(right)
        }
        _ => return Shape::Malformed,
    };
    Shape::Service { namespace, name: name_label, cluster }
}

/// How many labels stand in front of the name under which an entry would be kept.
pub(crate) fn labels_below_entry(name: &QName, in_clusterset: bool) -> usize {
    if in_clusterset {
        return name.labels().saturating_sub(SERVICE);
    }
    (0..2).take_while(|index| name.label(*index).first() == Some(&b'_')).count()
}

fn is_protocol(label: &[u8]) -> bool {
    Protocol::ALL.iter().any(|protocol| protocol.label().as_bytes() == label)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Question;

    fn qname(text: &str) -> QName {
        let mut message = vec![0; 12];
        for label in text.split('.') {
            message.push(u8::try_from(label.len()).unwrap());
            message.extend_from_slice(label.as_bytes());
        }
        message.extend_from_slice(&[0, 0, 1, 0, 1]);
        let mut name = QName::new();
        Question::read(&message, &mut name).unwrap();
        name
    }

    #[test]
    fn shapes_of_clusterset_names() {
        let service = |text: &str| match shape(&qname(text)) {
            Shape::Service { namespace, name, cluster } => {
                let text = String::from_utf8_lossy;
                let cluster = cluster.map(|cluster| format!("{}:", text(cluster))).unwrap_or_default();
                format!("{cluster}{}/{}", text(namespace), text(name))
            }
            other @ (Shape::Upper | Shape::Malformed) => format!("{other:?}"),
        };
        for (text, expected) in [
            ("clusterset.local", "Upper"),
            ("svc.clusterset.local", "Upper"),
            ("demo.svc.clusterset.local", "Upper"),
            ("web.demo.svc.clusterset.local", "demo/web"),
            ("_tcp.web.demo.svc.clusterset.local", "demo/web"),
            ("_http._tcp.web.demo.svc.clusterset.local", "demo/web"),
            ("web-0.c-b.web.demo.svc.clusterset.local", "c-b:demo/web"),
            ("c-b.web.demo.svc.clusterset.local", "Malformed"),
            ("_http.web.demo.svc.clusterset.local", "Malformed"),
            ("_http._icmp.web.demo.svc.clusterset.local", "Malformed"),
            ("a.b.c.web.demo.svc.clusterset.local", "Malformed"),
            ("www.example.com.clusterset.local", "Malformed"),
            ("web.demo.pod.clusterset.local", "Malformed"),
            ("w_b.demo.svc.clusterset.local", "Malformed"),
            ("-web.demo.svc.clusterset.local", "Malformed"),
        ] {
            assert_eq!(service(text), expected, "{text}");
        }
    }
}
