//! A trace of requests, line by line: the columns of the Azure LLM inference traces, in constant memory.
//!
//! Sizing has to hold in the busiest stretch, so that is what is kept: of all runs of [`Trace::KEPT`] requests in a row the one with the
//! most tokens per second. The rest is counted and forgotten.

use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use plimsoll_math::throughput::float;
use plimsoll_math::throughput::simulate::Arrival;

use crate::error::PlanError;
use crate::size::quoted;

/// Days from 1970-01-01 to a date of the Gregorian calendar.
fn days(year: i64, month: i64, day: i64) -> i64 {
    // Years that begin in March have their leap day at the end.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + (month * 153 + 2) / 5 + day - 1 - 719_468
}

/// Seconds from `2023-11-16 18:17:03.9799600`, `2024-05-10T00:00:00.009930+00:00` or a plain number.
#[must_use]
pub fn timestamp(text: &str) -> Option<f64> {
    let text = text.trim().trim_matches('"');
    if let Ok(seconds) = text.parse::<f64>() {
        return (seconds.is_finite() && seconds >= 0.0).then_some(seconds);
    }
    let (date, time) = text.split_once([' ', 'T'])?;
    let mut parts = date.split('-').map(|part| part.parse::<i64>().ok());
    let (year, month, day) = (parts.next()??, parts.next()??, parts.next()??);
    if parts.next().is_some() || !(1970..=9999).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    // An offset moves all rows alike, unless it changes; differences are what counts.
    let (time, offset) = match time.find(['+', 'Z']).or_else(|| time.rfind('-')) {
        Some(place) => time.split_at(place),
        None => (time, ""),
    };
    let offset = match offset.strip_prefix(['+', '-']) {
        Some(hours) => {
            let (hours, minutes) = hours.split_once(':').unwrap_or((hours, "0"));
            let seconds = hours.parse::<f64>().ok()? * 3600.0 + minutes.parse::<f64>().ok()? * 60.0;
            if offset.starts_with('-') { -seconds } else { seconds }
        }
        None => 0.0,
    };
    let mut parts = time.split(':');
    let (hours, minutes) = (parts.next()?.parse::<u32>().ok()?, parts.next()?.parse::<u32>().ok()?);
    let seconds: f64 = parts.next()?.parse().ok()?;
    if parts.next().is_some() || hours > 24 || minutes > 59 || !(0.0..61.0).contains(&seconds) {
        return None;
    }
    let whole = float(u64::try_from(days(year, month, day)).ok()?) * 86_400.0;
    Some(whole + f64::from(hours) * 3600.0 + f64::from(minutes) * 60.0 + seconds - offset)
}

/// What a trace said, and its busiest stretch.
#[derive(Debug, Clone, Default)]
pub struct Trace {
    columns: Option<[usize; 3]>,
    line: u64,
    /// Requests.
    pub requests: u64,
    /// Rows without an answer, which are left out.
    pub without_answer: u64,
    /// Rows that are earlier than the one before, which are taken to come at the same time.
    pub out_of_order: u64,
    /// Tokens of all prompts.
    pub prompt_tokens: u128,
    /// Tokens of all answers.
    pub output_tokens: u128,
    /// The longest prompt with its answer.
    pub longest: u64,
    first: f64,
    last: f64,
    window: VecDeque<Arrival>,
    in_window: u64,
    busiest: Vec<Arrival>,
    rate: f64,
}

impl Trace {
    /// Requests of the stretch that is kept.
    pub const KEPT: usize = 4_000;
    const NAMES: [&'static str; 3] = ["timestamp", "contexttokens", "generatedtokens"];

    /// Takes the next line.
    ///
    /// # Errors
    /// [`PlanError::Request`] naming the line for one that is no request.
    pub fn push(&mut self, line: &str) -> Result<(), PlanError> {
        self.line += 1;
        let line = line.trim_start_matches('\u{feff}').trim();
        if line.is_empty() {
            return Ok(());
        }
        let wrong = |found: String, expected: &str| PlanError::request(&format!("trace, line {}", self.line), found, expected);
        let Some(columns) = self.columns else {
            let heading: Vec<String> = line.split(',').map(|name| name.trim().trim_matches('"').to_ascii_lowercase()).collect();
            let mut places = [0; 3];
            for (place, name) in places.iter_mut().zip(Self::NAMES) {
                *place = heading
                    .iter()
                    .position(|there| there == name)
                    .ok_or_else(|| wrong(quoted(line), "a heading with TIMESTAMP, ContextTokens and GeneratedTokens"))?;
            }
            self.columns = Some(places);
            return Ok(());
        };
        let [at, prompt, output] = columns;
        let cell = |place: usize| line.split(',').nth(place).map(str::trim);
        let count = |place: usize| cell(place).and_then(|text| text.parse::<u32>().ok()).filter(|count| *count <= 100_000_000);
        let shown = || quoted(line);
        let at = cell(at).and_then(timestamp).ok_or_else(|| wrong(shown(), "a time such as 2023-11-16 18:17:03.97"))?;
        let prompt = count(prompt).ok_or_else(|| wrong(shown(), "a whole number of ContextTokens"))?;
        let output = count(output).ok_or_else(|| wrong(shown(), "a whole number of GeneratedTokens"))?;
        if output == 0 || prompt == 0 {
            self.without_answer += 1;
            return Ok(());
        }
        self.take(at, prompt, output);
        Ok(())
    }

    fn take(&mut self, at: f64, prompt: u32, output: u32) {
        if self.requests == 0 {
            self.first = at;
            self.last = at;
        }
        self.out_of_order += u64::from(at < self.last);
        self.last = at.max(self.last);
        self.requests += 1;
        self.prompt_tokens += u128::from(prompt);
        self.output_tokens += u128::from(output);
        let tokens = u64::from(prompt) + u64::from(output);
        self.longest = self.longest.max(tokens);
        self.window.push_back(Arrival { at: self.last, prompt, output });
        self.in_window += tokens;
        if self.window.len() > Self::KEPT
            && let Some(gone) = self.window.pop_front()
        {
            self.in_window -= u64::from(gone.prompt) + u64::from(gone.output);
        }
        if self.window.len() < Self::KEPT {
            return;
        }
        let start = self.window.front().map_or(self.last, |first| first.at);
        let rate = float(self.in_window) / (self.last - start).max(1e-6);
        // Copied only when it is busier by a hundredth: a trace that grows busier all along is copied seldom.
        if rate > self.rate * 1.01 {
            self.rate = rate;
            self.busiest.clear();
            self.busiest.extend(self.window.iter().copied());
        }
    }

    /// The busiest stretch, its first request at 0.
    ///
    /// # Errors
    /// [`PlanError::Request`] for a trace without requests.
    pub fn busiest(&self) -> Result<Vec<Arrival>, PlanError> {
        let kept: Vec<Arrival> =
            if self.busiest.is_empty() { self.window.iter().copied().collect() } else { self.busiest.clone() };
        let Some(start) = kept.first().map(|first| first.at) else {
            let found = if self.columns.is_some() { "a heading and no requests" } else { "nothing" };
            return Err(PlanError::request("trace", found, "at least one request with a prompt and an answer"));
        };
        Ok(kept.into_iter().map(|arrival| Arrival { at: arrival.at - start, ..arrival }).collect())
    }

    /// Requests per second over all of it.
    #[must_use]
    pub fn mean_rate(&self) -> f64 {
        float(self.requests) / (self.last - self.first).max(1e-6)
    }

    /// What a reader should know.
    #[must_use]
    pub fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if self.without_answer > 0 {
            notes.push(format!("{} rows of the trace have no prompt or no answer and are left out", self.without_answer));
        }
        if self.out_of_order > 0 {
            notes.push(format!(
                "{} rows of the trace are earlier than the row before: they are taken to come with it",
                self.out_of_order
            ));
        }
        if self.requests > u64::try_from(Self::KEPT).unwrap_or(u64::MAX) {
            notes.push(format!(
                "of {} requests the busiest {} in a row are played; the whole trace has {:.2} requests per second",
                self.requests,
                Self::KEPT,
                self.mean_rate()
            ));
        }
        notes.iter().map(ToString::to_string).collect()
    }
}

#[cfg(test)]
#[allow(clippy::allow_attributes, clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail loudly")]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Trace, String> {
        let mut trace = Trace::default();
        for line in text.lines() {
            trace.push(line).map_err(|error| error.to_string())?;
        }
        Ok(trace)
    }

    #[test]
    fn times_are_read_as_the_public_traces_write_them() {
        assert_eq!(timestamp("1970-01-02 00:00:01.5"), Some(86_401.5));
        assert_eq!(timestamp("2023-11-16 18:17:03.9799600"), Some(1_700_158_623.979_96));
        assert_eq!(timestamp("2024-05-10 00:00:00.009930+00:00"), Some(1_715_299_200.009_93));
        assert_eq!(timestamp("2024-05-10T02:00:00+02:00"), timestamp("2024-05-10 00:00:00Z"));
        assert_eq!(timestamp("12.25"), Some(12.25));
        for text in ["", "yesterday", "2023-13-01 00:00:00", "2023-01-01 99:00:00", "NaN", "-1", "inf"] {
            assert_eq!(timestamp(text), None, "{text}");
        }
    }

    #[test]
    fn rows_are_requests() {
        let trace = read(
            "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9799600,374,44\n2023-11-16 18:17:04.0319600,396,109\n\
             2023-11-16 18:17:04.0781700,879,0\n",
        )
        .unwrap();
        assert_eq!((trace.requests, trace.without_answer, trace.longest), (2, 1, 505));
        let kept = trace.busiest().unwrap();
        assert_eq!((kept[0].at, kept[1].prompt, kept[1].output), (0.0, 396, 109));
        assert!((kept[1].at - 0.052).abs() < 1e-6);
    }

    #[test]
    fn what_is_no_request_is_named_with_its_line() {
        for (text, names) in [
            ("TIMESTAMP,ContextTokens,GeneratedTokens\nx,1,1\n", "line 2"),
            ("TIMESTAMP,ContextTokens,GeneratedTokens\n1,-1,1\n", "ContextTokens"),
            ("TIMESTAMP,ContextTokens,GeneratedTokens\n1,1\n", "GeneratedTokens"),
            ("TIMESTAMP,ContextTokens,GeneratedTokens\n1,1,99999999999999999999\n", "GeneratedTokens"),
            ("time,in,out\n1,1,1\n", "TIMESTAMP"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(names), "{text}: {error}");
        }
        for empty in ["", "TIMESTAMP,ContextTokens,GeneratedTokens\n"] {
            assert!(read(empty).unwrap().busiest().is_err());
        }
    }

    #[test]
    fn the_busiest_stretch_is_kept_and_nothing_else() {
        let mut trace = Trace::default();
        trace.push("TIMESTAMP,ContextTokens,GeneratedTokens").unwrap();
        let mut at = 0.0;
        for row in 0..50_000 {
            // Ten times as busy in the middle.
            at += if (20_000..30_000).contains(&row) { 0.01 } else { 0.1 };
            trace.push(&format!("{at},100,10")).unwrap();
        }
        let kept = trace.busiest().unwrap();
        assert_eq!(kept.len(), Trace::KEPT);
        let rate = 4000.0 / kept.last().unwrap().at;
        assert!((90.0..=101.0).contains(&rate), "{rate}");
        assert!(trace.window.len() <= Trace::KEPT && trace.busiest.capacity() <= 2 * Trace::KEPT);
    }
}
