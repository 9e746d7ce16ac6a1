//! `devices`: the catalogue, what a file describes, and this machine's own, in each form; what is wrong with a description is named.

use crate::run::{json, plimsoll};

#[test]
fn this_machine_answers_in_every_form() {
    let machine = json(&["devices", "--local", "--json"]);
    assert_eq!(machine["schema"], "plimsoll.local/1");
    assert!(machine["host"]["memory"].as_u64().is_some_and(|bytes| bytes > 1 << 28), "{machine}");
    for source in machine["sources"].as_array().unwrap() {
        let found = &source["found"];
        assert!(found.as_u64().is_some_and(|count| count > 0) || !found["unavailable"].as_str().unwrap().is_empty(), "{source}");
    }
    let text = plimsoll(&["devices", "--local"]);
    assert_eq!((text.code, text.err.as_str()), (0, ""));
    assert!(text.out.contains("This machine") && text.out.contains("nvidia-smi"), "{}", text.out);
    let table = plimsoll(&["devices", "--local", "--csv"]);
    assert!(
        table.out.starts_with("name,backend,") && table.out.lines().next().unwrap().ends_with("free_bytes,source,unavailable")
    );
}

#[test]
fn a_question_may_be_about_this_machine() {
    let arguments = ["fit", "@models/llama-3.1-8b", "--quant", "Q4_K_M", "--context", "1k", "--device", "local", "--json"];
    let answer = json(&arguments);
    let machine = json(&["devices", "--local", "--json"]);
    match machine["devices"].as_array().unwrap().iter().find_map(|found| found["device"]["name"].as_str()) {
        Some(name) => assert_eq!(answer["devices"][0]["name"], name),
        None => assert_eq!(answer["devices"][0]["usable"], machine["host"]["memory"]),
    }
}

#[test]
fn described_devices_stand_beside_the_catalogue() {
    let list = json(&["devices", "--devices-file", "@devices/described.toml", "--json"]);
    let names: Vec<&str> = list["devices"].as_array().unwrap().iter().map(|row| row["name"].as_str().unwrap()).collect();
    assert_eq!(names[..2], ["4090 48GB", "lab board"]);
    assert_eq!(names.len(), 235);
    let table = plimsoll(&["devices", "--devices-file", "@devices/described.toml", "--csv"]);
    assert!(table.out.contains("lab board,vulkan,false,34359738368,asked,"), "{}", table.out.lines().nth(2).unwrap());
    let two = json(&[
        "fit",
        "@models/llama-3.1-8b",
        "--device",
        "lab board x2",
        "--devices-file",
        "@devices/described.toml",
        "--context",
        "8k",
        "--json",
    ]);
    assert_eq!(two["devices"][1]["name"], "lab board");
}

#[test]
fn the_list_is_searched_by_words_and_by_forgiving_names() {
    let named = |words: &[&str]| -> Vec<String> {
        let list = json(&[&["devices", "--json"], words].concat());
        list["devices"].as_array().unwrap().iter().map(|row| row["name"].as_str().unwrap().to_owned()).collect()
    };
    let boards = named(&["4090"]);
    assert!(boards.len() == 3 && boards.iter().all(|name| name.contains("4090")), "{boards:?}");
    assert_eq!(named(&["4090", "laptop"]), ["NVIDIA GeForce RTX 4090 Laptop"]);
    assert_eq!(named(&["strix-halo"]).len(), 1, "an alias");
    assert_eq!(named(&["m3-max-40c"]).len(), 1, "spelled as nothing in the list");
    let unknown = plimsoll(&["devices", "A101"]);
    assert!(unknown.code == 65 && unknown.err.contains("nearest: NVIDIA A1"), "{}", unknown.err);
}

#[test]
fn what_is_wrong_with_a_description_is_named() {
    let folder = std::env::temp_dir().join(format!("plimsoll-devices-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("devices.toml");
    for (text, code, names) in [
        ("", 65, "device"),
        ("[[device]]\nname = \"x\"\n", 65, "device 1: found memory nothing"),
        ("[[device]]\nmemory = \"24G\"\n", 65, "24GiB"),
        ("[[device]]\nmemory = -1\n", 65, "less than nothing"),
        ("[[device]]\nmemory = \"1GiB\"\nspeed = 3\n", 65, "speed"),
        ("[[device]]\nmemory = \"1GiB\"\nbandwidth_gb_per_s = nan\nfp16_tflops = 1\n", 65, "above 0"),
        ("[[device]]\nlike = \"RTX 4091\"\n", 65, "RTX 4090"),
        ("[[device]]\nmemory = \"1GiB\"\n[[device]]\nmemory = \"1GiB\"\n", 65, "no other device"),
        ("this is no table", 65, "devices.toml"),
    ] {
        std::fs::write(&path, text).unwrap();
        let ran = plimsoll(&["devices", "--devices-file", path.to_str().unwrap()]);
        assert_eq!(ran.code, code, "{text}: {}", ran.err);
        assert!(ran.err.contains(names), "{text}: {}", ran.err);
        assert_eq!(ran.err.lines().filter(|line| line.contains("error:")).count(), 1, "{}", ran.err);
    }
    std::fs::remove_dir_all(&folder).unwrap();
    let missing = plimsoll(&["devices", "--devices-file", "/nowhere/devices.toml"]);
    assert_eq!(missing.code, 69, "{}", missing.err);
}
