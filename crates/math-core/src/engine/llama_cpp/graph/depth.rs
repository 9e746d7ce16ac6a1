//! How many layers of a graph have to be shown.
//!
//! Layers that are built alike follow each other in rounds: one layer each, or a few kinds in turn. What the allocator does
//! in a round is decided by its state when the round begins. Once a state comes back, the rounds from there on repeat, so
//! nothing new happens however deep the model is: the rounds between may be left out, as long as the state after the last
//! one shown is the state that the last one of the model leaves. That is checked, not assumed: [`Depth::settle`] compares
//! states and asks for more rounds until one comes back or all are shown.

use alloc::vec::Vec;

/// Rounds shown at first.
const FEW: usize = 3;

/// The longest round that is looked for (Jamba repeats every 8 layers).
const LONGEST: usize = 12;

/// Rounds of layers that are built alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rounds {
    /// Layers of a round.
    period: usize,
    /// Rounds of the model.
    total: usize,
    /// Rounds in the graph.
    shown: usize,
}

/// One step through the layers of a graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Step {
    /// The layer.
    pub(super) layer: usize,
    /// A round ends before this layer, of layers that repeat.
    pub(super) ends_round: bool,
    /// A round begins with this layer; `true` for the first of its kind.
    pub(super) begins_round: Option<bool>,
}

/// Which layers a graph shows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Depth {
    rounds: Vec<Rounds>,
    /// All layers are shown.
    all: bool,
}

impl Depth {
    /// All layers.
    pub(super) const fn all() -> Self {
        Self { rounds: Vec::new(), all: true }
    }

    /// The layers to show, given a number for the kind of each: equal numbers, equal layers. The last layer is of its own
    /// kind always, since rows of logits may be chosen in it.
    pub(super) fn steps(&mut self, kinds: &[usize]) -> Vec<Step> {
        let known = core::mem::take(&mut self.rounds);
        let mut known = known.into_iter();
        let mut steps = Vec::new();
        let last = kinds.len().saturating_sub(1);
        let mut layer = 0;
        let mut ends_round = false;
        while layer < kinds.len() {
            let Some((period, total)) = longest_repeat(kinds.get(layer..last).unwrap_or(&[])) else {
                steps.push(Step { layer, ends_round, begins_round: None });
                ends_round = false;
                layer = layer.saturating_add(1);
                continue;
            };
            let few = if self.all { total } else { FEW };
            let shown = known.next().map_or(few, |rounds| rounds.shown).min(total);
            self.rounds.push(Rounds { period, total, shown });
            for round in 0..shown {
                for nth in 0..period {
                    steps.push(Step {
                        layer: layer.saturating_add(round.saturating_mul(period)).saturating_add(nth),
                        ends_round: nth == 0 && (ends_round || round > 0),
                        begins_round: (nth == 0).then_some(round == 0),
                    });
                }
                ends_round = false;
            }
            ends_round = true;
            layer = layer.saturating_add(total.saturating_mul(period));
        }
        steps
    }

    /// Whether the states between rounds, in order, show that the rounds left out would change nothing. If not, more rounds
    /// will be shown.
    pub(super) fn settle<S: PartialEq>(&mut self, mut states: &[S]) -> bool {
        let mut settled = true;
        for rounds in &mut self.rounds {
            let (own, rest) = states.split_at_checked(rounds.shown.saturating_add(1)).unwrap_or((states, &[]));
            states = rest;
            let missing = rounds.total.saturating_sub(rounds.shown);
            if missing == 0 {
                continue;
            }
            let Some((after, before)) = own.split_last() else { continue };
            match before.iter().rev().position(|state| state == after) {
                // The state comes back every so many rounds.
                Some(position) => {
                    let cycle = position.saturating_add(1);
                    let more = missing.checked_rem(cycle).unwrap_or(0);
                    rounds.shown = rounds.shown.saturating_add(more);
                    settled &= more == 0;
                }
                None => {
                    rounds.shown = rounds.shown.saturating_mul(2).min(rounds.total);
                    settled = false;
                }
            }
        }
        settled
    }
}

/// The round that covers most of the first layers, with how often it repeats; `None` when nothing would be left out.
fn longest_repeat(kinds: &[usize]) -> Option<(usize, usize)> {
    let mut best: Option<(usize, usize)> = None;
    for period in 1..=LONGEST.min(kinds.len()) {
        let matching = kinds.iter().zip(kinds.iter().skip(period)).take_while(|(a, b)| a == b).count();
        let total = matching.checked_div(period)?.saturating_add(1);
        let covered = total.saturating_mul(period);
        if total > FEW && best.is_none_or(|(period, total)| covered > period.saturating_mul(total)) {
            best = Some((period, total));
        }
    }
    best
}

/// A number for the kind of each item: equal numbers for equal items.
pub(super) fn kinds<T: PartialEq>(items: impl Iterator<Item = T>) -> Vec<usize> {
    let mut known: Vec<T> = Vec::new();
    let mut out: Vec<usize> = Vec::new();
    for item in items {
        // Most often the one seen last.
        let kind = known.iter().rposition(|kind| *kind == item).unwrap_or_else(|| {
            known.push(item);
            known.len().saturating_sub(1)
        });
        out.push(kind);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::{Depth, kinds};

    fn layers(depth: &mut Depth, text: &str) -> alloc::vec::Vec<usize> {
        depth.steps(&kinds(text.chars())).iter().map(|step| step.layer).collect()
    }

    #[test]
    fn rounds_that_repeat_are_shown_three_times_and_more_on_request() {
        let mut depth = Depth::default();
        // One layer of its own, eight rounds of `ab`, one of its own, the last.
        assert_eq!(layers(&mut depth, "xababababababababyz"), [0, 1, 2, 3, 4, 5, 6, 17, 18]);
        // States never equal: twice as many.
        assert!(!depth.settle(&[1, 2, 3, 4]));
        assert_eq!(layers(&mut depth, "xababababababababyz").len(), 1 + 12 + 2);
        // A state that comes back every other round, with an even number of rounds left out.
        assert!(depth.settle(&[1, 2, 3, 4, 5, 4, 5]));
        assert_eq!(layers(&mut depth, "xababababababababyz").len(), 1 + 12 + 2);
    }

    #[test]
    fn a_state_that_does_not_come_out_right_asks_for_the_odd_round() {
        let mut depth = Depth::default();
        assert_eq!(layers(&mut depth, "aaaaaaz").len(), 4);
        assert!(!depth.settle(&[1, 2, 3, 2]));
        assert_eq!(layers(&mut depth, "aaaaaaz").len(), 5);
    }
}
