//! Which known name a misspelt one resembles.

use alloc::vec::Vec;

/// Edits that turn one name into the other (Levenshtein), over the first 64 characters.
pub(crate) fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().take(64).collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (index, from) in left.chars().take(64).enumerate() {
        let mut diagonal = index;
        let mut before = index.saturating_add(1);
        let mut next = Vec::with_capacity(row.len());
        next.push(before);
        for (to, above) in right.iter().zip(row.iter().skip(1)) {
            let substituted = diagonal.saturating_add(usize::from(from != *to));
            before = substituted.min(above.saturating_add(1)).min(before.saturating_add(1));
            diagonal = *above;
            next.push(before);
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}
