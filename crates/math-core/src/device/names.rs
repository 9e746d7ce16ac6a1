//! From what people write to a row: `4090`, `rtx-4090`, `m3-max-40c`, `2x h100-sxm`, `strix halo 128`.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;

use super::row::Row;
use super::table::DEVICES;
use crate::error::MathError;

/// A row, and the size of memory when one was asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Found {
    pub(super) row: &'static Row,
    pub(super) size_gib: Option<u32>,
}

/// Words that say who makes a board or which line it belongs to: a name is found without them.
const BRANDS: &[&str] = &[
    "nvidia", "geforce", "rtx", "gtx", "quadro", "tesla", "amd", "radeon", "rx", "instinct", "intel", "arc", "apple", "cpu",
    "gpu",
];

/// Words that drivers add and nobody means.
const NOISE: &[&str] = &["gpu", "graphics", "edition", "generation", "integrated", "r", "tm", "corporation", "the"];

/// A name cut where letters and digits meet and at every other character, lower case: `RTX4090` is `rtx 4090`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Words(Vec<String>);

impl Words {
    pub(super) fn of(text: &str) -> Self {
        let mut words: Vec<String> = Vec::new();
        let mut last = None;
        for character in text.chars() {
            let class = if character.is_ascii_digit() {
                Some(0)
            } else if character.is_alphabetic() {
                Some(1)
            } else if character == '+' {
                Some(2)
            } else {
                None
            };
            if class.is_some_and(|class| class < 2) {
                match words.last_mut() {
                    Some(word) if last == Some(class) => word.extend(character.to_lowercase()),
                    _ => words.push(character.to_lowercase().collect()),
                }
            }
            last = Some(class);
        }
        for word in &mut words {
            if word == "g" || word == "gib" {
                "gb".clone_into(word);
            }
        }
        words.retain(|word| !NOISE.contains(&word.as_str()));
        Self(words)
    }

    /// How many of `self` are left over once each word of `other` took one; `None` when one found none.
    fn left_over(&self, other: &Self) -> Option<Vec<&str>> {
        let mut left: Vec<&str> = self.0.iter().map(String::as_str).collect();
        for word in &other.0 {
            let place = left.iter().position(|there| there == word)?;
            left.remove(place);
        }
        Some(left)
    }

    /// The same words without the last number (and `gb` after it), and that number.
    fn without_size(&self) -> Option<(Self, u32)> {
        let mut words = self.0.clone();
        if words.last().is_some_and(|word| word == "gb") {
            words.pop();
        }
        let number = words.pop()?.parse().ok()?;
        (!words.is_empty()).then_some((Self(words), number))
    }

    fn compact(&self) -> String {
        self.0.iter().filter(|word| !BRANDS.contains(&word.as_str())).map(String::as_str).collect()
    }
}

/// How closely a row answers to a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Closeness {
    /// The words are the same, whatever the brand.
    Same,
    /// Only a size of memory is left over.
    ButSize,
    /// Something is left over that tells devices apart.
    More,
}

impl Row {
    pub(super) fn spellings(&self) -> impl Iterator<Item = &'static str> {
        core::iter::once(self.name).chain(self.aliases.iter().copied())
    }

    fn closeness(&self, wanted: &Words) -> Option<Closeness> {
        let (brands, telling): (Vec<&String>, Vec<&String>) = wanted.0.iter().partition(|word| BRANDS.contains(&word.as_str()));
        // A brand may be left out, and must be right where it is not.
        let known: Vec<Words> = self.spellings().map(Words::of).collect();
        if !brands.iter().all(|brand| known.iter().any(|words| words.0.contains(brand))) {
            return None;
        }
        let telling = Words(telling.into_iter().cloned().collect());
        known
            .iter()
            .filter_map(|words| {
                let mut left = words.left_over(&telling)?;
                left.retain(|word| !BRANDS.contains(word));
                if left.is_empty() {
                    return Some(Closeness::Same);
                }
                let is_size = left.contains(&"gb") && left.iter().all(|word| *word == "gb" || word.parse::<u32>().is_ok());
                Some(if is_size { Closeness::ButSize } else { Closeness::More })
            })
            .min()
    }
}

/// The rows that answer closest to `wanted`.
pub(super) fn closest(wanted: &Words) -> (Vec<&'static Row>, bool) {
    let found: Vec<(Closeness, &Row)> =
        DEVICES.iter().filter_map(|row| row.closeness(wanted).map(|closeness| (closeness, row))).collect();
    for level in [Closeness::Same, Closeness::ButSize] {
        let rows: Vec<&Row> = found.iter().filter(|(closeness, _)| *closeness == level).map(|(_, row)| *row).collect();
        if !rows.is_empty() {
            return (rows, true);
        }
    }
    (found.into_iter().map(|(_, row)| row).collect(), false)
}

/// Short names that everybody says for one of several devices, and the one they mean. All others are asked back.
const USUAL: &[(&str, &str)] = &[("H100", "NVIDIA H100 SXM"), ("M3 Max", "Apple M3 Max (40c)")];

fn usual(wanted: &Words, several: &[&'static Row]) -> Option<&'static Row> {
    let telling = |words: &Words| Words(words.0.iter().filter(|word| !BRANDS.contains(&word.as_str())).cloned().collect());
    let (_, name) = USUAL.iter().find(|(short, _)| Words::of(short) == telling(wanted))?;
    several.iter().copied().find(|row| row.name == *name)
}

/// The row that `text` names.
///
/// # Errors
/// [`MathError::Invalid`] listing the candidates when none, or more than one, answers to it.
pub(super) fn find(text: &str) -> Result<Found, MathError> {
    let wanted = Words::of(text);
    if wanted.compact().is_empty() {
        return Err(unknown(text, &wanted));
    }
    let exact = DEVICES.iter().find(|row| row.spellings().any(|spelling| Words::of(spelling) == wanted));
    if let Some(row) = exact {
        return Ok(Found { row, size_gib: None });
    }
    let (rows, _) = closest(&wanted);
    match rows.as_slice() {
        [row] => return Ok(Found { row, size_gib: None }),
        [] => {}
        several if let Some(row) = usual(&wanted, several) => return Ok(Found { row, size_gib: None }),
        several => return Err(ambiguous(text, several.iter().map(|row| row.name.to_string()).collect())),
    }
    // A machine is sold with several sizes of memory, and a name may end with one.
    if let Some((rest, size)) = wanted.without_size() {
        let (rows, _) = closest(&rest);
        let sold: Vec<&Row> = rows.iter().copied().filter(|row| row.sizes.contains(&size)).collect();
        match sold.as_slice() {
            [row] => return Ok(Found { row, size_gib: Some(size) }),
            [] => {
                let sizes: Vec<String> =
                    rows.iter().flat_map(|row| row.sizes.iter().map(move |gib| format!("{} {gib} GB", row.name))).collect();
                if !sizes.is_empty() {
                    return Err(MathError::Invalid {
                        field: "device".to_string(),
                        found: quoted(text),
                        expected: format!("a size it is sold with: {}", sizes.join(", ")),
                    });
                }
            }
            several => {
                return Err(ambiguous(text, several.iter().map(|row| format!("{} {size} GB", row.name)).collect()));
            }
        }
    }
    Err(unknown(text, &wanted))
}

fn ambiguous(text: &str, candidates: Vec<String>) -> MathError {
    MathError::Invalid {
        field: "device".to_string(),
        found: format!("{}, which names several", quoted(text)),
        expected: format!("one of {}", candidates.join(", ")),
    }
}

fn unknown(text: &str, wanted: &Words) -> MathError {
    let names: Vec<&str> = nearest(wanted).into_iter().map(|row| row.name).collect();
    MathError::Invalid {
        field: "device".to_string(),
        found: quoted(text),
        expected: format!("cpu, a name of `plimsoll devices`, or a memory size; nearest: {}", names.join(", ")),
    }
}

fn quoted(text: &str) -> String {
    let shown: String = text.chars().filter(|character| !character.is_control()).take(60).collect();
    format!("\"{shown}\"")
}

/// The six rows nearest in spelling, those that share a telling word first.
fn nearest(wanted: &Words) -> Vec<&'static Row> {
    let compact: String = wanted.compact().chars().take(40).collect();
    let shared = |row: &Row| {
        let words = Words::of(row.name);
        wanted.0.iter().filter(|word| !BRANDS.contains(&word.as_str()) && words.0.contains(word)).map(String::len).sum::<usize>()
    };
    let mut rows: Vec<(usize, usize, &Row)> = DEVICES
        .iter()
        .map(|row| {
            let distance = row.spellings().map(|spelling| distance(&compact, &Words::of(spelling).compact())).min();
            (distance.unwrap_or(usize::MAX).saturating_sub(shared(row)), row.name.len(), row)
        })
        .collect();
    rows.sort_by_key(|(distance, length, _)| (*distance, *length));
    rows.into_iter().take(6).map(|(.., row)| row).collect()
}

/// Insertions, deletions and replacements from one text to the other.
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut previous: Vec<usize> = (0..=to.len()).collect();
    for (index, character) in from.chars().enumerate() {
        let mut diagonal = index;
        let mut left = index + 1;
        let mut current = vec![left];
        for (other, above) in to.iter().zip(previous.iter().skip(1)) {
            let replaced = diagonal + usize::from(*other != character);
            left = replaced.min(left + 1).min(above + 1);
            current.push(left);
            diagonal = *above;
        }
        previous = current;
    }
    previous.last().copied().unwrap_or(0)
}

/// How many of which: `2x h100-sxm`, `h100-sxm x2`, `4 x 3090`, or a name alone. A count has at most three digits, so that
/// `7900xtx` is a name.
///
/// # Errors
/// [`MathError::Invalid`] for zero.
pub(super) fn counted(text: &str) -> Result<(u32, &str), MathError> {
    const SIGNS: [char; 3] = ['x', 'X', '×'];
    let text = text.trim();
    let count = |digits: &str| (digits.len() <= 3).then(|| digits.parse::<u32>().ok()).flatten();
    let before = || {
        let (head, rest) = text.split_once(SIGNS)?;
        // `4 x 3090` has space on both sides, `2x h100` and `2xh100` none before.
        let spaced = head.ends_with(char::is_whitespace) && !rest.starts_with(char::is_whitespace);
        (!spaced && !rest.trim().is_empty()).then_some((count(head.trim())?, rest.trim()))
    };
    let after = || {
        let (head, rest) = text.rsplit_once(SIGNS)?;
        let ends_well = |character: char| character.is_whitespace() || character.is_ascii_digit() || character == ')';
        (head.ends_with(ends_well) && !head.trim().is_empty()).then_some((count(rest.trim())?, head.trim()))
    };
    match before().or_else(after) {
        Some((0, _)) => Err(MathError::Invalid {
            field: "device".to_string(),
            found: "0 devices".to_string(),
            expected: "1 or more".to_string(),
        }),
        Some(found) => Ok(found),
        None => Ok((1, text)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;

    #[track_caller]
    fn check(text: &str, expect: &str) {
        assert_eq!(
            Device::named(text).map(|device| device.name).map_err(|error| error.to_string()),
            Ok(expect.to_string()),
            "{text}"
        );
    }

    #[track_caller]
    fn several(text: &str, expect: &[&str]) {
        let error = Device::named(text).unwrap_err().to_string();
        assert!(error.contains("names several"), "{text}: {error}");
        for name in expect {
            assert!(error.contains(name), "{text}: {error}");
        }
    }

    #[test]
    fn names_are_forgiving() {
        for text in ["RTX 4090", "4090", "rtx-4090", "RTX4090", "nvidia geforce rtx 4090", "GeForce_RTX_4090", "cuda-cc890"] {
            check(text, "NVIDIA GeForce RTX 4090");
        }
        check("2080ti", "NVIDIA GeForce RTX 2080 Ti");
        check("cuda-cc750", "NVIDIA GeForce RTX 2080 Ti");
        check("cuda-cc610", "NVIDIA GeForce GTX 1080 Ti");
        check("h100-pcie", "NVIDIA H100 PCIe");
        check("H200", "NVIDIA H200 SXM");
        check("7900 xtx", "AMD Radeon RX 7900 XTX");
        check("m3-max-40c", "Apple M3 Max (40c)");
        check("M3 Max", "Apple M3 Max (40c)");
        check("nvidia h100", "NVIDIA H100 SXM");
        check("metal", "Apple M3 Max (40c)");
        check("M3 Max 64GB", "Apple M3 Max (40c) 64 GB");
        check("m3 max (36 GiB)", "Apple M3 Max (30c) 36 GB");
        check("strix halo 128", "AMD Ryzen AI Max+ 395 (Radeon 8060S) 128 GB");
        check("strix halo", "AMD Ryzen AI Max+ 395 (Radeon 8060S)");
        check("GB10", "NVIDIA DGX Spark (GB10)");
        // As drivers and tools spell them.
        check("NVIDIA GeForce RTX 4060 Laptop GPU", "NVIDIA GeForce RTX 4060 Laptop");
        check("NVIDIA H100 80GB HBM3", "NVIDIA H100 SXM");
        check("NVIDIA A100-SXM4-80GB", "NVIDIA A100 80GB SXM");
        check("NVIDIA RTX 6000 Ada Generation", "NVIDIA RTX 6000 Ada");
        check("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "NVIDIA RTX PRO 6000 Blackwell WS");
        check("Tesla V100-SXM2-32GB", "NVIDIA Tesla V100 SXM2 32GB");
        check("AMD Radeon RX 9070 XT", "AMD Radeon RX 9070 XT");
        check("Intel(R) Arc(TM) A770 Graphics", "Intel Arc A770 16GB");
    }

    #[test]
    fn what_names_several_lists_them() {
        several("M2 Ultra", &["Apple M2 Ultra (60c)", "Apple M2 Ultra (76c)"]);
        several("4060 Ti", &["NVIDIA GeForce RTX 4060 Ti 8GB", "NVIDIA GeForce RTX 4060 Ti 16GB"]);
        several("a100 80gb", &["NVIDIA A100 80GB PCIe", "NVIDIA A100 80GB SXM"]);
    }

    #[test]
    fn what_names_none_suggests_the_nearest() {
        for (text, near) in
            [("RTX 4091", "NVIDIA GeForce RTX 4090"), ("H100 NVX", "NVIDIA H100 NVL"), ("m3 mox 40c", "Apple M3 Max (40c)")]
        {
            let error = Device::named(text).unwrap_err().to_string();
            assert!(error.contains("nearest") && error.contains(near), "{text}: {error}");
        }
        let sizes = Device::named("m3-max-40c 100GB").unwrap_err().to_string();
        assert!(sizes.contains("sold with") && sizes.contains("128 GB"), "{sizes}");
        for text in ["", "NVIDIA", "RTX", "\u{7}", "x", "0"] {
            assert!(Device::named(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn every_spelling_names_its_own_row() {
        for row in DEVICES {
            for spelling in row.spellings() {
                let found = find(spelling).map(|found| found.row.name).map_err(|error| error.to_string());
                assert_eq!(found, Ok(row.name), "{spelling}");
            }
        }
    }

    #[test]
    fn a_number_of_devices_stands_before_or_after_the_name() {
        for (text, expect) in [
            ("2x h100-sxm", (2, "h100-sxm")),
            ("2xH100 SXM", (2, "H100 SXM")),
            ("4 x 3090", (4, "3090")),
            ("8×H200", (8, "H200")),
            ("RTX 4090x2", (2, "RTX 4090")),
            ("RTX 4090 x2", (2, "RTX 4090")),
            ("GTX 1080", (1, "GTX 1080")),
            ("RTX 3090", (1, "RTX 3090")),
            ("RTX4090", (1, "RTX4090")),
            ("7900 XTX", (1, "7900 XTX")),
            ("7900xtx", (1, "7900xtx")),
            ("h100-sxm x2", (2, "h100-sxm")),
        ] {
            assert_eq!(counted(text), Ok(expect), "{text}");
        }
        assert!(counted("0x H100").is_err());
    }
}
