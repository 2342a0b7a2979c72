//! A change as a unified diff. It is one run of lines, since what is written is in one place.

/// Lines around a change.
const CONTEXT: usize = 3;

/// The difference in the manner of `diff -u`; empty if there is none.
#[must_use]
pub fn unified(name: &str, before: &str, after: &str) -> String {
    if before == after {
        return String::new();
    }
    let (old, new): (Vec<&str>, Vec<&str>) =
        (before.split_inclusive('\n').collect(), after.split_inclusive('\n').collect());
    let same = old.iter().zip(&new).take_while(|(old, new)| old == new).count();
    let left = old.len().min(new.len()) - same;
    let tail = old.iter().rev().zip(new.iter().rev()).take(left).take_while(|(old, new)| old == new).count();
    let start = same.saturating_sub(CONTEXT);
    let shown = |lines: &[&str]| (lines.len() - tail + CONTEXT.min(tail)).saturating_sub(start);
    let range = |lines: &[&str]| match shown(lines) {
        0 => "0,0".to_owned(),
        count => format!("{},{count}", start + 1),
    };
    let mut text = format!("--- {name}\n+++ {name}\n@@ -{} +{} @@\n", range(&old), range(&new));
    let mut push = |mark: char, lines: &[&str]| {
        for line in lines {
            text.push(mark);
            text.push_str(line.trim_end_matches(['\n', '\r']));
            text.push_str(if line.ends_with('\n') { "\n" } else { "\n\\ No newline at end of file\n" });
        }
    };
    push(' ', old.get(start..same).unwrap_or_default());
    push('-', old.get(same..old.len() - tail).unwrap_or_default());
    push('+', new.get(same..new.len() - tail).unwrap_or_default());
    push(' ', old.get(old.len() - tail..old.len() - tail + CONTEXT.min(tail)).unwrap_or_default());
    text
}

#[cfg(test)]
mod tests {
    use super::unified;

    #[test]
    fn a_change_is_shown_with_its_surroundings() {
        let before = "a\nb\nc\nd\ne\n";
        assert_eq!(unified("x", before, before), "");
        assert_eq!(unified("x", before, "new\na\nb\nc\nd\ne\n"), "--- x\n+++ x\n@@ -1,3 +1,4 @@\n+new\n a\n b\n c\n");
        assert_eq!(
            unified("x", before, "a\nb\nc\nd\nE"),
            "--- x\n+++ x\n@@ -2,4 +2,4 @@\n b\n c\n d\n-e\n+E\n\\ No newline at end of file\n"
        );
        assert_eq!(unified("x", "", "a\n"), "--- x\n+++ x\n@@ -0,0 +1,1 @@\n+a\n");
        assert_eq!(unified("x", "a\na\n", "a\n"), "--- x\n+++ x\n@@ -1,2 +1,1 @@\n a\n-a\n");
    }
}
