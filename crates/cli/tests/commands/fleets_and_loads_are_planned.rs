//! `fleet` and `capacity`: files in, placements and replicas out; what is wrong with a file is named, and exit codes say what happened.

use std::io::Write;

use crate::run::{json, plimsoll};

#[test]
fn a_fleet_is_placed() {
    let answer = json(&["fleet", "@fleet/office.toml", "--json"]);
    assert_eq!(answer["schema"], "plimsoll.fleet/1");
    assert_eq!(answer["wanted_replicas"], 5);
    assert_eq!(answer["placed_replicas"], 5, "{answer}");
    let text = plimsoll(&["fleet", "@fleet/office.toml"]);
    assert_eq!((text.code, text.err.as_str()), (0, ""));
    for part in ["Everything fits", "tower", "chat#0", "code#0", "long#0", "NVIDIA GeForce RTX 4090"] {
        assert!(text.out.contains(part), "{part}: {}", text.out);
    }
    assert_eq!(json(&["fleet", "@fleet/office.toml", "--solver-seconds", "0", "--json"])["method"], "greedy");
}

#[test]
fn what_does_not_fit_is_an_exit_code_and_a_fix() {
    let folder = std::env::temp_dir().join(format!("plimsoll-fleet-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let config = crate::run::fixture("models/llama-3.1-8b");
    let path = folder.join("fleet.toml");
    let write = |text: &str| std::fs::write(&path, text.replace("MODEL", &config.display().to_string())).unwrap();
    let wrong = |code: i32, names: &str| {
        let ran = plimsoll(&["fleet", path.to_str().unwrap()]);
        assert_eq!(ran.code, code, "{}", ran.err);
        assert!(ran.err.contains(names) || ran.out.contains(names), "{names}: {} {}", ran.out, ran.err);
    };
    write(
        "[[host]]\nname = \"a\"\ndevices = [\"RTX 3060 12GB\"]\n[[model]]\nname = \"m\"\nmodel = \"MODEL\"\noptions = { context = 131072, quant = \"Q8_0\" }\n",
    );
    wrong(3, "without a place");
    write("[[host]]\nname = \"a\"\ndevices = [\"RTX 3061\"]\n[[model]]\nname = \"m\"\nmodel = \"MODEL\"\n");
    wrong(64, "nearest");
    write("[[host]]\nname = \"a\"\ncolour = 1\n");
    wrong(65, "colour");
    write("headroom = [");
    wrong(65, "fleet.toml");
    write("headroom = \"5\"");
    wrong(64, "model: found 0");
    write("[[host]]\nname = \"a\"\ndevices = [\"RTX 4090\"]\n[[model]]\nname = \"m\"\nmodel = \"/nowhere/config.json\"\n");
    wrong(69, "/nowhere");
    assert_eq!(plimsoll(&["fleet", "/nowhere/fleet.toml"]).code, 69);
    std::fs::remove_dir_all(&folder).unwrap();
}

fn load<'a>(rest: &[&'a str]) -> Vec<&'a str> {
    let mut all =
        vec!["capacity", "@models/llama-3.1-8b", "--quant", "Q4_K_M", "--context", "16k", "--sequences", "4", "--device", "4090"];
    all.extend(rest);
    all
}

#[test]
fn a_load_is_sized() {
    let answer = json(&load(&["--rate", "6", "--ttft", "3s", "--tpot", "60ms", "--requests", "200", "--json"]));
    assert_eq!(answer["schema"], "plimsoll.capacity/1");
    let choice = &answer["choices"][0];
    assert!(choice["replicas"].as_u64().is_some_and(|count| count > 0), "{choice}");
    assert!(choice["played"]["ttft"]["p95"].as_f64().unwrap() <= 3.0);
    let again = json(&load(&["--rate", "6", "--ttft", "3s", "--tpot", "60ms", "--requests", "200", "--json"]));
    assert_eq!(answer, again, "the same seed, the same answer");
    let text = plimsoll(&load(&["--rate", "6", "--ttft", "3s", "--requests", "100"]));
    assert_eq!((text.code, text.err.as_str()), (0, ""));
    assert!(text.out.contains("first token") && text.out.contains("llama-server"), "{}", text.out);
    let never = plimsoll(&load(&["--rate", "6", "--ttft", "3s", "--tpot", "1us", "--requests", "50"]));
    assert_eq!(never.code, 64, "{}", never.err);
    let never = plimsoll(&load(&["--rate", "6", "--ttft", "3s", "--tpot", "0.01ms", "--requests", "50"]));
    assert_eq!(never.code, 3, "{}", never.out);
}

#[test]
fn a_trace_is_played() {
    let answer = json(&load(&["--trace", "@fleet/azure-head.csv", "--ttft", "20s", "--json"]));
    assert_eq!(answer["requests"], 4);
    assert_eq!(answer["choices"][0]["replicas"], 1);
}

/// 10 million rows are read line by line: what is kept does not grow with the file.
#[test]
fn a_trace_of_any_length_streams() {
    let folder = std::env::temp_dir().join(format!("plimsoll-trace-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("trace.csv");
    let mut file = std::io::BufWriter::new(std::fs::File::create(&path).unwrap());
    writeln!(file, "TIMESTAMP,ContextTokens,GeneratedTokens").unwrap();
    for row in 0..200_000_u32 {
        writeln!(file, "{}.{:02},{},{}", row / 100, row % 100, 50 + row % 7, 2).unwrap();
    }
    file.into_inner().unwrap();
    let answer = json(&load(&["--trace", path.to_str().unwrap(), "--ttft", "20s", "--json"]));
    assert_eq!(answer["requests"], 4000);
    assert!(answer["notes"][0].as_str().unwrap().contains("of 200000 requests the busiest 4000"), "{answer}");
    for (text, names) in [
        ("", "nothing"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n", "no requests"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n1,x,2\n", "line 2"),
        ("a,b,c\n1,2,3\n", "TIMESTAMP"),
    ] {
        std::fs::write(&path, text).unwrap();
        let ran = plimsoll(&load(&["--trace", path.to_str().unwrap(), "--ttft", "2"]));
        assert_eq!(ran.code, 65, "{text}: {}", ran.err);
        assert!(ran.err.contains(names), "{text}: {}", ran.err);
    }
    std::fs::write(&path, "x".repeat(100_000)).unwrap();
    let ran = plimsoll(&load(&["--trace", path.to_str().unwrap(), "--ttft", "2"]));
    assert_eq!(ran.code, 65, "{}", ran.err);
    std::fs::remove_dir_all(&folder).unwrap();
    assert_eq!(plimsoll(&load(&["--trace", "/nowhere/trace.csv", "--ttft", "2"])).code, 69);
}

#[test]
fn what_is_no_load_is_refused() {
    for rest in [
        &["--ttft", "2"][..],
        &["--rate", "0", "--ttft", "2"],
        &["--rate", "nan", "--ttft", "2"],
        &["--rate", "-1", "--ttft", "2"],
        &["--rate", "1"],
        &["--rate", "1", "--ttft", "0"],
        &["--rate", "1", "--ttft", "2", "--prompt", "0"],
        &["--rate", "1", "--ttft", "2", "--requests", "0"],
        &["--rate", "1", "--ttft", "2", "--max-replicas", "0"],
        &["--rate", "1", "--ttft", "2", "--on", "RTX 4091"],
    ] {
        let ran = plimsoll(&load(rest));
        assert_eq!(ran.code, 64, "{rest:?}: {}", ran.err);
    }
}
