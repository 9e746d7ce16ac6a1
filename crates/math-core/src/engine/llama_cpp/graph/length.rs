//! Sizes that grow with the context, and the range of contexts in which a comparison of two keeps its outcome.
//!
//! The replay decides by comparing sizes. With sizes as straight lines over the number of cells, one replay answers for a
//! whole range of contexts: the range in which no decision would have fallen otherwise.

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

impl Amount for Length {
    type Steps = Steps;
    const ZERO: Self = Self { value: 0, slope: 0 };
    fn of(bytes: u64) -> Result<Self, MathError> {
        Self::of(bytes)
    }
    fn plus(self, other: Self) -> Result<Self, MathError> {
        let value = self.value.checked_add(other.value).ok_or_else(overflow)?;
        Ok(Self { value, slope: self.slope.checked_add(other.slope).ok_or_else(overflow)? })
    }
    fn minus(self, other: Self) -> Result<Self, MathError> {
        let value = self.value.checked_sub(other.value).ok_or_else(overflow)?;
        Ok(Self { value, slope: self.slope.checked_sub(other.slope).ok_or_else(overflow)? })
    }
    fn at_least(steps: &mut Steps, a: Self, b: Self) -> bool {
        steps.compare(a, b) != Ordering::Less
    }
    fn equal(steps: &mut Steps, a: Self, b: Self) -> bool {
        steps.compare(a, b) == Ordering::Equal
    }
    fn round_up(steps: &mut Steps, length: Self, alignment: u64) -> Result<Self, MathError> {
        let alignment = i64::try_from(alignment.max(1)).map_err(|_| overflow())?;
        if !length.is_constant() && length.slope.checked_rem(alignment) != Some(0) {
            steps.limit(0);
        }
        let rest = length.value.checked_rem_euclid(alignment).ok_or_else(overflow)?;
        let missing = if rest == 0 { 0 } else { alignment.checked_sub(rest).ok_or_else(overflow)? };
        Ok(Self { value: length.value.checked_add(missing).ok_or_else(overflow)?, slope: length.slope })
    }
}

/// Bytes now, and what each further step of the context adds. May be negative in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Length {
    value: i64,
    slope: i64,
}

impl Length {
    /// Nothing.
    pub const ZERO: Self = <Self as Amount>::ZERO;

    /// A size that does not depend on the context.
    ///
    /// # Errors
    /// [`MathError::Overflow`] above 2^63 - 1.
    pub fn of(bytes: u64) -> Result<Self, MathError> {
        Ok(Self { value: i64::try_from(bytes).map_err(|_| overflow())?, slope: 0 })
    }
    /// A size that is `now`, and `next` one step further.
    ///
    /// # Errors
    /// [`MathError::Overflow`] above 2^63 - 1.
    pub fn between(now: u64, next: u64) -> Result<Self, MathError> {
        let (now, next) = (Self::of(now)?.value, Self::of(next)?.value);
        Ok(Self { value: now, slope: next.checked_sub(now).ok_or_else(overflow)? })
    }
    /// Bytes now.
    ///
    /// # Errors
    /// [`MathError::Overflow`] for a negative size.
    pub fn now(self) -> Result<u64, MathError> {
        u64::try_from(self.value).map_err(|_| overflow())
    }
    /// Bytes `steps` further.
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn after(self, steps: u64) -> Result<u64, MathError> {
        let grown = i64::try_from(steps).ok().and_then(|steps| self.slope.checked_mul(steps)).ok_or_else(overflow)?;
        u64::try_from(self.value.checked_add(grown).ok_or_else(overflow)?).map_err(|_| overflow())
    }
    const fn is_constant(self) -> bool {
        self.slope == 0
    }
}

/// How many steps further every comparison so far keeps its outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Steps {
    most: u64,
}

impl Default for Steps {
    fn default() -> Self {
        Self { most: u64::MAX }
    }
}

impl Steps {
    /// The number of steps.
    #[must_use]
    pub const fn most(self) -> u64 {
        self.most
    }
    /// Allows no more than `most`.
    pub fn limit(&mut self, most: u64) {
        self.most = self.most.min(most);
    }
    fn compare(&mut self, a: Length, b: Length) -> Ordering {
        let now = a.value.cmp(&b.value);
        let (distance, closing) = match now {
            Ordering::Equal => {
                if a.slope != b.slope {
                    self.limit(0);
                }
                return now;
            }
            Ordering::Less => (i128::from(b.value) - i128::from(a.value), i128::from(a.slope) - i128::from(b.slope)),
            Ordering::Greater => (i128::from(a.value) - i128::from(b.value), i128::from(b.slope) - i128::from(a.slope)),
        };
        if closing > 0 {
            // The last step at which the distance is still above zero.
            let last = (distance - 1) / closing;
            self.limit(u64::try_from(last).unwrap_or(u64::MAX));
        }
        now
    }
}

#[cfg(test)]
mod tests {
    use super::{Amount, Length, Steps};

    #[test]
    fn a_comparison_says_how_long_it_holds() {
        let mut steps = Steps::default();
        // 100 + 10 n stays below 130 + 0 n for n = 0, 1, 2.
        assert!(!Length::at_least(&mut steps, Length::between(100, 110).unwrap(), Length::of(130).unwrap()));
        assert_eq!(steps.most(), 2);
        // Equal now and never again.
        assert!(Length::equal(&mut steps, Length::between(5, 6).unwrap(), Length::of(5).unwrap()));
        assert_eq!(steps.most(), 0);
    }

    #[test]
    fn rounding_keeps_a_straight_line_only_when_steps_are_aligned() {
        let mut steps = Steps::default();
        assert_eq!(Length::round_up(&mut steps, Length::between(10, 42).unwrap(), 32).unwrap().after(2).unwrap(), 96);
        assert_eq!(steps.most(), u64::MAX);
        Length::round_up(&mut steps, Length::between(10, 11).unwrap(), 32).unwrap();
        assert_eq!(steps.most(), 0);
    }
}
