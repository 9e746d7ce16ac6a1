//! Every hostile file among the fixtures is refused with one sentence that says what is wrong.

use crate::support::{files, fixture};
use plimsoll_ingest::gguf::{Options, ingest};

fn check(file: &str, bytes: &Vec<u8>, expected: &str) -> Result<(), String> {
    let sentence = match ingest(bytes, &Options::default()) {
        Ok(_) => return Err(format!("{file}: accepted")),
        Err(error) => error.to_string(),
    };
    let is_one_line = !sentence.chars().any(char::is_control) && sentence.len() < 400;
    if sentence.contains(expected) && is_one_line { Ok(()) } else { Err(format!("{file}: {sentence:?}, expected {expected:?}")) }
}

#[test]
fn of_every_attack() {
    let table = std::fs::read_to_string(fixture("attacks/gguf/expected.tsv")).unwrap();
    let mut wrong = Vec::new();
    let mut listed = 0;
    for line in table.lines() {
        let (file, expected) = line.split_once('\t').unwrap();
        let bytes = std::fs::read(fixture(&format!("attacks/gguf/{file}"))).unwrap();
        wrong.extend(check(file, &bytes, expected).err());
        listed += 1;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let there = files("attacks/gguf").iter().filter(|path| path.extension().is_some_and(|end| end == "gguf")).count();
    assert_eq!(listed, there, "every file has an expectation");
}
