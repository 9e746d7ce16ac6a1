//! The verbs that ask more than one question at a time, run as a person would.

use crate::run::{json, plimsoll};
use serde_json::Value;

const MODEL: &str = "@models/llama-3.1-8b";

fn bytes(value: &Value) -> i64 {
    value.as_i64().unwrap_or_else(|| panic!("{value} is no count"))
}

/// What `fit` says of both sides is what `compare` sets side by side.
#[track_caller]
fn check_compare(arguments: &[&str], a: &[&str], b: &[&str]) -> Value {
    let answer = json(&[&["compare"], arguments, &["--json"]].concat());
    assert_eq!(answer["schema"], "plimsoll.compare/1");
    for (side, alone) in [("a", a), ("b", b)] {
        assert_eq!(answer[side], json(&[&["fit"], alone, &["--json"]].concat()), "{side} of {arguments:?}");
        let used: i64 = answer[side]["devices"].as_array().unwrap().iter().map(|device| bytes(&device["used"])).sum();
        assert_eq!(used, bytes(&answer[format!("devices_{side}")]));
        let terms = answer["terms"].as_array().unwrap();
        let sum: i64 = terms.iter().filter(|term| term["place"] == "devices").map(|term| bytes(&term[side])).sum();
        assert_eq!(sum, used);
    }
    for term in answer["terms"].as_array().unwrap() {
        assert_eq!(bytes(&term["b"]) - bytes(&term["a"]), bytes(&term["difference"]));
    }
    answer
}

#[test]
fn compare_sets_two_deployments_side_by_side() {
    let common = ["--device", "4090", "--context", "32k", "--quant", "Q4_K_M"];
    let alone = [&[MODEL], &common[..]].concat();
    let answer = check_compare(
        &[&[MODEL, "--with", "--kv-type q8_0"], &common[..]].concat(),
        &alone,
        &[&alone[..], &["--kv-type", "q8_0"]].concat(),
    );
    let fields: Vec<&str> = answer["differences"].as_array().unwrap().iter().map(|one| one["field"].as_str().unwrap()).collect();
    assert_eq!(fields, ["deployment.kv_type_k", "deployment.kv_type_v"]);
    // As llama.cpp allocates them: 4096 MiB, and 2176 MiB with 2.5 MiB of rotation matrices.
    let cache = answer["terms"].as_array().unwrap().iter().find(|term| term["component"] == "kv_cache").unwrap();
    assert_eq!(cache["a"], 4_294_967_296_u64);
    assert_eq!(cache["b"], 2_284_322_816_u64);
}

#[test]
fn compare_sets_two_engines_and_two_models_side_by_side() {
    let path = crate::run::fixture("models/llama-3.1-8b").display().to_string();
    let first = format!("{path} --quant Q4_K_M");
    check_compare(
        &[&first, "--with", "--engine vllm --device h200", "--device", "4090", "--context", "8k"],
        &[MODEL, "--quant", "Q4_K_M", "--device", "4090", "--context", "8k"],
        &[MODEL, "--engine", "vllm", "--device", "h200", "--context", "8k"],
    );
    let common = ["--device", "h200", "--context", "8k", "--quant", "Q4_K_M"];
    let answer = check_compare(
        &[&[MODEL, "@models/qwen3-30b-a3b"], &common[..]].concat(),
        &[&[MODEL], &common[..]].concat(),
        &[&["@models/qwen3-30b-a3b"], &common[..]].concat(),
    );
    assert!(answer["devices_difference"].as_i64().unwrap() > 0);
    let text = plimsoll(&[&["compare", MODEL, "@models/qwen3-30b-a3b"], &common[..]].concat());
    assert!(text.out.starts_with("B takes 1") && text.out.contains("KV cache") && text.out.contains("x"), "{}", text.out);
}

/// Arguments of `fit` that make what an answer offers.
fn strings(value: &Value) -> Vec<String> {
    value.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
}

/// Every change that `fit` offers, taken, fits; and every kind is offered where it can help.
#[track_caller]
fn check_closest(asked: &[&str], replaced: &[(&str, usize)], expect: &[&str]) {
    let answer = json(&[&["fit"], asked, &["--json"]].concat());
    let closest = answer["verdict"]["closest"].as_array().unwrap();
    let offered: Vec<&str> = closest.iter().map(|change| change["change"].as_str().unwrap()).collect();
    for kind in expect {
        assert!(offered.iter().any(|change| change.contains(kind)), "{kind} is not among {offered:?}");
    }
    for change in closest {
        let options = strings(&change["options"]);
        let mut arguments: Vec<String> = ["fit"].iter().chain(asked).map(|text| (*text).to_owned()).collect();
        for (option, length) in replaced {
            if options.iter().any(|other| other == option) {
                while let Some(at) = arguments.iter().position(|other| other == option) {
                    arguments.drain(at..at + length);
                }
            }
        }
        arguments.extend(options);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let code = plimsoll(&arguments).code;
        assert!(code == 0 || code == 2 && change["change"].as_str().unwrap().contains("host"), "{code}: {arguments:?}");
    }
}

#[test]
fn every_change_that_fit_offers_fits() {
    let replaced = [("--device", 2), ("--context", 2), ("--sequences", 2), ("--quant", 2), ("--kv-type", 2)];
    check_closest(
        &["@models/qwen3-30b-a3b", "--device", "4090", "--context", "32k", "--sequences", "2", "--quant", "Q4_K_M"],
        &replaced,
        &["cache in", "context of", "1 sequence", "weights in", "experts of", "layers on the host", "one more", "with 3"],
    );
    check_closest(
        &[MODEL, "--engine", "vllm", "--device", "h100 sxm", "--context", "32k", "--sequences", "16"],
        &replaced,
        &["cache in fp8", "context of", "sequences", "tensor parallel", "H100 NVL"],
    );
}

/// Each cell of the grid is what `fit` says to the same question.
#[test]
fn which_quant_says_in_every_cell_what_fit_says() {
    let answer =
        json(&["which-quant", MODEL, "--device", "4060 ti 8gb", "--contexts", "4k..64k*4", "--quants", "Q8_0,Q4_K_M", "--json"]);
    assert_eq!(answer["schema"], "plimsoll.which-quant/1");
    assert_eq!(answer["contexts"], serde_json::json!([4096, 16384, 65536]));
    let mut kinds = std::collections::BTreeSet::new();
    for row in answer["rows"].as_array().unwrap() {
        for cell in row["cells"].as_array().unwrap() {
            let context = cell["context"].to_string();
            let kind = cell["verdict"]["kind"].as_str().unwrap();
            kinds.insert(kind.to_owned());
            let mut arguments: Vec<String> = ["fit", MODEL, "--device", "4060 ti 8gb", "--json", "--context", &context]
                .iter()
                .map(|text| (*text).to_owned())
                .collect();
            arguments.extend(["--quant".to_owned(), row["quant"].as_str().unwrap().to_owned()]);
            if kind == "fits_with_offload" {
                arguments.extend(strings(&cell["verdict"]["options"]));
            }
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            let fit = json(&arguments);
            assert_eq!(fit["verdict"]["kind"], kind, "{arguments:?}");
            assert_eq!(fit["devices"][0]["used"], cell["used"], "{arguments:?}");
        }
    }
    assert_eq!(kinds.len(), 2, "{kinds:?}");
    assert_eq!(answer["best"], serde_json::json!(["Q4_K_M", "Q4_K_M", null]));
    let text = plimsoll(&["which-quant", MODEL, "--device", "4060 ti 8gb", "--contexts", "4k,64k", "--quants", "Q8_0,Q4_K_M"]);
    assert_eq!(text.code, 0);
    assert!(text.out.contains('✓') && text.out.contains('◐') && !text.out.contains('\u{1b}'), "{}", text.out);
    refused(&["which-quant", MODEL, "--device", "4090", "--quants", "Q4_KM"], "Q4_KM");
    refused(&["which-quant", MODEL, "--device", "4090", "--contexts", "0"], "contexts");
    refused(&["which-quant", MODEL, "--device", "4090", "--contexts", "8k..4k*2"], "8k..4k*2");
    refused(&["which-quant", MODEL, "--device", "h200", "--engine", "vllm", "--quants", "Q8_0"], "leaves no choice");
}

/// What is offered fits when `fit` is asked, one layer less on the host does not, and it is at least as fast as the engine's own.
#[test]
fn offload_offers_what_fits_and_no_less() {
    let asked = ["@models/qwen3-30b-a3b", "--device", "4070", "--context", "16k", "--quant", "Q4_K_M"];
    let answer = json(&[&["offload"], &asked[..], &["--json"]].concat());
    assert_eq!(answer["schema"], "plimsoll.offload/1");
    let best = &answer["best"];
    let options = strings(&best["options"]);
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let fit = json(&[&["fit"], &asked[..], &options, &["--json"]].concat());
    assert_eq!(fit["verdict"]["kind"], "fits_with_offload");
    assert_eq!(fit["devices"][0]["used"], best["devices"][0]["used"]);
    let at = options.iter().position(|option| *option == "--n-cpu-moe").expect("experts go first");
    let one_less = (options[at + 1].parse::<u64>().unwrap() - 1).to_string();
    let tighter = json(&[&["fit"], &asked[..], &["--n-cpu-moe", &one_less, "--json"]].concat());
    assert_eq!(tighter["verdict"]["kind"], "does_not_fit");
    let rate = |placement: &Value| placement["decode_tokens_per_s"]["expected"].as_f64().unwrap();
    assert!(rate(best) >= rate(&answer["own_choice"]["placement"]));
    assert!(!answer["differences"].as_array().unwrap().is_empty());
    // Everything fits on a device that is large enough, and there is nothing to find.
    let roomy = plimsoll(&["offload", "@models/qwen3-30b-a3b", "--device", "h200", "--context", "16k", "--quant", "Q4_K_M"]);
    assert_eq!(roomy.code, 0, "{}{}", roomy.out, roomy.err);
    // The faster of two devices gets what it can hold.
    let two = json(&["offload", MODEL, "--device", "3060 12gb", "--device", "4090", "-c", "8k", "-q", "Q8_0", "--json"]);
    assert!(bytes(&two["best"]["devices"][1]["weights"]) > 3 * bytes(&two["best"]["devices"][0]["weights"]), "{}", two["best"]);
    refused(&["offload", MODEL, "--device", "cpu", "--memory", "64GiB", "-c", "8k"], "nothing to divide");
    refused(&["offload", MODEL, "--device", "4090", "-c", "8k", "--gpu-layers", "3"], "gpu_layers");
    refused(&["offload", MODEL, "--device", "h200", "-c", "8k", "--engine", "vllm"], "llama.cpp");
    assert_eq!(plimsoll(&["offload", MODEL, "--device", "4070", "-c", "8k", "-q", "BF16", "--host-memory", "1GiB"]).code, 3);
}

/// Every set is enough when `fit` is asked, and one device fewer is not.
#[test]
fn which_device_names_sets_that_are_enough() {
    let asked = [MODEL, "--context", "32k", "--quant", "Q8_0"];
    let answer = json(
        &[
            &["which-device"],
            &asked[..],
            &["--min-decode", "40", "--price", "RTX 3090=700", "--device", "3090", "--device", "3060 12gb", "--json"],
        ]
        .concat(),
    );
    assert_eq!(answer["schema"], "plimsoll.which-device/1");
    let sets = answer["smallest"].as_array().unwrap();
    assert!(!sets.is_empty());
    for set in sets {
        let count = set["count"].as_u64().unwrap();
        let device = |count: u64| format!("{}x{count}", set["device"].as_str().unwrap());
        let fit = json(&[&["fit"], &asked[..], &["--device", &device(count), "--json"]].concat());
        assert_eq!(fit["verdict"]["kind"], "fits");
        assert_eq!(fit["verdict"]["headroom"], set["headroom"]);
        if count > 1 {
            let fit = json(&[&["fit"], &asked[..], &["--device", &device(count - 1), "--json"]].concat());
            assert_eq!(fit["verdict"]["kind"], "does_not_fit");
        }
        assert!(set["decode_tokens_per_s"]["expected"].as_f64().unwrap() >= 40.0);
    }
    let priced = answer["cheapest"].as_array().unwrap();
    let own = priced.iter().find(|set| set["device"] == "NVIDIA GeForce RTX 3090").unwrap();
    assert_eq!((&own["cents"], &own["price"]["date"]), (&serde_json::json!(70_000), &serde_json::json!("as asked")));
    let file = std::env::temp_dir().join(format!("plimsoll-prices-{}.toml", std::process::id()));
    std::fs::write(&file, "[[price]]\ndevice = \"3060 12gb\"\nprice = 199.5\ndate = \"2026-11-20\"\n").unwrap();
    let path = file.to_str().unwrap();
    let answer = json(
        &[&["which-device"], &asked[..], &["--prices", path, "--device", "3060 12gb", "--device", "3090", "--json"]].concat(),
    );
    let priced = &answer["cheapest"][0]["price"];
    assert_eq!((&priced["cents"], &priced["date"]), (&serde_json::json!(19_950), &serde_json::json!("2026-11-20")));
    std::fs::remove_file(&file).unwrap();
    // No price is made up: a device without one is not among the cheapest, and the answer says so.
    assert_eq!((answer["smallest"].as_array().unwrap().len(), answer["cheapest"].as_array().unwrap().len()), (2, 1));
    assert!(answer["notes"].as_array().unwrap().iter().any(|note| note.as_str().unwrap().contains("no prices are built in")));
    assert_eq!(plimsoll(&["which-device", MODEL, "-c", "32k", "-q", "Q8_0", "--min-decode", "100000"]).code, 3);
    for (arguments, says) in [
        (["--min-decode", "nan"], "above 0"),
        (["--min-decode", "-3"], "-3"),
        (["--price", "RTX 3090"], "NAME=PRICE"),
        (["--price", "RTX 30900=4"], "RTX 3090"),
        (["--price", "RTX 3090=4@2026-13-01"], "NAME=PRICE"),
        (["--most", "0"], "1 or more"),
        (["--memory", "24GiB"], "device"),
    ] {
        refused(&[&["which-device", MODEL, "-c", "4k", "-q", "Q8_0"], &arguments[..]].concat(), says);
    }
}

/// Rows of a sweep are what `fit` says, in every format.
#[test]
fn sweep_tells_in_every_format_what_fit_says() {
    let axes = [
        "--contexts",
        "4k,64k",
        "--sequences",
        "1,4",
        "--kv-types",
        "f16,q8_0",
        "--quants",
        "Q8_0",
        "--devices",
        "4090,3060 12gb x2",
    ];
    let document = json(&[&["sweep", MODEL], &axes[..], &["--json"]].concat());
    assert_eq!(document["schema"], "plimsoll.sweep/1");
    let rows = document["rows"].as_array().unwrap();
    assert_eq!((rows.len(), &document["points"]), (16, &serde_json::json!(16)));
    for row in rows {
        let (context, sequences) = (row["context"].to_string(), row["sequences"].to_string());
        let device = if row["device"].as_str().unwrap().starts_with("2x") { "3060 12gb x2" } else { "4090" };
        let kv_type = row["kv_type"].as_str().unwrap();
        let arguments =
            ["--device", device, "-c", &context, "--sequences", &sequences, "--kv-type", kv_type, "-q", "Q8_0", "--json"];
        let fit = json(&[&["fit", MODEL], &arguments[..]].concat());
        assert_eq!(fit["verdict"]["kind"], row["standing"], "{row}");
        let used: i64 = fit["devices"].as_array().unwrap().iter().map(|device| bytes(&device["used"])).sum();
        assert_eq!(used, bytes(&row["devices_used"]), "{row}");
        assert_eq!(fit["totals"]["kv_cache"], row["kv_cache"]);
        assert_eq!(fit["totals"]["compute"], row["compute"]);
        assert_eq!(fit["throughput"]["decode_tokens_per_s_at_full_context"]["expected"], row["decode_tokens_per_s"]);
        let room = fit["verdict"]["headroom"].as_i64().unwrap_or_else(|| -bytes(&fit["verdict"]["short_by"]));
        assert_eq!(room, bytes(&row["headroom"]), "{row}");
    }
    let lines = plimsoll(&[&["sweep", MODEL], &axes[..], &["--format", "jsonl"]].concat());
    let parsed: Vec<Value> = lines.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(&parsed, rows);
    let csv = plimsoll(&[&["sweep", MODEL], &axes[..], &["--format", "csv"]].concat());
    let heads: Vec<&str> = csv.out.lines().next().unwrap().split(',').collect();
    assert_eq!(csv.out.lines().count(), 17);
    for (line, row) in csv.out.lines().skip(1).zip(rows) {
        for (head, field) in heads.iter().zip(line.split(',')) {
            // What does not fit has no speed: null there, nothing here.
            let expect = match &row[*head] {
                Value::Null => String::new(),
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            let same = expect == field || expect.parse::<f64>().is_ok_and(|expect| Ok(expect) == field.parse::<f64>());
            assert!(same, "{head}: {field} is not {expect}");
        }
    }
    let table = plimsoll(&[&["sweep", MODEL], &axes[..]].concat());
    // What all rows share, a blank line and the heads before them; a blank line and the legend after.
    assert_eq!(table.out.lines().skip(3).take_while(|line| !line.is_empty()).count(), rows.len());
    assert!(table.out.contains("tok/s: one sequence alone"), "{}", table.out);
    assert!(table.out.lines().all(|line| line.chars().count() <= 120), "{}", table.out);
    let chart = plimsoll(&[&["sweep", MODEL], &axes[..], &["--chart"]].concat());
    assert!(chart.out.contains('█') && chart.out.contains('┃'), "{}", chart.out);
}

/// Settings of one engine are refusals of another, as rows; a whole sweep of refusals is one sentence.
#[test]
fn sweep_goes_on_where_an_engine_refuses() {
    let rows = json(&[
        "sweep",
        MODEL,
        "--contexts",
        "4k",
        "--kv-types",
        "q8_0,fp8",
        "--engines",
        "llama.cpp,vllm",
        "--devices",
        "h200",
        "--json",
    ]);
    let standing: Vec<&str> = rows["rows"].as_array().unwrap().iter().map(|row| row["standing"].as_str().unwrap()).collect();
    assert_eq!(standing, ["fits", "refused", "refused", "fits"]);
    refused(&["sweep", MODEL, "--contexts", "4k", "--quants", "Q4_K_M", "--engines", "vllm", "--devices", "h200"], "quant");
    refused(&["sweep", MODEL, "--contexts", "4k", "--devices", "4091"], "RTX 4090");
    refused(&["sweep", MODEL, "--contexts", "-4k", "--devices", "4090"], "-4");
    refused(&["sweep", MODEL, "--contexts", "1..9007199254740991+1", "--devices", "4090"], "values");
    refused(&["sweep", MODEL, "--contexts", "4k", "--engines", "nothing", "--devices", "4090"], "llama.cpp");
    refused(&["sweep", MODEL, "--contexts", "4k", "--kv-types", "q9", "--devices", "4090"], "q9");
    refused(&["sweep", MODEL, "--contexts", "4k", "--devices", "4090", "--plot", "drawing.gif"], ".svg");
    let nowhere = ["sweep", MODEL, "--contexts", "4k", "--devices", "4090", "--output", "/nowhere/at/all.csv"];
    refused(&nowhere, "/nowhere/at/all.csv");
}

#[test]
fn sweep_draws_svg_and_png() {
    for (ending, magic) in [("svg", &b"<svg"[..]), ("png", &b"\x89PNG"[..])] {
        let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("sweep.{ending}"));
        let file = path.display().to_string();
        let arguments = [
            "sweep",
            MODEL,
            "--contexts",
            "4k..64k*2",
            "--sequences",
            "1,4",
            "--devices",
            "4090",
            "-q",
            "Q4_K_M",
            "--plot",
            &file,
        ];
        assert_eq!(plimsoll(&arguments).code, 0);
        let drawn = std::fs::read(&path).unwrap();
        assert!(drawn.starts_with(magic), "{ending}");
        if ending == "svg" {
            let text = String::from_utf8(drawn).unwrap();
            for word in ["KV cache", "NVIDIA GeForce RTX 4090", "4 sequences", "tokens per sequence"] {
                assert!(text.contains(word), "{word}");
            }
        }
    }
}

#[test]
fn explain_tells_one_term_beside_the_textbook() {
    let asked = ["@models/gemma-3-27b", "--device", "4090", "--context", "32k", "--quant", "Q4_K_M"];
    let answer = json(&[&["explain"], &asked[..], &["kv_cache", "--json"]].concat());
    assert_eq!((&answer["term"], answer["devices"][0]["terms"].as_array().unwrap().len()), (&serde_json::json!("kv_cache"), 1));
    let text = plimsoll(&[&["explain"], &asked[..], &["KV-cache"]].concat());
    // Sliding windows, which the textbook does not know: a fifth of its figure.
    assert!(text.out.contains("15.5 GiB") && text.out.contains("of 3.1 GiB"), "{}", text.out);
    assert!(text.out.contains("1536 cells") && text.out.contains("llama-kv-cache-iswa.cpp"), "{}", text.out);
    let short = json(&[&["explain"], &asked[..], &["kv", "--json"]].concat());
    assert_eq!(short["devices"], answer["devices"], "a name's beginning is enough");
    refused(&[&["explain"], &asked[..], &["memory"]].concat(), "one of weights");
}

/// Wrong questions: one sentence, and the code of wrong usage.
#[track_caller]
fn refused(arguments: &[&str], says: &str) {
    let ran = plimsoll(arguments);
    assert_eq!(ran.code, 64, "{arguments:?}: {}{}", ran.out, ran.err);
    assert_eq!(ran.out, "", "{arguments:?}");
    let lines: Vec<&str> = ran.err.lines().collect();
    assert!(lines.len() <= 2 && lines[0].starts_with("error: ") && lines[0].contains(says), "{arguments:?}: {}", ran.err);
}

#[test]
fn what_cannot_be_compared_is_one_sentence() {
    refused(&["compare", MODEL, "--device", "4090"], "a second MODEL");
    refused(&["compare", MODEL, "--with", "--contxt 4k", "--device", "4090"], "--contxt");
    refused(&["compare", MODEL, "--with", "--kv-type 'q8_0", "--device", "4090"], "closing quote");
    refused(&["compare", MODEL, "--with", "--context -4", "--device", "4090"], "with");
    refused(&["compare", MODEL, "--with", "--device 4091", "--device", "4090"], "RTX 4090");
}
