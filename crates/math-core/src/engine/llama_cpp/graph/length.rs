//! Sizes that grow along a stretch of settings, and the range in which a comparison of two keeps its outcome.
//!
//! The replay decides by comparing sizes. With sizes as lines over the steps of a stretch (cells of a longer context, tokens
//! of a larger micro-batch), one replay answers for a whole range of steps: the range in which no decision would have fallen
//! otherwise. Sizes that a buffer rounds up at every other step are kept as what they are, a line rounded up, so that they
//! end no range.

use core::cmp::Ordering;

use crate::error::MathError;

// A function, since an error that is made in advance has to be dropped again.
fn overflow() -> MathError {
    MathError::Overflow { quantity: "compute buffer" }
}

/// What the allocator counts in: bytes of one context, or lengths that grow with it. A comparison may note how far its
/// outcome holds.
pub(super) trait Amount: Copy + core::fmt::Debug + PartialEq {
    /// Where comparisons leave their notes.
    type Steps;
    const ZERO: Self;
    fn of(bytes: u64) -> Result<Self, MathError>;
    fn plus(self, other: Self) -> Result<Self, MathError>;
    /// The difference; `other` is not larger.
    fn minus(self, other: Self) -> Result<Self, MathError>;
    fn at_least(steps: &mut Self::Steps, a: Self, b: Self) -> bool;
    fn equal(steps: &mut Self::Steps, a: Self, b: Self) -> bool;
    fn round_up(steps: &mut Self::Steps, amount: Self, alignment: u64) -> Result<Self, MathError>;
    fn larger(steps: &mut Self::Steps, a: Self, b: Self) -> Self {
        if Self::at_least(steps, a, b) { a } else { b }
    }
}

impl Amount for u64 {
    type Steps = ();
    const ZERO: Self = 0;
    fn of(bytes: u64) -> Result<Self, MathError> {
        Ok(bytes)
    }
    fn plus(self, other: Self) -> Result<Self, MathError> {
        self.checked_add(other).ok_or_else(overflow)
    }
    fn minus(self, other: Self) -> Result<Self, MathError> {
        self.checked_sub(other).ok_or_else(overflow)
    }
    fn at_least((): &mut (), a: Self, b: Self) -> bool {
        a >= b
    }
    fn equal((): &mut (), a: Self, b: Self) -> bool {
        a == b
    }
    fn round_up((): &mut (), amount: Self, alignment: u64) -> Result<Self, MathError> {
        // Every real alignment is a power of two.
        if alignment.is_power_of_two() {
            let mask = alignment.saturating_sub(1);
            return amount.checked_add(mask).map(|amount| amount & !mask).ok_or_else(overflow);
        }
        crate::units::round_up(amount, alignment)
    }
}

/// How many different lines are rounded up.
const ROUNDED: usize = 6;

/// A line that a buffer rounds up to its alignment: `value + slope * step`, both below the alignment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Rounded {
    value: i64,
    slope: i64,
    alignment: i64,
}

impl Rounded {
    fn at(self, step: i64) -> Result<i64, MathError> {
        let raw = self.slope.checked_mul(step).and_then(|grown| grown.checked_add(self.value)).ok_or_else(overflow)?;
        let over = raw.checked_rem_euclid(self.alignment).ok_or_else(overflow)?;
        if over == 0 { Ok(raw) } else { raw.checked_add(self.alignment.saturating_sub(over)).ok_or_else(overflow) }
    }
}

/// The lines that are rounded up along a stretch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct RoundedLines([Rounded; ROUNDED]);

/// Bytes at the first step, what each further step adds, and how many of each rounded line. May be negative in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Length {
    value: i64,
    slope: i64,
    rounded: [i16; ROUNDED],
}

impl Length {
    /// Nothing.
    pub(super) const ZERO: Self = <Self as Amount>::ZERO;

    /// A size that does not change.
    pub(super) fn of(bytes: u64) -> Result<Self, MathError> {
        Ok(Self { value: i64::try_from(bytes).map_err(|_| overflow())?, ..Self::ZERO })
    }
    /// A size that is `now` at the first step, and `next` one step further.
    pub(super) fn between(now: u64, next: u64) -> Result<Self, MathError> {
        let (now, next) = (Self::of(now)?.value, Self::of(next)?.value);
        Ok(Self { value: now, slope: next.checked_sub(now).ok_or_else(overflow)?, ..Self::ZERO })
    }
    const fn is_line(&self) -> bool {
        let [a, b, c, d, e, f] = self.rounded;
        a == 0 && b == 0 && c == 0 && d == 0 && e == 0 && f == 0
    }
    /// Bytes at a step.
    pub(super) fn at(&self, step: u64, lines: &RoundedLines) -> Result<u64, MathError> {
        let step = i64::try_from(step).map_err(|_| overflow())?;
        u64::try_from(self.signed_at(step, lines)?).map_err(|_| overflow())
    }
    fn signed_at(&self, step: i64, lines: &RoundedLines) -> Result<i64, MathError> {
        let mut sum = self.slope.checked_mul(step).and_then(|grown| grown.checked_add(self.value)).ok_or_else(overflow)?;
        if !self.is_line() {
            for (count, line) in self.rounded.iter().zip(&lines.0).filter(|(count, _)| **count != 0) {
                let all = line.at(step)?.checked_mul(i64::from(*count)).ok_or_else(overflow)?;
                sum = sum.checked_add(all).ok_or_else(overflow)?;
            }
        }
        Ok(sum)
    }
}

impl Amount for Length {
    type Steps = Steps;
    const ZERO: Self = Self { value: 0, slope: 0, rounded: [0; ROUNDED] };
    fn of(bytes: u64) -> Result<Self, MathError> {
        Self::of(bytes)
    }
    fn plus(self, other: Self) -> Result<Self, MathError> {
        let value = self.value.checked_add(other.value).ok_or_else(overflow)?;
        let slope = self.slope.checked_add(other.slope).ok_or_else(overflow)?;
        let mut rounded = self.rounded;
        for (count, more) in rounded.iter_mut().zip(other.rounded) {
            *count = count.checked_add(more).ok_or_else(overflow)?;
        }
        Ok(Self { value, slope, rounded })
    }
    fn minus(self, other: Self) -> Result<Self, MathError> {
        let value = self.value.checked_sub(other.value).ok_or_else(overflow)?;
        let slope = self.slope.checked_sub(other.slope).ok_or_else(overflow)?;
        let mut rounded = self.rounded;
        for (count, less) in rounded.iter_mut().zip(other.rounded) {
            *count = count.checked_sub(less).ok_or_else(overflow)?;
        }
        Ok(Self { value, slope, rounded })
    }
    fn at_least(steps: &mut Steps, a: Self, b: Self) -> bool {
        steps.compare(a, b) != Ordering::Less
    }
    fn equal(steps: &mut Steps, a: Self, b: Self) -> bool {
        steps.compare(a, b) == Ordering::Equal
    }
    fn round_up(steps: &mut Steps, length: Self, alignment: u64) -> Result<Self, MathError> {
        let alignment = i64::try_from(alignment.max(1)).map_err(|_| overflow())?;
        let over = |amount: i64| amount.checked_rem_euclid(alignment).ok_or_else(overflow);
        let up = |amount: i64, over: i64| {
            let missing = if over == 0 { 0 } else { alignment.saturating_sub(over) };
            amount.checked_add(missing).ok_or_else(overflow)
        };
        if steps.rounds_by(&length, alignment) {
            let steep = over(length.slope)?;
            if steep == 0 {
                return Ok(Self { value: up(length.value, over(length.value)?)?, ..length });
            }
            if length.is_line() {
                let line = Rounded { value: over(length.value)?, slope: steep, alignment };
                if let Some(place) = steps.rounded_line(line) {
                    let mut out = Self {
                        value: length.value.saturating_sub(line.value),
                        slope: length.slope.saturating_sub(line.slope),
                        ..Self::ZERO
                    };
                    if let Some(count) = out.rounded.get_mut(place) {
                        *count = 1;
                    }
                    return Ok(out);
                }
            }
        }
        // No such line: the size at this step alone.
        let now = length.signed_at(steps.now, &steps.lines)?;
        steps.hold();
        Ok(Self { value: up(now, over(now)?)?, ..Self::ZERO })
    }
}

/// How far along a stretch every comparison so far keeps its outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Steps {
    /// The step at which sizes are compared.
    now: i64,
    /// The last step at which all comparisons come out alike.
    most: i64,
    lines: RoundedLines,
}

/// Steps that are looked at one by one where bounds do not decide a comparison.
const LOOKED_AT: i64 = 64;

impl Steps {
    /// From the first step to `most`.
    pub(super) fn new(most: u64) -> Self {
        Self { now: 0, most: i64::try_from(most).unwrap_or(i64::MAX), lines: RoundedLines::default() }
    }
    /// The same stretch from `now` on.
    #[must_use]
    pub(super) fn from(self, now: u64) -> Self {
        Self { now: i64::try_from(now).unwrap_or(i64::MAX).min(self.most), ..self }
    }
    /// The last step.
    pub(super) fn most(&self) -> u64 {
        u64::try_from(self.most).unwrap_or(0)
    }
    /// The lines that are rounded up.
    pub(super) const fn lines(&self) -> RoundedLines {
        self.lines
    }
    /// Remembers the lines of another replay of the stretch.
    pub(super) fn keep_lines(&mut self, of: &Self) {
        self.lines = of.lines;
    }
    /// Goes no further than `most`.
    pub(super) fn limit(&mut self, most: u64) {
        self.limit_to(i64::try_from(most).unwrap_or(i64::MAX));
    }
    fn limit_to(&mut self, most: i64) {
        self.most = self.most.min(most).max(self.now);
    }
    /// Goes no further than the step under way.
    pub(super) fn hold(&mut self) {
        self.most = self.now;
    }
    /// Whether whatever a length has of rounded lines is a multiple of the alignment.
    fn rounds_by(&self, length: &Length, alignment: i64) -> bool {
        let fits = |line: &Rounded| line.alignment.checked_rem(alignment) == Some(0);
        length.is_line() || length.rounded.iter().zip(&self.lines.0).all(|(count, line)| *count == 0 || fits(line))
    }
    /// The place of a rounded line among the others.
    fn rounded_line(&mut self, line: Rounded) -> Option<usize> {
        let place = self.lines.0.iter().position(|known| *known == line || known.alignment == 0)?;
        if let Some(slot) = self.lines.0.get_mut(place) {
            *slot = line;
        }
        Some(place)
    }

    fn compare(&mut self, a: Length, b: Length) -> Ordering {
        if a == b {
            return Ordering::Equal;
        }
        if !(a.is_line() && b.is_line()) {
            return self.compare_rounded(a, b);
        }
        let difference =
            (i128::from(a.value) - i128::from(b.value)) + (i128::from(a.slope) - i128::from(b.slope)) * i128::from(self.now);
        let now = difference.cmp(&0);
        let closing = match now {
            Ordering::Equal => {
                if a.slope != b.slope {
                    self.hold();
                }
                return now;
            }
            Ordering::Less => i128::from(a.slope) - i128::from(b.slope),
            Ordering::Greater => i128::from(b.slope) - i128::from(a.slope),
        };
        if closing > 0 {
            // The last step at which the distance is still above zero.
            let last = i128::from(self.now) + (difference.abs() - 1) / closing;
            self.limit_to(i64::try_from(last).unwrap_or(i64::MAX));
        }
        now
    }

    /// A comparison with rounded lines: decided by what they are at least and at most, else step by step.
    fn compare_rounded(&mut self, a: Length, b: Length) -> Ordering {
        let Ok(difference) = a.minus(b) else {
            self.hold();
            return a.value.cmp(&b.value);
        };
        let at = |step: i64, lines: &RoundedLines| difference.signed_at(step, lines).unwrap_or(0);
        let now = at(self.now, &self.lines).cmp(&0);
        // Rounding adds less than the alignment: beyond that distance, the lines themselves decide.
        let mut slack: i64 = 0;
        let (mut value, mut slope) = (i128::from(difference.value), i128::from(difference.slope));
        for (count, line) in difference.rounded.iter().zip(&self.lines.0) {
            let count = i64::from(*count);
            let against = if now == Ordering::Greater { count < 0 } else { count > 0 };
            value += i128::from(count) * i128::from(line.value);
            slope += i128::from(count) * i128::from(line.slope);
            if against {
                slack = slack.saturating_add(count.saturating_abs().saturating_mul(line.alignment.saturating_sub(1)));
            }
        }
        let surely = |step: i64| {
            let middle = value + slope * i128::from(step);
            match now {
                Ordering::Greater => middle > i128::from(slack),
                Ordering::Less => middle < -i128::from(slack),
                Ordering::Equal => false,
            }
        };
        if surely(self.now) {
            let distance = (value + slope * i128::from(self.now)).abs() - i128::from(slack);
            let closing = if now == Ordering::Greater { -slope } else { slope };
            if closing > 0 {
                let last = i128::from(self.now) + (distance - 1) / closing;
                self.limit_to(i64::try_from(last).unwrap_or(i64::MAX));
            }
            return now;
        }
        let last = self.now.saturating_add(LOOKED_AT).min(self.most);
        let mut step = self.now;
        while step < last && at(step.saturating_add(1), &self.lines).cmp(&0) == now {
            step = step.saturating_add(1);
        }
        self.limit_to(step);
        now
    }
}

#[cfg(test)]
mod tests {
    use super::{Amount, Length, Steps};

    #[test]
    fn a_comparison_says_how_long_it_holds() {
        let mut steps = Steps::new(1000);
        // 100 + 10 n stays below 130 + 0 n for n = 0, 1, 2.
        assert!(!Length::at_least(&mut steps, Length::between(100, 110).unwrap(), Length::of(130).unwrap()));
        assert_eq!(steps.most(), 2);
        // From there on it is equal once, then above.
        let mut steps = Steps::new(1000).from(3);
        assert!(Length::equal(&mut steps, Length::between(100, 110).unwrap(), Length::of(130).unwrap()));
        assert_eq!(steps.most(), 3);
        let mut steps = Steps::new(1000).from(4);
        assert!(Length::at_least(&mut steps, Length::between(100, 110).unwrap(), Length::of(130).unwrap()));
        assert_eq!(steps.most(), 1000);
    }

    #[test]
    fn what_is_rounded_at_every_other_step_is_a_line_of_its_own() {
        let mut steps = Steps::new(300);
        let lines = |steps: &Steps| steps.lines();
        let aligned = Length::round_up(&mut steps, Length::between(10, 42).unwrap(), 32).unwrap();
        assert_eq!(aligned.at(2, &lines(&steps)).unwrap(), 96);
        for (now, next) in [(10_u64, 11_u64), (4, 8), (8, 16), (120, 460), (5, 5)] {
            let rounded = Length::round_up(&mut steps, Length::between(now, next).unwrap(), 128).unwrap();
            for step in 0..=300 {
                let raw = now + (next - now) * step;
                assert_eq!(rounded.at(step, &lines(&steps)).unwrap(), raw.next_multiple_of(128), "{now} {next} {step}");
            }
        }
        assert_eq!(steps.most(), 300);
    }

    #[test]
    fn comparisons_of_rounded_lines_hold_as_long_as_they_say() {
        for (a, b) in [((4, 8), (8, 16)), ((4, 8), (200, 200)), ((0, 4), (0, 8)), ((1000, 1004), (4, 24)), ((4, 8), (4, 8))] {
            let mut from = 0;
            while from <= 300 {
                let mut steps = Steps::new(300).from(from);
                let [left, right] =
                    [a, b].map(|(now, next)| Length::round_up(&mut steps, Length::between(now, next).unwrap(), 128).unwrap());
                let at_least = Length::at_least(&mut steps, left, right);
                let equal = Length::equal(&mut steps, left, right);
                for step in from..=steps.most() {
                    let real = |(now, next): (u64, u64)| (now + (next - now) * step).next_multiple_of(128);
                    assert_eq!((at_least, equal), (real(a) >= real(b), real(a) == real(b)), "{a:?} {b:?} at {step} from {from}");
                }
                from = steps.most() + 1;
            }
        }
    }
}
