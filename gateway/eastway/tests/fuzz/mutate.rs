//! Changes of inputs: of bytes for all, of whole messages for streams, of lines for texts.

use fastrand::Rng;

/// Values that are at the edge of something.
const EDGES: [u8; 8] = [0, 1, 0x7f, 0x80, 0xff, 0x0a, 0x20, 0x2d];
/// Longest input, bytes.
const LONGEST: usize = 1 << 17;

/// One of `inputs` with a few changes.
pub(crate) fn change(target: &str, inputs: &[Vec<u8>], random: &mut Rng) -> Vec<u8> {
    let mut input = inputs[random.usize(..inputs.len())].clone();
    for _ in 0..=random.usize(..4) {
        let other = &inputs[random.usize(..inputs.len())];
        input = match target {
            "federation_import" | "federation_export" if random.u8(..8) > 0 => messages(&input, other, random),
            "gateway_config" | "peer_file" | "policy_file" | "service_list" if random.bool() => {
                pieces(&input, other, b'\n', random)
            }
            "certificate_bundle" | "certificate_chain" | "revocation_list" if random.u8(..4) == 0 => {
                pieces(&input, other, b'\n', random)
            }
            _ => bytes(input, other, random),
        };
    }
    input.truncate(LONGEST);
    input
}

fn bytes(mut input: Vec<u8>, other: &[u8], random: &mut Rng) -> Vec<u8> {
    if input.is_empty() {
        return other.to_vec();
    }
    let at = random.usize(..input.len());
    match random.u8(..8) {
        0 => input[at] ^= 1 << random.u8(..8),
        1 => input[at] = random.u8(..),
        2 => input[at] = EDGES[random.usize(..EDGES.len())],
        3 => drop(input.drain(at..(at + random.usize(1..32)).min(input.len()))),
        4 => drop(input.splice(at..at, (0..random.usize(1..16)).map(|_| random.u8(..)).collect::<Vec<_>>())),
        5 => {
            let part = input[at..(at + random.usize(1..64)).min(input.len())].to_vec();
            drop(input.splice(at..at, part));
        }
        6 if !other.is_empty() => {
            let from = random.usize(..other.len());
            let part = other[from..(from + random.usize(1..64)).min(other.len())].to_vec();
            drop(input.splice(at..at, part));
        }
        _ => input.truncate(at),
    }
    input
}

/// Whole pieces left out, doubled, swapped, or taken from another input.
fn pieces(input: &[u8], other: &[u8], end: u8, random: &mut Rng) -> Vec<u8> {
    let mut pieces: Vec<&[u8]> = input.split_inclusive(|byte| *byte == end).collect();
    let others: Vec<&[u8]> = other.split_inclusive(|byte| *byte == end).collect();
    rearrange(&mut pieces, &others, random);
    pieces.concat()
}

/// Messages rearranged like pieces, or one changed inside with its length put right.
fn messages(input: &[u8], other: &[u8], random: &mut Rng) -> Vec<u8> {
    let (mut frames, others) = (frames(input), frames(other));
    if frames.is_empty() || random.u8(..3) == 0 {
        rearrange(&mut frames, &others, random);
        return frames.concat();
    }
    let at = random.usize(..frames.len());
    let foreign = others.get(random.usize(..others.len().max(1))).map_or(&[][..], |frame| &frame[4..]);
    let body = bytes(frames[at][4..].to_vec(), foreign, random);
    let mut changed = u32::try_from(body.len()).unwrap().to_be_bytes().to_vec();
    changed.extend(body);
    let mut out = frames[..at].concat();
    out.extend(changed);
    out.extend(frames[at + 1..].concat());
    out
}

fn rearrange<'a>(pieces: &mut Vec<&'a [u8]>, others: &[&'a [u8]], random: &mut Rng) {
    if pieces.is_empty() {
        return pieces.extend(others);
    }
    let (at, to) = (random.usize(..pieces.len()), random.usize(..pieces.len()));
    match random.u8(..4) {
        0 => drop(pieces.remove(at)),
        1 => pieces.insert(to, pieces[at]),
        2 => pieces.swap(at, to),
        _ if !others.is_empty() => pieces.insert(to, others[random.usize(..others.len())]),
        _ => {}
    }
}

/// The whole messages of a stream, each with its length.
fn frames(stream: &[u8]) -> Vec<&[u8]> {
    let mut frames = Vec::new();
    let mut rest = stream;
    while let Some(length) = rest.first_chunk::<4>() {
        let length = usize::try_from(u32::from_be_bytes(*length)).unwrap();
        let Some(frame) = rest.get(..length.saturating_add(4)) else { break };
        frames.push(frame);
        rest = &rest[frame.len()..];
    }
    frames
}
