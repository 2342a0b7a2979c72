//! A walk over protobuf's wire format that finds what a decoder passes over in silence: fields that
//! come twice, and fields this version does not know.

use super::HeaderError;

/// Numbers below this one are critical: a receiver that does not know such a field refuses the
/// stream, because the field changes what the stream means. Fields from here on may be ignored.
pub(super) const FIRST_IGNORABLE: u32 = 16;

/// What a message may contain.
pub(super) struct Schema {
    pub(super) fields: &'static [Field],
    /// A oneof and nothing else: at most one field, whichever.
    pub(super) one_of: bool,
}

pub(super) struct Field {
    pub(super) number: u32,
    pub(super) name: &'static str,
    pub(super) repeated: bool,
    /// Of fields that are messages.
    pub(super) message: Option<&'static Schema>,
}

const fn scalar(number: u32, name: &'static str) -> Field {
    Field { number, name, repeated: false, message: None }
}

const fn message(number: u32, name: &'static str, schema: &'static Schema) -> Field {
    Field { number, name, repeated: false, message: Some(schema) }
}

const SOURCE: Schema = Schema {
    fields: &[scalar(1, "source.namespace"), scalar(2, "source.service_account"), scalar(3, "source.identity")],
    one_of: false,
};
const CLIENT: Schema =
    Schema { fields: &[scalar(1, "client_address.ip"), scalar(2, "client_address.port")], one_of: false };
const SUBSET_ENTRY: Schema = Schema { fields: &[scalar(1, "subset key"), scalar(2, "subset value")], one_of: false };
const SERVICE: Schema = Schema {
    fields: &[
        scalar(1, "namespace"),
        scalar(2, "service"),
        scalar(3, "port"),
        Field { number: 4, name: "subset", repeated: true, message: Some(&SUBSET_ENTRY) },
        scalar(5, "endpoint_id"),
        message(6, "source", &SOURCE),
        scalar(7, "traceparent"),
        scalar(8, "affinity"),
        scalar(9, "protocol"),
        scalar(10, "flow_id"),
        scalar(16, "tls"),
        message(21, "client_address", &CLIENT),
    ],
    one_of: false,
};
const FEDERATION: Schema = Schema { fields: &[scalar(1, "min_version"), scalar(2, "max_version")], one_of: false };
const RELAY: Schema =
    Schema { fields: &[scalar(1, "relay.to"), scalar(2, "relay.from"), scalar(3, "relay.path")], one_of: false };
const PROBE: Schema = Schema { fields: &[], one_of: false };
const BENCH: Schema = Schema { fields: &[scalar(1, "download"), scalar(2, "seconds")], one_of: false };

/// `eastway.tunnel.v1.StreamHeader`.
pub(super) const STREAM_HEADER: Schema = Schema {
    fields: &[
        message(1, "service", &SERVICE),
        message(2, "federation", &FEDERATION),
        message(3, "probe", &PROBE),
        message(12, "bench", &BENCH),
        message(8, "relay", &RELAY),
    ],
    one_of: true,
};

/// Checks `bytes` against `schema`. The depth is bounded by the schema, the time by the length.
pub(super) fn check(mut bytes: &[u8], schema: &Schema) -> Result<(), HeaderError> {
    let mut seen = 0u32;
    while !bytes.is_empty() {
        let tag = varint(&mut bytes)?;
        let number = u32::try_from(tag >> 3).ok().filter(|number| *number != 0).ok_or(HeaderError::Malformed)?;
        let payload = value(&mut bytes, tag & 7)?;
        let Some(field) = schema.fields.iter().find(|field| field.number == number) else {
            if schema.one_of || number < FIRST_IGNORABLE {
                return Err(HeaderError::Unsupported(number));
            }
            continue;
        };
        let bit = if schema.one_of { 1 } else { 1 << number };
        if seen & bit != 0 && !field.repeated {
            return Err(HeaderError::Duplicate(field.name));
        }
        seen |= bit;
        if let Some(inner) = field.message {
            check(payload.ok_or(HeaderError::Malformed)?, inner)?;
        }
    }
    Ok(())
}

/// Takes one value off `bytes`: the payload if it is length-delimited.
fn value<'a>(bytes: &mut &'a [u8], wire_type: u64) -> Result<Option<&'a [u8]>, HeaderError> {
    match wire_type {
        0 => varint(bytes).map(|_| None),
        1 => take(bytes, 8).map(|_| None),
        2 => {
            let length = usize::try_from(varint(bytes)?).map_err(|_| HeaderError::Malformed)?;
            take(bytes, length).map(Some)
        }
        5 => take(bytes, 4).map(|_| None),
        // Groups are not used, and would need recursion without a bound.
        _ => Err(HeaderError::Malformed),
    }
}

fn take<'a>(bytes: &mut &'a [u8], length: usize) -> Result<&'a [u8], HeaderError> {
    let (head, rest) = bytes.split_at_checked(length).ok_or(HeaderError::Malformed)?;
    *bytes = rest;
    Ok(head)
}

fn varint(bytes: &mut &[u8]) -> Result<u64, HeaderError> {
    let mut result = 0u64;
    for shift in (0..64).step_by(7) {
        let [byte] = *take(bytes, 1)? else { return Err(HeaderError::Malformed) };
        result |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
        if byte & 0x80 == 0 {
            return Ok(result);
        }
    }
    Err(HeaderError::Malformed)
}
