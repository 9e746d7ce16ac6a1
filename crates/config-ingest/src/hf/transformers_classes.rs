//! Model classes of Transformers (5.23.0) whose cache is not what the config's windows and selectors say: one row for a
//! family of classes, with the file of `src/transformers/models` that says so.

use plimsoll_math::engine::transformers::cache::ModelClass;

const PLAIN: ModelClass = ModelClass { masks_windows: false, longer_window: 0, own_cache: false };

/// What the names of a family's classes begin with, where it says so, and what it decides.
const CLASSES: &[(&str, &str, ModelClass)] = &[
    // The local attention is a mask over a cache of every token.
    ("GPTNeoFor", "gpt_neo/modeling_gpt_neo.py", ModelClass { masks_windows: true, ..PLAIN }),
    // The window of the config counts the tokens before the one that is read.
    ("MiMoV2FlashFor", "mimo_v2_flash/configuration_mimo_v2_flash.py", ModelClass { longer_window: 1, ..PLAIN }),
    // A kind of layer of its own beside those of the library.
    ("MiniMaxM3", "minimax_m3_vl/modeling_minimax_m3_vl.py:minimax_m3_sparse", ModelClass { own_cache: true, ..PLAIN }),
];

/// What a class decides; most decide nothing.
pub(super) fn class_of(architecture: &str) -> ModelClass {
    CLASSES.iter().find(|(class, ..)| architecture.starts_with(class)).map_or(PLAIN, |(.., facts)| *facts)
}
