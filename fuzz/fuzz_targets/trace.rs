//! Any text as a trace: requests in order of their times, from 0 on, or an error that names the line, in constant memory.
#![no_main]

use libfuzzer_sys::fuzz_target;
use plimsoll_planner::capacity::trace::Trace;

fuzz_target!(|text: &str| {
    let mut trace = Trace::default();
    for line in text.split('\n') {
        if let Err(error) = trace.push(line) {
            let error = error.to_string();
            assert!(error.contains("line ") && !error.chars().any(char::is_control), "{error}");
            return;
        }
    }
    if let Ok(kept) = trace.busiest() {
        assert!(kept.len() <= Trace::KEPT);
        assert!(kept.iter().all(|arrival| arrival.at >= 0.0 && arrival.at.is_finite() && arrival.prompt > 0 && arrival.output > 0));
        assert!(kept.windows(2).all(|pair| matches!(pair, [one, other] if one.at <= other.at)));
    }
    assert!(trace.mean_rate() >= 0.0);
    let _ = trace.notes();
});
