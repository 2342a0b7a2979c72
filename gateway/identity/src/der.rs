//! Just enough DER to write a certificate.
//!
//! Certificates are written here and not by rcgen because a leaf's issuer must repeat the CA's subject byte by
//! byte; rcgen re-encodes names and merges repeated attributes (`DC=example, DC=com`).

use crate::timestamp::Timestamp;

/// AlgorithmIdentifier ecdsa-with-SHA256 (RFC 5758 §3.2).
pub(crate) const ECDSA_WITH_SHA256: &[u8] = &[0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
/// AlgorithmIdentifier ecdsa-with-SHA384 (RFC 5758 §3.2).
pub(crate) const ECDSA_WITH_SHA384: &[u8] = &[0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x03];
/// AlgorithmIdentifier sha256WithRSAEncryption (RFC 4055 §5).
pub(crate) const RSA_WITH_SHA256: &[u8] =
    &[0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0b, 0x05, 0x00];

pub(crate) const SEQUENCE: u8 = 0x30;
pub(crate) const SET: u8 = 0x31;
pub(crate) const OCTET_STRING: u8 = 0x04;
pub(crate) const OID: u8 = 0x06;
pub(crate) const UTF8_STRING: u8 = 0x0c;
/// Context-specific, primitive: `[n] IMPLICIT` of a simple type.
pub(crate) const CONTEXT: u8 = 0x80;
/// Context-specific, constructed: `[n] EXPLICIT`.
pub(crate) const CONTEXT_CONSTRUCTED: u8 = 0xa0;

const TRUE: &[u8] = &[0x01, 0x01, 0xff];

/// Tag, length, content.
pub(crate) fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(content.len() + 6);
    out.push(tag);
    match u8::try_from(content.len()) {
        Ok(short) if short < 0x80 => out.push(short),
        _ => {
            let length = content.len().to_be_bytes();
            let significant: Vec<u8> = length.into_iter().skip_while(|byte| *byte == 0).collect();
            // At most 8 bytes of length: fits the low bits.
            out.push(0x80 | u8::try_from(significant.len()).unwrap_or(8));
            out.extend(significant);
        }
    }
    out.extend_from_slice(content);
    out
}

/// SEQUENCE of parts that are DER already.
pub(crate) fn sequence<P: AsRef<[u8]>>(parts: &[P]) -> Vec<u8> {
    let content: Vec<u8> = parts.iter().flat_map(|part| part.as_ref().iter().copied()).collect();
    tlv(SEQUENCE, &content)
}

/// INTEGER of a positive big-endian number.
pub(crate) fn unsigned(bytes: &[u8]) -> Vec<u8> {
    let mut content: Vec<u8> = bytes.iter().copied().skip_while(|byte| *byte == 0).collect();
    if content.first().is_none_or(|first| first & 0x80 != 0) {
        content.insert(0, 0);
    }
    tlv(0x02, &content)
}

/// BIT STRING with all bits of the last byte in use.
pub(crate) fn bit_string(bytes: &[u8]) -> Vec<u8> {
    let mut content = vec![0];
    content.extend_from_slice(bytes);
    tlv(0x03, &content)
}

/// KeyUsage bits (RFC 5280 §4.2.1.3), named from bit 0 at the left, as DER wants: no trailing zero bits.
pub(crate) fn named_bits(bits: &[u8]) -> Vec<u8> {
    let byte = bits.iter().fold(0_u8, |byte, bit| byte | 0x80_u8.checked_shr(u32::from(*bit)).unwrap_or(0));
    let unused = u8::try_from(byte.trailing_zeros().min(7)).unwrap_or(0);
    tlv(0x03, &[unused, byte])
}

/// UTCTime until 2049, GeneralizedTime after (RFC 5280 §4.1.2.5).
pub(crate) fn time(at: Timestamp) -> Vec<u8> {
    let text: String = at.to_string().chars().filter(char::is_ascii_digit).collect();
    let year = at.calendar().year();
    if (1950..2050).contains(&year) {
        let short = text.get(2..).unwrap_or_default();
        tlv(0x17, format!("{short}Z").as_bytes())
    } else {
        tlv(0x18, format!("{text}Z").as_bytes())
    }
}

/// One certificate extension (RFC 5280 §4.1): id-ce arc `2.5.29.<arc>` unless a whole OID is needed.
pub(crate) fn extension(arc: u8, critical: bool, value: &[u8]) -> Vec<u8> {
    let oid = tlv(OID, &[0x55, 0x1d, arc]);
    let value = tlv(OCTET_STRING, value);
    if critical { sequence(&[oid.as_slice(), TRUE, &value]) } else { sequence(&[oid, value]) }
}

/// Name with the two attributes we use: organizationName and commonName, UTF8String.
pub(crate) fn name(organization: &str, common_name: Option<&str>) -> Vec<u8> {
    let attribute =
        |arc: u8, text: &str| tlv(SET, &sequence(&[tlv(OID, &[0x55, 0x04, arc]), tlv(UTF8_STRING, text.as_bytes())]));
    let mut parts = vec![attribute(10, organization)];
    parts.extend(common_name.map(|text| attribute(3, text)));
    sequence(&parts)
}

/// BasicConstraints (RFC 5280 §4.2.1.9) of a CA, with an optional path length.
pub(crate) fn ca_constraints(path_len: Option<u8>) -> Vec<u8> {
    match path_len {
        Some(length) => sequence(&[TRUE.to_vec(), unsigned(&[length])]),
        None => sequence(&[TRUE]),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use x509_parser::prelude::FromDer;
    use x509_parser::time::ASN1Time;

    use super::*;

    #[test]
    fn lengths_are_minimal() {
        for (length, head) in [
            (0, vec![0x04, 0x00]),
            (127, vec![0x04, 0x7f]),
            (128, vec![0x04, 0x81, 0x80]),
            (255, vec![0x04, 0x81, 0xff]),
            (256, vec![0x04, 0x82, 0x01, 0x00]),
            (65_536, vec![0x04, 0x83, 0x01, 0x00, 0x00]),
        ] {
            let written = tlv(OCTET_STRING, &vec![7; length]);
            assert_eq!(&written[..head.len()], head, "{length}");
            assert_eq!(written.len(), head.len() + length);
        }
    }

    #[test]
    fn integers_are_positive_and_minimal() {
        assert_eq!(unsigned(&[]), [2, 1, 0]);
        assert_eq!(unsigned(&[0, 0]), [2, 1, 0]);
        assert_eq!(unsigned(&[0, 0x7f]), [2, 1, 0x7f]);
        assert_eq!(unsigned(&[0x80]), [2, 2, 0, 0x80]);
        assert_eq!(unsigned(&[1, 0]), [2, 2, 1, 0]);
    }

    #[test]
    fn named_bits_have_no_trailing_zeros() {
        assert_eq!(named_bits(&[0]), [3, 2, 7, 0x80]);
        assert_eq!(named_bits(&[5, 6]), [3, 2, 1, 0x06]);
    }

    #[test]
    fn times_change_their_form_in_2050() {
        // 2049-12-31T23:59:59Z
        let last = Timestamp::from_unix(2_524_607_999);
        let first = last.plus(Duration::from_secs(1));
        assert_eq!(time(last), [&[0x17, 13][..], b"491231235959Z"].concat());
        assert_eq!(time(first), [&[0x18, 15][..], b"20500101000000Z"].concat());
        for at in [Timestamp::from_unix(0), last, first, Timestamp::from_unix(i64::MAX)] {
            let (_, read) = ASN1Time::from_der(&time(at)).unwrap();
            assert_eq!(read.timestamp(), at.unix());
        }
    }
}
