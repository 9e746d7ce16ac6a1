//! Models that pass two states through two stacks of layers in turn (`src/models/hrm-text.cpp`): so many times the low one,
//! then the high one, and all of it again.

use super::depth::Step;
use super::ops::Node;
use super::parts::Parts;
use super::trunk::Trunk;
use crate::error::MathError;
use crate::spec::ModelSpec;

/// Layers of a stack, and passes of the low one before the high one; `None` where the layers are no such passes. Layers
/// without weights of their own repeat earlier ones: those with weights are the first pass of each stack.
fn passes(spec: &ModelSpec) -> Option<(usize, usize)> {
    let own = spec.layers.iter().filter(|layer| layer.weights_of.is_none()).count();
    let each = own.checked_div(2).filter(|each| *each > 0)?;
    let (_, later) = spec.layers.split_at_checked(each)?;
    let high = later.iter().position(|layer| layer.weights_of.is_none())?.checked_add(each)?;
    let low = high.checked_div(each)?;
    let round = each.checked_mul(low.checked_add(1)?)?;
    (high.checked_rem(each) == Some(0) && spec.layers.len().checked_rem(round) == Some(0)).then_some((each, low))
}

/// Both states through all passes: the high one at the end. `None` where the layers are no such passes.
pub(super) fn states(
    parts: &mut Parts,
    spec: &ModelSpec,
    steps: &[Step],
    trunk: &mut Trunk<'_>,
    embedded: Node,
) -> Result<Option<Node>, MathError> {
    let Some((each, low)) = passes(spec).filter(|_| parts.places.is_single()) else { return Ok(None) };
    let mut high_state = embedded;
    let with_input = parts.setting.states_lie_with_input;
    let mut low_state = if with_input { parts.host_weight(spec.d_model, 1)? } else { parts.weight(&[spec.d_model])? };
    let mut current = embedded;
    for step in steps {
        let Some(layer) = spec.layers.get(step.layer) else { continue };
        parts.begin_layer(step, layer);
        if step.layer.checked_rem(each) == Some(0) {
            current = parts.graph.sum(high_state, low_state)?;
        }
        current = trunk.layer(parts, layer, spec.d_model, step.layer, current, false)?;
        let number = step.layer.saturating_add(1);
        if number.checked_rem(each) != Some(0) {
            continue;
        }
        current = parts.bare_norm(current, trunk.row.norm)?;
        let pass = number.checked_div(each).unwrap_or(0);
        if pass.checked_rem(low.saturating_add(1)) == Some(0) {
            high_state = current;
        } else {
            low_state = current;
        }
    }
    Ok(Some(high_state))
}
