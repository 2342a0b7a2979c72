//! Labels as one word of a name: `version=v2`, several joined by `+`. Letters, digits, `-` and `_` stand for themselves,
//! all else is `~` and two hexadecimal digits, so that the word holds no dot and is a part of a host name as HTTP sees
//! it.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Subset;
use crate::name::check_label_pair;

/// Most labels of a word.
const MAX_LABELS: usize = 16;

/// The word for these labels; empty if there are none.
#[must_use]
pub fn to_word(labels: &Subset) -> String {
    let mut word = String::new();
    for (key, value) in labels.iter() {
        if !word.is_empty() {
            word.push('+');
        }
        encode(key, &mut word);
        word.push('=');
        encode(value, &mut word);
    }
    word
}

/// The labels of a word, at least one; `None`: [`to_word`] makes no such word.
#[must_use]
pub fn of_word(word: &str) -> Option<Subset> {
    let mut labels: BTreeMap<Arc<str>, Arc<str>> = BTreeMap::new();
    for pair in word.split('+') {
        let (key, value) = pair.split_once('=')?;
        let (key, value) = (decode(key)?, decode(value)?);
        let in_order = labels.last_key_value().is_none_or(|(last, _)| **last < *key);
        if check_label_pair(&key, &value).is_err() || !in_order || labels.len() == MAX_LABELS {
            return None;
        }
        labels.insert(key.into(), value.into());
    }
    Some(labels.into_iter().collect())
}

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')
}

fn encode(text: &str, into: &mut String) {
    for byte in text.bytes() {
        if is_plain(byte) {
            into.push(char::from(byte));
        } else {
            into.push_str(&format!("~{byte:02X}"));
        }
    }
}

fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.bytes().next() {
        let (byte, length) = match first {
            b'~' => {
                let digits = rest.get(1..3)?;
                let upper = digits.bytes().all(|digit| digit.is_ascii_digit() || (b'A'..=b'F').contains(&digit));
                let byte = u8::from_str_radix(digits, 16).ok()?;
                // What stands for itself is not written otherwise.
                if !upper || is_plain(byte) {
                    return None;
                }
                (byte, 3)
            }
            plain if is_plain(plain) => (plain, 1),
            _ => return None,
        };
        bytes.push(byte);
        rest = rest.get(length..)?;
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Subset {
        pairs.iter().map(|(key, value)| (Arc::from(*key), Arc::from(*value))).collect()
    }

    #[test]
    fn a_word_is_readable_and_has_no_dots() {
        let two = labels(&[("app.kubernetes.io/version", "1.2"), ("track", "Canary_1")]);
        assert_eq!(to_word(&two), "app~2Ekubernetes~2Eio~2Fversion=1~2E2+track=Canary_1");
        assert_eq!(of_word(&to_word(&two)), Some(two));
        assert_eq!(to_word(&labels(&[("version", "v2")])), "version=v2");
        assert_eq!(of_word("version="), Some(labels(&[("version", "")])));
    }

    #[test]
    fn what_no_labels_are_written_as_is_refused() {
        for bad in
            ["", "a", "=a", "a=b+", "b=1+a=2", "a=1+a=2", "a=~2", "a=~2e", "a=~61", "a=b=c", "a=~0A", "a=.", "a=~FF"]
        {
            assert_eq!(of_word(bad), None, "{bad}");
        }
        assert_eq!(of_word(&format!("a={}", "x".repeat(64))), None);
        let many: Vec<String> = (10..27).map(|number| format!("k{number}=v")).collect();
        assert_eq!(of_word(&many.join("+")), None);
    }

    proptest! {
        #[test]
        fn what_is_taken_is_written_as_it_was_read(word in r"[a-c=+~2EF./_-]{0,20}|\PC*") {
            if let Some(labels) = of_word(&word) {
                prop_assert_eq!(to_word(&labels), word);
            }
        }
    }
}
