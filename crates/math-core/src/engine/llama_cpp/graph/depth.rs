//! How many layers of a graph have to be shown.
//!
//! What a layer adds to a graph follows from its kind and from the kinds of its neighbours: the layer before hands it what
//! is left to be computed, the layer after decides how long its results are needed. So a layer that has the same neighbours
//! as one that is shown need not be built; the replay puts it back ([`super::unroll`]), and tells when one neighbour on each
//! side does not say all. Shown are always the first layer of every kind, which may be the first to read an input on its
//! device, and the last, which may be the last to read it.

use alloc::vec;
use alloc::vec::Vec;

use super::tensors::Stack;

/// One step through the layers of a graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Step {
    /// The layer.
    pub(super) layer: usize,
}

/// Which layers a graph shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Depth {
    /// As few as stand for all, where a layer follows from its kind and those of one neighbour on each side.
    #[default]
    Few,
    /// As few as stand for all, where it takes two neighbours on each side.
    More,
    /// All.
    All,
}

impl Depth {
    /// Neighbours on each side that a layer follows from.
    pub(super) const fn reach(self) -> usize {
        match self {
            Self::Few => 1,
            Self::More => 2,
            Self::All => 0,
        }
    }
    /// What to show where this does not say all.
    pub(super) const fn next(self) -> Self {
        match self {
            Self::Few => Self::More,
            Self::More | Self::All => Self::All,
        }
    }
    /// The layers to show, given a number for the kind of each: equal numbers, equal layers. The last layer is of its own
    /// kind always, since rows of logits may be chosen in it.
    pub(super) fn steps(self, kinds: &[usize]) -> (Vec<Step>, Stack) {
        let stand_ins = match self {
            Self::All => (0..kinds.len()).collect(),
            Self::Few | Self::More => stand_ins(kinds, self.reach()),
        };
        let shown = || stand_ins.iter().enumerate().filter(|(layer, stand_in)| layer == *stand_in).map(|(layer, _)| layer);
        let steps: Vec<Step> = shown().map(|layer| Step { layer }).collect();
        // Among few, and most often close to the one before.
        let number = |wanted: usize| steps.binary_search_by_key(&wanted, |step| step.layer).unwrap_or(usize::MAX);
        let shown_as = stand_ins.iter().map(|stand_in| u32::try_from(number(*stand_in)).unwrap_or(u32::MAX)).collect();
        let stack = Stack { firsts: Vec::with_capacity(steps.len()), shown_as, reach: self.reach() };
        (steps, stack)
    }
}

/// A layer and its neighbours, as far as any depth looks.
const WIDEST: usize = 5;

/// For every layer the one that stands for it: itself where it is shown.
///
/// Layers are left out in runs such that those before and after the gap are of the kinds that they would meet without it.
fn stand_ins(kinds: &[usize], reach: usize) -> Vec<usize> {
    let last = kinds.len().saturating_sub(1);
    // The last layer is of its own kind; there is none before the first and after the last.
    let kind = |layer: usize| kinds.get(layer).map(|kind| if layer == last { usize::MAX } else { *kind });
    // The kinds of a layer and of so many before and after it, numbered.
    let around = |before: usize, after: usize| {
        let window = |layer: usize| {
            let mut out = [None; WIDEST];
            for (slot, steps) in out.iter_mut().zip(0..=before.saturating_add(after)) {
                *slot = layer.saturating_add(steps).checked_sub(before).and_then(kind);
            }
            out
        };
        self::kinds((0..kinds.len()).map(window))
    };
    let alike = around(reach, reach);
    // Whatever may take the place of a layer after the layer before it.
    let follows = around(reach, reach.saturating_sub(1));
    let n_kinds = kinds.iter().max().map_or(0, |most| most.saturating_add(1));
    // The first and the last layer of every kind.
    let mut edges: Vec<Option<[usize; 2]>> = vec![None; n_kinds];
    for (layer, kind) in kinds.iter().enumerate().take(last) {
        if let Some(edge) = edges.get_mut(*kind) {
            *edge = Some(edge.map_or([layer; 2], |[first, _]| [first, layer]));
        }
    }
    let is_edge = |layer: usize| {
        let edge = kinds.get(layer).and_then(|kind| edges.get(*kind)).copied().flatten();
        layer == last || edge.is_none_or(|edge| edge.contains(&layer))
    };
    let mut out = Vec::with_capacity(kinds.len());
    // The layer shown for each of those alike.
    let mut known: Vec<Option<usize>> = vec![None; kinds.len()];
    let stand_in = |known: &[Option<usize>], layer: usize| alike.get(layer).and_then(|kind| known.get(*kind)).copied().flatten();
    let mut layer = 0;
    while layer < kinds.len() {
        // The farthest layer that could follow the one shown last.
        let mut next = layer;
        let mut end = layer;
        while end < kinds.len() && !is_edge(end) && stand_in(&known, end).is_some() {
            end = end.saturating_add(1);
            if end < kinds.len() && follows.get(end) == follows.get(layer) {
                next = end;
            }
        }
        for gone in layer..next {
            out.push(stand_in(&known, gone).unwrap_or(gone));
        }
        layer = next;
        if layer < kinds.len() {
            if !is_edge(layer)
                && let Some(slot) = alike.get(layer).and_then(|kind| known.get_mut(*kind))
                && slot.is_none()
            {
                *slot = Some(layer);
            }
            out.push(layer);
            layer = layer.saturating_add(1);
        }
    }
    out
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
    use alloc::vec::Vec;

    use super::{Depth, kinds};

    /// The layers shown, and for every layer which of them stands for it.
    fn layers(text: &str, depth: Depth) -> (Vec<usize>, Vec<usize>) {
        let (steps, stack) = depth.steps(&kinds(text.chars()));
        let shown: Vec<usize> = steps.iter().map(|step| step.layer).collect();
        let stands = stack.shown_as.iter().map(|index| shown[usize::try_from(*index).unwrap()]).collect();
        (shown, stands)
    }

    #[test]
    fn layers_of_one_kind_are_shown_by_the_edges_and_one_between() {
        assert_eq!(layers("aaaaaaaaz", Depth::Few), ([0, 1, 7, 8].to_vec(), [0, 1, 1, 1, 1, 1, 1, 7, 8].to_vec()));
        assert_eq!(layers("aaaaaaaaz", Depth::More).0, [0, 1, 2, 6, 7, 8]);
        // Nothing to leave out.
        assert_eq!(layers("aaaz", Depth::Few).0, [0, 1, 2, 3]);
        assert_eq!(layers("z", Depth::Few).0, [0]);
        assert_eq!(layers("", Depth::Few).0, [0; 0]);
    }

    #[test]
    fn whoever_stands_for_a_layer_has_the_same_neighbours() {
        for text in [
            "llllllgllllllgllllllgllllllgllllllgllllllgllllllgllz",
            "m-m-m-m*-m-m-m-m*-m-m-m-m*-m-m-m-m*-m-m-m-m*-m-m-m-m-z",
            "ddmmmmammmmmmmmammmmmmmmammmmmmmmammmmmmmammmmmmmammz",
            "xababababababababababyz",
            "aabbccddeeffz",
        ] {
            for depth in [Depth::Few, Depth::More] {
                let all: Vec<char> = text.chars().collect();
                let (shown, stands) = layers(text, depth);
                assert!(shown.len() <= 27, "{text}: {shown:?}");
                let reach = depth.reach();
                let around = |layer: usize, of: &dyn Fn(usize) -> Option<char>| -> Vec<Option<char>> {
                    (0..=2 * reach).map(|steps| (layer + steps).checked_sub(reach).and_then(of)).collect()
                };
                let in_all = |layer: usize| all.get(layer).copied();
                for (layer, stand) in stands.iter().enumerate() {
                    assert_eq!(around(layer, &in_all), around(*stand, &in_all), "{text}");
                }
                // Those shown have the same neighbours among each other as in the model.
                let in_shown = |nth: usize| shown.get(nth).and_then(|layer| all.get(*layer)).copied();
                for (nth, layer) in shown.iter().enumerate() {
                    assert_eq!(around(nth, &in_shown), around(*layer, &in_all), "{text}: {shown:?}");
                }
            }
        }
    }
}
